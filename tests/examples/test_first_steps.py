"""The first two steps of the examples that run on every backend.

TensorFlow compiles nothing here: that compiled steps are the same the optimizers' tests show.
"""

import finetune_dps
import finetune_glue
import finetune_lora
import finetune_sparse
import finetune_text
import keras
import numpy as np
import prune_encoder
import pytest
import shrink_encoder
import train_translation
import train_vit
import tune_with_keras_tuner
import watch_training
from common import repeated
from common.comparison import compile_classifier
from common.datasets import Dataset, Images, Translations
from common.encoders import load_preprocessor, text_classifier, tokenize
from example_runs import first_step, tiny_sentences, uncompiled

from sage_keras import compression
from sage_keras.callbacks import PruneNeurons

pytestmark = pytest.mark.extended
STEPS = ["--epochs", "1", "--batch-size", "8"]
SIZES = ["--train-size", "16", "--validation-size", "8", "--sequence-length", "8"]


@pytest.fixture(autouse=True)
def nothing_compiled():
    with uncompiled():
        yield


@pytest.fixture(scope="module")
def preprocessor(tiny_preset):
    return load_preprocessor(tiny_preset, 8)


DATA = tiny_sentences(16, 8)
ARMS = finetune_dps.ARMS


def assert_two_steps(model, loss, classes):
    """From the loss of a model that knows nothing, with sensitivities that say what was trained."""
    assert loss == pytest.approx(np.log(classes), rel=0.2)
    optimizer = model.optimizer
    assert int(optimizer.iterations) == 2
    sensitivities = [
        keras.ops.convert_to_numpy(optimizer.sensitivity(variable)).max()
        for variable in optimizer.guided_variables
    ]
    assert 0 < np.median(sensitivities) < 0.1


@first_step("torch")
def test_finetune_text(tiny_preset, preprocessor):
    options = finetune_text.parse_arguments([*STEPS, *SIZES])
    _, sage = finetune_text.make_optimizers(options)
    run = finetune_text.train(sage, tiny_preset, preprocessor, DATA, options)
    assert_two_steps(run.model, run.history["loss"][0], 2)


@first_step("torch")
def test_shrink_encoder(tiny_preset, preprocessor):
    options = shrink_encoder.parse_arguments([*STEPS, *SIZES])
    pruning = PruneNeurons(options.fraction, rounds=1, begin=0.5, end=0.5)
    run = shrink_encoder.train(tiny_preset, preprocessor, DATA, options, [pruning])
    assert_two_steps(run.model, run.history["loss"][0], 2)
    assert run.history["pruned_neurons"] == [0.5]
    assert compression.compact(run.model).backbone.intermediate_dim == 32


@first_step("torch")
def test_finetune_lora(tiny_preset, preprocessor):
    options = finetune_lora.parse_arguments([*STEPS, *SIZES])
    parts = [tokenize(preprocessor, part) for part in (DATA.train, DATA.validation)]
    run = finetune_lora.train("LoRA", tiny_preset, *parts, options)
    guided = [variable.path.split("/")[-1] for variable in run.model.optimizer.guided_variables]
    assert sorted(guided) == ["lora_kernel_a"] * 2 + ["lora_kernel_b"] * 2
    assert run.history["loss"][0] == pytest.approx(np.log(2), rel=0.2)
    assert int(run.model.optimizer.iterations) == 2


@first_step("jax")
def test_finetune_glue(tiny_preset, preprocessor):
    options = finetune_glue.parse_arguments([*STEPS, *SIZES, "--layer-decay", "0.9"])
    run = finetune_glue.train("Sage", tiny_preset, preprocessor, DATA, options)
    assert_two_steps(run.model, run.history["loss"][0], 2)
    assert 0.0 <= run.history["val_F1"][0] <= 1.0


@first_step("torch")
def test_watch_training(tiny_preset, preprocessor, tmp_path):
    arguments = [*STEPS, *SIZES, "--update-freq", "1", "--output", str(tmp_path)]
    options = watch_training.parse_arguments(arguments)
    classifier = text_classifier(tiny_preset, 2, seed=0)
    compile_classifier(classifier, watch_training.make_optimizers(options)["Sage"])
    training = tokenize(preprocessor, DATA.train)
    log = watch_training.train(classifier, "Sage", training, training.batch(8), options)
    assert log.steps.tolist() == [1, 2]
    assert sorted(log.groups)[0] == "layer_0/attention_output"
    assert int(classifier.optimizer.iterations) == 2


