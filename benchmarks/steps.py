"""The optimizer steps that `benchmarks.step` times, one backend a process.

An arm is a name such as `"xla Sage"`: how it is run, then what is run. `Arms` makes it when it is
first asked for. All arms of one process share their gradients and nothing else.
"""

import time

import numpy as np

LEARNING_RATE = 1e-4
BFLOAT16 = "Sage bfloat16"
COPY = "read and write"  # of the weights alone: the bandwidth that the byte limits are taken from
LITERAL = "literal AdamW-SAGE"
FUSED = "torch.optim fused AdamW"
STAGE_II = " stage II"  # after the name of a DPS optimizer, which begins in stage I
STAGE_STEPS = 1000  # of DPS: more than are timed
ITEM_BYTES = {"bfloat16": 2, "float32": 4, "int32": 4, "int64": 8}


class Arms:
    """Optimizer steps on weights and gradients of given shapes, on the chosen backend.

    Args:
        shapes: List of tuples, the shapes of the weights.
    """

    def __init__(self, shapes):
        import keras

        self.shapes = shapes
        self.gradients = [keras.ops.convert_to_tensor(g) for g in self._random(1e-3, seed=1)]
        self._steps = {}

    def make(self, arm):
        """Compiles an arm, runs it once, and returns the bytes of its optimizer's state."""
        import keras

        mode, name = arm.split(" ", 1)
        if name == LITERAL:
            self._steps[arm], state = self._literal()
        elif name == FUSED:
            self._steps[arm], state = self._fused()
        elif name == "optax.adamw":
            self._steps[arm], state = self._optax()
        elif name == COPY:
            self._steps[arm], state = self._copy(mode), 0
        else:
            optimizer = make_optimizer(name)
            variables = [keras.Variable(w) for w in self._random(0.02, seed=0)]
            optimizer.build(variables)
            if name.endswith(STAGE_II):
                optimizer.iterations.assign(STAGE_STEPS)  # the next step selects, those after train
            state = sum(byte_count(v) for v in optimizer.variables if len(v.shape))
            make = getattr(self, f"_{keras.backend.backend()}_{mode}")
            self._steps[arm] = make(optimizer, variables)
        self._steps[arm]()
        return state

    def seconds(self, arm, calls):
        """The mean time of a few steps in a row."""
        began = time.perf_counter()
        for _ in range(calls):
            self._steps[arm]()
        return (time.perf_counter() - began) / calls

    def _random(self, size, seed):
        random = np.random.default_rng(seed)
        return [size * random.standard_normal(s, dtype="float32") for s in self.shapes]

    # TensorFlow ends a call when the step is done: on CPU its kernels are synchronous.

    def _tensorflow_graph(self, optimizer, variables, jit_compile=False):
        import tensorflow as tf

        @tf.function(jit_compile=jit_compile)
        def step(gradients):
            optimizer.apply(gradients, variables)

        return lambda: step(self.gradients)

    def _tensorflow_xla(self, optimizer, variables):
        return self._tensorflow_graph(optimizer, variables, jit_compile=True)

    def _jax_xla(self, optimizer, variables):
        # As Keras's trainer: the state goes in and comes out in the same order, and is donated.
        # With the order changed XLA cannot reuse the buffers in place, and copies them.
        def step(weights, state, gradients):
            return optimizer.stateless_apply(state, gradients, weights)

        state = [v.value for v in variables], [v.value for v in optimizer.variables]
        return self._donated(step, *state)

    def _donated(self, step, weights, state):
        import jax

        compiled = jax.jit(step, donate_argnums=(0, 1))
        held = [weights, state]

        def call():
            held[:] = jax.block_until_ready(compiled(*held, self.gradients))

        return call

    def _torch_eager(self, optimizer, variables):
        return lambda: optimizer.apply(self.gradients, variables)

    def _torch_compiled(self, optimizer, variables):
        import torch

        for variable in variables:
            optimizer._use_weight_decay(variable)  # a lazy cache of Keras's, or torch retraces
        return torch.compile(lambda: optimizer.apply(self.gradients, variables))

    def _copy(self, mode):
        import keras

        weights = self._random(0.02, seed=0)
        if keras.backend.backend() == "jax":
            return self._donated(lambda w, s, g: ([x * 1.0001 for x in w], s), weights, [])
        if keras.backend.backend() == "torch":
            import torch

            tensors = [torch.from_numpy(w) for w in weights]
            return lambda: torch._foreach_mul_(tensors, 1.0001)
        import tensorflow as tf

        variables = [keras.Variable(w) for w in weights]

        @tf.function(jit_compile=mode == "xla")
        def step():
            for variable in variables:
                variable.assign(variable * 1.0001)

        return step

    def _optax(self):
        import jax
        import jax.numpy as jnp
        import optax

        optimizer = optax.adamw(LEARNING_RATE, weight_decay=0.01)
        weights = [jnp.asarray(w) for w in self._random(0.02, seed=0)]
        state = optimizer.init(weights)

        def step(weights, state, gradients):
            updates, state = optimizer.update(gradients, state, weights)
            return optax.apply_updates(weights, updates), state

        size = sum(leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.ndim)
        return self._donated(step, weights, state), size

    def _fused(self):
        import torch

        weights = [torch.nn.Parameter(torch.from_numpy(w)) for w in self._random(0.02, seed=0)]
        for weight, gradient in zip(weights, self.gradients):
            weight.grad = gradient
        optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.01, fused=True)
        return optimizer.step, sum(2 * w.nbytes for w in weights)

    def _literal(self):
        """AdamW-SAGE in eager torch, an operation a line: the method as papers ship it."""
        import torch

        weights = [torch.from_numpy(w) for w in self._random(0.02, seed=0)]
        slots = [[torch.zeros_like(w) for _ in range(3)] for w in weights]
        step_count = 0

        def step():
            nonlocal step_count
            step_count += 1
            for weight, gradient, (m, v, average) in zip(weights, self.gradients, slots):
                sensitivity = (weight * gradient).abs()
                average.mul_(0.75).add_(0.25 * sensitivity)
                smoothed = average / (1 - 0.75**step_count)
                variation = (sensitivity - smoothed).abs()
                scale = (variation + 1e-12) / (smoothed + 1e-12)
                m.mul_(0.9).add_(0.1 * gradient)
                v.mul_(0.999).add_(0.001 * gradient * gradient)
                direction = (m / (1 - 0.9**step_count)) / (
                    (v / (1 - 0.999**step_count)).sqrt() + 1e-7
                )
                weight.mul_(1 - LEARNING_RATE * 0.01)
                weight.sub_(LEARNING_RATE * scale * direction)

        return step, sum(3 * w.nbytes for w in weights)


