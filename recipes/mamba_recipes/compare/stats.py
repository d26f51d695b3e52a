"""From rows to a verdict's numbers: mean and spread over seeds, and paired differences with their interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

# Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom; beyond, the normal's is within 2 %.
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Spread:
    """A figure over seeds.

    Args:
        mean: The mean over seeds.
        std: The sample standard deviation; NaN for a single seed.
        count: The number of seeds.
    """

    mean: float
    std: float
    count: int


@dataclass(frozen=True)
class Paired:
    """A paired difference, candidate minus reference, seed by seed.

    Args:
        mean: The mean difference.
        low: Lower end of its 95 % interval (Student's t).
        high: Upper end of its 95 % interval.
        count: The number of pairs.
    """

    mean: float
    low: float
    high: float
    count: int

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def spread(values: Iterable[float]) -> Spread:
    """Return mean and standard deviation over seeds."""
    found = list(values)
    if not found:
        raise ValueError("a spread needs at least one value")
    std = statistics.stdev(found) if len(found) > 1 else math.nan
    return Spread(statistics.fmean(found), std, len(found))


def paired(candidate: Mapping[int, float], reference: Mapping[int, float]) -> Paired | None:
    """Return the paired difference over the seeds that both have, or None with fewer than two.

    Args:
        candidate: Seed -> metric.
        reference: Seed -> metric.
    """
    seeds = sorted(set(candidate) & set(reference))
    if len(seeds) < 2:
        return None
    differences = [candidate[seed] - reference[seed] for seed in seeds]
    mean = statistics.fmean(differences)
    freedom = len(seeds) - 1
    quantile = _T95[freedom - 1] if freedom <= len(_T95) else 1.96
    half = quantile * statistics.stdev(differences) / math.sqrt(len(seeds))
    return Paired(mean, mean - half, mean + half, len(seeds))
