"""The example as a whole job on real digits, and its parts."""

import functools

import keras
import numpy as np
import pytest
import tensorflow_datasets as tfds
import train_vit
from common.datasets import Dataset, Images, mnist_digits, tfds_images
from common.downloads import UnavailableError
from example_runs import parse_table, run_here, stopped, whole_job
from matplotlib.image import imread

pytestmark = whole_job("torch")


class TinyPictures(tfds.core.GeneratorBasedBuilder):
    """Pictures of one shade with the columns of cifar100, and no validation split."""

    VERSION = tfds.core.Version("1.0.0")
    shape = (8, 6, 3)

    def _info(self):
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=self.shape),
                    "label": tfds.features.ClassLabel(names=["dark", "bright"]),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for index in range(40):
            pixels = np.full((8, 6, 3), 30 + 200 * (index % 2), "uint8")
            yield index, {"id": str(index), "image": pixels, "label": index % 2}


class TinyPicturesOfAnySize(TinyPictures):
    VERSION = tfds.core.Version("1.0.0")
    shape = (None, None, 3)


def test_small_transformers_learn_digits(tmp_path, capsys):
    arguments = ["--train-size", "640", "--validation-size", "200", "--epochs", "5"]
    arguments += ["--batch-size", "32", "--width", "32", "--depth", "1", "--heads", "2"]
    arguments += ["--learning-rate", "5e-3", "--sage-learning-rate", "1e-2"]
    table = parse_table(run_here(train_vit, capsys, tmp_path, *arguments))
    assert list(table) == ["AdamW", "Sage"]
    assert all(0.3 < float(row["final"]) < 0.95 for row in table.values())
    assert all(float(row["epoch 1"]) < float(row["final"]) for row in table.values())
    assert table["AdamW"]["mean scale"] == "-"
    assert 0.35 < float(table["Sage"]["mean scale"]) < 0.75
    assert imread(tmp_path / "train_vit.png").shape == (450, 1500, 4)


def test_digits_are_those_of_mnist():
    data = mnist_digits(train_size=None, validation_size=1000, seed=0)
    assert data.train.pixels.shape == (4000, 28, 28, 1)
    assert data.validation.pixels.shape == (1000, 28, 28, 1)
    labels = np.concatenate([data.train.labels, data.validation.labels])
    assert np.bincount(labels).tolist() == [500] * 10
    pixels = np.concatenate([data.train.pixels, data.validation.pixels])
    assert pixels.mean() == pytest.approx(33.4, abs=0.5)  # MNIST's mean is 33.3
    ones, zeros = (pixels[labels == digit].mean() for digit in (1, 0))
    assert ones < 0.5 * zeros
    fewer = mnist_digits(train_size=50, validation_size=10, seed=0)
    assert len(fewer.train.labels) == 50
    with pytest.raises(ValueError, match=r"than the 5000 there are.*train_size=4001"):
        mnist_digits(train_size=4001, validation_size=1000, seed=0)


def test_images_of_tfds(tmp_path):
    for builder in (TinyPictures, TinyPicturesOfAnySize):
        builder(data_dir=str(tmp_path)).download_and_prepare()
    data = tfds_images("tiny_pictures", str(tmp_path), train_size=None, validation_size=8)
    assert data.class_names == ["dark", "bright"]
    assert (len(data.train.labels), len(data.validation.labels)) == (32, 8)
    for images in (data.train, data.validation):
        assert images.pixels.shape[1:] == (8, 6, 3)
        np.testing.assert_array_equal(images.pixels[:, 0, 0, 0], 30 + 200 * images.labels)
    with pytest.raises(ValueError, match="images of one size"):
        tfds_images("tiny_pictures_of_any_size", str(tmp_path), train_size=8, validation_size=8)
    with pytest.raises(ValueError, match="than the 40 there are"):
        tfds_images("tiny_pictures", str(tmp_path), train_size=None, validation_size=40)


