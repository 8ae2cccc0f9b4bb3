"""What all choosers of trees share: what a step costs by now, and when not to draft at all.

Where drafting promises less than plain decoding the target decodes plainly, and now and then, at least every 256
tokens, a step drafts to see whether that still holds. How a tree is chosen is in the subclasses.
"""

import statistics
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from eagle.model.adaptive.costs import Costs
from eagle.model.configs import TreeConfig
from eagle.model.draft_state import Judge
from eagle.model.step import StepOutcome

# Rows of a batch that are learnt from.
ROWS = 4
# Plain steps until the first probe, and at most.
FIRST_PROBE, LAST_PROBE = 32, 256
# Steps on which drafting must promise less than plain decoding before it stops.
PATIENCE = 3
# Tokens in the cache after which the costs of a step are computed anew.
BLOCK = 64


@dataclass
class Memory:
    """What steps were like so far; a new generation starts from the last one's.

    Attributes:
        is_plain: whether the last generation ended without drafting.
        interval: plain steps between its probes.
        late: seconds that recent steps took beyond their measured parts: with a tree, with the root alone.
    """

    is_plain: bool = False
    interval: int = FIRST_PROBE
    late: tuple[deque[float], deque[float]] = field(default_factory=lambda: (deque(maxlen=15), deque(maxlen=15)))


class Chooser(ABC):
    """Chooses the trees of one generation.

    Args:
        costs: seconds of a step.
        memory: of earlier generations; it goes on learning here.
        known: the costs of smaller batches as far as they are known, by rows.

    Attributes:
        is_plain: whether steps decode plainly, but for probes.
        judge: decides while a tree grows; None lets it grow as it was chosen.
    """

    judge: Judge | None = None
    memory: Memory

    def __init__(self, costs: Costs, memory: Memory, known: Mapping[int, Costs] | None = None) -> None:
        self.costs, self.memory, self.known = costs, memory, known or {}
        self.is_plain = False
        self._waited = 0  # plain steps since the last probe
        self._doubts = PATIENCE - 1 if memory.is_plain else 0
        self._context, self._block = 1, -1

    def next(self, context: int) -> TreeConfig | None:
        """Return the tree of the next step; None decodes one token plainly.

        Args:
            context: tokens in the cache.
        """
        self._context = context
        if context // BLOCK != self._block:
            self._block = context // BLOCK
            self._price()
        if self.is_plain:
            self._waited += 1
            if self._waited < self.memory.interval:
                return None
            self._waited = 0
        return self._tree()

    def shrink(self, rows: int) -> None:
        """Go on with the costs of a batch of `rows`, or of the next larger one whose costs are known."""
        sizes = [size for size in self.known if size >= rows]
        if sizes:
            self.costs = self.known[min(sizes)]
            self._price()

    def learn(self, outcome: StepOutcome, places: Sequence[int], seconds: float) -> None:
        """Learn from a step.

        Args:
            outcome: the step.
            places: of the rows that go on.
            seconds: how long it took.
        """
        if outcome.is_typical:
            self.took(seconds, outcome)
        if places and outcome.shape is not None:
            self.record(outcome, places[:ROWS])

    def took(self, seconds: float, outcome: StepOutcome) -> None:
        """Learn how long a step took."""
        parts = self._plain_part if outcome.shape is None else self._parts(outcome)
        self.memory.late[outcome.tree.size == 1].append(seconds - parts)

    @abstractmethod
    def _parts(self, outcome: StepOutcome) -> float:
        """Return what the measured parts of a step with a draft take together."""

    @abstractmethod
    def record(self, outcome: StepOutcome, places: Sequence[int]) -> None:
        """Learn from what some rows emitted after a draft, and say by `_promise` what drafting is worth."""

    @abstractmethod
    def _tree(self) -> TreeConfig:
        """Return the tree to draft."""

    def _price(self) -> None:
        """Look up what steps cost at this context."""
        self._plain_part = self.costs.plain(self._context)

    def _late(self, has_tree: bool = True) -> float:
        """Return the seconds of a step beyond its measured parts; until one is seen, what others took."""
        late = self.memory.late[not has_tree] or self.memory.late[has_tree]
        return max(0.0, statistics.median(late)) if late else 0.0

    def _plain_seconds(self) -> float:
        """Return the seconds of a step without drafting."""
        return self._plain_part + self._late(has_tree=False)

    def _promise(self, rate: float) -> None:
        """Say how many tokens per second drafting promises; decide whether to go on with it."""
        loses = rate * self._plain_seconds() < 1
        self._doubts = self._doubts + 1 if loses else 0
        # Whoever was plain before this look waits twice as long for the next one.
        was_plain = self.is_plain or self.memory.is_plain
        self.memory.interval = min(2 * self.memory.interval, LAST_PROBE) if loses and was_plain else FIRST_PROBE
        self.is_plain = self.memory.is_plain = bool(loses and (self.is_plain or self._doubts >= PATIENCE))
