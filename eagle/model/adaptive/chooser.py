"""Adaptive trees: total_token, depth and top_k chosen before each step by expected tokens per second, or no tree.

What the target emits tells more than how much of its own tree it accepted: looked up among all candidates the head
looked at, it tells what any other tree would have gained. Smoothed over the last steps and divided by what such a step
costs on this machine (`costs.py`), that is a rate, and the best rate decides the next step. What no draft has shown is
estimated: paths cut short by the depth go on as often as paths do, and a wider tree keeps the lead it last had.
Where no tree is worth its time the target decodes plainly, and now and then, at least every 256 tokens, a step drafts
to see whether that still holds.

Shapes: S shapes of trees, W widths.
"""

import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from eagle.model.adaptive.cost_file import costs_of
from eagle.model.adaptive.costs import Costs
from eagle.model.adaptive.prepared import prepared
from eagle.model.adaptive.profile import Recorder
from eagle.model.adaptive.trees import Shapes, best_candidates
from eagle.model.configs import TreeConfig
from eagle.model.drafter import Drafter
from eagle.model.target import Taps, TargetModel
from eagle.model.tree import Candidates

# Rows of a batch whose candidates are looked at.
ROWS = 4
# Plain steps until the first probe, and at most.
FIRST_PROBE, LAST_PROBE = 64, 256
# How much of the past a step leaves, in how often paths go on and in gains; trees this much worse count as equal.
FORGET, SMOOTH, MARGIN = 0.9, 0.75, 1.02
# Steps on which drafting must promise less than plain decoding before it stops.
PATIENCE = 3
# Tokens in the cache after which the costs of a step are computed anew.
BLOCK = 64


@dataclass
class Memory:
    """What acceptance and time were like so far; a new generation starts from the last one's.

    Attributes:
        gains: smoothed gain of every shape with every width [S, W]; None before the first step.
        accepted, stopped: tokens accepted, and paths that ended before the tree did, older steps weighing less.
        is_plain: whether the last generation ended without drafting.
        late: seconds that recent steps took beyond their measured parts: with a tree, without.
    """

    gains: np.ndarray | None = None
    accepted: float = 0.0
    stopped: float = 0.0
    is_plain: bool = False
    late: tuple[deque[float], deque[float]] = field(default_factory=lambda: (deque(maxlen=15), deque(maxlen=15)))

    @property
    def steady(self) -> float:
        """Return how often an accepted token is followed by another; less than 1."""
        return self.accepted / (self.accepted + self.stopped + 1)


