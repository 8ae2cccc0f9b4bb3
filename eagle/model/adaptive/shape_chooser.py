"""Trees by their history: total_token, depth and top_k chosen before each step by what such trees have gained.

What the target emits tells more than how much of its own tree it accepted: looked up among all candidates the head
looked at, it tells what any other tree would have gained. Smoothed over the last steps and divided by what such a step
costs on this machine (`costs.py`), that is a rate, and the best rate decides the next step. What no draft has shown is
estimated: paths cut short by the depth go on as often as paths do, and a wider tree keeps the lead it last had.

Nothing is read while a tree grows, so this is the chooser for accelerators, and for replayed steps, whose few trees are
prepared.

Shapes: S shapes of trees, W widths.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from eagle.model.adaptive.chooser import ROWS, Chooser, Memory
from eagle.model.adaptive.costs import Costs
from eagle.model.adaptive.trees import Shapes, best_candidates
from eagle.model.configs import TreeConfig
from eagle.model.step import StepOutcome
from eagle.model.tree import Candidates

# How much of the past a step leaves, in how often paths go on and in gains; trees this much worse count as equal.
FORGET, SMOOTH, MARGIN = 0.9, 0.75, 1.02


@dataclass
class ShapeMemory(Memory):
    """What acceptance and time were like so far.

    Attributes:
        gains: smoothed gain of every shape with every width [S, W]; None before the first step.
        accepted, stopped: tokens accepted, and paths that ended before the tree did, older steps weighing less.
    """

    gains: np.ndarray | None = None
    accepted: float = 0.0
    stopped: float = 0.0

    @property
    def steady(self) -> float:
        """Return how often an accepted token is followed by another; less than 1."""
        return self.accepted / (self.accepted + self.stopped + 1)


class ShapeChooser(Chooser):
    """Chooses the next step's tree among shapes, before it is drafted.

    Args:
        shapes: what there is to choose from.
        costs, memory, known: see `Chooser`.
    """

    memory: ShapeMemory

    def __init__(
        self, shapes: Shapes, costs: Costs, memory: ShapeMemory, known: Mapping[int, Costs] | None = None
    ) -> None:
        super().__init__(costs, memory, known)
        self.shapes = shapes
        self._price()
        middle = np.abs(shapes.nodes - 16) + np.abs(shapes.depths - 4) + (shapes.limit.top_k - shapes.widths)
        self._current = int(middle.argmin()) if memory.gains is None else int(self._rates().argmax())

    def record(self, outcome: StepOutcome, places: Sequence[int]) -> None:
        """Learn what some rows emitted."""
        if outcome.candidates is not None:
            assert outcome.shape is not None
            self.observe(outcome.shape, outcome.candidates, [outcome.tokens[place] for place in places], places)

    def observe(
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

    def _tree(self) -> TreeConfig:
        tree = self.shapes.trees[self._current]
        # The very first draft goes to the limits, to see what is there.
        return tree if self.memory.gains is not None else self.shapes.look(tree)

    def _parts(self, outcome: StepOutcome) -> float:
        assert outcome.shape is not None
        sizes = outcome.shape.nodes, outcome.shape.depth, outcome.shape.top_k
        return float(self.costs.steps(self._context, *(np.array([size]) for size in sizes))[0])

    def _price(self) -> None:
        super()._price()
        shapes = self.shapes
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
        self._promise(float(rates[best]))

    def _rates(self) -> np.ndarray:
        """Return the expected tokens per second of every shape [S]."""
        shapes, memory = self.shapes, self.memory
        assert memory.gains is not None
        gains_S = memory.gains[np.arange(len(shapes.trees)), shapes.width_numbers]
        return (1 + gains_S) / (self._seconds_S + self._late())
