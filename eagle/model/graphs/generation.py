"""The decoding loop with replayed steps: prefill as usual, then steps on fixed-size step buffers.

The prompt runs in the caches every call uses; what it leaves is copied into step buffers, and steps run there, in
buckets that double when the longest row fills them. Rows that have ended stay in the batch, because a graph has one
shape; a chooser has few to choose from, and a graph each.
"""

import time

from eagle.model.adaptive.chooser import Chooser
from eagle.model.cache_reuse import CachePool, Prefix
from eagle.model.configs import TreeConfig
from eagle.model.decoding import Generation
from eagle.model.drafter import Drafter
from eagle.model.graphs.device_step import DeviceStep, StepBuffers
from eagle.model.graphs.pool import GraphPool
from eagle.model.request_state import DecodeStep, Request
from eagle.model.target import Taps, TargetModel
from eagle.model.walk import push_all


class GraphedGeneration(Generation):
    """A running call whose steps run on step buffers; arguments as in `Generation`.

    Args:
        graphs: lends the buffers and runs steps on it.
    """

    def __init__(
        self,
        graphs: GraphPool,
        target: TargetModel,
        drafter: Drafter | None,
        request: Request,
        taps: Taps,
        prefix: Prefix | None = None,
        chooser: Chooser | None = None,
    ) -> None:
        self.graphs = graphs
        self.buffers: StepBuffers | None = None
        self._steps: dict[TreeConfig | None, DeviceStep] = {}
        super().__init__(target, drafter, request, taps, prefix, chooser)

    @property
    def _capacity(self) -> int:
        return self.request.ids_RS.shape[1]

    def prefill(self) -> DecodeStep:
        """Run the prompt, pick the first token of every row and move into step buffers."""
        step = super().prefill()
        if not self.is_done:
            if self.drafter is not None and self.draft_state is not None:
                self.drafter.catch_up(self.draft_state)
            # Noted before it is filled, so that it goes back even if that fails.
            batch, adapts = len(self.running), self.chooser is not None
            self.buffers = self.graphs.take(self.target, self.drafter, batch, max(self.cache.lengths), adapts)
            self.buffers.load(self.cache, self.draft_state, self.roots_B)
            self._settle_in(self.buffers)
        return step

    def _settle_in(self, buffers: StepBuffers) -> None:
        self.buffers, self.cache, self.draft_state, self.roots_B = (
            buffers,
            buffers.cache,
            buffers.draft_state,
            buffers.roots_B,
        )
        self._steps.clear()

    def step(self) -> DecodeStep:
        """Take one step on the device, read its outcome and emit what it says."""
        started = time.perf_counter()
        buffers, device_step = self._prepared()
        active = [index for index, row in enumerate(self.running) if self.rows.finished[row] is None]
        is_usual = self.graphs.run(device_step)
        walked, before = device_step.read(), [len(new) for new in self.rows.new]
        push_all(self.rows, self.running, active, walked)
        tokens = [new[start:] for new, start in zip(self.rows.new, before, strict=True)]
        buffers.sync_host([len(new) for new in tokens], device_step.shape is not None)
        tree = device_step.tree()
        step = self._emit(tokens, tree.size - 1, walked.accepted, tree)
        accepted = [walked.accepted[index] for index in active]
        self._learn(tokens, time.perf_counter() - started if is_usual else None)
        self.stats.record_step(tree.size - 1, accepted, time.perf_counter() - started)
        return step

    def _prepared(self) -> tuple[StepBuffers, DeviceStep]:
        """Write limits and noise of the next step into step buffers that holds it."""
        buffers, rows = self.buffers, self.running
        assert buffers is not None
        if not buffers.holds(max(buffers.cache.lengths)):
            buffers = self.graphs.grown(buffers, max(buffers.cache.lengths))
            self._settle_in(buffers)
        active, deepest = [self.rows.finished[row] is None for row in rows], [self._deepest(row) for row in rows]
        shape = self._shape(buffers, max(deepest))
        if shape not in self._steps:
            self._steps[shape] = self.graphs.step(buffers, self.taps, self.request.sampler, shape)
        device_step = self._steps[shape]
        buffers.make_ready(drafts=shape is not None)
        buffers.prepare(deepest, active)
        noise = self.request.sampler.noise
        if noise is not None:
            soonest = min(self.rows.emitted(row) for row, goes_on in zip(rows, active, strict=True) if goes_on)
            noise.forget_before(soonest - 1)
            buffers.draw(noise, [max(self.rows.emitted(row), soonest) for row in rows], device_step.levels)
        return buffers, device_step

    def _shape(self, buffers: StepBuffers, deepest: int) -> TreeConfig | None:
        """Return the tree of the next step, of which nothing below `deepest` can be accepted."""
        if self.chooser is None:
            return buffers.draft_state.tree if buffers.draft_state is not None else None
        # Every step looks at whole buckets, whatever they hold.
        return self.chooser.next(buffers.bucket) if deepest > 0 else None

    def close(self, is_whole: bool) -> None:
        """End the call: give the buffers back, and leave copies of its caches where another call may want them."""
        buffers, self.buffers = self.buffers, None
        if buffers is not None:
            if is_whole and self.prefix is not None:
                self._copy_out(buffers)
            self.graphs.give(buffers)
        super().close(is_whole and self.prefix is not None)

    def _copy_out(self, buffers: StepBuffers) -> None:
        used, pads = max(buffers.cache.lengths), buffers.cache.pads
        self.cache = self.target.new_cache(len(pads), used, pads)
        self.cache.copy_from(buffers.cache)
        state = buffers.draft_state
        if self.drafter is not None and state is not None:
            self.draft_state = self.drafter.start(len(pads), used, pads)
            self.draft_state.cache.copy_from(state.cache)
            features_BAF, tokens_BA = (entries.clone() for entries in state.entries)
            self.drafter.observe(self.draft_state, features_BAF, tokens_BA, state.counts)


def begin(
    graphs: GraphPool | None,
    target: TargetModel,
    drafter: Drafter | None,
    request: Request,
    taps: Taps,
    prefix: Prefix | None = None,
    chooser: Chooser | None = None,
    pool: CachePool | None = None,
) -> Generation:
    """Return the call's `Generation`, on graphs where there are some and the call's steps can be captured."""
    if graphs is None or not _can_be_captured(target, drafter, request) or graphs.refuses(drafter, request.sampler):
        return Generation(target, drafter, request, taps, prefix, chooser, pool)
    return GraphedGeneration(graphs, target, drafter, request, taps, prefix, chooser)


def _can_be_captured(target: TargetModel, drafter: Drafter | None, request: Request) -> bool:
    """Tell whether nothing between prefill and outcome asks the host."""
    if request.needs_host_walk or target.rope_switch is not None:
        return False
    # A threshold counts nodes on the host; a drafter of another kind may do anything.
    return drafter is None or (type(drafter) is Drafter and drafter.tree.threshold == 1.0)
