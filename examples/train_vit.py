"""Trains a Vision Transformer from scratch with AdamW and with Sage, side by side.

    python examples/train_vit.py
    python examples/train_vit.py --dataset cifar100 --width 192 --depth 6 --heads 6 --epochs 60
    python examples/train_vit.py --preset vit_base_patch16_224_imagenet --learning-rate 3e-5

The digits are 5,000 of MNIST. Both optimizers start from the same weights and see the same shifted
images. The script prints one table and draws the validation curves, the sensitivities of all
parameters, and where in the image the position embeddings matter. With `--preset` it fine-tunes a
pre-trained model instead: one of keras-hub, or one of keras.applications by the name of its
function, such as `EfficientNetB0`.
"""

import inspect

import keras
import keras_hub
import tensorflow as tf
from common import make_parser, parse, positive_integer, ratio, stop
from common.comparison import compile_classifier, draw_runs, fit, print_accuracies, recipe, save
from common.datasets import mnist_digits, tfds_images
from common.downloads import UnavailableError
from keras import layers, ops
from matplotlib.figure import Figure

from sage_keras import Sage

DIGITS = "mnist-digits"
QUICK = {
    "train_size": 1600,
    "validation_size": 400,
    "epochs": 6,
    "batch_size": 32,
    "width": 48,
    "depth": 2,
    "learning_rate": 3e-3,  # fewer steps, larger ones
    "sage_learning_rate": 6e-3,
}


def main(arguments=None):
    options = parse_arguments(arguments)
    try:
        data = load_data(options)
        models = [build_model(data, options) for _ in range(2)]
    except (UnavailableError, ValueError) as error:
        stop(error)
    runs = {
        optimizer.name: train(model, optimizer, data, options)
        for model, optimizer in zip(models, make_optimizers(options, len(data.train.labels)))
    }
    print_accuracies(runs)
    draw(runs, data, options.output / "train_vit.png")


def vision_transformer(image_shape, class_count, patch_size, width, depth, heads, dropout=0.0):
    """A Vision Transformer that averages its tokens, as a functional model.

    Args:
        image_shape: Tuple of height, width and channels, in pixels of 0 to 255.
        class_count: Integer, how many logits come out.
        patch_size: Integer, height and width in pixels of the patch that one token stands for.
        width: Integer, the size of a token.
        depth: Integer, how many transformer blocks.
        heads: Integer, how many attention heads in each.
        dropout: Float, the share of activations dropped after each sublayer. Defaults to `0.0`.

    Returns:
        A `keras.Model`.
    """
    images = keras.Input(image_shape)
    x = layers.Rescaling(1 / 127.5, offset=-1)(images)
    x = layers.Conv2D(width, patch_size, strides=patch_size, name="patch_embedding")(x)
    x = layers.Reshape((-1, width))(x)
    x = x + keras_hub.layers.PositionEmbedding(x.shape[1], name="patch_position")(x)
    for index in range(depth):
        x = transformer_block(x, heads, dropout, name=f"block_{index}")
    x = layers.LayerNormalization(name="norm")(x)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(images, layers.Dense(class_count, name="head")(x))


