"""Runs of one arm on one task, which share one compiled model."""

import math
import time

import keras
import numpy as np
from keras import ops

from evidence.tasks import METRICS
from sage_keras import WeightMixing
from sage_keras.callbacks import SwapTrueWeights

BATCH_SIZE = 32
VALIDATION_BATCH_SIZE = 128


class Start:
    """A task's model and an arm's optimizer, and how a run with them begins.

    Weights, slots and seeds are reset before each run, so that a run does not depend on those
    before it.

    Args:
        task: A `Task`.
        data: Its `Data`.
        arm: An `Arm`.
    """

    def __init__(self, task, data, arm):
        self.task = task
        self.data = data
        self.steps = (task.train_size or len(data.train[1])) // BATCH_SIZE
        self.model = task.make_model()
        self.optimizer = arm.make_optimizer(task.epochs * self.steps)
        self.loss = keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, ignore_class=task.ignored_label
        )
        self.optimizer.build(self.model.trainable_variables)
        self.variables = self.model.variables + self.optimizer.variables
        self._initial = [np.array(ops.convert_to_numpy(one)) for one in self.variables]

    def reset(self, learning_rate, seed):
        """Sets every variable to what it is at the beginning of a run.

        Args:
            learning_rate: Float, the highest of the schedule.
            seed: Integer, which the new weights, dropout and whatever the optimizer draws follow
                from.
        """
        keras.utils.set_random_seed(seed)  # torch's dropout has no seed of its own
        for variable, value in zip(self.variables, self._initial):
            variable.assign(value.copy())  # JAX may keep the array itself, and write into it
        self.task.draw_weights(self.model, seed)
        random = np.random.default_rng([seed, 2])
        for variable in self.model.variables:
            if variable.path.endswith("seed_generator_state"):  # of dropout
                variable.assign(np.array([random.integers(2**31), 0], "uint32"))
        self.optimizer.schedule.peak.assign(learning_rate)
        if hasattr(self.optimizer, "reseed"):
            self.optimizer.reseed(seed)


class Trainer(Start):
    """Trains one arm on one task, again and again, on a model that is compiled once.

    Args:
        task: A `Task`.
        data: Its `Data`.
        arm: An `Arm`.
    """

    def __init__(self, task, data, arm):
        super().__init__(task, data, arm)
        self.model.compile(optimizer=self.optimizer, loss=self.loss)
        # The first `fit` traces the model, which on torch draws random numbers.
        self._fit(*in_order(*data.train, steps=1, epochs=1, seed=0), epochs=1)

    def run(self, learning_rate, seed):
        """Trains from the start, and measures.

        Args:
            learning_rate: Float, the highest of the schedule.
            seed: Integer, which the training examples, the new weights, dropout, the order of the
                examples and whatever the optimizer draws follow from.

        Returns:
            Dict of `value`, the metric on the validation data after the last epoch; `train_loss`,
            the mean of the last epoch, `None` if it is not finite; `seconds`; and what else the
            metric tells.
        """
        began = time.perf_counter()
        self.reset(learning_rate, seed)
        examples = self.task.draw_examples(self.data, seed)
        batches = in_order(*examples, self.steps, self.task.epochs, seed)
        history = self._fit(*batches, self.task.epochs)
        loss = history["loss"][-1]
        return {
            **self.measure(),
            "train_loss": loss if math.isfinite(loss) else None,
            "seconds": time.perf_counter() - began,
        }

    def _fit(self, inputs, labels, epochs):
        mixing = isinstance(self.optimizer, WeightMixing)
        return self.model.fit(
            **batched(inputs, labels, BATCH_SIZE),
            epochs=epochs,
            steps_per_epoch=len(labels) // BATCH_SIZE // epochs,
            shuffle=False,
            callbacks=[SwapTrueWeights()] if mixing else [],
            verbose=0,
        ).history

    def measure(self):
        """The metric of the model as it is, on the validation data, as a dict."""
        inputs, labels = self.data.validation
        # All batches of one size, or the rest would be compiled for itself.
        rows = np.arange(len(labels) + -len(labels) % VALIDATION_BATCH_SIZE) % len(labels)
        padded = keras.tree.map_structure(lambda array: array[rows], inputs)
        batches = batched(padded, labels[rows], VALIDATION_BATCH_SIZE)
        batches.pop("y", None)  # `predict` has no such argument, and skips a dataset's labels
        logits = self.model.predict(**batches, verbose=0)
        return METRICS[self.task.metric](labels, logits[: len(labels)])


def batched(inputs, labels, batch_size):
    """Arguments of `fit` that make it read the examples as they lie, in batches.

    On TensorFlow they are a dataset that does not tune itself: on a machine of one core the tuner
    makes every step wait for a whole second to be over.

    Args:
        inputs: Array or dict of arrays.
        labels: Array.
        batch_size: Integer.

    Returns:
        Dict of keyword arguments.
    """
    if keras.backend.backend() != "tensorflow":
        return {"x": inputs, "y": labels, "batch_size": batch_size}
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    dataset = tf.data.Dataset.from_tensor_slices((inputs, labels)).batch(batch_size)
    return {"x": dataset.with_options(options)}


def in_order(inputs, labels, steps, epochs, seed):
    """The examples of a whole training, one after the other: whole batches, shuffled by epoch.

    Args:
        inputs: Array or dict of arrays.
        labels: Array.
        steps: Integer, the batches of an epoch.
        epochs: Integer.
        seed: Integer that the order follows from.

    Returns:
        Tuple of inputs and labels.
    """
    random = np.random.default_rng([seed, 3])
    orders = [random.permutation(len(labels))[: steps * BATCH_SIZE] for _ in range(epochs)]
    order = np.concatenate(orders)
    return keras.tree.map_structure(lambda array: array[order], (inputs, labels))
