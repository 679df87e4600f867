"""Trains an arm many times at once: runs that differ in seed and rate alone, on one accelerator.

    KERAS_BACKEND=jax python -m evidence.at_once --tasks cola --arms AdamW --glue-dir FOLDER

Each run sees the same examples in the same order, the same new weights and the same dropout as by
`evidence.grid`. What differs is the precision, which is written to the line. On JAX only.
"""

import argparse
import math
import pathlib
import time

import jax
import jax.numpy as jnp
import keras
import numpy as np

from evidence import grid
from evidence import lines as results
from evidence.arms import ARMS
from evidence.tasks import METRICS, Data, make_tasks
from evidence.training import BATCH_SIZE, VALIDATION_BATCH_SIZE, Start, in_order
from sage_keras import WeightMixing


class Batch(Start):
    """Trains one arm on one task, so many runs at once.

    Args:
        task: A `Task`.
        data: Its `Data`.
        arm: An `Arm`. Not one that mixes weights, whose true weights only callbacks restore.
        count: Integer, how many runs.
    """

    def __init__(self, task, data, arm, count):
        super().__init__(task, data, arm)
        if isinstance(self.optimizer, WeightMixing):
            raise ValueError(f"{arm} mixes weights: run it by evidence.grid")
        self.count = count
        sizes = [len(self.model.trainable_variables), len(self.model.non_trainable_variables)]
        self._cuts = np.cumsum(sizes).tolist()
        # The step count is one for all runs, or a condition on it would take both branches.
        self._axes = [
            None if variable is self.optimizer.iterations else 0 for variable in self._order()
        ]
        self._inputs = keras.tree.map_structure(jnp.asarray, data.train[0])
        self._train = jax.jit(self._train_all, donate_argnums=0)
        self._predict = jax.jit(self._predict_all)

    def run(self, runs):
        """Trains from the start, and measures.

        Args:
            runs: List of at most `count` tuples of learning rate and seed.

        Returns:
            List of dicts, as of `Trainer.run`; `seconds` is the share of each.
        """
        began = time.perf_counter()
        filled = [*runs, *[runs[-1]] * (self.count - len(runs))]
        state, rows, labels = self._begin(filled)
        state, losses = self._train(state, rows, labels)
        logits = np.asarray(self._predict(state), "float32")[:, : len(self.data.validation[1])]
        losses = np.asarray(losses)[-self.steps :].mean(axis=0).tolist()
        seconds = (time.perf_counter() - began) / len(runs)
        metric = METRICS[self.task.metric]
        return [
            {
                **metric(self.data.validation[1], answers),
                "train_loss": loss if math.isfinite(loss) else None,
                "seconds": seconds,
            }
            for answers, loss, _ in zip(logits, losses, runs)
        ]

    def _order(self):
        """All variables: those to train, the others, and the optimizer's."""
        model = self.model
        return model.trainable_variables + model.non_trainable_variables + self.optimizer.variables

    def _begin(self, runs):
        """The state of all runs side by side, and the examples of each by step."""
        states, orders = [], {}
        for learning_rate, seed in runs:
            self.reset(learning_rate, seed)
            states.append([jnp.copy(variable.value) for variable in self._order()])
            if seed not in orders:
                numbered = Data((np.arange(len(self.data.train[1])), self.data.train[1]), None)
                examples = self.task.draw_examples(numbered, seed)
                orders[seed] = in_order(*examples, self.steps, self.task.epochs, seed)
        state = [
            values[0] if axis is None else jnp.stack(values)
            for axis, *values in zip(self._axes, *states)
        ]
        steps = self.steps * self.task.epochs

        def by_step(which):
            array = np.stack([orders[seed][which] for _, seed in runs])
            return array.reshape(self.count, steps, BATCH_SIZE, *array.shape[2:]).swapaxes(0, 1)

        return state, by_step(0), by_step(1)

    def _split(self, state):
        first, second = self._cuts
        return state[:first], state[first:second], state[second:]

    def _train_all(self, state, rows, labels):
        step = jax.vmap(self._step, in_axes=(self._axes, 0, 0), out_axes=(self._axes, 0))

        def body(state, examples):
            return step(state, *examples)

        return jax.lax.scan(body, state, (rows, labels))

    def _step(self, state, rows, labels):
        trained, others, slots = self._split(state)
        inputs = keras.tree.map_structure(lambda array: array[rows], self._inputs)

        def loss(trained):
            logits, new = self.model.stateless_call(trained, others, inputs, training=True)
            return self.loss(labels, jnp.asarray(logits, "float32")), new

        (value, others), gradients = jax.value_and_grad(loss, has_aux=True)(trained)
        trained, slots = self.optimizer.stateless_apply(slots, gradients, trained)
        return [*trained, *others, *slots], value

    def _predict_all(self, state):
        inputs, labels = self.data.validation
        count = math.ceil(len(labels) / VALIDATION_BATCH_SIZE)
        rows = np.arange(count * VALIDATION_BATCH_SIZE) % len(labels)
        batches = keras.tree.map_structure(
            lambda array: array[rows].reshape(count, VALIDATION_BATCH_SIZE, *array.shape[1:]),
            inputs,
        )

        def one_run(state):
            trained, others, _ = self._split(state)

            def predict(batch):
                logits, _ = self.model.stateless_call(trained, others, batch, training=False)
                return jnp.asarray(logits, "float32")

            logits = jax.lax.map(predict, batches)
            return logits.reshape(-1, *logits.shape[2:])

        return jax.vmap(one_run, in_axes=(self._axes,))(state)


