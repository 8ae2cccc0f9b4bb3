"""The step buffers of CUDA-graph replay, and the decode step on them, of which the host learns nothing on the way.

What differs from step to step lies in tensors at fixed addresses, so that `run_step` may run as it is or be captured
once and replayed. The host writes limits and noise before it and reads one tensor after it. Steps of several trees may
work on the same buffers, in turn.

Shapes: B rows, A path, L levels, V vocabulary, X packed outcome, F feature width.
"""

from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext

import torch

from eagle.model.configs import TreeConfig
from eagle.model.draft_state import RING, BaseDraftState
from eagle.model.drafter import Drafter
from eagle.model.graphs.static_cache import StaticKVCache
from eagle.model.graphs.static_draft_state import StaticDraftState
from eagle.model.kv_cache import BaseKVCache
from eagle.model.sampling import Noise, Sampler, pick
from eagle.model.step import Kept, Stage, run_step
from eagle.model.target import Taps, TargetModel
from eagle.model.tree import Candidates, DraftTree
from eagle.model.verify import Acceptance, HostAcceptance, accept_greedy, accept_sampled


def room(drafter: Drafter | None) -> int:
    """Return the slots that a step of the drafter's tree, or a smaller one, needs beyond those in use when it begins.

    Rows that have ended may lie a path ahead of what the host was told they keep.
    """
    if drafter is None:
        return 2
    tree = drafter.tree
    return max(tree.nodes, tree.levels + tree.scratch) + tree.levels


class StepBuffers:
    """The caches of one batch in one bucket and all else a step works on, at addresses that stay.

    Args:
        target: the base model.
        drafter: grows trees, its own the largest; None decodes plainly.
        batch: rows.
        bucket: slots per row in both caches.
        captures: whether steps on it may be captured.
        adapts: whether trees differ from step to step: features may wait, and drafts tell what they looked at.
        key: what the buffers fit.

    Attributes:
        levels: most nodes on one path, root included.
        roots_B: last chosen tokens.
        deepest_B: depth below its root that each row may accept, written by the host before a step.
        active_B: 1 for rows that go on, 0 for those that have ended, likewise.
        noise_LBV: the sampling noise of a step's levels, likewise; None before it is needed.
        steps: the steps made for these tensors.
    """

    def __init__(
        self,
        target: TargetModel,
        drafter: Drafter | None,
        batch: int,
        bucket: int,
        *,
        captures: bool = True,
        adapts: bool = False,
        key: Hashable = None,
    ) -> None:
        self.target, self.drafter, self.bucket, self.captures, self.key = target, drafter, bucket, captures, key
        self.adapts = adapts
        self.levels = drafter.tree.levels if drafter is not None else 1
        self._room = room(drafter)
        self.cache = StaticKVCache(target.cached_layers, batch, bucket, None, target.device)
        self.draft_state: StaticDraftState | None = None
        self.roots_B, self.deepest_B, self.active_B = torch.zeros(3, batch, dtype=torch.int64, device=target.device)
        self.noise_LBV: torch.Tensor | None = None
        self.steps: dict[Hashable, DeviceStep] = {}

    def holds(self, length: int) -> bool:
        """Tell whether a step has room where the longest row uses `length` slots."""
        return length + self._room <= self.bucket

    def load(self, cache: BaseKVCache, draft_state: BaseDraftState | None, roots_B: torch.Tensor) -> None:
        """Go on where another stream stands; between steps only."""
        self.cache.copy_from(cache)
        self.roots_B.copy_(roots_B)
        if self.drafter is None or draft_state is None:
            return
        if self.draft_state is None:
            head, features_BAF = self.drafter.head, draft_state.waiting()[0]
            own = StaticKVCache(head.layers_count, len(roots_B), self.bucket, None, head.device)
            places = max(RING, self.levels) if self.adapts else self.levels
            zeros_BTF = features_BAF.new_zeros(len(roots_B), places, features_BAF.shape[-1])
            self.draft_state = StaticDraftState(draft_state.tree, own, self.levels, zeros_BTF)
        self.draft_state.load(draft_state)

    def prepare(self, deepest: Sequence[int], active: Sequence[bool]) -> None:
        """Write what the next step may do."""
        self.deepest_B.copy_(torch.tensor(deepest))
        self.active_B.copy_(torch.tensor(active))

    def draw(self, noise: Noise, positions: Sequence[int], levels: int) -> None:
        """Write the noise of the next step's levels, whose rows pick new tokens from these numbers on."""
        rows = range(len(positions))
        for level in range(levels):
            noise_BV = noise.at([position + level for position in positions], rows, noise.width)
            if self.noise_LBV is None:
                self.noise_LBV = noise_BV.new_zeros(self.levels, *noise_BV.shape)
            self.noise_LBV[level].copy_(noise_BV)

    def make_ready(self, drafts: bool) -> None:
        """Make place for the entries of a step that drafts or does not; between steps only."""
        if self.drafter is not None and self.draft_state is not None:
            self.draft_state.make_ready(self.drafter, drafts)

    def sync_host(self, counts: Sequence[int], has_drafted: bool) -> None:
        """Tell the host what the last step has kept of every row, and whether it began with a draft."""
        self.cache.sync_host(counts)
        if self.draft_state is not None:
            self.draft_state.sync_host(counts, has_drafted)

    @property
    def moving(self) -> list[torch.Tensor]:
        """What a step changes beyond undecided slots."""
        moving = [self.roots_B, self.cache.lengths_B]
        state = self.draft_state
        return moving if state is None else [*moving, state.cache.lengths_B, state.counts_B, *state.entries]

    def saved(self) -> list[torch.Tensor]:
        """Return what `restore` needs to let the next step be run again."""
        return [tensor.clone() for tensor in self.moving]

    def restore(self, saved: Sequence[torch.Tensor]) -> None:
        """Undo the steps since `saved`; what they wrote into the caches is undecided again."""
        for tensor, before in zip(self.moving, saved, strict=True):
            tensor.copy_(before)
        for cache in (self.cache, self.draft_state.cache if self.draft_state is not None else self.cache):
            cache.drop_undecided()


