"""What the lines say, by task, arm and seed."""

import collections

import numpy as np

from evidence import lines as results
from evidence.arms import BASE
from evidence.intervals import paired, pooled

ENOUGH_SEEDS = 5
# The rates of the further seeds, which were fixed before: for SageBlocks and MeanScaleBlocks alike.
FURTHER_RATES = {"translation": (0.008,), "vit": (0.002, 0.004), "vit_320": (0.002, 0.004)}


class Evidence:
    """What the lines say of each task and arm.

    Args:
        lines: List of dicts.
    """

    def __init__(self, lines):
        self.lines = lines
        there = dict.fromkeys(line["task"] for line in lines)
        self.main_tasks = [task for task in results.MAIN_TASKS if task in there]
        self.further_tasks = [task for task in there if task not in self.main_tasks]
        self.tasks = self.main_tasks + self.further_tasks
        self.metrics = {line["task"]: line["metric"] for line in lines}
        self.best = {task: results.best_rates(lines, task) for task in self.tasks}
        self.tuning = {task: results.tuning_values(lines, task) for task in self.tasks}
        self.final = {task: self.values(task, "final") for task in self.tasks}

    def values(self, task, phase):
        """The metric of a phase by arm and seed: of all runs at its rate that are not tuning.

        The further seeds stand for themselves.

        Args:
            task: String.
            phase: A key of `lines.FACTORS`.

        Returns:
            Dict of arm to a dict of seed to metric.
        """
        values = collections.defaultdict(dict)
        for line in self.lines:
            apart = "further" in (phase, line["phase"]) and phase != line["phase"]
            if line["task"] == task and line["phase"] != "tune" and not apart:
                arm = results.arm_of(line)
                if line["learning_rate"] == results.rate_of_phase(self.best[task], arm, phase):
                    values[arm][line["seed"]] = line["value"]
        return dict(values)

    def difference(self, task, arm, base=BASE):
        """An arm against another on one task, `None` where there are too few seeds."""
        final = self.final[task]
        return paired(final.get(arm, {}), final.get(base, {}))

    def seed_differences(self, task, arm, base=BASE):
        """The differences of an arm to another on one task, an array of one for each seed."""
        final = self.final[task]
        values, others = final.get(arm, {}), final.get(base, {})
        return np.array([values[seed] - others[seed] for seed in values if seed in others])

    def compared(self, arm, base):
        """The main tasks on which both arms have all their seeds."""
        finals = {task: self.final[task] for task in self.main_tasks}
        return [
            task
            for task, final in finals.items()
            if len(final.get(arm, {}).keys() & final.get(base, {}).keys()) >= ENOUGH_SEEDS
        ]

    def pooled(self, arm, base):
        """An arm against another on all main tasks on which both are finished."""
        tasks = self.compared(arm, base)
        return pooled([(self.final[task][arm], self.final[task][base]) for task in tasks])

    def further(self, task, arm, rates):
        """The metric by further seed, the mean over some rates.

        Args:
            task: String.
            arm: Tuple of name and beta_3.
            rates: Tuple of floats.

        Returns:
            Dict of seed to metric, of the seeds that have all rates.
        """
        found = collections.defaultdict(dict)
        for line in self.lines:
            if (line["task"], results.arm_of(line), line["phase"]) == (task, arm, "further"):
                found[line["seed"]][line["learning_rate"]] = line["value"]
        return {
            seed: sum(values[rate] for rate in rates) / len(rates)
            for seed, values in found.items()
            if set(rates) <= values.keys()
        }