@first_step("torch")
@pytest.mark.parametrize(
    "arm", [*(pytest.param(arm, marks=pytest.mark.extended) for arm in ARMS[:-1]), ARMS[-1]]
)
def test_finetune_dps(arm, tiny_preset, preprocessor, tmp_path):
    arguments = [*STEPS, "--sequence-length", "8", "--seeds", "1", "--update-ratio", "0.5"]
    options = finetune_dps.parse_arguments(arguments)
    runs = repeated.Runs(tmp_path / "runs.jsonl")
    optimizer = finetune_dps.make_optimizer(arm, 16, options)
    [key] = finetune_dps.keys(arm, 16, options)
    finetune_dps.train(optimizer, [key], repeated.Task(tiny_preset, preprocessor, DATA), runs)
    assert int(optimizer.iterations) == 2
    assert runs[key]["loss"] == pytest.approx(np.log(2), rel=0.2)


@first_step("tensorflow")
def test_prune_encoder(tiny_preset, preprocessor, tmp_path):
    arguments = [*STEPS, "--size", "16", "--sequence-length", "8", "--seeds", "1"]
    options = prune_encoder.parse_arguments(arguments)
    runs = repeated.Runs(tmp_path / "runs.jsonl")
    optimizer = prune_encoder.make_optimizer("Platon", 0.5, options)
    [key] = prune_encoder.keys("Platon", 0.5, options)
    prune_encoder.train(optimizer, [key], repeated.Task(tiny_preset, preprocessor, DATA), runs)
    assert int(optimizer.iterations) == 2
    assert runs[key]["zeros"] == pytest.approx(0.5, abs=1e-3)
    assert runs[key]["loss"] == pytest.approx(np.log(2), rel=0.2)


@first_step("torch")
def test_finetune_sparse(tiny_preset, preprocessor, tmp_path):
    arguments = [*STEPS, "--size", "16", "--sequence-length", "8", "--seeds", "1"]
    options = finetune_sparse.parse_arguments(arguments)
    runs = repeated.Runs(tmp_path / "runs.jsonl")
    [key] = finetune_sparse.keys("random", 0.05, options)
    task = repeated.Task(tiny_preset, preprocessor, DATA)
    finetune_sparse.train("random", 0.05, [key], task, runs, options)
    assert runs[key]["loss"] == pytest.approx(np.log(2), rel=0.2)
    head = 2 * 32 + 2  # trains whole: two moments; the chosen have position and value too
    expected = 16 * (runs[key]["trained"] - head) + 8 * head
    assert runs[key]["state"] == pytest.approx(expected, abs=16)


@first_step("torch")
def test_train_translation():
    options = train_translation.parse_arguments(
        [*STEPS, "--width", "8", "--depth", "1", "--heads", "2", "--length", "8", "--beams", "2"]
    )
    sources = [f"open file {index}" for index in range(16)]
    pairs = Translations(sources, [f"ouvrir fichier {index}" for index in range(16)])
    tokenizer = train_translation.Tokenizer([*pairs.sources, *pairs.targets], 40)
    arrays = train_translation.examples(pairs, tokenizer, 24)
    options.length = 24
    _, sage = train_translation.make_optimizers(options, 16)
    run = train_translation.train(sage, tokenizer, arrays, arrays, options)
    assert_two_steps(run.model, run.history["loss"][0], tokenizer.vocabulary_size)


@first_step("torch")
def test_train_vit():
    options = train_vit.parse_arguments([*STEPS, "--width", "8", "--depth", "1", "--heads", "2"])
    pixels = np.random.default_rng(0).integers(0, 256, (16, 14, 14, 1)).astype("uint8")
    images = Images(pixels, np.arange(16, dtype="int32") % 2)
    data = Dataset(images, images, ["0", "1"])
    _, sage = train_vit.make_optimizers(options, 16)
    run = train_vit.train(train_vit.build_model(data, options), sage, data, options)
    assert_two_steps(run.model, run.history["loss"][0], 2)


@first_step("jax")
def test_tune_with_keras_tuner():
    import keras_tuner

    parameters = keras_tuner.HyperParameters()
    tune_with_keras_tuner.build_model(parameters, seed=0)
    parameters.values.update({"optimizer": "Sage", "learning_rate": 0.01, "beta_3": 0.7})
    model = tune_with_keras_tuner.build_model(parameters, seed=0)
    pixels = np.random.default_rng(0).random((16, 64))
    history = model.fit(pixels, np.arange(16) % 10, batch_size=8, verbose=0).history
    assert_two_steps(model, history["loss"][0], 10)