def test_transformer_has_the_parameters_that_its_sizes_say():
    model = train_vit.vision_transformer(
        (8, 12, 3), class_count=5, patch_size=4, width=16, depth=3, heads=2
    )
    norm, square = 2 * 16, 16 * 16 + 16
    dense = (16 * 64 + 64) + (64 * 16 + 16)
    block = 2 * norm + 4 * square + dense
    patches, positions, head = 4 * 4 * 3 * 16 + 16, 6 * 16, 16 * 5 + 5
    assert model.count_params() == patches + positions + 3 * block + norm + head
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 12, 3))
    swapped = np.concatenate([pixels[:, :4], pixels[:, 4:]][::-1], axis=1)
    one, other = model.predict(pixels, verbose=0), model.predict(swapped, verbose=0)
    assert one.shape == (2, 5)
    assert np.abs(one - other).max() > 1e-4  # it knows where a patch is


def test_models_begin_alike_and_shifts_stay_within_a_twelfth():
    options = train_vit.parse_arguments(["--quick", "--batch-size", "8"])
    pixels = np.zeros((16, 24, 24, 1), "uint8")
    pixels[:, 12, 12] = 255
    images = Images(pixels, np.zeros(16, "int32"))
    data = Dataset(images, images, ["0", "1"])
    first, second = (train_vit.build_model(data, options).get_weights() for _ in range(2))
    for one, other in zip(first, second):
        np.testing.assert_array_equal(one, other)
    batches = [batch.numpy() for batch, _ in train_vit.shifted(images, options)]
    _, rows, columns, _ = np.nonzero(np.concatenate(batches))
    assert len(rows) == 16
    assert set(rows) | set(columns) == {10, 11, 12, 13, 14}


def test_fine_tunes_a_preset_of_keras_hub(tmp_path):
    import keras_hub

    classifier = keras_hub.models.ViTImageClassifier(
        backbone=keras_hub.models.ViTBackbone(
            image_shape=(16, 16, 3),
            patch_size=(8, 8),
            num_layers=1,
            num_heads=2,
            hidden_dim=16,
            mlp_dim=32,
        ),
        num_classes=3,
        preprocessor=keras_hub.models.ViTImageClassifierPreprocessor(
            keras_hub.layers.ViTImageConverter(image_size=(16, 16), scale=1 / 255)
        ),
    )
    classifier.save_to_preset(tmp_path / "tiny")
    model = train_vit.pretrained_model(str(tmp_path / "tiny"), (20, 20, 1), 10, image_size=224)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 20, 20, 1)).astype("float32")
    assert model.predict(pixels, verbose=0).shape == (2, 10)
    loaded = {variable.path: variable.numpy() for variable in model.trainable_variables}
    for variable in classifier.backbone.trainable_variables:
        np.testing.assert_array_equal(loaded[variable.path], variable.numpy())


def test_fine_tunes_an_application(monkeypatch):
    module = train_vit.find_application("MobileNetV2")
    untrained = functools.partial(module.MobileNetV2, weights=None, alpha=0.35)
    monkeypatch.setattr(module, "MobileNetV2", untrained)
    model = train_vit.pretrained_model("MobileNetV2", (28, 28, 1), 7, image_size=32)
    assert model.output_shape == (None, 7)
    assert model.count_params() == untrained().count_params() - 1281 * 1000 + 1281 * 7


def test_preset_that_cannot_be_had_ends_it_in_one_line(capsys):
    line = stopped(train_vit, capsys, "--preset", "no_such_preset")
    assert "The preset no_such_preset cannot be loaded" in line
    assert train_vit.find_application("no_such_preset") is None
    with pytest.raises(UnavailableError, match="no_such_preset"):
        train_vit.pretrained_model("no_such_preset", (28, 28, 1), 10, image_size=32)


def test_schedules_rise_to_each_optimizers_own_rate():
    options = train_vit.parse_arguments(["--epochs", "2", "--batch-size", "10"])
    for optimizer, peak in zip(train_vit.make_optimizers(options, 100), (2e-3, 3e-3)):
        schedule = keras.optimizers.schedules.deserialize(optimizer.get_config()["learning_rate"])
        assert float(schedule(2)) == pytest.approx(peak)
        assert float(schedule(20)) == pytest.approx(0.0, abs=1e-9)