class Chooser:
    """Chooses the next step's tree of one generation.

    Args:
        shapes: what there is to choose from.
        costs: seconds of a step.
        memory: of earlier generations; it goes on learning here.
        known: the costs of smaller batches as far as they are known, by rows.

    Attributes:
        is_plain: whether steps decode plainly, but for probes.
    """

    def __init__(self, shapes: Shapes, costs: Costs, memory: Memory, known: Mapping[int, Costs] | None = None) -> None:
        self.shapes, self.costs, self.memory, self.known = shapes, costs, memory, known or {}
        self.is_plain = False
        self._waited, self._interval = 0, FIRST_PROBE  # plain steps since the last probe, and until the next
        self._doubts = PATIENCE - 1 if memory.is_plain else 0
        self._context, self._block = 1, -1
        self._price()
        middle = np.abs(shapes.nodes - 16) + np.abs(shapes.depths - 4) + (shapes.limit.top_k - shapes.widths)
        self._current = int(middle.argmin()) if memory.gains is None else int(self._rates().argmax())

    def next(self, context: int) -> TreeConfig | None:
        """Return the tree of the next step; None decodes one token plainly.

        Args:
            context: tokens in the cache.
        """
        self._context = context
        if self.is_plain:
            self._waited += 1
            if self._waited < self._interval:
                return None
            self._waited = 0
        tree = self.shapes.trees[self._current]
        # The very first draft goes to the limits, to see what is there.
        return tree if self.memory.gains is not None else self.shapes.look(tree)

    def shrink(self, rows: int) -> None:
        """Go on with the costs of a batch of `rows`, or of the next larger one whose costs are known."""
        sizes = [size for size in self.known if size >= rows]
        if sizes:
            self.costs = self.known[min(sizes)]
            self._block = -1

    def record(
        self, tree: TreeConfig, candidates: Candidates, tokens: Sequence[Sequence[int]], rows: Sequence[int]
    ) -> None:
        """Learn from a step: what some of its rows emitted, and what of it any other tree would have drafted."""
        gains, memory = [], self.memory
        for row, new in list(zip(rows, tokens, strict=True))[:ROWS]:
            found = best_candidates(candidates, row, new)
            count = min(len(found.path), tree.levels - 1)
            gains.append(self.shapes.gains(found, tree, memory.steady))
            memory.accepted = FORGET * memory.accepted + count
            memory.stopped = FORGET * memory.stopped + (count < tree.levels - 1)
        self._update(np.mean(gains, 0), tree)
        self._choose()

    def took(self, seconds: float, tree: TreeConfig | None) -> None:
        """Learn how long a step took; None was one without a tree."""
        self._price()
        parts = self._plain_seconds
        if tree is not None:
            sizes = (np.array([size]) for size in (tree.nodes, tree.depth, tree.top_k))
            parts = float(self.costs.steps(self._context, *sizes)[0])
        self.memory.late[tree is None].append(seconds - parts)

    def _price(self) -> None:
        """Look up what steps cost by now."""
        shapes, block = self.shapes, self._context // BLOCK
        if block != self._block:
            self._block, self._plain_seconds = block, self.costs.plain(self._context)
            self._seconds_S: np.ndarray = self.costs.steps(self._context, shapes.nodes, shapes.depths, shapes.widths)

    def _update(self, gains_SW: np.ndarray, tree: TreeConfig) -> None:
        memory = self.memory
        if memory.gains is not None:
            # Wider than the draft was: as much more as it was when last seen.
            run = self.shapes.all_widths.searchsorted(tree.top_k)
            gains_SW[:, run + 1 :] += memory.gains[:, run + 1 :] - memory.gains[:, [run]]
            gains_SW = SMOOTH * memory.gains + (1 - SMOOTH) * gains_SW
        memory.gains = gains_SW

    def _choose(self) -> None:
        rates = self._rates()
        best = int(rates.argmax())
        # Of trees that pay alike the widest, whose draft shows most; of these the one at hand.
        alike = np.where(rates * MARGIN >= rates[best], self.shapes.widths, 0)
        if alike[self._current] < alike.max():
            self._current = int(np.where(alike == alike.max(), rates, 0).argmax())
        late = self.memory.late
        plain_seconds = self._plain_seconds + _late(late[True] or late[False])
        loses = bool(rates[best] * plain_seconds < 1)
        self._doubts = self._doubts + 1 if loses else 0
        self._interval = min(2 * self._interval, LAST_PROBE) if loses and self.is_plain else FIRST_PROBE
        self.is_plain = self.memory.is_plain = loses and (self.is_plain or self._doubts >= PATIENCE)

    def _rates(self) -> np.ndarray:
        """Return the expected tokens per second of every shape [S]."""
        shapes, memory = self.shapes, self.memory
        assert memory.gains is not None
        self._price()
        gains_S = memory.gains[np.arange(len(shapes.trees)), shapes.width_numbers]
        return (1 + gains_S) / (self._seconds_S + _late(memory.late[False]))


def _late(seconds: Sequence[float]) -> float:
    return max(0.0, statistics.median(seconds)) if seconds else 0.0


class Adaptation:
    """What adaptive trees share over the generations of a model: costs per batch size, and what was learnt.

    Args:
        target, drafter: the pair; `drafter.tree` limits the trees.
        taps: which features the drafter reads.
        recorder: makes graphs; with it there are few trees, because each costs one.
    """

    def __init__(self, target: TargetModel, drafter: Drafter, taps: Taps, recorder: Recorder | None = None) -> None:
        self._pair, self._recorder = (target, drafter, taps), recorder
        self._limit: TreeConfig | None = None
        self._costs: dict[int, Costs] = {}

    def chooser(self, batch: int) -> Chooser | None:
        """Return a chooser for `batch` rows, None where trees are static by now; other streams wait if it measures."""
        with self._pair[0].lock:
            return self._chooser(batch) if self._pair[1].tree.static is None else None

    def _chooser(self, batch: int) -> Chooser:
        limit = self._pair[1].tree
        if limit != self._limit:
            self._limit, self._costs = limit, {}
            self._shapes = Shapes(limit, prepared(limit, self._costs_of(1)) if self._recorder is not None else None)
            self._memory = Memory()
        costs = self._costs_of(1 << (batch - 1).bit_length())
        # Nothing is measured for rows that a batch may have left one day: that would make its first call wait.
        return Chooser(self._shapes, costs, self._memory, dict(self._costs))

    def _costs_of(self, batch: int) -> Costs:
        if batch not in self._costs:
            self._costs[batch] = costs_of(*self._pair, batch, self._recorder)
        return self._costs[batch]
