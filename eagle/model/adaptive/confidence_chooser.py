"""Trees by confidence: drafted level by level while that pays, and verified as far as that pays.

A node is worth verifying if the tokens it promises are more than what would be decoded in the same time anyway, at the
rate of the last steps: of N nodes the expected tokens less rate times seconds are greatest. What a node promises is
what the head says of it, corrected by how often such nodes were accepted (`calibration.py`); what it costs was measured
here (`costs.py`). A level is worth drafting if its children promise more than drafting it and verifying them takes.

This reads scores while the tree grows, which is free where host and device are one: it is the chooser for CPUs.

Shapes: B rows, K nodes of a level, M candidates, N tree nodes.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from eagle.model.adaptive.calibration import Calibration
from eagle.model.adaptive.chooser import Chooser, Memory
from eagle.model.adaptive.costs import Costs
from eagle.model.configs import TreeConfig
from eagle.model.step import StepOutcome

WIDTHS = (2, 4, 6, 10)
# How much of the past a step leaves: in the rate that was reached, and in what drafting promises.
REACHED, PROMISED = 0.98, 0.9
# Tokens below an accepted node, before any of them is drafted: a level opens the way to those after it. A compromise:
# heads that are sure of little, and right, are served by more, others by less.
ONWARD = 1.5
# Nodes over which the seconds of one more are averaged.
NEAR = (2, 5)
# Steps in which narrower trees would have done before they become narrower.
CALM = 16


@dataclass
class ConfidenceMemory(Memory):
    """What acceptance and time were like so far.

    Attributes:
        calibration: how often nodes are accepted, by what the head says of them.
        tokens, expected, seconds: tokens of recent steps and those that were expected of them, and their seconds, older
            steps weighing less; per row.
        promised, promised_seconds: tokens that the last few drafts promised, and their seconds, likewise.
        width: nodes expanded per level, and children of each; 0 before the first step.
        needed: the width that recent trees needed.
    """

    calibration: Calibration = field(default_factory=Calibration)
    tokens: float = 0.0
    expected: float = 0.0
    seconds: float = 0.0
    promised: float = 0.0
    promised_seconds: float = 0.0
    width: int = 0
    needed: deque[int] = field(default_factory=lambda: deque(maxlen=CALM))


class ConfidenceChooser(Chooser):
    """Says while a tree grows whether it goes on, and how much of it is verified.

    Args:
        limit: the widest, deepest and largest tree.
        costs, memory, known: see `Chooser`.
    """

    memory: ConfidenceMemory

    def __init__(
        self, limit: TreeConfig, costs: Costs, memory: ConfidenceMemory, known: Mapping[int, Costs] | None = None
    ) -> None:
        super().__init__(costs, memory, known)
        self.limit, self.judge, self._shape = limit, self, limit
        self._widths = sorted({min(width, limit.top_k) for width in WIDTHS} | {limit.top_k})
        is_first, memory.width = memory.width == 0, memory.width or min(WIDTHS[1], limit.top_k)
        self._price()
        if is_first:
            # As if some steps had been plain and drafting had promised a little more.
            plain = self._plain_seconds()
            memory.tokens, memory.expected, memory.seconds = 5, 5, 5 * plain
            memory.promised, memory.promised_seconds = 11, 10 * plain
        self._levels, self._rate, self._expected = 0, 0.0, (1.0, 1.0)

    def goes_on(self, scores_BK: torch.Tensor) -> bool:
        """Tell whether a further level is worth drafting below these nodes, the best of the last one."""
        rate = self._rate
        promised_BK = ONWARD * self.memory.calibration(scores_BK.numpy())
        worth = np.maximum(0.0, promised_BK - rate * self._node_seconds).sum(-1).mean()
        goes_on = bool(worth > rate * self._level_seconds)
        self._levels += goes_on
        return goes_on

    def drafted(self, scores_BM: torch.Tensor) -> int:
        """Return how many of all candidates are worth verifying."""
        best_BN = -np.sort(-scores_BM.numpy(), axis=1)[:, : self.limit.nodes - 1]
        gains_N = np.cumsum(self.memory.calibration(best_BN).mean(0))
        tokens_N = 1 + np.concatenate([[0.0], gains_N])
        seconds_N = self._seconds_N[: len(tokens_N)] + (self._levels * self._level_seconds + self._late())
        seconds_N[0] += self._late(has_tree=False) - self._late()
        drafted = int((tokens_N - self._rate * seconds_N).argmax())
        self._expected = float(tokens_N[drafted]), float(seconds_N[drafted])
        return drafted

    def record(self, outcome: StepOutcome, places: Sequence[int]) -> None:
        """Learn which nodes were accepted, the rate that was reached, and what drafting promised."""
        memory, (tokens, seconds) = self.memory, self._expected
        for place in places:
            self._learn_row(outcome, place)
        emitted = sum(len(outcome.tokens[place]) for place in places) / len(places)
        memory.tokens = REACHED * memory.tokens + emitted
        memory.expected = REACHED * memory.expected + tokens
        memory.seconds = REACHED * memory.seconds + seconds
        memory.promised = PROMISED * memory.promised + tokens
        memory.promised_seconds = PROMISED * memory.promised_seconds + seconds
        self._fit_width(outcome, places[0])
        # Few steps tell what drafts promise here; how far promises are kept takes more of them.
        self._promise(memory.promised / memory.promised_seconds * memory.tokens / memory.expected)

    def _learn_row(self, outcome: StepOutcome, place: int) -> None:
        parents_N = outcome.tree.parents_BN[place].numpy()
        if len(parents_N) == 1 or parents_N[1:].min() < 0:
            return  # nothing was drafted, or a limit forbade some nodes
        accepted_N = np.zeros(len(parents_N), dtype=bool)
        accepted_N[outcome.walked.paths[place][: outcome.walked.accepted[place] + 1]] = True
        self.memory.calibration.learn(outcome.tree.scores_BN[place, 1:].numpy(), accepted_N[1:])

    def _fit_width(self, outcome: StepOutcome, place: int) -> None:
        """Widen at once when a tree has filled its width, narrow when none has needed it for a while."""
        memory, tree = self.memory, outcome.tree
        parents_N, depths_N = tree.parents_BN[place].numpy()[1:], tree.depths_BN[place].numpy()
        children_N = np.bincount(parents_N[parents_N >= 0], minlength=1)
        expanded_D = np.bincount(depths_N[: len(children_N)][children_N > 0], minlength=1)
        needed = int(max(children_N.max(), expanded_D.max()))
        memory.needed.append(needed)
        place_of = self._widths.index(memory.width)
        if needed >= memory.width:
            place_of = min(place_of + 1, len(self._widths) - 1)
        elif place_of and len(memory.needed) == CALM and max(memory.needed) < self._widths[place_of - 1]:
            place_of -= 1
        if self._widths[place_of] != memory.width:
            memory.width = self._widths[place_of]
            memory.needed.clear()
            self._price()

    def _tree(self) -> TreeConfig:
        # The tokens per second and row that were reached lately; plain decoding's are there for the taking.
        self._levels, self._rate = 0, max(self.memory.tokens / self.memory.seconds, 1 / self._plain_seconds())
        if self._shape.top_k != self.memory.width:
            self._shape = replace(self.limit, top_k=self.memory.width)
        return self._shape

    def _parts(self, outcome: StepOutcome) -> float:
        return float(self._seconds_N[outcome.tree.size - 1]) + self._levels * self._level_seconds

    def _price(self) -> None:
        super()._price()
        nodes, near = np.arange(1, self.limit.nodes + 1), np.minimum(NEAR, self.limit.nodes)

        def seconds(nodes: np.ndarray, depth: int) -> np.ndarray:
            depths, widths = np.full(len(nodes), depth), np.full(len(nodes), self.memory.width)
            return self.costs.steps(self._context, nodes, depths, widths)

        self._seconds_N = seconds(nodes, 0)
        self._level_seconds = float((seconds(nodes[:1], 1) - self._seconds_N[:1])[0])
        few, more = seconds(near, 0)
        self._node_seconds = max(0.0, float(more - few)) / max(1, int(near[1] - near[0]))
