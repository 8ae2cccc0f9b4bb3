"""One decode step, written once: draft, verify, accept, commit.

`run_step` is the algorithm of the papers. It works on a `StepTensors`, of which there are two, and what they differ in
is all that ordinary and replayed steps differ in. On a `Stream` the caches show exact lengths, the host walks the tree
and moves the lengths. On the buffers of a replayed step (`graphs`) tensors stay where they are, the device walks and
moves the lengths, and the host reads the outcome when all of it is done.

Shapes: B rows still in the batch, R rows the call began with, A path, F feature width.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from eagle.model.configs import TreeConfig
from eagle.model.draft_state import BaseDraftState, DraftState
from eagle.model.drafter import Drafter
from eagle.model.kv_cache import BaseKVCache, KVCache
from eagle.model.request_state import Request, Rows
from eagle.model.stats import GenerationStats
from eagle.model.target import Taps, TargetModel
from eagle.model.tree import Candidates, DraftTree, root_only
from eagle.model.verify import Acceptance, HostAcceptance
from eagle.model.walk import walk

Stage = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True)
class Kept:
    """What a step keeps of the verified tree.

    Attributes:
        acceptance: the walk.
        counts: path nodes that stay in the caches per row, root included, as these caches count.
        in_place: the paths are known to be 0, 1, 2, ….
        walked, tokens: the walk, and what every running row emitted up to its end, where the host knows them by then.
    """

    acceptance: Acceptance
    counts: Any
    in_place: bool = False
    walked: HostAcceptance | None = None
    tokens: Sequence[list[int]] = ()


class StepTensors(Protocol):
    """What a step works on, and the few things about it that depend on who knows its numbers: host or device.

    Attributes:
        target, drafter: the pair; without a drafter every step is plain.
        taps: which features the drafter reads; None without one.
        roots_B: last chosen tokens.
    """

    target: TargetModel
    drafter: Drafter | None
    taps: Taps
    roots_B: torch.Tensor

    @property
    def cache(self) -> BaseKVCache:
        """The target's keys and values."""

    @property
    def draft_state(self) -> BaseDraftState | None:
        """The drafter's; None without one."""

    def limited(self, tree: DraftTree) -> DraftTree:
        """Return the tree without what a row may not accept."""

    def accept(self, tree: DraftTree, logits_BNV: torch.Tensor) -> Kept:
        """Walk the verified tree."""

    def root_at(self, tokens_B: torch.Tensor) -> None:
        """Make the bonus tokens the next roots."""


def run_step(tensors: StepTensors, shape: TreeConfig | None, stage: Stage) -> tuple[DraftTree, Kept]:
    """Draft, verify, accept and commit once; return the verified tree and what was kept of it.

    Args:
        tensors: what the step works on, and moves on.
        shape: the tree to draft; None decodes one token plainly, and keeps the features if there is a drafter.
        stage: times a part of the step by its name.
    """
    drafter, state = tensors.drafter, tensors.draft_state
    with stage("draft"):
        if drafter is None or state is None or shape is None:
            tree = root_only(tensors.roots_B)
        else:
            state.tree = shape
            tree = tensors.limited(drafter.draft(state, tensors.roots_B))
    with stage("verify"):
        output = tensors.target.verify(tree, tensors.cache, tensors.taps)
    with stage("accept"):
        kept = tensors.accept(tree, output.logits_BNV)
    with stage("commit"):
        acceptance = kept.acceptance
        tensors.cache.commit(acceptance.path_BA, kept.counts, kept.in_place)
        tensors.root_at(acceptance.next_token_B)
        if drafter is not None and state is not None:
            assert output.features_BNF is not None
            features_BAF = _along(acceptance.path_BA, output.features_BNF)
            drafter.observe(state, features_BAF, acceptance.tokens_BA, kept.counts)
    return tree, kept


def _along(path_BA: torch.Tensor, features_BNF: torch.Tensor) -> torch.Tensor:
    """Return the features of the path's nodes [B, A, F]."""
    return features_BNF.gather(1, path_BA[..., None].expand(-1, -1, features_BNF.shape[-1]))


@dataclass(frozen=True)
class StepOutcome:
    """What the host learns of a step.

    Attributes:
        tree: what was verified.
        walked: the walk.
        tokens: what every running row emitted, up to its end.
        shape: the tree that was drafted; None without a draft.
        candidates: all that the draft looked at, where somebody learns from it.
        is_typical: later steps of this shape take as long.
    """

    tree: DraftTree
    walked: HostAcceptance
    tokens: Sequence[list[int]]
    shape: TreeConfig | None = None
    candidates: Candidates | None = None
    is_typical: bool = True


