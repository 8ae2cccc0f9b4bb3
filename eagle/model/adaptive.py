"""Trees that pay: total_token, depth and top_k by the tokens per second they promise, down to no tree at all.

A step's draft leaves more than its tree: the cumulative probability of every candidate the head looked at. Summed over
the best n - 1 candidates that a narrower or shallower draft would have had, and calibrated per depth by what the
target accepted, that is the expected gain of any smaller tree; divided by what such a step costs on this machine
(`costs.py`) it is a rate. The best rate decides the next step, one step behind. Now and then a step drafts to the
limits, so that wider and deeper trees are seen too; where no tree is worth its time the target decodes plainly, and a
probing step at least every 256 tokens looks whether that still holds.

Shapes: S shapes of trees, W widths.
"""

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from eagle.model.configs import TreeConfig
from eagle.model.costs import Costs, Recorded, costs_of
from eagle.model.drafter import Drafter
from eagle.model.prepared import prepared
from eagle.model.shapes import Shapes, best_candidates
from eagle.model.target import Taps, TargetModel
from eagle.model.tree import Candidates

# Rows of a batch whose candidates are looked at.
ROWS = 4
# Steps between two that draft to the limits; plain steps until the first probe, and at most.
LOOK, FIRST_PROBE, LAST_PROBE = 32, 64, 256
# How much of the past a step leaves, in calibration and in gains; how much better another tree must be.
FORGET, SMOOTH, MARGIN = 0.9, 0.75, 1.02
# Steps on which drafting must promise less than plain decoding before it stops; unchanged choices after which only
# every SKIP-th step is looked at.
PATIENCE, SETTLED, SKIP = 4, 8, 4
# The most that acceptance may exceed what the head promises.
MOST_TRUST = 2.0


@dataclass
class Memory:
    """What acceptance and time were like so far; a new generation starts from the last one's.

    Attributes:
        accepted, promised: per depth, tokens accepted and probability promised, older steps weighing less.
        gains: smoothed expected gain of every shape [S]; None before the first step.
        wider: gain of every shape over that of the same one with another width [S, W], as last seen.
        is_plain: whether the last generation ended without drafting.
        late: seconds that recent steps took beyond their measured parts: with a tree, without.
    """

    accepted: np.ndarray
    promised: np.ndarray
    gains: np.ndarray | None = None
    wider: np.ndarray | None = None
    is_plain: bool = False
    late: tuple[deque[float], deque[float]] = field(default_factory=lambda: (deque(maxlen=15), deque(maxlen=15)))

    @property
    def calibration(self) -> np.ndarray:
        """Return accepted over promised per depth; 1 where nothing is known."""
        return np.minimum((self.accepted + 1) / (self.promised + 1), MOST_TRUST)


