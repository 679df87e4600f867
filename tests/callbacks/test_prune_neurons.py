"""Neurons zeroed while a model trains: how many, which, and that they stay so."""

import keras
import numpy as np
import pytest
from keras import layers
from modes import to_numpy

from sage_keras import DPSMix, Sage, SageSGD, compression
from sage_keras.callbacks import PruneNeurons

GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(40, 6)).astype("float32")
Y = GENERATOR.normal(size=(40, 1)).astype("float32")
STEPS = 10  # of an epoch
UNITS = 8


def network(optimizer, activation="relu"):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(UNITS, name="first"),
            layers.BatchNormalization(),
            layers.Activation("gelu"),
            layers.Dense(UNITS, activation=activation, name="second"),
            layers.Dense(1, name="head"),
        ]
    )
    model.compile(optimizer, "mse", run_eagerly=keras.backend.backend() == "tensorflow")
    return model


def fit(model, *callbacks, epochs=2, **arguments):
    return model.fit(
        X,
        Y,
        batch_size=4,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=callbacks,
        **arguments,
    ).history


class Watch(keras.callbacks.Callback):
    """The zeroed neurons after each step: those of the hidden layers, all of whose weights are."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()
        first, norm, _, second, head = self.model.layers
        parts = [
            [first.kernel, first.bias, norm.gamma, norm.beta],
            [second.kernel, second.bias],
        ]
        after = [second.kernel, head.kernel]
        self.seen.append(
            [
                {
                    unit
                    for unit in range(UNITS)
                    if not any(to_numpy(one)[..., unit].any() for one in before)
                    and not to_numpy(kernel)[unit].any()
                }
                for before, kernel in zip(parts, after)
            ]
        )


OPTIMIZERS = {
    "Sage": lambda: Sage(1e-2, weight_decay=0.1),
    "SageSGD, averaged": lambda: SageSGD(1e-2, momentum=0.9, use_ema=True, ema_momentum=0.9),
    "AdamW, accumulating": lambda: keras.optimizers.AdamW(1e-2, gradient_accumulation_steps=2),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(Sage(1e-2), initial_scale=2.0),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_neurons_go_by_the_schedule_and_stay_away(name):
    optimizer = OPTIMIZERS[name]()
    scores = "magnitude" if "AdamW" in name else "sensitivity"
    watch = Watch()
    prune = PruneNeurons(0.75, scores=scores, rounds=3, begin=0.2, end=0.6)
    history = fit(network(optimizer), watch, prune)
    model = watch.model
    # 6 of 8 in three rounds of a cubic curve, after the steps 4, 8 and 12.
    expected = [0] * 4 + [4] * 4 + [6] * 12
    assert [[len(units) for units in seen] for seen in watch.seen] == [[n, n] for n in expected]
    for before, after in zip(watch.seen, watch.seen[1:]):
        assert all(one <= other for one, other in zip(before, after))
    assert history["pruned_neurons"] == [0.75, 0.75]
    assert {name: set(found) for name, found in prune.pruned.items()} == dict(
        zip(["first", "second"], watch.seen[-1])
    )
    small = compression.compact(model)
    assert [small.get_layer(one).units for one in ("first", "second")] == [2, 2]
    np.testing.assert_allclose(to_numpy(small(X)), to_numpy(model(X)), atol=1e-5)


def test_the_least_sensitive_neurons_go():
    """As the optimizer has them after half of the steps."""
    alone = network(Sage(1e-2))
    fit(alone, epochs=1)
    first, norm, _, second, head = (
        [to_numpy(alone.optimizer.sensitivity(one)) for one in layer.trainable_variables]
        for layer in alone.layers
    )
    scores = {
        "first": first[0].sum(axis=0) + first[1] + norm[0] + norm[1] + second[0].sum(axis=1),
        "second": second[0].sum(axis=0) + second[1] + head[0].sum(axis=1),
    }
    prune = PruneNeurons(0.5, rounds=1, begin=0.5, end=0.5)
    fit(network(Sage(1e-2)), prune)
    for name, sums in scores.items():
        assert sorted(prune.pruned[name]) == sorted(np.argsort(sums)[:4])


REFUSED = {
    "without sensitivities": (
        lambda: network("adamw"),
        {},
        "finds no sensitivities in the optimizer",
    ),
    "mixed weights": (
        lambda: network(DPSMix(total_steps=20, seed=0)),
        {"scores": "magnitude"},
        "does not work with an optimizer that mixes weights",
    ),
    "not zero at zero": (
        lambda: network(Sage(), activation="sigmoid"),
        {},
        r"activations that are zero at zero.* layers: \['second'\]",
    ),
    "not guided": (
        lambda: network(Sage(exclude=["head"])),
        {"begin": 0.1},
        "finds no sensitivities of '.*head/kernel' in the optimizer",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_it_cannot_do_is_refused_before_a_neuron_is_zeroed(case):
    make, arguments, message = REFUSED[case]
    model = make()
    with pytest.raises(ValueError, match=message):
        fit(model, PruneNeurons(0.5, **arguments))
    with pytest.raises(ValueError, match="has no zeroed neurons"):
        compression.compact(model)


def test_data_of_unknown_length_are_refused():
    def batches():
        while True:
            yield X[:4], Y[:4]

    with pytest.raises(ValueError, match="Pass `steps_per_epoch` to `fit`"):
        network(Sage()).fit(batches(), callbacks=[PruneNeurons(0.5)], verbose=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fraction": 0}, "`fraction` must be above 0 and below 1"),
        ({"fraction": 1}, "`fraction` must be above 0"),
        ({"fraction": 0.5, "scores": "size"}, '`scores` must be "sensitivity" or "magnitude"'),
        ({"fraction": 0.5, "rounds": 0}, "`rounds` must be at least 1"),
        ({"fraction": 0.5, "begin": -1}, "`begin` must be a number from 0 to 1"),
        ({"fraction": 0.5, "end": 1.5}, "`end` must be a number from 0 to 1"),
        ({"fraction": 0.5, "begin": 0.8}, "`begin` must be at most `end`"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PruneNeurons(**arguments)