class Stream:
    """The rows of a call that still run, their caches at exact lengths, and the host that walks for them.

    Args:
        target, drafter, taps: as in `StepTensors`.
        request: the call.
        rows: all its rows.

    Attributes:
        running: numbers of the B rows.
    """

    def __init__(
        self, target: TargetModel, drafter: Drafter | None, taps: Taps, *, request: Request, rows: Rows
    ) -> None:
        self.target, self.drafter, self.taps = target, drafter, taps if drafter is not None else None
        self.request, self.rows, self.pads = request, rows, request.pads
        self.running = list(range(len(request.ids_RS)))
        self.roots_B = torch.empty(0, dtype=torch.int64)

    def start(self, slots: int, tokens: int) -> None:
        """Make empty caches for the rows that run; they take memory when something is written.

        Args:
            slots: of the target's cache, per row.
            tokens: that the drafter's is to hold, per row.
        """
        pads = [self.pads[row] for row in self.running]
        self.cache: KVCache = self.target.new_cache(len(pads), slots, pads)
        self.draft_state: DraftState | None = None
        if self.drafter is not None:
            self.draft_state = self.drafter.start(len(pads), tokens, pads)

    @property
    def caches(self) -> dict[str, KVCache]:
        """The caches by whose they are; a drafter of another kind may have none."""
        own = getattr(self.draft_state, "cache", None)
        return {"target": self.cache} | ({"head": own} if own is not None else {})

    @property
    def active(self) -> list[int]:
        """Places of the running rows that have not ended."""
        return [place for place, row in enumerate(self.running) if self.rows.finished[row] is None]

    @property
    def context(self) -> int:
        """Slots that attention of the next step looks at."""
        return max(self.cache.lengths)

    @property
    def deepest(self) -> list[int]:
        """The depth below its root that every running row may accept."""
        return [self._deepest(row) for row in self.running]

    def _deepest(self, row: int) -> int:
        if self.rows.finished[row] is not None:
            return 0
        length = self.rows.length(row)
        deepest = max(0, self.request.limit - length - 1)  # the last token that the limit allows is a bonus
        switch = self.target.rope_switch
        if switch is not None:
            root = length - 1 - self.pads[row]
            if root < switch.position:
                deepest = min(deepest, switch.position - 1 - root)
            elif switch.plain_beyond:
                deepest = 0
        return deepest

    def run(self, shape: TreeConfig | None, stats: GenerationStats) -> StepOutcome:
        """Take a step; arguments as in `run_step`."""
        tree, kept = run_step(self, shape, stats.stage)
        assert kept.walked is not None
        candidates = self.draft_state.candidates if shape is not None and self.draft_state is not None else None
        return StepOutcome(tree, kept.walked, kept.tokens, shape, candidates)

    def limited(self, tree: DraftTree) -> DraftTree:
        """Return the tree without what a row may not accept."""
        limits, ended = self.deepest, set(range(len(self.running))) - set(self.active)
        if self.request.lockstep and ended:
            # Rows that ended keep up with the others: they draft the pads they emit.
            limits = [max(limits)] * len(limits)
            tree = tree.pinned(sorted(ended), self.request.pad)
        return tree.limited(limits) if min(limits) < tree.levels - 1 else tree

    def accept(self, tree: DraftTree, logits_BNV: torch.Tensor) -> Kept:
        """Walk on the host, or read what the device has walked, and append what is emitted to the rows."""
        acceptance, walked, tokens = walk(self.request, self.rows, self.running, tree, logits_BNV)
        # A row keeps its root and what it emitted but the last token, which is the next root. Rows that had ended
        # stay where they are; plain decoding moves them along, because `generate` keeps rows in step.
        idle = 1 if self.drafter is None else 0
        counts = [len(new) or idle for new in tokens]
        if self.request.lockstep:
            counts = [max(counts)] * len(counts)
        in_place = all(path[:count] == list(range(count)) for path, count in zip(walked.paths, counts, strict=True))
        return Kept(acceptance, counts, in_place, walked, tokens)

    def root_at(self, tokens_B: torch.Tensor) -> None:
        """Make the bonus tokens the next roots."""
        self.roots_B = tokens_B

    def keep_rows(self, places: Sequence[int]) -> None:
        """Drop all rows of the batch but these."""
        self.cache.keep_rows(places)
        self.roots_B = self.roots_B[list(places)]
        if self.draft_state is not None:
            self.draft_state.keep_rows(places)
        self.running = [self.running[place] for place in places]
