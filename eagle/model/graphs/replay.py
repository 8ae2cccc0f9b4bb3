"""The steps of a call on step buffers: what the host does before, between and after replays.

The prompt runs in the caches every call uses; what it leaves is copied into step buffers, and steps run there, in
buckets that double when the longest row fills them. Rows that have ended stay in the batch, because a graph has one
shape; a chooser has few to choose from, and a graph each.
"""

from collections.abc import Callable
from functools import partial

from eagle.model.configs import TreeConfig
from eagle.model.drafter import Drafter
from eagle.model.graphs.device_step import DeviceStep, StepBuffers
from eagle.model.graphs.pool import GraphPool
from eagle.model.request_state import Request
from eagle.model.stats import GenerationStats
from eagle.model.step import StepOutcome, Stream
from eagle.model.target import TargetModel
from eagle.model.walk import push_all


def replays(
    graphs: GraphPool | None, target: TargetModel, drafter: Drafter | None, request: Request
) -> Callable[[Stream, bool], "ReplayedSteps"] | None:
    """Return what moves a call's stream onto graphs, None where there are none or its steps cannot be captured."""
    if graphs is None or not _can_be_captured(target, drafter, request) or graphs.refuses(drafter, request.sampler):
        return None
    return partial(ReplayedSteps, graphs)


def _can_be_captured(target: TargetModel, drafter: Drafter | None, request: Request) -> bool:
    """Tell whether nothing between prefill and outcome asks the host."""
    if request.needs_host_walk or target.rope_switch is not None:
        return False
    # A threshold counts nodes on the host; a drafter of another kind may do anything.
    return drafter is None or (type(drafter) is Drafter and drafter.tree.threshold == 1.0)


class ReplayedSteps:
    """The steps of one prefilled stream on step buffers.

    Args:
        graphs: lends the buffers and runs steps on them.
        stream: where the call stands after the prefill; its own caches are empty from then on.
        adapts: whether trees differ from step to step.
    """

    def __init__(self, graphs: GraphPool, stream: Stream, adapts: bool) -> None:
        self.graphs, self.stream = graphs, stream
        self._steps: dict[TreeConfig | None, DeviceStep] = {}
        if stream.drafter is not None and stream.draft_state is not None:
            stream.drafter.catch_up(stream.draft_state)
        batch, length = len(stream.running), max(stream.cache.lengths)
        self.buffers = graphs.take(stream.target, stream.drafter, batch, length, adapts=adapts)
        try:
            self.buffers.load(stream.cache, stream.draft_state, stream.roots_B)
        except BaseException:
            self.close()
            raise
        stream.start(length, length)

    @property
    def context(self) -> int:
        """Slots of the buffers that the next step runs on; it looks at all of them, whatever they hold."""
        return self.graphs.bucket(self.buffers, max(self.buffers.cache.lengths))

    def run(self, shape: TreeConfig | None, stats: GenerationStats) -> StepOutcome:
        """Take one step on the device, read its outcome and append what it says to the rows."""
        buffers, rows, active = self._grown(), self.stream.rows, self.stream.active
        if not buffers.adapts and buffers.draft_state is not None:
            shape = buffers.draft_state.tree  # one graph: a draft that is not needed costs less than a capture
        step = self._prepared(buffers, shape)
        is_typical = self.graphs.run(step, stats.stage)
        with stats.stage("read"):
            walked, candidates = step.read()
        before = [len(new) for new in rows.new]
        push_all(rows, self.stream.running, active, walked)
        tokens = [new[start:] for new, start in zip(rows.new, before, strict=True)]
        buffers.sync_host([len(new) for new in tokens], shape is not None)
        return StepOutcome(step.tree(), walked, tokens, shape, candidates, is_typical)

    def _grown(self) -> StepBuffers:
        """Return buffers that hold the next step: larger ones where the longest row has filled these."""
        length = max(self.buffers.cache.lengths)
        if not self.buffers.holds(length):
            self.buffers = self.graphs.grown(self.buffers, length)
            self._steps.clear()
        return self.buffers

    def _prepared(self, buffers: StepBuffers, shape: TreeConfig | None) -> DeviceStep:
        """Return the step of a shape, its limits and noise written."""
        rows, running, sampler = self.stream.rows, self.stream.running, self.stream.request.sampler
        if shape not in self._steps:
            self._steps[shape] = self.graphs.step(buffers, self.stream.taps, sampler, shape)
        step = self._steps[shape]
        active = [rows.finished[row] is None for row in running]
        buffers.make_ready(drafts=shape is not None)
        buffers.prepare(self.stream.deepest, active)
        if sampler.noise is not None:
            soonest = min(rows.emitted(row) for row, goes_on in zip(running, active, strict=True) if goes_on)
            sampler.noise.forget_before(soonest - 1)
            buffers.draw(sampler.noise, [max(rows.emitted(row), soonest) for row in running], step.levels)
        return step

    def hand_back(self) -> None:
        """Let the stream's own caches hold what the steps have committed."""
        stream, buffers = self.stream, self.buffers
        used = max(buffers.cache.lengths)
        stream.start(used, used)
        stream.cache.copy_from(buffers.cache)
        if stream.drafter is not None and stream.draft_state is not None and buffers.draft_state is not None:
            stream.draft_state.cache.copy_from(buffers.draft_state.cache)
            features_BAF, tokens_BA = (entries.clone() for entries in buffers.draft_state.entries)
            stream.drafter.observe(stream.draft_state, features_BAF, tokens_BA, buffers.draft_state.counts)

    def close(self) -> None:
        """Give the buffers back."""
        self.graphs.give(self.buffers)
