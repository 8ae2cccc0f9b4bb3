"""The trees that may be chosen, and how many tokens each of them would have gained in a step that was run.

Shapes: M candidates, S shapes of trees, W widths, D depths.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from eagle.model.configs import TreeConfig
from eagle.model.tree import Candidates

NODES = (2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 60)
WIDTHS = (2, 6, 10)
# Candidates that are looked at: the best of them.
POOL = 64


@dataclass(frozen=True)
class Found:
    """The best candidates of one row's draft, best score first, and what the target made of them.

    Attributes:
        depths: 1 for the root's children [M].
        ranks: the largest rank among siblings on the path [M].
        path: which of them the target's tokens were, from the root on [A].
    """

    depths: np.ndarray
    ranks: np.ndarray
    path: np.ndarray


def best_candidates(candidates: Candidates, row: int, tokens: Sequence[int]) -> Found:
    """Return the best candidates of one row.

    Args:
        tokens: what the row emitted, the first one below the root.
    """
    best = np.argsort(-candidates.scores_BM[row].cpu().numpy(), kind="stable")[:POOL]
    parents_M, tokens_M = (all_BM[row].cpu().numpy()[best] for all_BM in (candidates.parents_BM, candidates.tokens_BM))
    places, children = {-1: -1}, dict[tuple[int, int], int]()
    depths, ranks, width = list[int](), list[int](), candidates.width
    # A parent is never worse than its child, so it comes first.
    for place, (node, parent, token) in enumerate(
        zip(best.tolist(), parents_M.tolist(), tokens_M.tolist(), strict=True)
    ):
        above, own = places[parent], node if parent < 0 else (node - width) % width
        depths.append(1 if parent < 0 else depths[above] + 1)
        ranks.append(own if parent < 0 else max(own, ranks[above]))
        places[node] = children[above, token] = place
    path, place = [], -1
    for token in tokens:
        if (place, token) not in children:
            break
        place = children[place, token]
        path.append(place)
    return Found(np.array(depths), np.array(ranks), np.array(path, dtype=int))


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
        self._all_nodes, self._node_numbers = np.unique(self.nodes, return_inverse=True)
        self._depths_D1 = np.arange(limit.depth + 1)[:, None]

    def look(self, tree: TreeConfig) -> TreeConfig:
        """Return what to draft instead of a tree at first, to see what lies beyond it."""
        wide = replace(tree, depth=self.limit.depth, top_k=self.limit.top_k)
        return self.trees[-1] if self.is_prepared else wide

    def gains(self, found: Found, run: TreeConfig, steady: float) -> np.ndarray:
        """Return the tokens that the target would have accepted of every shape with every width, [S, W].

        A path that the draft's depth has cut short goes on as often as paths do, in shapes that are deeper. Wider than
        the draft was is as wide as it was.

        Args:
            found: the best candidates of a draft.
            run: the tree that was drafted.
            steady: how often a path goes on.
        """
        widths_W = self.all_widths[self.all_widths <= run.top_k]
        kept_WDM = (found.ranks < widths_W[:, None])[:, None] & (found.depths <= self._depths_D1[: run.depth + 1] + 1)
        places_WDA = np.where(kept_WDM, kept_WDM.cumsum(-1), POOL)[..., found.path]
        counts_WDN = (places_WDA[:, :, None] < self._all_nodes[:, None]).sum(-1)
        gains_WS = counts_WDN[:, np.minimum(self.depths, run.depth), self._node_numbers].astype(float)
        further = np.maximum(0, self.depths - run.depth)
        gains_WS += (gains_WS == run.depth + 1) * steady * (1 - steady**further) / (1 - steady)
        return gains_WS[np.minimum(np.arange(len(self.all_widths)), len(widths_W) - 1)].T
