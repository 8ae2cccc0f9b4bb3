"""The loop: prefill, then draft, verify, accept, commit until every row has ended.

`decode` is a generator of `DecodeStep`; collecting and streaming both consume it. Plain decoding is the same loop with
a tree that is only its root. Each stage runs under `no_grad`; no `yield` does, because that would leak into the caller.

Shapes: B rows still in the batch, R rows the call began with, S prompt tokens, A path, V vocabulary.
"""

import time
from collections.abc import Generator, Sequence
from dataclasses import replace

import torch

from eagle.model.adaptive.chooser import Chooser
from eagle.model.cache_reuse import CachedPrefix, CachePool, Prefix
from eagle.model.draft_state import READ, DraftState
from eagle.model.drafter import Drafter
from eagle.model.kv_cache import KVCache
from eagle.model.request_state import DecodeStep, Request, Rows
from eagle.model.stats import GenerationStats
from eagle.model.support.gradients import without_gradients
from eagle.model.target import Taps, TargetModel
from eagle.model.tree import DraftTree, root_only
from eagle.model.verify import Acceptance, HostAcceptance
from eagle.model.walk import walk


class Generation:
    """The state of one running call; `step` is the algorithm.

    Args:
        target: the base model.
        drafter: grows trees; None decodes plainly.
        request: the call.
        taps: which features the drafter reads.
        prefix: what an earlier call left behind, to start from; this call leaves its own there.
        chooser: decides every step's tree; None keeps the drafter's.
        pool: holds the caches of the last call, for this one to use and then to return.
    """

    def __init__(
        self,
        target: TargetModel,
        drafter: Drafter | None,
        request: Request,
        taps: Taps,
        prefix: Prefix | None = None,
        chooser: Chooser | None = None,
        pool: CachePool | None = None,
    ) -> None:
        self.target, self.taps, self.prefix, self.chooser, self.pool = target, taps, prefix, chooser, pool
        self.pads = request.pads
        switch = target.rope_switch
        # In `generate` the longest row decides over all rows' frequencies; only plain decoding in step does so too.
        is_batch = len(request.ids_RS) > 1 or any(self.pads)
        if switch is not None and is_batch and request.limit > switch.position:
            request, drafter = replace(request, lockstep=True), None
        self.request, self.drafter = request, drafter
        self.rows = Rows(request)
        self.running = list(range(len(request.ids_RS)))
        self.stats = GenerationStats()
        self.roots_B = torch.empty(0, dtype=torch.int64)
        self._turn = 0
        self._start()

    def _start(self) -> None:
        """Make caches for the rows that run."""
        pads = [self.pads[row] for row in self.running]
        batch, capacity = len(self.running), self._capacity
        self.cache: KVCache = self.target.new_cache(batch, capacity, pads)
        self.draft_state: DraftState | None = None
        if self.drafter is not None:
            self.draft_state = self.drafter.start(batch, self.request.limit, pads)

    @property
    def _caches(self) -> dict[str, KVCache]:
        """The caches of this call by whose they are; a drafter of another kind may have none."""
        own = getattr(self.draft_state, "cache", None)
        return {"target": self.cache} | ({"head": own} if own is not None else {})

    @property
    def _capacity(self) -> int:
        return self.request.limit + (self.drafter.tree.nodes if self.drafter is not None else 1)

    def _resume(self) -> None:
        """Begin with what the prefix holds of this prompt instead of empty caches."""
        if self.prefix is None:
            return
        self._turn, left = self.prefix.take(self.target, self.drafter)
        if left is None:
            return
        kept = left.shared(self.request.ids_RS[0].tolist(), self.target.rope_switch)
        if kept == 0:
            return
        self.cache = left.cache
        self.cache.rewind(kept, self._capacity)
        if self.drafter is not None:
            assert left.draft_state is not None
            self.draft_state = self.drafter.resume(left.draft_state, kept, self.request.limit)

    def close(self, is_whole: bool) -> None:
        """End the call; the prefix gets its caches after a whole step, else the pool after the last one."""
        if is_whole and self.prefix is not None:
            ids = self.rows.ids()[0, : self.cache.lengths[0]].tolist()
            self.prefix.leave(CachedPrefix(ids, self.target, self.cache, self.drafter, self.draft_state), self._turn)
        elif is_whole and self.pool is not None and self.is_done:
            self.pool.keep(self._caches)

    def prefill(self) -> DecodeStep:
        """Run the prompt and pick the first token of every row."""
        started = time.perf_counter()
        mask = self.request.attention_mask_RS
        self.stats.prompt_tokens = int(self.request.ids_RS.numel() if mask is None else mask.sum())
        self._resume()
        step = self._prefill(self.request.ids_RS, mask)
        self.stats.prefill_seconds += time.perf_counter() - started
        return step

    def _prefill(self, ids_BS: torch.Tensor, mask_BS: torch.Tensor | None) -> DecodeStep:
        features: list[torch.Tensor] = []
        for name, cache in self._caches.items():
            cache.begin(ids_BS.shape[1], self.request.limit)
            if self.pool is not None and max(cache.lengths) == 0:
                self.pool.lend(name, cache)

        def feed_head(start: int, features_BSF: torch.Tensor) -> None:
            # The last position's partner is the token still to be picked.
            end = min(start + features_BSF.shape[1], ids_BS.shape[1] - 1)
            features[:] = [features_BSF[:, -1:]]
            assert self.drafter is not None and self.draft_state is not None
            for first in range(start, end, READ):
                last = min(first + READ, end)
                seen_BSF, tokens_BS = features_BSF[:, first - start : last - start], ids_BS[:, first + 1 : last + 1]
                self.drafter.observe(self.draft_state, seen_BSF, tokens_BS, [last - first] * len(ids_BS))

        on_features = feed_head if self.drafter is not None else None
        taps, chunk = (self.taps if on_features else None), self.request.prefill_chunk
        self.stats.prefilled_tokens += sum(ids_BS.shape[1] - length for length in self.cache.lengths)
        logits_BV = self.target.prefill(ids_BS, mask_BS, self.cache, taps, on_features, chunk)
        tree = root_only(torch.zeros(len(ids_BS), dtype=torch.int64, device=logits_BV.device))
        acceptance, _, tokens = walk(self.request, self.rows, self.running, tree, logits_BV[:, None])
        self.roots_B = acceptance.next_token_B
        if self.drafter is not None and self.draft_state is not None:
            ones = [1] * len(self.running)
            self.drafter.observe(self.draft_state, features[0], self.roots_B[:, None], ones)
        return self._emit(tokens, 0, [0] * len(self.running), None)

    def step(self) -> DecodeStep:
        """Draft, verify, accept and commit once."""
        started = time.perf_counter()
        self._drop_finished_rows()
        if self._crosses_switch():
            return self._recompute(started)
        active = [row for row in self.running if self.rows.finished[row] is None]
        with self.stats.stage("draft"):
            tree = self._draft()
        with self.stats.stage("verify"):
            output = self.target.verify(tree, self.cache, self.taps if self.drafter is not None else None)
        with self.stats.stage("accept"):
            acceptance, walked, tokens = walk(self.request, self.rows, self.running, tree, output.logits_BNV)
        with self.stats.stage("commit"):
            self._commit(acceptance, walked, tokens, output.features_BNF)
        active_accepted = [walked.accepted[self.running.index(row)] for row in active]
        step = self._emit(tokens, tree.size - 1, walked.accepted, tree)
        self._learn(tokens, time.perf_counter() - started)
        self.stats.record_step(tree.size - 1, active_accepted, time.perf_counter() - started)
        return step

    def _learn(self, tokens: Sequence[list[int]], seconds: float | None) -> None:
        """Tell the chooser what the rows that go on have emitted, and how long a step took, if that is typical."""
        state = self.draft_state
        if self.chooser is None or state is None:
            return
        if seconds is not None:
            self.chooser.took(seconds, state.tree if state.candidates is not None else None)
        places = [place for place, row in enumerate(self.running) if self.rows.finished[row] is None]
        if places and state.candidates is not None:
            self.chooser.record(state.tree, state.candidates, [tokens[place] for place in places], places)
        state.candidates = None

    def _commit(
        self,
        acceptance: Acceptance,
        walked: HostAcceptance,
        tokens: Sequence[list[int]],
        features_BNF: torch.Tensor | None,
    ) -> None:
        """Keep what was accepted: keys and values where they belong, features for the head."""
        # A row keeps its root and what it emitted but the last token, which is the next root. Rows that had ended
        # stay where they are; plain decoding moves them along, because `generate` keeps rows in step.
        idle = 1 if self.drafter is None else 0
        counts = [len(new) or idle for new in tokens]
        if self.request.lockstep:
            counts = [max(counts)] * len(counts)
        in_place = all(p[:c] == list(range(c)) for p, c in zip(walked.paths, counts, strict=True))
        self.cache.commit(acceptance.path_BA, counts, in_place)
        self.roots_B = acceptance.next_token_B
        if self.drafter is not None and self.draft_state is not None:
            assert features_BNF is not None
            index_BAF = acceptance.path_BA[..., None].expand(-1, -1, features_BNF.shape[-1])
            self.drafter.observe(self.draft_state, features_BNF.gather(1, index_BAF), acceptance.tokens_BA, counts)

    def _draft(self) -> DraftTree:
        """Grow a tree, or take the root alone where nothing deeper could be accepted."""
        limits = [self._deepest(row) for row in self.running]
        ended = [index for index, row in enumerate(self.running) if self.rows.finished[row] is not None]
        if self.drafter is None or self.draft_state is None or max(limits) == 0:
            return root_only(self.roots_B)
        if self.chooser is not None:
            chosen = self.chooser.next(max(self.cache.lengths))
            if chosen is None:
                return root_only(self.roots_B)
            self.draft_state.tree = chosen
        tree = self.drafter.draft(self.draft_state, self.roots_B)
        if self.request.lockstep and ended:
            # Rows that ended keep up with the others: they draft the pads they emit.
            limits = [max(limits)] * len(limits)
            tree = tree.pinned(ended, self.request.pad)
        return tree.limited(limits) if min(limits) < tree.levels - 1 else tree

    def _deepest(self, row: int) -> int:
        """Return the depth below a row's root that it may accept."""
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

    def _crosses_switch(self) -> bool:
        """Tell whether the root is the first token beyond the switch of a target that then recomputes its cache."""
        switch = self.target.rope_switch
        return switch is not None and switch.recompute and max(self.cache.lengths) == switch.position

    def _recompute(self, started: float) -> DecodeStep:
        """Run everything so far through the target anew, as transformers does when long frequencies set in."""
        width = max(self.cache.lengths) + 1
        self._start()
        mask = self.request.attention_mask_RS
        if mask is not None:
            mask = torch.nn.functional.pad(mask[self.running], (0, width - mask.shape[1]), value=1)
        active = [row for row in self.running if self.rows.finished[row] is None]
        step = self._prefill(self.rows.padded(self.running, width), mask)
        self.stats.record_step(0, [0] * len(active), time.perf_counter() - started)
        return step

    def _emit(
        self, tokens: Sequence[list[int]], drafted: int, accepted: Sequence[int], tree: DraftTree | None
    ) -> DecodeStep:
        all_tokens: list[list[int]] = [[] for _ in self.rows.new]
        all_accepted = [0] * len(all_tokens)
        for row, new, n in zip(self.running, tokens, accepted, strict=True):
            all_tokens[row], all_accepted[row] = new, n
        self.stats.new_tokens += sum(map(len, tokens))
        rows = tuple(self.running) if tree is not None else ()
        return DecodeStep(all_tokens, drafted, all_accepted, list(self.rows.finished), tree, rows)

    def _drop_finished_rows(self) -> None:
        """Drop finished rows from the batch once half of it is done."""
        keep = [i for i, row in enumerate(self.running) if self.rows.finished[row] is None]
        if 2 * len(keep) > len(self.running) or self.request.lockstep:
            return
        self.cache.keep_rows(keep)
        self.roots_B = self.roots_B[keep]
        if self.draft_state is not None:
            self.draft_state.keep_rows(keep)
        self.running = [self.running[i] for i in keep]
        if self.chooser is not None:
            self.chooser.shrink(len(keep))

    @property
    def is_done(self) -> bool:
        """Whether every row has ended."""
        return all(reason is not None for reason in self.rows.finished)


def decode(generation: Generation) -> Generator[DecodeStep, None, None]:
    """Yield the first tokens, then one step after another until every row has ended."""
    is_whole = False  # whether the last step ran to its end, so that the caches can serve another call
    try:
        with generation.target.lock, without_gradients():
            step = generation.prefill()
        is_whole = True
        yield step
        while not generation.is_done:
            is_whole = False
            with generation.target.lock, without_gradients():
                step = generation.step()
            is_whole = True
            yield step
        noise = generation.request.sampler.noise
        if noise is not None:
            noise.rewind(max(map(len, generation.rows.new)))
    finally:
        generation.close(is_whole)