@dataclass
class Chooser:
    """Chooses the next step's tree of one generation.

    Args:
        shapes: what there is to choose from.
        costs: seconds of a step.
        memory: of earlier generations; it goes on learning here.
    """

    shapes: Shapes
    costs: Costs
    memory: Memory
    is_plain: bool = field(default=False, init=False)
    _context: int = field(default=1, init=False)
    _current: int = field(default=0, init=False)
    _steps: int = field(default=0, init=False)
    _waited: int = field(default=0, init=False)
    _interval: int = field(default=FIRST_PROBE, init=False)
    _settled: int = field(default=0, init=False)
    _doubts: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        shapes = self.shapes
        middle = np.abs(shapes.nodes - 16) + np.abs(shapes.depths - 4) + (shapes.limit.top_k - shapes.widths)
        self._current = int(middle.argmin()) if self.memory.gains is None else int(self._rates().argmax())
        self._doubts = PATIENCE - 1 if self.memory.is_plain else 0

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
        looks = self.is_plain or self._steps % LOOK == 0
        self._steps += 1
        tree = self.shapes.trees[self._current]
        return self.shapes.look(tree) if looks else tree

    def record(self, tree: TreeConfig, candidates: Candidates, accepted: Sequence[int], rows: Sequence[int]) -> None:
        """Learn from a step: what its draft promised to some of its rows, and what they accepted."""
        if self._skips:
            return
        gains, memory = [], self.memory
        for row, count in list(zip(rows, accepted, strict=True))[:ROWS]:
            found = best_candidates(candidates, row)
            gains.append(self.shapes.gains(found, tree, memory.calibration))
            in_tree = slice(0, tree.nodes - 1)
            promised = np.bincount(found.depths[in_tree], found.probabilities[in_tree], minlength=len(memory.promised))
            seen = np.arange(len(promised)) <= tree.depth + 1
            memory.promised = np.where(seen, FORGET * memory.promised + promised, memory.promised)
            memory.accepted = np.where(
                seen, FORGET * memory.accepted + (np.arange(len(seen)) <= count), memory.accepted
            )
        self._update(np.mean(gains, 0), tree)
        self._choose()

    @property
    def _skips(self) -> bool:
        return self._settled > SETTLED and self._steps % SKIP > 0

    def took(self, seconds: float, tree: TreeConfig | None) -> None:
        """Learn how long a step took; None was one without a tree."""
        if self._skips:
            return
        if tree is None:
            parts = self.costs.plain(self._context)
        else:
            sizes = (np.array([size]) for size in (tree.nodes, tree.depth, tree.top_k))
            parts = float(self.costs.steps(self._context, *sizes)[0])
        self.memory.late[tree is None].append(seconds - parts)

    def _update(self, gains_SW: np.ndarray, tree: TreeConfig) -> None:
        memory, shapes = self.memory, self.shapes
        run = shapes.all_widths.searchsorted(tree.top_k)
        gains_S = gains_SW[np.arange(len(shapes.trees)), shapes.width_numbers]
        is_look = tree.top_k == shapes.limit.top_k
        if is_look or memory.wider is None:
            memory.wider = gains_S[:, None] / np.maximum(gains_SW, 1e-9)
        # Wider than the draft was: as much more as it was when last seen.
        gains_S = np.where(shapes.widths > tree.top_k, gains_SW[:, run] * memory.wider[:, run], gains_S)
        memory.gains = gains_S if memory.gains is None else SMOOTH * memory.gains + (1 - SMOOTH) * gains_S

    def _choose(self) -> None:
        rates = self._rates()
        best = int(rates.argmax())
        self._settled += 1
        if rates[best] > MARGIN * rates[self._current]:
            self._current, self._settled = best, 0
        loses = bool(rates[best] * self._plain_seconds() < 1)
        self._doubts = self._doubts + 1 if loses else 0
        self._interval = min(2 * self._interval, LAST_PROBE) if loses and self.is_plain else FIRST_PROBE
        self.is_plain = self.memory.is_plain = loses and (self.is_plain or self._doubts >= PATIENCE)
        if loses:
            self._settled = 0

    def _rates(self) -> np.ndarray:
        """Return the expected tokens per second of every shape [S]."""
        shapes, memory = self.shapes, self.memory
        assert memory.gains is not None
        seconds_S = self.costs.steps(self._context, shapes.nodes, shapes.depths, shapes.widths)
        return (1 + memory.gains) / (seconds_S + _late(memory.late[False]))

    def _plain_seconds(self) -> float:
        late = self.memory.late
        return self.costs.plain(self._context) + (_late(late[True]) if late[True] else _late(late[False]))


def _late(seconds: Sequence[float]) -> float:
    return max(0.0, statistics.median(seconds)) if seconds else 0.0


class Adaptation:
    """What adaptive trees share over the generations of a model: costs per batch size, and what was learnt.

    Args:
        target, drafter: the pair; `drafter.tree` limits the trees.
        taps: which features the drafter reads.
        recorded: how work is made a graph of; with it there are few trees, because each costs one.
    """

    def __init__(self, target: TargetModel, drafter: Drafter, taps: Taps, recorded: Recorded | None = None) -> None:
        self._pair, self._recorded = (target, drafter, taps), recorded
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
            self._shapes = Shapes(limit, prepared(limit, self._costs_of(1)) if self._recorded is not None else None)
            nothing = np.zeros(limit.depth + 2)
            self._memory = Memory(nothing, nothing)
        return Chooser(self._shapes, self._costs_of(1 << (batch - 1).bit_length()), self._memory)

    def _costs_of(self, batch: int) -> Costs:
        if batch not in self._costs:
            self._costs[batch] = costs_of(*self._pair, batch, self._recorded)
        return self._costs[batch]
