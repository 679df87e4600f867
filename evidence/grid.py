"""Trains every arm on every task, all tuned alike: one JSON line for each run.

    python -m evidence.grid --tasks reviews320 vit
    KERAS_BACKEND=jax python -m evidence.grid --tasks cola --glue-dir FOLDER --arms AdamW Sage

A run that is in the file is not repeated, and one that is stopped leaves nothing behind: stop the
command when you like, and give it again. `evidence.report` reads the file.
"""

import argparse
import datetime
import pathlib

from tqdm import tqdm

from benchmarks import common
from evidence import lines as results

SEEDS = {
    "tune": (100,),
    **dict.fromkeys(results.FACTORS, range(5)),
    "further": range(1000, 1020),
}
FINE_TUNING_RATES = (1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3)
GLUE_RATES = tuple(2.5e-5 * 2**power for power in range(8))
GLUE = ("cola", "rte", "mrpc")
SCRATCH = ("vit", "translation")  # how the names of tasks from scratch begin
SCRATCH_RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
EXTENSIONS = 3  # at each end, at most


def main(arguments=None):
    options = parse_arguments(arguments)
    from evidence.arms import ARMS
    from evidence.tasks import make_tasks

    tasks = make_tasks(options.glue_dir)
    check("--tasks", options.tasks, tasks)
    check("--arms", options.arms, [name for arm in ARMS for name in (arm.name, str(arm))])
    tasks = [tasks[name] for name in options.tasks or results.MAIN_TASKS]
    arms = [arm for arm in ARMS if not options.arms or {arm.name, str(arm)} & set(options.arms)]

    grid = Grid(options.results, arms, options.seeds)
    stages = [(task, phase) for task in tasks for phase in options.phase]
    made = 0
    with tqdm(unit="s", smoothing=0, bar_format=BAR) as bar:
        while options.limit is None or made < options.limit:
            missing = [
                (task, *run)
                for task, phase in stages
                for run in grid.missing(task, phase, options.rates)
            ]
            bar.total = bar.n + sum(task.seconds for task, *_ in missing)
            bar.refresh()
            if not missing:
                break
            task, arm, learning_rate, seed, phase = missing[0]
            if learning_rate is None:
                raise SystemExit(f"{arm} is not tuned on {task.name} yet: run --phase tune first")
            bar.set_description(f"{len(missing)} runs left, {task.name} {arm} {phase}")
            grid.run(task, arm, learning_rate, seed, phase)
            bar.update(task.seconds)
            made += 1


BAR = "{desc}: {percentage:3.0f}% |{bar}| {elapsed}, {remaining} left"


class Grid:
    """The runs of all arms, those that there are and those that are missing.

    Args:
        path: `pathlib.Path` of the JSON lines.
        arms: List of `Arm`s.
        seeds: List of integers, or `None` for those of each phase.
    """

    def __init__(self, path, arms, seeds=None):
        self.path = path
        self.arms = arms
        self.seeds = seeds
        self.lines = results.read(path)
        self.surroundings = surroundings()
        self._data = self._trainer = (None, None)

    def missing(self, task, phase, rates=None):
        """The runs of a task and phase that are not there yet, in the order to make them in.

        Args:
            task: A `Task`.
            phase: `"tune"`, or a key of `lines.FACTORS`.
            rates: List of floats, or `None` for those of the phase.

        Returns:
            List of tuples of arm, learning rate, seed and phase. The rate is `None` where it is
            still to be found.
        """
        there = {results.key(line) for line in self.lines}
        best = results.best_rates(self.lines, task.name)
        runs = []
        for arm in self.arms:
            if rates:
                chosen = rates
            elif phase == "tune":
                chosen = rates_to_try(self.lines, task.name)
            else:
                chosen = [results.rate_of_phase(best, (arm.name, arm.beta_3), phase)]
            for rate in chosen:
                for seed in self.seeds or SEEDS[phase]:
                    if (task.name, arm.name, arm.beta_3, rate, seed, phase == "tune") not in there:
                        runs.append((arm, rate, seed, phase))
        return runs

    def run(self, task, arm, learning_rate, seed, phase):
        """Makes a run, and writes its line.

        Args:
            task: A `Task`.
            arm: An `Arm`.
            learning_rate: Float.
            seed: Integer.
            phase: String.
        """
        values = self._make_trainer(task, arm).run(learning_rate, seed)
        self._add(task, arm, learning_rate, seed, phase, values)

    def _add(self, task, arm, learning_rate, seed, phase, values):
        line = {
            "task": task.name,
            "arm": arm.name,
            "beta_3": arm.beta_3,
            "learning_rate": learning_rate,
            "seed": seed,
            "phase": phase,
            "metric": task.metric,
            **values,
            "time": datetime.datetime.now().isoformat(timespec="seconds"),
            **self.surroundings,
        }
        results.append(self.path, line)
        self.lines.append(line)

    def _make_trainer(self, task, arm):
        """The trainer of the run before, where task and arm are the same: it is compiled."""
        if self._data[0] is not task:
            self._data = task, task.load()
        if self._trainer[0] != (task, arm):
            import keras

            self._trainer = None, None  # frees its memory first
            keras.backend.clear_session()
            self._trainer = (task, arm), self._new_trainer(task, self._data[1], arm)
        return self._trainer[1]

    def _new_trainer(self, task, data, arm):
        from evidence.training import Trainer

        return Trainer(task, data, arm)


def rates_to_try(lines, task):
    """The learning rates that every arm is tuned over.

    Where the best rate of an arm is the lowest or the highest of those tried, all arms are given
    the next one too, by a factor of 2.

    Args:
        lines: List of dicts.
        task: String.

    Returns:
        List of floats.
    """
    if task in GLUE:
        return list(GLUE_RATES)  # so wide that no arm needs another
    first = SCRATCH_RATES if task.startswith(SCRATCH) else FINE_TUNING_RATES
    values = results.tuning_values(lines, task)
    tried = sorted({*first, *(rate for rates in values.values() for rate in rates)})
    tuned = {arm for arm, rates in values.items() if set(first) <= set(rates)}
    best = {rate for arm, rate in results.best_rates(lines, task).items() if arm in tuned}
    if tried[0] in best and tried[0] > 1.5 * first[0] / 2**EXTENSIONS:
        tried.insert(0, results.rounded(tried[0] / 2))
    if tried[-1] in best and tried[-1] < first[-1] * 2**EXTENSIONS / 1.5:
        tried.append(results.rounded(tried[-1] * 2))
    return tried


def surroundings():
    import keras

    return common.surroundings() | {"backend": keras.backend.backend()}


def check(option, names, known):
    unknown = [name for name in names if name not in known]
    if unknown:
        raise SystemExit(f"{option} must be among {', '.join(known)}. Received: {unknown}")


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--tasks",
        nargs="+",
        default=[],
        help="in this order; the main ones, the cheapest first, if left out",
    )
    add("--arms", nargs="+", default=[], help='such as Sage or "Sage 0.9"; all if left out')
    add("--phase", nargs="+", choices=SEEDS, default=["tune", "final"], help="in this order")
    add("--seeds", nargs="+", type=int, help="those of the phase if left out")
    add("--rates", nargs="+", type=float, help="those of the phase if left out")
    add("--limit", type=int, help="how many runs to make at most")
    add("--glue-dir", type=pathlib.Path, help="folder of cola.train.tsv.gz and so on; else TFDS")
    add("--results", type=pathlib.Path, default=results.RESULTS, help="the file of JSON lines")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
