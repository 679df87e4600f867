"""Runs an optimizer's step eagerly, in a graph, or compiled, on whichever backend is chosen."""

import contextlib

import keras
import numpy as np

BACKEND = keras.backend.backend()
MODES = ("eager", "graph", "xla")


def to_numpy(value):
    return np.array(keras.ops.convert_to_numpy(value))


def float64_allowed():
    """A context in which JAX has float64 too."""
    if BACKEND != "jax":
        return contextlib.nullcontext()
    import jax

    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    return jax.experimental.enable_x64()  # where it was until jax 0.7


class Runner:
    """Steps `optimizer` on `variables` in one of `MODES`, and counts compilations.

    TensorFlow: plain call, `tf.function`, `tf.function(jit_compile=True)`. JAX, which has no
    graph of its own: plain call, `jax.jit`, `jax.jit` with donated buffers, as Keras's trainer
    does. Torch, which has no XLA: plain call, `torch.compile` without and with code generation.
    """

    def __init__(self, optimizer, variables, mode):
        self.optimizer = optimizer
        self.variables = variables
        self.compilations = 0
        optimizer.build(variables)
        make = {"tensorflow": self._tensorflow, "jax": self._jax, "torch": self._torch}[BACKEND]
        self._step = make(mode)

    def step(self, gradients):
        self._step([keras.ops.convert_to_tensor(g) for g in gradients])

    def weights(self):
        return [to_numpy(variable) for variable in self.variables]

    def slot(self, variable, name):
        """The optimizer's variable of this name for a model's variable, as an array."""
        path = f"{variable.path.replace('/', '_')}_{name}"
        found = [v for v in self.optimizer.variables if v.path.split("/")[-1] == path]
        assert len(found) == 1, f"{path} is in the optimizer {len(found)} times"
        return to_numpy(found[0])

    def _apply(self, gradients):
        self.compilations += 1  # runs when Python does: once a call eagerly, else once a trace
        self.optimizer.apply(gradients, self.variables)

    def _tensorflow(self, mode):
        if mode == "eager":
            return self._apply
        import tensorflow as tf

        return tf.function(self._apply, jit_compile=mode == "xla")

    def _jax(self, mode):
        if mode == "eager":
            return self._apply
        import jax

        def stateless(weights, state, gradients):
            self.compilations += 1
            return self.optimizer.stateless_apply(state, gradients, weights)

        compiled = jax.jit(stateless, donate_argnums=(0, 1) if mode == "xla" else ())

        def step(gradients):
            state = self.optimizer.variables
            new_weights, new_state = compiled(
                [v.value for v in self.variables], [v.value for v in state], gradients
            )
            for variable, value in zip(self.variables + state, new_weights + new_state):
                variable.assign(value)

        return step

    def _torch(self, mode):
        if mode == "eager":
            return self._apply
        import torch

        compiler = {"graph": "eager", "xla": "inductor"}[mode]

        def apply(gradients):
            self.optimizer.apply(gradients, self.variables)

        # Keras fills this cache during the first step; a trace would see it change, and retrace.
        for variable in self.variables:
            self.optimizer._use_weight_decay(variable)
        torch._dynamo.reset()
        inner = torch._dynamo.lookup_backend(compiler)

        def counting(module, inputs, **kwargs):
            self.compilations += 1
            return inner(module, inputs, **kwargs)

        return torch.compile(apply, backend=counting)
