"""All trees that may be chosen, and what a draft's candidates promise for each of them.

Shapes: M candidates, S shapes of trees, W widths, D depths.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from eagle.model.configs import TreeConfig
from eagle.model.tree import Candidates

NODES = (2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 60)
WIDTHS = (1, 2, 3, 4, 6, 8, 10)
# Candidates that are looked at: the best of them.
POOL = 64
# The most that a level may hold of what the one before holds.
STEADY = 0.95


@dataclass(frozen=True)
class Found:
    """The best candidates of one row's draft, best score first.

    Attributes:
        probabilities: cumulative, under the head [M].
        depths: 1 for the root's children [M].
        ranks: the largest rank among siblings on the path [M].
    """

    probabilities: np.ndarray
    depths: np.ndarray
    ranks: np.ndarray


def best_candidates(candidates: Candidates, row: int) -> Found:
    """Return the best candidates of one row."""
    scores_M = candidates.scores_BM[row].cpu().numpy()
    parents_M = candidates.parents_BM[row].cpu().numpy()
    width = candidates.width
    numbers_M = np.arange(len(scores_M)) - width
    depths_M = np.where(numbers_M < 0, 1, 2 + numbers_M // width**2)
    ranks_M = np.where(numbers_M < 0, numbers_M + width, numbers_M % width)
    for start in range(width, len(scores_M), width**2):
        level = slice(start, start + width**2)
        ranks_M[level] = np.maximum(ranks_M[level], ranks_M[parents_M[level]])
    best = np.argsort(-scores_M, kind="stable")[:POOL]
    # A NaN promises nothing; in the memory it would stay for ever.
    return Found(np.nan_to_num(np.exp(scores_M[best])), depths_M[best], ranks_M[best])


def all_trees(limit: TreeConfig) -> list[TreeConfig]:
    """Return all trees that differ enough, within the limit."""
    most, widest = limit.nodes, limit.top_k
    return [
        tree
        for width in sorted({min(width, widest) for width in WIDTHS} | {widest})
        for depth in range(limit.depth + 1)
        for nodes in sorted({min(n, most) for n in NODES})
        if depth + 2 <= (tree := replace(limit, total_token=nodes, depth=depth, top_k=width)).total_token
        and tree.nodes == nodes
    ]


class Shapes:
    """All trees that may be chosen within the limits, or a few that are prepared.

    Args:
        limit: the widest and deepest tree.
        prepared: the trees, the largest last; None means all sizes within the limit.

    Attributes:
        trees: S of them.
        nodes, depths, widths: their sizes as arrays [S].
        all_widths, width_numbers: the widths that occur [W], and which of them each tree has [S].
    """

    def __init__(self, limit: TreeConfig, prepared: Sequence[TreeConfig] | None = None) -> None:
        self.limit, self.is_prepared = limit, prepared is not None
        self.trees = list(prepared) if prepared is not None else all_trees(limit)
        self.all_widths = np.array(sorted({tree.top_k for tree in self.trees} | {limit.top_k}))
        self.nodes, self.depths, self.widths = (
            np.array([getattr(tree, name) for tree in self.trees]) for name in ("total_token", "depth", "top_k")
        )
        self.width_numbers = self.all_widths.searchsorted(self.widths)
        self._depths_D1 = np.arange(limit.depth + 1)[:, None]

    def look(self, tree: TreeConfig) -> TreeConfig:
        """Return what to draft instead of a tree now and then, to see what lies beyond it."""
        wide = replace(tree, depth=self.limit.depth, top_k=self.limit.top_k)
        return self.trees[-1] if self.is_prepared else wide

    def gains(self, found: Found, run: TreeConfig, calibration: np.ndarray) -> np.ndarray:
        """Return the expected accepted tokens of every shape with every width, [S, W].

        Shapes deeper than the draft was are continued: each further level holds as much of the last one as that
        holds of the one before.

        Args:
            found: the best candidates of a draft.
            run: the tree that was drafted.
            calibration: per depth, accepted over promised.
        """
        values_M = found.probabilities * calibration[found.depths]
        kept_WDM = (found.ranks < self.all_widths[:, None])[:, None] & (found.depths <= self._depths_D1 + 1)
        # Kept values move up to their place among the kept; the others fall on place 0, which counts nothing.
        places_WDM = kept_WDM * kept_WDM.cumsum(-1)
        last = run.depth + 1
        parts = (values_M, values_M * (found.depths == last), values_M * (found.depths == last - 1))
        total, at_last, before = (self._sums(part, places_WDM) for part in parts)
        before = before if last > 1 else np.ones_like(before)
        ratio = np.clip(at_last / np.maximum(before, 1e-9), 0, STEADY)
        further = np.maximum(0, self.depths - run.depth)[:, None]
        return total + at_last * ratio * (1 - ratio**further) / (1 - ratio)

    def _sums(self, values_M: np.ndarray, places_WDM: np.ndarray) -> np.ndarray:
        """Return what the first `nodes - 1` kept candidates add up to, [S, W]."""
        sums_WDM = np.zeros((*places_WDM.shape[:2], len(values_M) + 1))
        np.put_along_axis(sums_WDM, places_WDM, np.broadcast_to(values_M, places_WDM.shape), -1)
        sums_WDM[..., 0] = 0
        sums_WDM = sums_WDM.cumsum(-1)
        return sums_WDM[:, self.depths, np.minimum(self.nodes - 1, len(values_M))].T
