"""What the benchmarks share: shapes, interleaved timing, ratios pair by pair, tables, records."""

import datetime
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import statistics
import subprocess

RESULTS = pathlib.Path(__file__).parent / "results"
PACKAGES = ("keras", "keras-hub", "tensorflow", "jax", "libtpu", "torch", "optax", "numpy")

# Vocabulary, width, layers, inner width, positions.
ENCODERS = {
    "tiny": (1000, 64, 2, 256, 64),
    "minilm": (30522, 384, 6, 1536, 512),
    "bert_base": (30522, 768, 12, 3072, 512),
    "bert_large": (30522, 1024, 24, 4096, 512),
}


def encoder_shapes(name):
    """The shapes of a BERT encoder's weights, one of `ENCODERS`."""
    vocabulary, width, layers, inner, positions = ENCODERS[name]
    attention = 4 * [(width, width), (width,)]
    norms = 4 * [(width,)]
    feed_forward = [(width, inner), (inner,), (inner, width), (width,)]
    embeddings = [(vocabulary, width), (positions, width), (2, width), (width,), (width,)]
    return embeddings + layers * (attention + norms + feed_forward) + [(width, width), (width,)]


def parameter_count(shapes):
    return sum(math.prod(shape) for shape in shapes)


def interleave(measure, names, repeats):
    """Calls `measure(name)` for every name in turn, `repeats` times over, to and fro.

    Args:
        measure: Function of a name that returns seconds.
        names: List of strings.
        repeats: Integer.

    Returns:
        Dict of name to the list of its values. Those of one position were taken side by side,
        so that what slows the machine down for a while slows all of them.
    """
    values = {name: [] for name in names}
    for turn in range(repeats):
        for name in list(names)[:: -1 if turn % 2 else 1]:
            values[name].append(measure(name))
    return values


def median(values):
    return statistics.median(values)


def ratio(values, base):
    """The median of the ratios, pair by pair."""
    return median([one / other for one, other in zip(values, base)])


def print_table(rows):
    """Prints rows of strings, the first of which is the header, as a Markdown table."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rows = [rows[0], ["-" * width for width in widths], *rows[1:]]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:1], widths)]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        print("| " + " | ".join(cells) + " |")
    print(flush=True)


def record(benchmark, lines):
    """Appends values to `results/<benchmark>.jsonl`, with the machine, versions and commit.

    Args:
        benchmark: String, the name of the file.
        lines: List of dicts of what was measured.
    """
    path = RESULTS / f"{benchmark}.jsonl"
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(line | surroundings()) + "\n" for line in lines)
    print(f"Appended {len(lines)} lines to {path.relative_to(RESULTS.parent.parent)}")


def recorded(benchmark):
    """The lines in `results/<benchmark>.jsonl`, as a list of dicts."""
    path = RESULTS / f"{benchmark}.jsonl"
    return list(map(json.loads, path.read_text().splitlines())) if path.exists() else []


def surroundings():
    """Where a value comes from: the date, the commit, the machine and the versions."""
    return {
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
        "machine": machine(),
        "versions": versions(),
    }


def machine():
    """The processor's name and the number of cores this process may use."""
    name = platform.processor() or platform.machine()
    information = pathlib.Path("/proc/cpuinfo")
    if information.exists():
        names = [line for line in information.read_text().splitlines() if "model name" in line]
        name = names[0].split(":")[1].strip() if names else name
    cores = len(os.sched_getaffinity(0))
    return f"{name}, {cores} core{'s' * (cores > 1)}"


def versions():
    """The versions of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _commit():
    """The commit, with "-dirty" if files other than the results differ from it."""

    def git(*arguments):
        run = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, cwd=RESULTS.parent.parent
        )
        return run.stdout.strip()

    changed = git("status", "--porcelain", "--", ".", ":(exclude)*/results/*")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("-dirty" if changed else "")