class Grid(grid.Grid):
    """A grid whose runs of one arm and task are made together.

    Args:
        path: `pathlib.Path` of the JSON lines.
        arms: List of `Arm`s.
        count: Integer, how many runs at once.
        seeds: List of integers, or `None` for those of each phase.
    """

    def __init__(self, path, arms, count, seeds=None):
        super().__init__(path, arms, seeds)
        self.count = count

    def run_all(self, task, phase, rates=None):
        """Makes what is missing of a task and phase.

        Args:
            task: A `Task`.
            phase: String.
            rates: List of floats, or `None` for those of the phase.
        """
        missing = self.missing(task, phase, rates)
        for arm in self.arms:
            wanted = [(rate, seed) for one, rate, seed, _ in missing if one is arm]
            for begin in range(0, len(wanted), self.count):
                self._run_together(task, arm, wanted[begin : begin + self.count], phase)

    def _run_together(self, task, arm, runs, phase):
        found = self._make_trainer(task, arm).run(runs)
        for (learning_rate, seed), values in zip(runs, found):
            self._add(task, arm, learning_rate, seed, phase, values)

    def _new_trainer(self, task, data, arm):
        return Batch(task, data, arm, self.count)


def main(arguments=None):
    options = parse_arguments(arguments)
    if keras.backend.backend() != "jax":
        raise SystemExit("Runs at once need KERAS_BACKEND=jax.")
    keras.config.set_dtype_policy(options.precision)
    keras.config.disable_flash_attention()  # it has no rule for several runs
    if options.precision == "float32":
        jax.config.update("jax_default_matmul_precision", "highest")
    tasks = make_tasks(options.glue_dir)
    grid.check("--tasks", options.tasks, tasks)
    grid.check("--arms", options.arms, [str(arm) for arm in ARMS])
    arms = [arm for arm in ARMS if str(arm) in options.arms]
    made = Grid(options.results, arms, options.at_once)
    made.surroundings |= {
        "machine": ", ".join(dict.fromkeys(device.device_kind for device in jax.devices())),
        "precision": options.precision,
        "at_once": options.at_once,
    }
    for name in options.tasks:
        for phase in options.phase:
            made.seeds = options.tune_seeds if phase == "tune" else options.seeds
            made.run_all(tasks[name], phase, options.rates)


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--tasks", nargs="+", required=True, help="as in evidence.grid")
    add("--arms", nargs="+", required=True, help='such as AdamW or "Sage 0.75"')
    add("--phase", nargs="+", choices=grid.SEEDS, default=["tune", "final"], help="in this order")
    add("--seeds", nargs="+", type=int, help="those of the phase if left out")
    add("--tune-seeds", nargs="+", type=int, help="likewise, of tuning")
    add("--rates", nargs="+", type=float, help="those of the phase if left out")
    add("--at-once", type=int, default=8, help="how many runs")
    add("--precision", default="mixed_bfloat16", choices=["float32", "mixed_bfloat16"])
    add("--glue-dir", type=pathlib.Path, help="as in evidence.grid")
    add("--results", type=pathlib.Path, default=results.RESULTS, help="the file of JSON lines")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
