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
import numpy as np
import tensorflow as tf
from common.comparison import draw, print_accuracies
from common.downloads import UnavailableError
from common.encoders import minilm_folder
from common.failures import stop
from common.fine_tuning import add_arguments, fit, print_reloaded
from common.options import make_parser, parse
from common.text import movie_snippets
from common.training import compile_classifier, recipe
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
    from common.modules import export_modules

    folder = options.output.resolve() / "modules"
    print(f"Exporting a MiniLM into {folder}", flush=True)
    modules = export_modules(minilm_folder(), options.sequence_length, folder)
    options.preprocessor, options.handle = modules
    options.output_key = "pooled_output"


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
