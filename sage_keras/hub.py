"""TensorFlow Hub modules, as a layer that Keras 3 can train."""

import contextlib
import inspect
import os
import warnings
from typing import Any

import keras

from sage_keras import arguments


@keras.saving.register_keras_serializable(package="sage_keras")
class HubLayer(keras.layers.Layer):
    """A TensorFlow Hub module whose variables are weights of the layer.

    `hub.KerasLayer` is a layer of Keras 2, and the weights of `keras.layers.TFSMLayer` have names
    that no optimizer with a state of its own accepts. Here each variable of the module is shared
    with a `keras.Variable` of the same name, its slashes included: `include` and `exclude` of a
    guided optimizer find `layer_0/query/kernel` below the name of the layer.

    The module is called with the layer's inputs: a tensor, a dict or a list of tensors, whatever
    it was saved for. It gets `training=True` in `fit` while the layer is trainable, if it takes
    that argument. Its `regularization_losses` are added while the layer is trainable. It computes
    in the dtype it was saved in, whatever the global dtype policy is.

    Many modules look up words in tables, which XLA cannot do, so Keras leaves a model with such a
    layer to TensorFlow's graphs. Set `layer.supports_jit = True` where the module allows XLA.

    A `.keras` file holds the weights and the handle, not the module: loading it reads the module
    from its handle again and then gives it the weights of the file. A module is a program, so
    Keras's safe mode refuses that: pass `safe_mode=False` to `keras.saving.load_model` for files
    that you trust.

    It needs TensorFlow as Keras's backend, and the extra `hub`.

    Args:
        handle: String, where the module is, as `hub.resolve` takes it: a URL of TensorFlow Hub or
            of a `.tar.gz` archive, or the folder of a SavedModel.
        trainable: Boolean, whether the module is trained. Defaults to `True`.
        signature: `None`, or the name of the signature to call: a string. Signatures do not tell
            training from inference. Defaults to `None`, the module's `__call__`.
        output_key: `None`, or the one to return of a dict of outputs: a string. Defaults to
            `None`, all that the module returns.
        **kwargs: Keyword arguments of `keras.layers.Layer`, such as `name`.

    Raises:
        ImportError: If tensorflow-hub is not installed, or setuptools is too new for it.
        RuntimeError: If Keras's backend is not TensorFlow.
        TypeError: If an argument is of the wrong type.
        ValueError: If there is no module under the handle, if it cannot be called or has no such
            signature, or if it is to be trained and has no trainable variables. In the first call
            of training, if no variable of the module has a gradient.

    Example:

    ```python
    sentences = keras.Input((), dtype="string")
    encoded = HubLayer("https://tfhub.dev/google/nnlm-en-dim128/2")(sentences)
    model = keras.Model(sentences, keras.layers.Dense(2)(encoded))
    model.compile(optimizer=sage_keras.Sage(1e-3), loss="mse")
    ```
    """

    def __init__(
        self,
        handle: str | os.PathLike[str],
        trainable: bool = True,
        signature: str | None = None,
        output_key: str | None = None,
        **kwargs: Any,
    ) -> None:
        hub = _require_hub()
        # The functions of a module are fixed: inputs of other floats are cast to what they take.
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        arguments.boolean("trainable", trainable)
        self.handle = _path_or_url(handle)
        self.signature = arguments.optional_string("signature", signature, '"serving_default"')
        self.output_key = arguments.optional_string("output_key", output_key, '"pooled_output"')
        self.supports_jit = False

        self._module = _load(hub, self.handle)
        self._function = self._find_function()
        takes = inspect.signature(self._function).parameters
        self._takes_training = signature is None and "training" in takes
        variables, trainable_variables = _variables(self._module, self._function)
        if trainable and not trainable_variables:
            raise ValueError(
                f"The module at {self.handle!r} has no trainable variables"
                f"{self._which()}. Pass trainable=False to use it as it is."
            )
        chosen = {id(variable) for variable in trainable_variables}
        # Under a name of the layer's own, Keras tracks the list.
        self._shared = [_share(self.name, v, trainable=id(v) in chosen) for v in variables]
        self.trainable = trainable  # not before there are variables, which take it over
        self._has_gradients = False

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Calls the module.

        Args:
            inputs: Tensor, or a dict or list of tensors.
            training: Boolean, whether the module is being trained. Defaults to `False`.

        Returns:
            What the module returns, or the one of `output_key`.
        """
        training = bool(training) and self.trainable
        if training and not self._has_gradients:
            self._check_gradients(inputs)
        outputs = self._run(inputs, training)
        if self.trainable and self.signature is None:
            for loss in getattr(self._module, "regularization_losses", ()):
                self.add_loss(loss())
        return outputs

    def get_config(self) -> dict[str, Any]:
        """Returns the configuration: the handle, and not the module itself."""
        config: dict[str, Any] = super().get_config()
        config.update(
            {"handle": self.handle, "signature": self.signature, "output_key": self.output_key}
        )
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "HubLayer":
        """Makes the layer from its configuration, unless Keras is in safe mode."""
        # The same flag as for Lambda and TFSMLayer, which Keras hands to no one else.
        from keras.src.saving.serialization_lib import in_safe_mode

        if in_safe_mode():
            raise ValueError(
                f"The file holds a HubLayer, which would load and run the module at "
                f"{config['handle']!r}. If you trust both, pass safe_mode=False to the function "
                "that loads it."
            )
        return cls(**config)

    def _find_function(self) -> Any:
        names = sorted(getattr(self._module, "signatures", ()))
        if self.signature is None:
            if not callable(self._module):
                raise ValueError(
                    f"The module at {self.handle!r} cannot be called by itself. Pass the "
                    f"`signature` to call, one of {names}."
                )
            return self._module.__call__
        if self.signature not in names:
            raise ValueError(
                f"Argument `signature` must name one of the module's signatures, {names}. "
                f"Received: signature={self.signature!r}, handle={self.handle!r}"
            )
        return self._module.signatures[self.signature]

    def _run(self, inputs: Any, training: bool) -> Any:
        if self.signature is not None:
            outputs = self._function(**self._by_name(inputs))
        elif self._takes_training:
            outputs = self._function(inputs, training=training)
        else:
            outputs = self._function(inputs)
        if self.output_key is None:
            return outputs
        if not isinstance(outputs, dict) or self.output_key not in outputs:
            keys = f"the keys {sorted(outputs)}" if isinstance(outputs, dict) else "no dict"
            raise ValueError(
                f"Argument `output_key` must be a key of what the module returns, which has "
                f"{keys}. Received: output_key={self.output_key!r}, handle={self.handle!r}"
            )
        return outputs[self.output_key]

    def _by_name(self, inputs: Any) -> dict[str, Any]:
        """The inputs of a signature, which takes its tensors by name."""
        names = sorted(self._function.structured_input_signature[1])
        if not isinstance(inputs, dict) and len(names) == 1:
            return {names[0]: inputs}
        if not isinstance(inputs, dict) or sorted(inputs) != names:
            received = sorted(inputs) if isinstance(inputs, dict) else type(inputs).__name__
            raise ValueError(
                f"The signature {self.signature!r} of the module at {self.handle!r} must be called "
                f"with a dict of the keys {names}. Received: {received}"
            )
        return inputs

    def _check_gradients(self, inputs: Any) -> None:
        """Refuses to train a module through which no gradient comes; Keras would only warn."""
        import tensorflow as tf

        variables = [variable.value for variable in self._shared if variable.trainable]
        found: list[Any] = []

        def differentiate(inputs: Any) -> None:
            outputs = tf.nest.flatten(self._run(inputs, training=True))
            outputs = [output for output in outputs if output.dtype.is_floating]
            found.extend(tf.gradients(outputs, variables) if outputs else [])

        # Traced, and never run.
        trace = tf.function(differentiate, autograph=False).get_concrete_function
        reason = None
        try:
            # Not under the tape that trains: second derivatives would be made ready as well.
            with tf.init_scope():
                trace(tf.nest.map_structure(tf.type_spec_from_value, inputs))
        except LookupError as error:  # an operation that has no gradient
            reason = error
        if all(gradient is None for gradient in found):
            raise ValueError(
                f"The module at {self.handle!r} has no gradients{self._which()}, and so cannot "
                "be trained. Pass trainable=False to use it as it is."
            ) from reason
        self._has_gradients = True

    def _which(self) -> str:
        return "" if self.signature is None else f" under the signature {self.signature!r}"


def _require_hub() -> Any:
    """Imports tensorflow_hub, or says what it needs."""
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            "HubLayer needs TensorFlow as Keras's backend, since a module is a TensorFlow graph: "
            "set the environment variable KERAS_BACKEND to tensorflow. "
            f"Received: {keras.backend.backend()}"
        )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "pkg_resources is deprecated")
            import tensorflow_hub
    except ImportError as error:
        raise ImportError(
            "HubLayer needs tensorflow-hub, and with it a setuptools below 81. Install both with "
            '`pip install "sage_keras[hub]"`.'
        ) from error
    return tensorflow_hub


def _path_or_url(handle: Any) -> str:
    if not isinstance(handle, (str, os.PathLike)):
        raise TypeError(
            "Argument `handle` must be a string, the URL or the folder of a module, such as "
            '"https://tfhub.dev/google/nnlm-en-dim128/2". '
            f"Received: handle={handle!r} (of type {type(handle).__name__})"
        )
    return os.fspath(handle)


def _load(hub: Any, handle: str) -> Any:
    import tensorflow as tf

    try:
        return hub.load(handle)
    except (OSError, RuntimeError, ValueError, tf.errors.OpError) as error:
        raise ValueError(
            "Argument `handle` must be the URL of a module or of an archive of one, or the folder "
            f"of a SavedModel. Received: handle={handle!r}, which cannot be loaded: {error}"
        ) from error


def _variables(module: Any, function: Any) -> list[list[Any]]:
    """A module's variables and its trainable ones, each once.

    Reusable SavedModels name theirs. Of others there is only what the function uses.
    """
    if hasattr(module, "variables") and hasattr(module, "trainable_variables"):
        trainable = list(module.trainable_variables)
        every = [*trainable, *module.variables]
    else:
        functions = getattr(function, "concrete_functions", [function])
        every = [variable for one in functions for variable in one.variables]
        trainable = [variable for variable in every if variable.trainable]
    return [
        list({id(variable): variable for variable in group}.values())
        for group in (every, trainable)
    ]


def _share(scope: str, variable: Any, trainable: bool) -> keras.Variable:
    """A `keras.Variable` on top of a `tf.Variable`, under the same path below `scope`."""
    parts = [part for part in variable.name.split(":")[0].split("/") if part]
    *folders, name = parts or ["variable"]
    with contextlib.ExitStack() as scopes:
        for folder in (scope, *folders):
            scopes.enter_context(keras.name_scope(folder))
        return keras.Variable(variable, dtype=variable.dtype, trainable=trainable, name=name)
