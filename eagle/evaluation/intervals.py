"""Confidence intervals by the bootstrap: questions are drawn again, with replacement, and the statistic is taken anew.

What is compared is paired: the same questions are drawn for both sides. Intervals are those of percentiles (Efron and
Tibshirani, An Introduction to the Bootstrap, chapter 13).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 2000
LEVEL = 0.95

Statistic = Callable[..., np.ndarray]


@dataclass(frozen=True)
class Estimate:
    """A figure and its interval.

    Attributes:
        value: of the questions as they are.
        draws: [DRAWS], of questions drawn again.
    """

    value: float
    draws: np.ndarray

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval."""
        return self._percentile((1 - LEVEL) / 2)

    @property
    def high(self) -> float:
        """Upper end."""
        return self._percentile((1 + LEVEL) / 2)

    def figures(self) -> dict[str, float | None]:
        """Return value and ends as JSON knows them; None for what nobody measured."""
        found = {"value": self.value, "low": self.low, "high": self.high}
        return {name: number if math.isfinite(number) else None for name, number in found.items()}

    def _percentile(self, share: float) -> float:
        known = self.draws[np.isfinite(self.draws)]
        return float(np.quantile(known, share)) if len(known) else float("nan")


def estimate(statistic: Statistic, *columns: Sequence[float]) -> Estimate:
    """Return a statistic of questions with its interval.

    Args:
        statistic: columns [..., n], a number per question each -> [...].
        columns: what was measured of every question.
    """
    values = [np.asarray(column, dtype=float) for column in columns]
    generator = np.random.default_rng(0)  # the same draws for all, so that sets of equal size stay paired
    places = generator.integers(0, len(values[0]), (DRAWS, len(values[0])))
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(statistic(*values))
        draws = statistic(*(column[places] for column in values))
    return Estimate(value, draws)


def mean(estimates: Sequence[Estimate]) -> Estimate:
    """Return the mean over sets of questions, each drawn by itself."""
    if len(estimates) == 1:
        return estimates[0]
    generator = np.random.default_rng(1)
    # Draws of one set say nothing about those of another.
    mixed = [generator.permutation(one.draws) for one in estimates]
    return Estimate(float(np.mean([one.value for one in estimates])), np.mean(mixed, axis=0))


def ratio_of_sums(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Return Σ above / Σ below over questions."""
    return above.sum(-1) / below.sum(-1)


def ratio_of_means(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Return mean above / mean below over questions."""
    return above.mean(-1) / below.mean(-1)
