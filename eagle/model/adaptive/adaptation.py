"""What adaptive trees share over the generations of a model: costs per batch size, and what was learnt."""

from eagle.model.adaptive.chooser import Chooser
from eagle.model.adaptive.confidence_chooser import ConfidenceChooser, ConfidenceMemory
from eagle.model.adaptive.cost_file import costs_of
from eagle.model.adaptive.costs import Costs
from eagle.model.adaptive.prepared import prepared
from eagle.model.adaptive.profile import Recorder
from eagle.model.adaptive.shape_chooser import ShapeChooser, ShapeMemory
from eagle.model.adaptive.trees import Shapes
from eagle.model.configs import TreeConfig
from eagle.model.drafter import Drafter
from eagle.model.target import Taps, TargetModel


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
        self._confidence: dict[int, ConfidenceMemory] = {}

    def chooser(self, batch: int) -> Chooser | None:
        """Return a chooser for `batch` rows, None where trees are static by now; other streams wait if it measures."""
        with self._pair[0].lock:
            return self._chooser(batch) if self._pair[1].tree.static is None else None

    def _chooser(self, batch: int) -> Chooser:
        limit = self._pair[1].tree
        if limit != self._limit:
            self._limit, self._costs, self._confidence = limit, {}, {}
            if not self._reads_scores:
                self._shapes = Shapes(limit, prepared(limit, self._costs_of(1)) if self._recorder is not None else None)
                self._memory = ShapeMemory()
        rows = 1 << (batch - 1).bit_length()
        costs = self._costs_of(rows)
        # Nothing is measured for rows that a batch may have left one day: that would make its first call wait.
        known = dict(self._costs)
        if self._reads_scores:
            return ConfidenceChooser(limit, costs, self._confidence.setdefault(rows, ConfidenceMemory()), known)
        return ShapeChooser(self._shapes, costs, self._memory, known)

    @property
    def _reads_scores(self) -> bool:
        """Whether a draft's scores cost nothing to read: host and device are one, and steps run as they are."""
        return self._recorder is None and self._pair[0].device.type == "cpu"

    def _costs_of(self, batch: int) -> Costs:
        if batch not in self._costs:
            self._costs[batch] = costs_of(*self._pair, batch, self._recorder)
        return self._costs[batch]
