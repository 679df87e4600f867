"""Child-Tuning: the gradients that are masked, against NumPy, and what is refused."""

import keras
import numpy as np
import pytest
import twin
from bases import plain
from modes import BACKEND, Runner, to_numpy

from sage_keras import BIASES_AND_HEAD, ChildTuning, ChildTuningAdamW, LayerwiseAdamW
from sage_keras.random_bits import chosen, random_bits

RATE = float(np.float32(1e-2))
SHAPES = [(7, 5), (6,)]
STEPS = 6
COMPILED = "eager" if BACKEND == "torch" else "xla"


def start():
    random = np.random.default_rng(1)
    return [random.normal(size=shape).astype("float32") for shape in SHAPES]


def gradients(step):
    random = np.random.default_rng(100 + step)
    return [random.normal(size=shape).astype("float32") for shape in SHAPES]


def scores():
    random = np.random.default_rng(2)
    return {f"weight_{i}": random.uniform(size=shape) for i, shape in enumerate(SHAPES)}


def trained(optimizer, mode="eager", steps=STEPS):
    variables = [keras.Variable(one, name=f"weight_{i}") for i, one in enumerate(start())]
    runner = Runner(optimizer, variables, mode)
    for step in range(steps):
        runner.step(gradients(step))
    return runner


@pytest.mark.parametrize("mode", sorted({"eager", COMPILED}))
@pytest.mark.parametrize("what", ["free", "driven"])
def test_follows_the_twin(what, mode):
    """Clipping sees the masked gradients; the free child is drawn again with each update."""
    given = {"scores": scores()} if what == "driven" else {"seed": 5}
    optimizer = ChildTuningAdamW(
        RATE,
        mode=what,
        fraction=0.4,
        weight_decay=0.1,
        global_clipnorm=0.5,
        **given,
    )
    runner = trained(optimizer, mode)
    twins = [twin.Adam(one, RATE, guide=False, weight_decay=0.1) for one in start()]
    for step in range(STEPS):
        masked = []
        for index, gradient in enumerate(gradients(step)):
            if what == "driven":
                score = scores()[f"weight_{index}"]
                count = {35: 14, 6: 3}[score.size]
                masked.append(gradient * (score >= np.sort(score, axis=None)[-count]))
            else:
                mask = to_numpy(chosen(random_bits(5 + index, step, gradient.shape), 0.4))
                masked.append(gradient * mask / 0.4)
        for one, gradient in zip(twins, twin.clip_by_global_norm(masked, 0.5), strict=True):
            one.step(gradient)
    for weight, one in zip(runner.weights(), twins, strict=True):
        np.testing.assert_allclose(weight, one.weight, rtol=1e-5, atol=1e-6)
    assert mode == "eager" or runner.compilations == 1


class ChildTuningSGD(ChildTuning, keras.optimizers.SGD):
    pass


def test_gradients_of_the_free_child_are_divided_by_its_fraction():
    """Seen where the base goes by their size, as Adam does not."""
    moved = trained(ChildTuningSGD(RATE, fraction=0.4, seed=5), steps=1).weights()
    for index, (before, gradient) in enumerate(zip(start(), gradients(0), strict=True)):
        mask = to_numpy(chosen(random_bits(5 + index, 0, gradient.shape), 0.4))
        expected = before - RATE * gradient * mask / 0.4
        np.testing.assert_allclose(moved[index], expected, rtol=1e-6)


def test_a_fraction_of_one_equals_the_base_to_the_bit():
    one = trained(ChildTuningAdamW(RATE, fraction=1.0, seed=0)).weights()
    for weight, expected in zip(one, trained(plain("AdamW")(RATE)).weights(), strict=True):
        np.testing.assert_array_equal(weight, expected)


def test_a_resumed_run_draws_and_masks_as_one_that_was_not_stopped():
    for given in ({"seed": 5}, {"mode": "driven", "scores": scores()}):
        whole = trained(ChildTuningAdamW(RATE, **given))
        first = trained(ChildTuningAdamW(RATE, **given), steps=3)
        store = {}
        first.optimizer.save_own_variables(store)
        again = ChildTuningAdamW.from_config(first.optimizer.get_config())
        again.build(first.variables)
        again.load_own_variables(store)
        for step in range(3, STEPS):
            grads = [keras.ops.convert_to_tensor(one) for one in gradients(step)]
            again.apply(grads, first.variables)
        for weight, expected in zip(first.weights(), whole.weights(), strict=True):
            np.testing.assert_array_equal(weight, expected)


def test_micro_steps_share_a_draw():
    optimizer = ChildTuningAdamW(RATE, fraction=0.5, seed=3, gradient_accumulation_steps=2)
    runner = trained(optimizer, steps=1)
    once = runner.slot(runner.variables[0], "gradient_accumulator") != 0
    mask = to_numpy(chosen(random_bits(3, 0, SHAPES[0]), 0.5))
    np.testing.assert_array_equal(once, mask)
    runner.step(gradients(1))
    np.testing.assert_array_equal(runner.slot(runner.variables[0], "momentum") != 0, mask)


BAD = {
    "mode": ({"mode": "F"}, ValueError, '`mode` must be "free" or "driven"'),
    "fraction": ({"fraction": 0}, ValueError, "`fraction` must be above 0"),
    "fraction of a type": ({"fraction": None}, TypeError, "`fraction` must be a float"),
    "driven without scores": ({"mode": "driven"}, ValueError, 'a dict of .* with mode="driven"'),
    "free with scores": ({"scores": scores()}, ValueError, 'and None with mode="free"'),
    "a name": ({"mode": "driven", "scores": "fisher"}, ValueError, "must be a dict of variable"),
    "NaN": ({"mode": "driven", "scores": {"w": [np.nan]}}, ValueError, "not finite"),
    "lacking": ({"mode": "driven", "scores": {"v": [1.0]}}, ValueError, "lacks variables"),
    "seed": ({"seed": 1.5}, TypeError, "`seed` must be an integer"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_arguments_are_refused(what):
    arguments, error, message = BAD[what]
    with pytest.raises(error, match=message):
        ChildTuningAdamW(**arguments).build([keras.Variable([1.0, 2.0], name="w")])


def test_bitfit_trains_biases_and_head_and_has_no_other_state():
    layers = [
        keras.layers.Dense(3, name="hidden"),
        keras.layers.LayerNormalization(name="norm"),
        keras.layers.Dense(2, name="logits"),
    ]
    model = keras.Sequential([keras.Input((4,)), *layers])
    rates = dict.fromkeys(BIASES_AND_HEAD, 1.0) | {"": 0.0}
    optimizer = LayerwiseAdamW(0.1, learning_rate_multipliers=rates)
    optimizer.build(model.trainable_variables)
    trained = [path.split("/", 1)[1] for path, factor in optimizer.multipliers.items() if factor]
    assert trained == ["hidden/bias", "norm/beta", "logits/kernel", "logits/bias"]
    assert len(optimizer.variables) == 2 + 2 * 4