def transformer_block(x, heads, dropout, name):
    """Attention, then two dense layers, each after a normalization and beside a shortcut."""
    width = x.shape[-1]
    y = layers.LayerNormalization(name=f"{name}_attention_norm")(x)
    y = layers.MultiHeadAttention(heads, width // heads, name=f"{name}_attention")(y, y)
    x = x + layers.Dropout(dropout)(y)
    y = layers.LayerNormalization(name=f"{name}_dense_norm")(x)
    y = layers.Dense(4 * width, activation="gelu", name=f"{name}_dense_in")(y)
    y = layers.Dense(width, name=f"{name}_dense_out")(y)
    return x + layers.Dropout(dropout)(y)


def pretrained_model(preset, image_shape, class_count, image_size):
    """A pre-trained image model with a new head, that takes images as they are.

    Args:
        preset: String, the name of a function of keras.applications, or a keras-hub preset.
        image_shape: Tuple of height, width and channels, in pixels of 0 to 255.
        class_count: Integer, how many logits come out.
        image_size: Integer, the height and width that images are resized to for
            keras.applications. A preset of keras-hub knows its own.

    Returns:
        A `keras.Model`.

    Raises:
        UnavailableError: If there is no such preset, or it cannot be downloaded.
    """
    images = keras.Input(image_shape)
    x = layers.Concatenate()([images] * 3) if image_shape[-1] == 1 else images
    application = find_application(preset)
    try:
        if application is None:
            x = keras_hub.layers.ImageConverter.from_preset(preset)(x)
            classifier = keras_hub.models.ImageClassifier.from_preset(
                preset, num_classes=class_count, preprocessor=None
            )
            return keras.Model(images, classifier(x))
        x = layers.Resizing(image_size, image_size)(x)
        base = getattr(application, preset)(
            include_top=False, pooling="avg", input_shape=(image_size, image_size, 3)
        )
    except Exception as error:  # Keras raises a bare one where a download fails
        raise UnavailableError(
            f"The preset {preset} cannot be loaded: {error}. Check its name and the network, or "
            "name the folder of a keras-hub preset that lies here."
        ) from error
    x = base(application.preprocess_input(x))
    return keras.Model(images, layers.Dense(class_count, name="head")(x))


def find_application(name):
    """The module of keras.applications that has a function of this name, or `None`."""
    modules = filter(inspect.ismodule, vars(keras.applications).values())
    return next((module for module in modules if hasattr(module, name)), None)


def load_data(options):
    sizes = {"train_size": options.train_size, "validation_size": options.validation_size}
    if options.dataset == DIGITS:
        return mnist_digits(**sizes, seed=options.seed)
    return tfds_images(options.dataset, options.data_dir, **sizes)


def make_optimizers(options, train_size):
    """AdamW and Sage, each at its own learning rate, otherwise alike."""
    plain, guided = (
        recipe(options, rate, train_size, weight_decay=0.05)
        for rate in (options.learning_rate, options.sage_learning_rate)
    )
    return [
        keras.optimizers.AdamW(**plain, name="AdamW"),
        Sage(**guided, beta_3=options.beta_3, name="Sage"),
    ]


def build_model(data, options):
    """The model that the options ask for; the seed makes all of them begin alike."""
    keras.utils.set_random_seed(options.seed)
    image_shape, class_count = data.train.pixels.shape[1:], len(data.class_names)
    if options.preset:
        return pretrained_model(options.preset, image_shape, class_count, options.image_size)
    return vision_transformer(
        image_shape,
        class_count,
        options.patch_size,
        options.width,
        options.depth,
        options.heads,
        options.dropout,
    )


def train(model, optimizer, data, options):
    """Trains a model on shifted images, judged by those that are as they were."""
    print(f"\n{optimizer.name}", flush=True)
    compile_classifier(model, optimizer)
    return fit(
        model,
        shifted(data.train, options),
        validation_data=tf.data.Dataset.from_tensor_slices(tuple(data.validation)).batch(500),
        epochs=options.epochs,
    )


def shifted(images, options):
    """Batches of images, each shifted by up to a twelfth of its height and width."""
    shift = layers.RandomTranslation(
        1 / 12, 1 / 12, fill_mode="constant", interpolation="nearest", seed=options.seed
    )
    dataset = tf.data.Dataset.from_tensor_slices(tuple(images))
    dataset = dataset.shuffle(len(images.labels), seed=options.seed).batch(options.batch_size)
    return dataset.map(
        lambda pixels, labels: (shift(tf.cast(pixels, "float32"), training=True), labels)
    ).prefetch(1)


def draw(runs, data, path):
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    *panels, places = figure.subplots(1, 3)
    draw_runs(panels, runs)
    sage = runs["Sage"].model
    positions = [v for v in sage.trainable_variables if "patch_position" in v.path]
    if positions:
        sensitivity = ops.convert_to_numpy(sage.optimizer.sensitivity(positions[0]))
        plot_places(places, sensitivity.mean(axis=-1), data.validation.pixels)
    else:  # a pre-trained model, which may have none
        places.set_axis_off()
    save(figure, path)


def plot_places(axes, sensitivity, pixels):
    """Draws the mean sensitivity of each patch's position embedding over the mean image."""
    height, width = pixels.shape[1:3]
    rows = round((len(sensitivity) * height / width) ** 0.5)
    extent = (0, width, height, 0)
    axes.imshow(pixels.mean(axis=(0, 3)), cmap="gray", extent=extent)
    overlay = axes.imshow(sensitivity.reshape(rows, -1), alpha=0.6, extent=extent)
    axes.figure.colorbar(overlay, ax=axes, label="|weight x gradient|, averaged")
    axes.set(title="Sensitivity of the position embeddings", xlabel="pixel", ylabel="pixel")


def parse_arguments(arguments):
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--dataset", default=DIGITS, help="these, or a set of TFDS such as cifar100")
    add("--data-dir", default="~/tensorflow_datasets", help="where TFDS keeps its sets")
    add("--preset", help="fine-tune this: a keras-hub preset, the folder of one, or an application")
    add("--image-size", type=positive_integer, default=224, help="what an application is fed")
    add("--patch-size", type=positive_integer, default=7, help="pixels of a patch's side")
    add("--width", type=positive_integer, default=64, help="size of a token")
    add("--depth", type=positive_integer, default=4, help="transformer blocks")
    add("--heads", type=positive_integer, default=4, help="attention heads of a block")
    add("--dropout", type=float, default=0.0, help="share of activations dropped")
    add("--learning-rate", type=float, default=2e-3, help="that of AdamW")
    add("--sage-learning-rate", type=float, default=3e-3, help="that of Sage")
    add("--beta-3", type=ratio, default=0.75, help="decay of Sage's moving average")
    add("--epochs", type=positive_integer, default=25, help="passes over the training data")
    add("--batch-size", type=positive_integer, default=64, help="images in a step")
    add("--train-size", type=positive_integer, help="images to train on; all others if not given")
    add("--validation-size", type=positive_integer, default=1000, help="images to judge by")
    add("--seed", type=int, default=0, help="of weights, shifts, dropout and the order of the data")
    trial = "a trial run of a small model on few images"
    return parse(parser, arguments, "results/train_vit", QUICK, trial)


if __name__ == "__main__":
    main()