class DeviceStep:
    """A decode step on step buffers; calling it queues the work and waits for nothing. It is a `StepTensors`.

    Args:
        buffers: what it works on.
        taps: which features the drafter reads.
        sampler: stateless; only its processors are used, the noise is theirs.
        shape: the tree to draft, as in `run_step`.

    Attributes:
        key: equal for steps of all shapes that are refused together.
        replay: does what a call does, from a captured graph; None before it is captured.
        unchecked: how many replays are still to be compared with a call.
    """

    def __init__(
        self, buffers: StepBuffers, taps: Taps, sampler: Sampler, *, shape: TreeConfig | None, key: Hashable
    ) -> None:
        self.buffers, self.shape, self.key = buffers, shape, key
        self.target, self.drafter, self.roots_B = buffers.target, buffers.drafter, buffers.roots_B
        self.taps = taps if buffers.drafter is not None else None
        self.cache, self.draft_state = buffers.cache, buffers.draft_state
        self.samples = sampler.noise is not None
        self.sampler = Sampler(sampler.processors, None)
        self.replay: Callable[[], None] | None = None
        self.unchecked = 2
        self._walk, self._width = 2 * self.levels + 1, 0
        self._outputs: list[torch.Tensor] = []

    def __call__(self, stage: Stage = lambda name: nullcontext()) -> None:
        """Draft, verify, accept and commit once."""
        run_step(self, self.shape, stage)

    @property
    def levels(self) -> int:
        """Most nodes on one path, root included."""
        return self.shape.levels if self.shape is not None else 1

    def limited(self, tree: DraftTree) -> DraftTree:
        """Return the tree without what a row may not accept."""
        return tree.limited(self.buffers.deepest_B)

    def accept(self, tree: DraftTree, logits_BNV: torch.Tensor) -> Kept:
        """Walk on the device and write the outcome where the host finds it."""
        if self.sampler.is_plain_greedy and not self.samples:
            acceptance = accept_greedy(tree, logits_BNV.argmax(-1))
        else:
            acceptance = accept_sampled(tree, logits_BNV, self._pick)
        self._publish(acceptance, tree)
        # A row that has ended keeps nothing and stays where it is.
        return Kept(acceptance, (acceptance.n_accepted_B + 1) * self.buffers.active_B)

    def root_at(self, tokens_B: torch.Tensor) -> None:
        """Make the bonus tokens the next roots."""
        self.roots_B.copy_(tokens_B)

    def _pick(self, logits_BV: torch.Tensor, level: int) -> torch.Tensor:
        noise_LBV = self.buffers.noise_LBV if self.samples else None
        return pick(self.sampler.scores(logits_BV), None if noise_LBV is None else noise_LBV[level])

    def _publish(self, acceptance: Acceptance, tree: DraftTree) -> None:
        """Write the outcome where the host finds it after a replay too."""
        nodes = (tree.tokens_BN, tree.parents_BN, tree.depths_BN, tree.mask_BNN, tree.scores_BN)
        outcome = [acceptance.to_tensor()]
        if self.buffers.adapts and self.shape is not None:
            assert self.draft_state is not None and self.draft_state.candidates is not None
            self._width = self.draft_state.candidates.width
            outcome.append(self.draft_state.candidates.to_tensor())
        fresh = [torch.cat(outcome, 1), *nodes]
        if not self._outputs:
            self._outputs = [tensor.clone() for tensor in fresh]
        for static, new in zip(self._outputs, fresh, strict=True):
            static.copy_(new)

    @property
    def outcome_BX(self) -> torch.Tensor:
        """The last step's packed `Acceptance` and `Candidates`, overwritten by the next."""
        return self._outputs[0]

    @property
    def effects(self) -> list[torch.Tensor]:
        """What two runs from the same state must agree on: the walk and every count and token it moves."""
        return [self.outcome_BX[:, : self._walk], *(t for t in self.buffers.moving if not t.is_floating_point())]

    def read(self) -> tuple[HostAcceptance, Candidates | None]:
        """Copy the outcome to the host, the only wait of a step; candidates are there where trees differ."""
        outcome_BX = self.outcome_BX.to("cpu", copy=True)
        looked_BX = outcome_BX[:, self._walk :]
        candidates = Candidates.from_tensor(looked_BX, self._width) if self._width else None
        return HostAcceptance.from_tensor(outcome_BX[:, : self._walk]), candidates

    def tree(self) -> DraftTree:
        """Return a copy of the tree the last step has verified."""
        tokens_BN, parents_BN, depths_BN, mask_BNN, scores_BN = (tensor.clone() for tensor in self._outputs[1:])
        return DraftTree(tokens_BN, parents_BN, depths_BN, mask_BNN, scores_BN, self.levels)
