"""Fine-tunes a text encoder of TensorFlow Hub with AdamW and with Sage, side by side.

    python examples/finetune_tfhub.py
    python examples/finetune_tfhub.py --handle https://tfhub.dev/google/nnlm-en-dim128/2
    python examples/finetune_tfhub.py --output-key pooled_output \
        --preprocessor https://tfhub.dev/tensorflow/bert_en_uncased_preprocess/3 \
        --handle https://tfhub.dev/tensorflow/small_bert/bert_en_uncased_L-4_H-256_A-4/2

Without a handle the module is a MiniLM, which the script itself exports, with its preprocessor, as
SavedModels. A `HubLayer` makes its variables weights of a Keras model that reads plain sentences.
The script prints one table and how many of the module's weights moved, draws both validation
curves and the sensitivities, saves the better model, loads it again, and lets it classify the
sentences given with `--text`. It needs TensorFlow as Keras's backend.
"""

import socket

import keras
import keras_hub
import numpy as np
import tensorflow as tf
from common import make_parser, parse, stop
from common.comparison import compile_classifier, draw, print_accuracies, recipe
from common.datasets import movie_snippets
from common.downloads import UnavailableError
from common.encoders import add_arguments, fit, minilm_folder, print_reloaded
from keras import ops

from sage_keras import Sage
from sage_keras.hub import HubLayer

QUICK = {
    "train_size": 256,
    "validation_size": 128,
    "epochs": 1,
    "batch_size": 16,
    "sequence_length": 24,
    "learning_rate": 3e-4,  # fewer steps, larger ones
    "sage_learning_rate": 6e-4,
}


def main(arguments=None):
    options = parse_arguments(arguments)
    if keras.backend.backend() != "tensorflow":
        stop("A module needs TensorFlow as Keras's backend: set KERAS_BACKEND=tensorflow.")
    try:
        data = movie_snippets(options.train_size, options.validation_size, options.seed)
        if options.handle is None:
            use_minilm(options)
        socket.setdefaulttimeout(5)  # a download that does not begin; hub would wait for minutes
        models = {"AdamW": make_model(options), "Sage": make_model(options)}
    except (ImportError, UnavailableError, ValueError) as error:
        stop(error)
    finally:
        socket.setdefaulttimeout(None)
    before = [module_weights(model) for model in models.values()]
    runs = train(models, data, options)
    print_accuracies(runs)
    for (name, model), old in zip(models.items(), before):
        moved = sum(np.any(one != other) for one, other in zip(module_weights(model), old))
        print(f"{name} moved {moved} of the {len(old)} trainable weights of the module")

    draw(runs, options.output / "finetune_tfhub.png")
    better = max(runs, key=lambda name: runs[name].history["val_accuracy"][-1])
    path = options.output / "finetune_tfhub.keras"
    models[better].save(path)
    print(f"Saved the model of {better} as {path}")

    # The file names modules, which are programs: whoever loads it has to trust them.
    reloaded = keras.saving.load_model(path, safe_mode=False)
    print_reloaded(reloaded, data, [[text] for text in options.text])


def use_minilm(options):
    """Exports a MiniLM, and makes the options name what was exported."""
    folder = options.output.resolve() / "modules"
    print(f"Exporting a MiniLM into {folder}", flush=True)
    modules = export_modules(minilm_folder(), options.sequence_length, folder)
    options.preprocessor, options.handle = modules
    options.output_key = "pooled_output"


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


def make_model(options):
    """Sentences, a module, and a new head of two classes."""
    keras.utils.set_random_seed(options.seed)
    sentences = keras.Input((), dtype="string", name="sentences")
    x = sentences
    if options.preprocessor:
        import tensorflow_text  # noqa: F401  registers the operations of tokenizers

        x = HubLayer(options.preprocessor, trainable=False, name="preprocessor")(x)
    x = HubLayer(options.handle, output_key=options.output_key, name="module")(x)
    x = keras.layers.Dropout(0.1)(x)
    return keras.Model(sentences, keras.layers.Dense(2, name="logits")(x))


def module_weights(model):
    """The values of the trainable weights of the module."""
    variables = model.get_layer("module").trainable_variables
    return [ops.convert_to_numpy(variable) for variable in variables]


def train(models, data, options):
    optimizers = {
        "AdamW": keras.optimizers.AdamW(
            **recipe(options, options.learning_rate, options.train_size)
        ),
        "Sage": Sage(
            **recipe(options, options.sage_learning_rate, options.train_size),
            beta_3=options.beta_3,
        ),
    }
    training, validation = (
        tf.data.Dataset.from_tensor_slices((examples.texts, examples.labels))
        for examples in (data.train, data.validation)
    )
    runs = {}
    for name, model in models.items():
        print(f"\n{name}", flush=True)
        compile_classifier(model, optimizers[name])
        runs[name] = fit(model, training, validation, options)
    return runs


def parse_arguments(arguments):
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--handle", help="a module, by its URL or folder; without one, a MiniLM")
    add("--preprocessor", help="a module that makes of sentences what the other one takes")
    add("--output-key", help="which output to use of a module that has several")
    add("--learning-rate", type=float, default=1e-4, help="that of AdamW")
    add("--sage-learning-rate", type=float, default=3e-4, help="that of Sage")
    add("--text", action="append", default=[], metavar="SENTENCE", help="to classify; repeatable")
    add_arguments(parser)
    return parse(parser, arguments, "results/finetune_tfhub", QUICK)


if __name__ == "__main__":
    main()
