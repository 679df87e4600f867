"""The small pre-trained encoder as modules of TensorFlow Hub, which need TensorFlow."""

import keras_hub
import tensorflow as tf


def export_modules(preset, sequence_length, folder):
    """Writes a text encoder as two SavedModels, as TensorFlow Hub has those of the BERT family.

    The first makes a dict of token ids and masks of sentences. The second makes of that dict
    another one with `"pooled_output"` and `"sequence_output"`, and can be trained further.

    Args:
        preset: String, a keras-hub preset or the folder of one.
        sequence_length: Integer, the tokens kept of a sentence.
        folder: A `pathlib.Path`, where the modules go.

    Returns:
        Two strings, the folders of the modules.
    """
    preprocessor = keras_hub.models.TextClassifierPreprocessor.from_preset(
        preset, sequence_length=sequence_length
    )
    backbone = keras_hub.models.Backbone.from_preset(preset)
    modules = {
        "preprocessor": tokenizing_module(preprocessor),
        "encoder": trainable_module(backbone),
    }
    for name, module in modules.items():
        tf.saved_model.save(module, str(folder / name))
    return [str(folder / name) for name in modules]


def tokenizing_module(preprocessor):
    """A module that calls a keras-hub preprocessor on sentences."""
    module = tf.train.Checkpoint()

    @tf.function(input_signature=[tf.TensorSpec((None,), "string")], autograph=False)
    def call(sentences):
        inputs = preprocessor(sentences)
        return {name: tf.cast(tensor, "int32") for name, tensor in inputs.items()}

    module.__call__ = call
    return module


def trainable_module(model):
    """A reusable SavedModel of a functional Keras model: its variables keep their paths as names.

    Args:
        model: A functional Keras model.

    Returns:
        A trackable object that can be saved.
    """

    def copies(variables, trainable):
        return [tf.Variable(v.value, trainable, name=v.path) for v in variables]

    module = tf.train.Checkpoint()
    module.trainable_variables = copies(model.trainable_variables, True)
    others = copies(model.non_trainable_variables, False)
    module.variables = [*module.trainable_variables, *others]

    @tf.function(autograph=False)
    def call(inputs, training=False):
        outputs, updated = model.stateless_call(
            module.trainable_variables, others, inputs, training=training
        )
        for variable, value in zip(others, updated):
            variable.assign(value)
        return outputs

    specification = tf.nest.map_structure(
        lambda tensor: tf.TensorSpec(tensor.shape, tensor.dtype), model.input
    )
    for training in (False, True):
        call.get_concrete_function(specification, training=training)
    module.__call__ = call
    return module