def make_optimizer(name):
    """A Keras or sage_keras optimizer by its class's name."""
    import keras

    import sage_keras

    arguments = {"learning_rate": LEARNING_RATE}
    name = name.removesuffix(STAGE_II)
    if name == BFLOAT16:
        return sage_keras.Sage(**arguments, weight_decay=0.01, sensitivity_dtype="bfloat16")
    if name == "LayerwiseAdamW":
        arguments["learning_rate_multipliers"] = {"": 0.5}
    if name in ("AdamW", "Sage", "DPSDense", "DPSMix", "LayerwiseAdamW"):
        arguments["weight_decay"] = 0.01
    if name in ("DPSDense", "DPSMix"):
        arguments["stage_steps"] = STAGE_STEPS
    package = sage_keras if hasattr(sage_keras, name) else keras.optimizers
    return getattr(package, name)(**arguments)


def byte_count(variable):
    """The bytes of a variable."""
    return ITEM_BYTES[variable.dtype] * int(np.prod(variable.shape))


def serve(backend, shapes, connection):
    """Answers `("make", arm)` and `("seconds", arm, calls)` until it is sent None."""
    import os

    os.environ["KERAS_BACKEND"] = backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    arms = Arms(shapes)
    while (message := connection.recv()) is not None:
        request, *arguments = message
        connection.send(getattr(arms, request)(*arguments))
