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
        self._share_the_schedule()
        # The step count is one for all runs, or a condition on it would take both branches.
        self._axes = [
            None if variable is self.optimizer.iterations else 0
            for variable in self.optimizer.variables
        ]
        self._inputs = keras.tree.map_structure(jnp.asarray, data.train[0])
        self._validation = keras.tree.map_structure(jnp.asarray, self._batched(data.validation))
        # Two programs: what one arm compiles of the model, the others find in JAX's cache.
        self._differentiate = jax.jit(jax.vmap(self._gradients, in_axes=(0, 0, None, 0, 0)))
        self._update = jax.jit(
            jax.vmap(self._apply, in_axes=(0, self._axes, 0), out_axes=(0, self._axes)),
            donate_argnums=(0, 1),
        )
        self._predict = jax.jit(jax.vmap(self._logits, in_axes=(0, 0, None)))

    def run(self, runs):
        """Trains from the start, and measures.

        Args:
            runs: List of at most `count` tuples of learning rate and seed.

        Returns:
            List of dicts, as of `Trainer.run`; `seconds` is the share of each.
        """
        began = time.perf_counter()
        filled = [*runs, *[runs[-1]] * (self.count - len(runs))]
        trained, others, slots, rows, labels = self._begin(filled)
        losses = []
        for step_rows, step_labels in zip(rows, labels):
            loss, others, gradients = self._differentiate(
                trained, others, self._inputs, step_rows, step_labels
            )
            trained, slots = self._update(trained, slots, gradients)
            losses.append(loss)
        logits = np.asarray(self._predict(trained, others, self._validation))
        logits = logits[:, : len(self.data.validation[1])]
        losses = np.mean(losses[-self.steps :], axis=0).tolist()
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

    def _share_the_schedule(self):
        """Makes the steps of the schedule variables: tasks of any length share one program."""
        schedule, optimizer = self.optimizer.schedule, self.optimizer
        for name in ("total_steps", "warmup_steps"):
            value = keras.initializers.Constant(getattr(schedule, name))
            setattr(schedule, name, optimizer.add_variable((), value, "float32", name=name))

    def _begin(self, runs):
        """Weights, other variables and slots of all runs side by side; examples by step."""
        model, optimizer = self.model, self.optimizer
        parts = [model.trainable_variables, model.non_trainable_variables, optimizer.variables]
        states, orders = [], {}
        for learning_rate, seed in runs:
            self.reset(learning_rate, seed)
            states.append([[jnp.copy(one.value) for one in part] for part in parts])
            if seed not in orders:
                numbered = Data((np.arange(len(self.data.train[1])), self.data.train[1]), None)
                examples = self.task.draw_examples(numbered, seed)
                orders[seed] = in_order(*examples, self.steps, self.task.epochs, seed)
        trained, others, slots = jax.tree.map(lambda *values: jnp.stack(values), *states)
        slots = [one[0] if axis is None else one for axis, one in zip(self._axes, slots)]
        steps = self.steps * self.task.epochs

        def by_step(which):
            array = np.stack([orders[seed][which] for _, seed in runs])
            return array.reshape(self.count, steps, BATCH_SIZE, *array.shape[2:]).swapaxes(0, 1)

        return trained, others, slots, by_step(0), by_step(1)

    def _gradients(self, trained, others, inputs, rows, labels):
        inputs = keras.tree.map_structure(lambda array: array[rows], inputs)

        def loss(trained):
            logits, new = self.model.stateless_call(trained, others, inputs, training=True)
            return self.loss(labels, jnp.asarray(logits, "float32")), new

        (value, others), gradients = jax.value_and_grad(loss, has_aux=True)(trained)
        return value, others, gradients

    def _apply(self, trained, slots, gradients):
        return self.optimizer.stateless_apply(slots, gradients, trained)

    def _logits(self, trained, others, batches):
        def predict(batch):
            logits, _ = self.model.stateless_call(trained, others, batch, training=False)
            return jnp.asarray(logits, "float32")

        logits = jax.lax.map(predict, batches)
        return logits.reshape(-1, *logits.shape[2:])

    @staticmethod
    def _batched(validation):
        """The inputs in batches of one size, the first ones again at the end."""
        inputs, labels = validation
        count = math.ceil(len(labels) / VALIDATION_BATCH_SIZE)
        rows = np.arange(count * VALIDATION_BATCH_SIZE) % len(labels)
        return keras.tree.map_structure(
            lambda array: array[rows].reshape(count, VALIDATION_BATCH_SIZE, *array.shape[1:]),
            inputs,
        )


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
