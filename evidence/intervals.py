"""Paired differences between two arms, and how sure they are."""

import dataclasses

import numpy as np
from scipy import stats


@dataclasses.dataclass(frozen=True)
class Difference:
    """A mean difference and its 95 % interval.

    Args:
        mean: Float.
        low: Float.
        high: Float.
    """

    mean: float
    low: float
    high: float

    @property
    def sign(self):
        """1 or -1 where the interval leaves out zero, else 0."""
        return int(self.low > 0) - int(self.high < 0)


def paired(values, others):
    """The difference between two arms over the seeds that both have, with a paired t interval.

    Args:
        values: Dict of seed to metric.
        others: Dict of seed to metric, of the arm to compare with.

    Returns:
        A `Difference`, or `None` if they share fewer than two seeds.
    """
    return pooled([(values, others)])


def pooled(pairs):
    """The mean of the differences on several tasks, each of which counts the same.

    Each task has a variance of its own, and the degrees of freedom are Welch's and Satterthwaite's.

    Args:
        pairs: List of what `paired` takes, one of each task.

    Returns:
        A `Difference`, or `None` if there is no task with two seeds.
    """
    by_task = [
        np.array([values[seed] - others[seed] for seed in sorted(values.keys() & others.keys())])
        for values, others in pairs
    ]
    by_task = [differences for differences in by_task if len(differences) > 1]
    if not by_task:
        return None
    mean = np.mean([differences.mean() for differences in by_task])
    variances = np.array([differences.var(ddof=1) / len(differences) for differences in by_task])
    variance = variances.sum()
    half = 0.0
    if variance > 0:
        freedom = variance**2 / sum(
            one**2 / (len(differences) - 1) for one, differences in zip(variances, by_task)
        )
        half = stats.t.ppf(0.975, freedom) * np.sqrt(variance) / len(by_task)
    return Difference(float(mean), float(mean - half), float(mean + half))
