"""The cost model: seconds of a step for any tree, interpolated between those that were measured.

Knows nothing of how they are measured (`profile`) or kept (`cost_file`).
"""

from dataclasses import dataclass
from itertools import chain

import numpy as np

from eagle.model.kinds import are_whole, is_number

# Beyond all that is measured, and sums of it stay finite.
MOST = 1 << 31


@dataclass(frozen=True)
class Costs:
    """Seconds of a step's parts for one batch size, at each of `contexts`; between measured sizes it is linear.

    Attributes:
        contexts: tokens in the cache.
        nodes, verify: tree sizes, the root alone first, and the forward over such a tree, [contexts][nodes].
        widths, first, level: nodes expanded per level; feeding the accepted tokens and drafting the first level;
            drafting one further level, [contexts][widths].

    Raises:
        ValueError: sizes that are no rising whole numbers, tables of another shape, seconds that are none.
    """

    contexts: tuple[int, ...]
    nodes: tuple[int, ...]
    verify: tuple[tuple[float, ...], ...]
    widths: tuple[int, ...]
    first: tuple[tuple[float, ...], ...]
    level: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        for sizes in (self.contexts, self.nodes, self.widths):
            if (
                not sizes
                or not are_whole(sizes)
                or list(sizes) != sorted(set(sizes))
                or not 1 <= sizes[0] <= sizes[-1] < MOST
            ):
                raise ValueError(f"sizes {sizes} must be rising numbers of 1 or more")
        for table, sizes in ((self.verify, self.nodes), (self.first, self.widths), (self.level, self.widths)):
            if not all(map(is_number, chain.from_iterable(table))):
                raise ValueError(f"seconds {table} must be numbers")
            seconds = np.array(table, dtype=float)
            if seconds.shape != (len(self.contexts), len(sizes)) or not ((seconds >= 0) & (seconds < MOST)).all():
                raise ValueError(f"seconds {table} must be 0 or more, and no years, for every context and size")
        if min(map(min, self.verify)) == 0:
            raise ValueError(f"seconds {self.verify} of a forward must be more than 0")

    def plain(self, context: int) -> float:
        """Return the seconds of a step without drafting."""
        return float(self._at(context, self.nodes, self.verify, np.ones(1))[0])

    def steps(self, context: int, nodes: np.ndarray, depths: np.ndarray, widths: np.ndarray) -> np.ndarray:
        """Return the seconds of a step for each of S trees, given as three arrays [S]."""
        drafting = self._at(context, self.widths, self.first, widths)
        drafting = drafting + depths * self._at(context, self.widths, self.level, widths)
        return self._at(context, self.nodes, self.verify, nodes) + drafting

    def _at(
        self, context: int, sizes: tuple[int, ...], table: tuple[tuple[float, ...], ...], wanted: np.ndarray
    ) -> np.ndarray:
        low, *high = (_line(wanted, sizes, row) for row in table)
        if not high:
            return low
        share = (context - self.contexts[0]) / (self.contexts[1] - self.contexts[0])
        return np.maximum(low + max(0.0, share) * (high[0] - low), 1e-9)


def _line(wanted: np.ndarray, sizes: tuple[int, ...], seconds: tuple[float, ...]) -> np.ndarray:
    """Interpolate between measured sizes; beyond the last go on as between the last two."""
    inside = np.interp(wanted, sizes, seconds)
    slope = (seconds[-1] - seconds[-2]) / (sizes[-1] - sizes[-2]) if len(sizes) > 1 else seconds[0] / sizes[0]
    return inside + np.maximum(0, wanted - sizes[-1]) * max(0.0, slope)
