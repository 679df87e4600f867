"""Paired differences between two arms, and how sure they are."""

import dataclasses

import numpy as np

RESAMPLES = 10_000


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
    """The difference between two arms over the seeds that both have, by the paired bootstrap.

    Args:
        values: Dict of seed to metric.
        others: Dict of seed to metric, of the arm to compare with.

    Returns:
        A `Difference`, or `None` if they share fewer than two seeds.
    """
    return pooled([(values, others)])


def pooled(pairs):
    """The mean of the differences on several tasks, each of which counts the same.

    The seeds are drawn anew within each task.

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
    random = np.random.default_rng(0)
    means = np.mean(
        [
            differences[random.integers(len(differences), size=(RESAMPLES, len(differences)))].mean(
                1
            )
            for differences in by_task
        ],
        axis=0,
    )
    low, high = np.quantile(means, [0.025, 0.975])
    mean = np.mean([differences.mean() for differences in by_task])
    return Difference(float(mean), float(low), float(high))
