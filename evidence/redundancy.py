"""How redundant the trained weights are: how even their sensitivity, what pruning them costs.

    python -m evidence.redundancy --tasks reviews320

Trains AdamW, Sage and MeanScale at the best rates that `evidence.grid` has found, and zeroes the
least sensitive weights of the Transformer blocks, without training again. One JSON line for each
run, in `results/redundancy.jsonl`; a run that is there is not repeated.
"""

import argparse
import pathlib

import numpy as np
from tqdm import tqdm

from evidence import grid
from evidence import lines as results

RESULTS = results.FOLDER / "redundancy.jsonl"
COMPARED = ("AdamW", "Sage 0.75", "MeanScale 0.75")
SEEDS = (0, 1, 2)
FRACTIONS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
QUANTILES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99)


def main(arguments=None):
    options = parse_arguments(arguments)
    from evidence.arms import ARMS
    from evidence.tasks import make_tasks

    tasks = make_tasks(options.glue_dir)
    grid.check("--tasks", options.tasks, tasks)
    tuned = results.read(options.tuned)
    there = {(one["task"], one["arm"], one["seed"]) for one in results.read(options.results)}
    arms = [arm for arm in ARMS if str(arm) in COMPARED]
    runs = [(tasks[name], arm) for name in options.tasks for arm in arms]
    for task, arm in tqdm(runs):
        seeds = [seed for seed in options.seeds if (task.name, arm.name, seed) not in there]
        rate = results.best_rates(tuned, task.name).get((arm.name, arm.beta_3))
        if rate is None:
            raise SystemExit(f"{arm} is not tuned on {task.name}: run evidence.grid first")
        for line in measure(task, arm, rate, seeds) if seeds else ():
            results.append(options.results, line | grid.surroundings())


def measure(task, arm, learning_rate, seeds):
    """Trains with each seed, and yields the line of each.

    Args:
        task: A `Task`.
        arm: An `Arm`.
        learning_rate: Float.
        seeds: List of integers.
    """
    from evidence.training import Trainer

    data = task.load()
    trainer = Trainer(task, data, arm)
    for seed in seeds:
        trained = trainer.run(learning_rate, seed)
        yield {
            "task": task.name,
            "arm": arm.name,
            "beta_3": arm.beta_3,
            "learning_rate": learning_rate,
            "seed": seed,
            "metric": task.metric,
            "value": trained["value"],
            **redundancy(trainer, task.draw_examples(data, seed)),
        }


def redundancy(trainer, examples):
    """What the sensitivity of a trained model tells, and what pruning costs it.

    Args:
        trainer: A `Trainer` after a run.
        examples: Tuple of inputs and labels, the training examples of that run.

    Returns:
        Dict of the Gini index and the quantiles of the sensitivity, each divided by its mean, and
        the metric by the fraction of the weights that are zero.
    """
    from sage_keras import TRANSFORMER_BLOCKS, arguments, histograms
    from sage_keras.analysis import measure_sensitivity, pruned

    sensitivities = measure_sensitivity(trainer.model, examples, verbose=0)
    paths = list(sensitivities)
    inside = arguments.matches("include", TRANSFORMER_BLOCKS, paths, default=True)
    # An embedding that no sentence looks up has no sensitivity, and is no redundancy of the model.
    blocks = {path: sensitivities[path] for path, yes in zip(paths, inside) if yes}
    flat = np.concatenate([array.ravel() for array in blocks.values()])
    curve = []
    for fraction in FRACTIONS:
        with pruned(trainer.model, blocks, fraction):
            curve.append(trainer.measure()["value"])
    return {
        "parameters": flat.size,
        "gini": float(histograms.gini(histograms.counts([flat]))[0]),
        "quantiles": dict(
            zip(map(str, QUANTILES), (np.quantile(flat, QUANTILES) / flat.mean()).tolist())
        ),
        "pruning": dict(zip(map(str, FRACTIONS), curve)),
    }


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--tasks", nargs="+", default=["reviews320", "vit"], help="as in evidence.grid")
    add("--seeds", nargs="+", type=int, default=SEEDS, help="of the runs")
    add("--glue-dir", type=pathlib.Path, help="as in evidence.grid")
    add("--tuned", type=pathlib.Path, default=results.RESULTS, help="the lines of evidence.grid")
    add("--results", type=pathlib.Path, default=RESULTS, help="the file of JSON lines")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
