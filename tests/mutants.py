"""Faults put into the package one at a time: does the default run of the tests notice each?

    python -m tests.mutants            all of them
    python -m tests.mutants NAME ...   those whose name or file has NAME in it

Each is tried on a copy of the repository. First run the test files that should notice; if all of
them pass, the whole default run. It prints what was killed and what lived, and ends with 1 if one
lived.
"""

import concurrent.futures
import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]
# pytest's exit statuses. With more than one worker the first failure interrupts the others.
NOTHING_FAILED, TESTS_FAILED, INTERRUPTED = 0, 1, 2
FAILURE = re.compile(r"^(?:FAILED|ERROR) (\S+)", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One fault: in `file` of the package the text `old`, found once, becomes `new`."""

    name: str  # and why it is a fault
    file: str
    old: str
    new: str
    tests: str  # the files that should notice, separated by spaces, below tests/
    backend: str | None = None  # where they notice it, if not on every one


MUTANTS = [
    # The formula.
    Mutant(
        "the average keeps 1 - beta_3 of itself",
        "sensitivity.py",
        "start, end, share = average, value, 1.0 - beta_3",
        "start, end, share = average, value, beta_3",
        "test_sensitivity.py",
    ),
    Mutant(
        "the bias is corrected for one step more",
        "sensitivity.py",
        "ops.expm1(ops.multiply(step, math.log(beta_3)))",
        "ops.expm1(ops.multiply(step + 1.0, math.log(beta_3)))",
        "test_sensitivity.py",
    ),
    Mutant(
        "no epsilon in the numerator: a zero weight gets a scale of 0",
        "sensitivity.py",
        "ops.divide(ops.add(variation, epsilon), ",
        "ops.divide(variation, ",
        "test_sensitivity.py",
    ),
    Mutant(
        "no epsilon in the denominator: a zero weight becomes NaN",
        "sensitivity.py",
        "ops.add(smoothed, epsilon))",
        "smoothed)",
        "test_sensitivity.py",
    ),
    Mutant(
        "the variation keeps its sign: the learning rate can be negative",
        "sensitivity.py",
        "ops.abs(ops.subtract(value, smoothed))",
        "ops.subtract(value, smoothed)",
        "test_sensitivity.py",
    ),
    Mutant(
        "the sensitivity keeps its sign",
        "sensitivity.py",
        "ops.abs(ops.multiply(weight, gradient))",
        "ops.multiply(weight, gradient)",
        "test_sensitivity.py",
    ),
    Mutant(
        "a mean that has not begun takes its first value",
        "sensitivity.py",
        "ops.divide(ops.minimum(count, 1.0), ops.maximum(count, 1.0))",
        "ops.divide(1.0, ops.maximum(count, 1.0))",
        "test_sensitivity.py optimizers/test_twin.py",
    ),
    # The selection of DPS.
    Mutant(
        "fewer weights are kept than the share says",
        "optimizers/dps/selection.py",
        "math.ceil(size * (1 - _decimal(drop_rate)))",
        "math.floor(size * (1 - _decimal(drop_rate)))",
        "optimizers/test_selection.py",
    ),
    Mutant(
        "the kept share in binary: 4 of 10 at a drop rate of 0.7",
        "optimizers/dps/selection.py",
        "math.ceil(size * (1 - _decimal(drop_rate)))",
        "math.ceil(size * (1 - drop_rate))",
        "optimizers/test_selection.py",
    ),
    Mutant(
        "the threshold is that of one weight more",
        "thresholds.py",
        "ops.greater_equal(_count([ops.greater_equal(bits, value)]), count)",
        "ops.greater(_count([ops.greater_equal(bits, value)]), count)",
        "test_thresholds.py",
    ),
    Mutant(
        "the weights at the threshold are dropped",
        "thresholds.py",
        "ops.greater_equal(ops.view(scores",
        "ops.greater(ops.view(scores",
        "test_thresholds.py",
    ),
    Mutant(
        "stages of 50 steps do not punish frequency",
        "optimizers/dps/selection.py",
        "if stage_steps < _SHORTEST_PENALIZED_STAGE",
        "if stage_steps <= _SHORTEST_PENALIZED_STAGE",
        "optimizers/test_selection.py optimizers/test_mixing.py",
    ),
    Mutant(
        "the mixture is not scaled up: its mean is not the weight",
        "optimizers/dps/selection.py",
        "ops.subtract(weight, ops.multiply(target, drop_rate)), 1.0 - drop_rate)",
        "ops.subtract(weight, ops.multiply(target, drop_rate)), 1.0)",
        "optimizers/test_selection.py optimizers/test_mixing.py",
    ),
    Mutant(
        "the dropped columns are mixed in, not the kept ones",
        "optimizers/dps/selection.py",
        "ops.where(mask, moved, target)",
        "ops.where(mask, target, moved)",
        "optimizers/test_selection.py optimizers/test_mixing.py",
    ),
    Mutant(
        "columns of Gemma's queries go by their heads",
        "optimizers/columns.py",
        "if shape[0] >= shape[1] else (1, shape[1], 1)",
        "if shape[0] >= shape[1] else (shape[0], 1, 1)",
        "optimizers/test_selection.py",
    ),
    # Names, histograms, scores and pruning.
    Mutant(
        "of variables of one path only the last is left",
        "paths.py",
        'f"{name}#{seen[name]}" if seen[name] else name',
        "name",
        "analysis/test_measure.py optimizers/test_unusual_models.py",
    ),
    Mutant(
        "one running sum over all elements, which loses digits",
        "histograms.py",
        "ops.add(total(runs), ops.sum(values[whole:]))",
        "ops.sum(values)",
        "test_histograms.py",
    ),
    Mutant(
        "the smallest quantile is an empty bin",
        "histograms.py",
        "ranks = ops.maximum(ranks, 0.5)",
        "ranks = ops.maximum(ranks, 0.0)",
        "test_histograms.py",
    ),
    Mutant(
        "the sample sees the same columns in every row",
        "histograms.py",
        "while math.gcd(step, size) > 1:",
        "while False:",
        "test_histograms.py",
    ),
    Mutant(
        "the count to prune in binary: 10 of 150 at 0.07, which is 10.5",
        "compression/pruning.py",
        "round(fractions.Fraction(str(share)) * size)",
        "round(share * size)",
        "analysis/test_pruning.py",
    ),
    Mutant(
        "all weights at the threshold are kept, more than were asked for",
        "thresholds.py",
        "np.flatnonzero(one.ravel() == threshold)[:missing]",
        "np.flatnonzero(one.ravel() == threshold)",
        "test_thresholds.py analysis/test_pruning.py",
    ),
    Mutant(
        "the scope of layers is that of the model",
        "compression/pruning.py",
        'if scope == "global":',
        'if scope != "variable":',
        "analysis/test_pruning.py",
    ),
    Mutant(
        "float64 scores are rounded to float32 before they are ranked",
        "scores.py",
        'array.astype("float64" if array.dtype == "float64" else "float32", copy=False)',
        'array.astype("float32", copy=False)',
        "analysis/test_pruning.py",
    ),
    # Measuring.
    Mutant(
        "the mean over examples is one over batches",
        "analysis/measure.py",
        "_divide(ops.convert_to_numpy(value), measured)",
        "_divide(ops.convert_to_numpy(value), read)",
        "analysis/test_measure.py",
    ),
    Mutant(
        "the model is measured with its dropout on",
        "analysis/measure.py",
        "predicted = model(x, training=False)",
        "predicted = model(x, training=True)",
        "analysis/test_measure.py",
    ),
    # Callbacks.
    Mutant(
        "batches are counted on over epochs: later ones are not looked at",
        "callbacks/skipped_steps.py",
        '''of each epoch."""
        self._looked_at = 0''',
        '''of each epoch."""''',
        "callbacks/test_skipped_steps.py optimizers/test_nonfinite.py",
    ),
    Mutant(
        "one step more may be skipped than the limit",
        "callbacks/skipped_steps.py",
        "if skipped >= self.limit:",
        "if skipped > self.limit:",
        "optimizers/test_nonfinite.py",
    ),
    Mutant(
        "after validation training goes on with the true weights",
        "callbacks/true_weights.py",
        "        for optimizer in self._unmixed:\n            optimizer.mix()\n",
        "",
        "callbacks/test_true_weights.py",
    ),
    # The guided step.
    Mutant(
        "the correction of the bias begins at step 2",
        "optimizers/sage/guided.py",
        "self._scale_of(value, average, self.iterations + 1)",
        "self._scale_of(value, average, self.iterations + 2)",
        "optimizers/test_base_equality.py optimizers/test_twin.py",
    ),
    Mutant(
        "measuring scales the learning rate",
        "optimizers/sage/guided.py",
        "        if self.guide:\n            learning_rate",
        "        if True:\n            learning_rate",
        "optimizers/test_base_equality.py",
    ),
    Mutant(
        "the first scale, which is the same for all weights, counts in the mean",
        "optimizers/sage/guided.py",
        "count = ops.cast(self.iterations, scale.dtype)",
        "count = ops.cast(self.iterations + 1, scale.dtype)",
        "optimizers/test_twin.py",
    ),
    Mutant(
        "sparse gradients are clipped with duplicate rows apart",
        "optimizers/sage/guided.py",
        "            grads = self._dense(grads, variables)\n",
        "            pass\n",
        "optimizers/test_tensorflow.py",
    ),
    Mutant(
        "what is excluded is guided",
        "optimizers/base.py",
        "            and not no\n",
        "",
        "optimizers/test_guided.py optimizers/test_properties.py",
    ),
    Mutant(
        "the good steps are counted as skipped",
        "optimizers/base.py",
        "ops.cast(ops.logical_not(finite), self._skipped.dtype)",
        "ops.cast(finite, self._skipped.dtype)",
        "optimizers/test_nonfinite.py",
    ),
    Mutant(
        "a skipped step is taken back in the slots, not in the weights",
        "optimizers/base.py",
        "variables = [*self._trainable_variables, *self.variables]",
        "variables = [*self.variables]",
        "optimizers/test_nonfinite.py",
    ),
    # Sparse fine-tuning.
    Mutant(
        "weights move while the weights to train are being chosen",
        "optimizers/sparse/fine_tuning.py",
        "        elif chosen:\n            step(gradients, weights)",
        "        else:\n            step(gradients, weights)",
        "optimizers/test_sparse.py",
    ),
    Mutant(
        "the last step's gradients choose, not the largest of all",
        "optimizers/sparse/fine_tuning.py",
        'ops.maximum(take_at(score, old), ops.cast(best, "float32"))',
        "take_at(score, old)",
        "optimizers/test_sparse.py",
    ),
    Mutant(
        "weights that were set between two steps are lost",
        "optimizers/sparse/fine_tuning.py",
        "new = ops.where(ops.equal(ops.cast(value, held.dtype), held), value, new)",
        "new = value",
        "optimizers/test_sparse.py",
    ),
    Mutant(
        "of equal scores the last are taken",
        "thresholds.py",
        "np.flatnonzero(one.ravel() == threshold)[:missing]",
        "np.flatnonzero(one.ravel() == threshold)[::-1][:missing]",
        "optimizers/test_sparse.py",
    ),
    Mutant(
        "the free child's gradients keep their size",
        "optimizers/sparse/child_tuning.py",
        "ops.divide(gradient, self.fraction)",
        "gradient",
        "optimizers/test_child_tuning.py",
    ),
    # Pruning.
    Mutant(
        "what the mask leaves out is zeroed at updates only",
        "optimizers/pruning/gradual.py",
        "ops.where(shown[at], proposal, 0.0) for",
        "proposal for",
        "optimizers/test_pruning.py",
    ),
    Mutant(
        "the averages of EMA are not pruned",
        "optimizers/pruning/gradual.py",
        "        if self.use_ema:",
        "        if False:",
        "optimizers/test_pruning.py",
    ),
    Mutant(
        "the last update is left out where it is not a multiple",
        "optimizers/pruning/schedule.py",
        "return ops.logical_or(regular, ops.equal(iterations, end))",
        "return regular",
        "optimizers/test_pruning.py",
    ),
    Mutant(
        "counts are rounded down",
        "optimizers/pruning/schedule.py",
        "round(whole *",
        "int(whole *",
        "optimizers/test_pruning.py",
    ),
    Mutant(
        "the first uncertainties are those of the zeros that the average began with",
        "optimizers/pruning/gradual.py",
        "smoothed = measure.bias_corrected(average, self.beta_3, step)",
        "smoothed = average",
        "optimizers/test_pruning.py",
    ),
    Mutant(
        "what movement hides is not trained",
        "optimizers/pruning/gradual.py",
        "self.assign(variable, ops.where(self._pruning_mask(index), *weights))",
        "pass",
        "optimizers/test_pruning.py",
    ),
    Mutant(
        "all of the equal scores are kept",
        "thresholds.py",
        "ops.where(ties, 0, MOST_SCORES)",
        "MOST_SCORES",
        "test_thresholds.py optimizers/test_pruning.py",
    ),
    Mutant(
        "three of each four weights may stay",
        "optimizers/pruning/pattern.py",
        "_GROUP, _KEPT = 4, 2",
        "_GROUP, _KEPT = 4, 3",
        "optimizers/test_pruning.py",
    ),
    Mutant(
        "the biases of attention are pruned by default",
        "optimizers/patterns.py",
        'path.endswith("bias") or ',
        "",
        "optimizers/test_pruning.py",
    ),
    Mutant(
        "zeros come back by the averages of EMA",
        "optimizers/pruning/keep_zeros.py",
        "        if self.use_ema:",
        "        if False:",
        "optimizers/test_keep_zeros.py",
    ),
    # DPS and Mixout.
    Mutant(
        "scores go on from one cycle to the next",
        "optimizers/dps/subnetwork.py",
        "ops.where(first, 0.0, so_far)",
        "so_far",
        "optimizers/test_subnetwork.py",
    ),
    Mutant(
        "scores grow in stage II too",
        "optimizers/dps/subnetwork.py",
        "ops.where(self._in_stage_one(), total, so_far)",
        "total",
        "optimizers/test_subnetwork.py optimizers/test_mixing.py",
    ),
    Mutant(
        "the gradients of the dropped columns are clipped with the others",
        "optimizers/dps/mixing.py",
        "ops.where(computed_once(self._mask(index)), gradient, 0.0)",
        "gradient",
        "optimizers/test_mixing.py",
    ),
    Mutant(
        "the initial weights follow the weights",
        "optimizers/dps/mixing.py",
        'ops.greater(self.iterations, 0), ops.cast(self._mixed, "bool")',
        "ops.greater(self.iterations, 1), False",
        "optimizers/test_mixing.py",
    ),
    Mutant(
        "every step draws the same columns",
        "optimizers/dps/mixing.py",
        "self._draw(self._columns.shape, self.iterations)",
        "self._draw(self._columns.shape, 0)",
        "optimizers/test_mixing.py",
    ),
    Mutant(
        "stage II mixes with the initial weights",
        "optimizers/dps/subnetwork_mixing.py",
        "ops.where(self._in_stage_one(), initial, start)",
        "initial",
        "optimizers/test_mixing.py",
    ),
    # Rates by layer.
    Mutant(
        "the last pattern that matches counts, not the first",
        "arguments.py",
        "next((value for pattern, value in values.items()",
        "next((value for pattern, value in reversed(values.items())",
        "optimizers/test_layerwise.py",
    ),
    Mutant(
        "weight decay goes at the rate of the model",
        "optimizers/layerwise/layerwise.py",
        "                self._rate_multiplier = multiplier",
        "                self._rate_multiplier = 1.0",
        "optimizers/test_layerwise.py",
    ),
    Mutant(
        "the embeddings have the rate of the first block",
        "optimizers/layerwise/decay.py",
        "decay ** (blocks + 1 - depth)",
        "decay ** (blocks + 1 - max(depth, 1))",
        "optimizers/test_decay.py",
    ),
    # Saved states.
    Mutant(
        "a state of another format is loaded",
        "optimizers/saved_state.py",
        'newer = description["format"] > FORMAT',
        "newer = False",
        "optimizers/test_saved_state.py",
    ),
    Mutant(
        "a slot of another shape is loaded",
        "optimizers/saved_state.py",
        'elif saved["variables"][old][2] != shape:',
        "elif False:",
        "optimizers/test_mixing.py",
    ),
    Mutant(
        "values that are not as they were saved are loaded",
        "optimizers/saved_state.py",
        'if description["format"] > 1 and checksum != _checksum(description, arrays):',
        "if False:",
        "optimizers/test_states.py",
    ),
    # Logs and reports.
    Mutant(
        "the optimizers of a log are those of its first report",
        "log/reading.py",
        "optimizers=reports[-1][log_format.OPTIMIZERS]",
        "optimizers=reports[0][log_format.OPTIMIZERS]",
        "log/test_reading.py",
    ),
    Mutant(
        "of two reports of one step both are read",
        "log/reading.py",
        "_place(line) < _place(latest[-1])",
        "_place(line) <= _place(latest[-1])",
        "log/test_reading.py",
    ),
    Mutant(
        "the report shows the first values of a run",
        "analysis/report.py",
        "series.values.get(name, [math.nan])[-1]",
        "series.values.get(name, [math.nan])[0]",
        "analysis/test_report.py",
    ),
    Mutant(
        "redundant are the parameters under 2 % of the mean",
        "analysis/summary.py",
        "_REDUNDANT = 0.01",
        "_REDUNDANT = 0.02",
        "analysis/test_summary.py",
    ),
    Mutant(
        "the logger's redundant share is that above the limit",
        "callbacks/sensitivity_values.py",
        "one < _REDUNDANT * means[0]",
        "one > _REDUNDANT * means[0]",
        "callbacks/test_sensitivity_logger.py",
    ),
    # TensorFlow Hub.
    Mutant(
        "gradients are asked of integer outputs",
        "hub.py",
        "if output.dtype.is_floating]",
        "]",
        "test_hub.py",
    ),
    # All variables at once, on torch.
    Mutant(
        "the scales of the variables are not applied",
        "foreach.py",
        "self.scales |= dict(zip(positions, values))",
        "dict(zip(positions, values))",
        "optimizers/test_all_at_once.py",
        "torch",
    ),
    Mutant(
        "a class's own change of single variables is left out",
        "foreach.py",
        'any("_adjust_all" not in vars(one) for one in singly)',
        "False",
        "optimizers/test_all_at_once.py",
        "torch",
    ),
    Mutant(
        "a stateless step writes into its arguments",
        "foreach.py",
        "if any(variable.value is not variable._value for variable in variables):",
        "if False:",
        "optimizers/test_all_at_once.py",
        "torch",
    ),
    Mutant(
        "the scores of the cycle before count on",
        "foreach.py",
        "if place == 0:",
        "if False:",
        "optimizers/test_all_at_once.py",
        "torch",
    ),
    Mutant(
        "TensorFlow makes the slots in the trace",
        "backend.py",
        "if not tf.executing_eagerly() and not tf.distribute.has_strategy():",
        "if False:",
        "optimizers/test_tensorflow.py",
        "tensorflow",
    ),
    # Compression: pruning for good, files, ranks and bits.
    Mutant(
        "pruning for good takes biases too",
        "compression/pruning.py",
        "chosen = arguments.chosen(include, exclude, list(arrays), default=matrices)",
        "chosen = arguments.chosen(include, exclude, list(arrays))",
        "compression/test_pruning.py",
    ),
    Mutant(
        "a file that is not as it was written is read",
        "compression/files.py",
        "or hashlib.sha256(body).digest() != digest",
        "or False",
        "compression/test_files.py",
    ),
    Mutant(
        "zeros are told by value, and minus zero is lost",
        "compression/sparse_files.py",
        "positions = np.flatnonzero(bits)",
        "positions = np.flatnonzero(files.as_array(bits, bits.shape, dtype).astype('float32'))",
        "compression/test_files.py",
    ),
    Mutant(
        "what stands behind the end of a part is passed over",
        "compression/files.py",
        "or stream.unused_data:",
        "or False:",
        "compression/test_files.py",
    ),
    Mutant(
        "a delta is put on any base",
        "compression/deltas.py",
        "if found != header.get(expected):",
        "if False:",
        "compression/test_files.py",
    ),
    Mutant(
        "a layer's rank may be above the smaller side of its kernel",
        "compression/ranks.py",
        "ranks[index] + parts[index] > most[index]",
        "False",
        "compression/test_ranks.py",
    ),
    Mutant(
        "adapters that were loaded as zeros stay so",
        "compression/ranks.py",
        "if not np.any(to_numpy(first)):",
        "if False:",
        "compression/test_ranks.py",
    ),
    Mutant(
        "the layers of the highest loss are kept, however many weights they have",
        "compression/quantization.py",
        "if one.weights <= room:",
        "if room > 0:",
        "compression/test_quantization.py",
    ),
    Mutant(
        "a loss is that of the weights and not of their rounding",
        "compression/quantization.py",
        "model, data, measure.sensitivity, directions, batches,",
        "model, data, measure.sensitivity, None, batches,",
        "compression/test_quantization.py",
    ),
]


def apply(mutant, folder):
    """Writes the fault into a copy of the package."""
    path = folder / "sage_keras" / mutant.file
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")


def check(mutants):
    """Ends the program by the name of each mutant whose text or tests are not there."""
    faults = []
    for mutant in mutants:
        path = ROOT / "sage_keras" / mutant.file
        found = path.read_text(encoding="utf-8").count(mutant.old) if path.is_file() else 0
        if found != 1:
            faults.append(f"{mutant.name}: its text is in {mutant.file} {found} times")
        missing = [one for one in mutant.tests.split() if not (ROOT / "tests" / one).is_file()]
        if missing:
            faults.append(f"{mutant.name}: there is no {', '.join(missing)}")
    if faults:
        sys.exit("\n".join(faults))


def run_tests(folder, tests, *options, backend=None):
    """The exit status of pytest in `folder`, and the last lines that it printed."""
    chosen = {"KERAS_BACKEND": backend} if backend else {}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", *options, *tests],
        cwd=folder,
        env={**os.environ, **chosen, "PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    status = run.returncode
    if status == INTERRUPTED and FAILURE.search(run.stdout):
        status = TESTS_FAILED
    if status not in (NOTHING_FAILED, TESTS_FAILED):
        raise RuntimeError(f"pytest could not run, status {status}:\n{run.stdout}")
    return status, run.stdout


def copy_repository(folder):
    ignored = shutil.ignore_patterns(".git", ".venv*", "__pycache__", "dist", "site", ".hypothesis")
    shutil.copytree(ROOT, folder, ignore=ignored, dirs_exist_ok=True)


def check_without_a_fault(mutants):
    """Ends the program unless the copy is what is tested, and its tests pass as it is."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name).resolve()
        copy_repository(folder)
        tests = {f"tests/{one}" for mutant in mutants for one in mutant.tests.split()}
        (folder / "tests" / "test_copy.py").write_text(
            "import pathlib, sage_keras\n"
            "def test_the_copy_is_tested():\n"
            f"    assert pathlib.Path(sage_keras.__file__).is_relative_to({str(folder)!r})\n"
        )
        status, printed = run_tests(folder, ["tests/test_copy.py", *sorted(tests)])
        if status != NOTHING_FAILED:
            sys.exit(f"The tests fail without a fault:\n{printed}")


def try_mutant(mutant):
    """The test that failed first, or None."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name).resolve()
        copy_repository(folder)
        apply(mutant, folder)
        for tests in ([f"tests/{one}" for one in mutant.tests.split()], []):
            options = ["-n", "0"] if tests else []
            status, printed = run_tests(folder, tests, *options, backend=mutant.backend)
            if status == TESTS_FAILED:
                return FAILURE.search(printed)[1]
    return None


def main(names):
    mutants = [
        one
        for one in MUTANTS
        if not names or any(name in one.name or name in one.file for name in names)
    ]
    check(mutants)
    check_without_a_fault(mutants)
    lived = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for mutant, killer in zip(mutants, pool.map(try_mutant, mutants)):
            lived += killer is None
            outcome = "LIVED " if killer is None else "killed"
            print(
                f"{outcome} {mutant.file}: {mutant.name} ({killer or 'no test failed'})", flush=True
            )
    print(f"{len(mutants) - lived} of {len(mutants)} killed")
    return 1 if lived else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
