"""The loop: prefill, then draft, verify, accept, commit until every row has ended.

`decode` is a generator of `DecodeStep`; collecting and streaming both consume it. Plain decoding is the same loop with
a tree that is only its root. A step itself is in `step.py`; here is what surrounds it: where a call begins, which tree
comes next, which rows still run, what the caller is told. Each stage runs under `no_grad`; no `yield` does, because
that would leak into the caller.

Shapes: B rows still in the batch, R rows the call began with, S prompt tokens, F feature width.
"""

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from transformers import Cache

from eagle.model.adaptive.chooser import Chooser
from eagle.model.cache_reuse import CachedPrefix, CachePool, Prefix
from eagle.model.configs import TreeConfig
from eagle.model.draft_state import READ
from eagle.model.drafter import Drafter
from eagle.model.request_state import DecodeStep, Request, Rows
from eagle.model.stats import GenerationStats
from eagle.model.step import StepOutcome, Stream
from eagle.model.support.gradients import without_gradients
from eagle.model.target import Taps, TargetModel
from eagle.model.tree import DraftTree, root_only
from eagle.model.walk import walk


class Replays(Protocol):
    """Runs the steps of a stream on buffers of its own, for as long as the call lasts."""

    @property
    def context(self) -> int:
        """Slots that attention of the next step looks at."""

    def run(self, shape: TreeConfig | None, stats: GenerationStats) -> StepOutcome:
        """Take a step, as `Stream.run` does; its rows never leave the batch."""

    def hand_back(self) -> None:
        """Let the stream's own caches hold what the steps have committed."""

    def close(self) -> None:
        """Give the buffers back."""


class Generation:
    """The state of one running call; `step` takes one step of it.

    Args:
        target: the base model.
        drafter: grows trees; None decodes plainly.
        request: the call.
        taps: which features the drafter reads.
        prefix: what an earlier call left behind, to start from; this call leaves its own there.
        chooser: decides every step's tree; None keeps the drafter's.
        pool: holds the caches of the last call, for this one to use and then to return.
        replays: moves a prefilled stream onto buffers on which steps are replayed, told whether trees differ from step
            to step; None runs steps as they are.

    Attributes:
        stream: the rows that run and their caches.
        replayed: the stream's steps on buffers; None where they run as they are, and before the prefill.
        left_cache: after the end of a call that returns a dict, keys and values as `generate` would leave them.
    """

    def __init__(
        self,
        target: TargetModel,
        drafter: Drafter | None,
        request: Request,
        taps: Taps,
        *,
        prefix: Prefix | None = None,
        chooser: Chooser | None = None,
        pool: CachePool | None = None,
        replays: Callable[[Stream, bool], Replays] | None = None,
    ) -> None:
        switch = target.rope_switch
        # In `generate` the longest row decides over all rows' frequencies; only plain decoding in step does so too.
        is_batch = len(request.ids_RS) > 1 or any(request.pads)
        if switch is not None and is_batch and request.limit > switch.position:
            request, drafter = replace(request, lockstep=True), None
        self.request, self.prefix, self.chooser, self.replays = request, prefix, chooser, replays
        self.pool = pool if replays is None else None  # buffers have a pool of their own
        self.rows = Rows(request)
        self.stats = GenerationStats()
        self.stream = Stream(target, drafter, taps, request=request, rows=self.rows)
        self.stream.start(self._capacity, self.request.limit)
        self.replayed: Replays | None = None
        self.left_cache: Cache | None = None
        self._turn = 0

    @property
    def _capacity(self) -> int:
        if self.replays is not None:
            return self.request.ids_RS.shape[1]  # steps run elsewhere
        drafter = self.stream.drafter
        return self.request.limit + (drafter.tree.nodes if drafter is not None else 1)

    def _resume(self) -> None:
        """Begin with what the prefix holds of this prompt instead of empty caches."""
        if self.prefix is None:
            return
        stream = self.stream
        self._turn, left = self.prefix.take(stream.target, stream.drafter)
        if left is None:
            return
        kept = left.shared(self.request.ids_RS[0].tolist(), stream.target.rope_switch)
        if kept == 0:
            return
        stream.cache = left.cache
        stream.cache.rewind(kept, self._capacity)
        if stream.drafter is not None:
            assert left.draft_state is not None
            stream.draft_state = stream.drafter.resume(left.draft_state, kept, self.request.limit)

    def close(self, is_whole: bool) -> None:
        """End the call; the prefix gets its caches after a whole step, else the pool after the last one."""
        stream, leaves = self.stream, is_whole and self.prefix is not None
        replayed, self.replayed = self.replayed, None
        if replayed is not None:
            if leaves:
                replayed.hand_back()
            replayed.close()
        if leaves and self.prefix is not None:
            ids = [*self.request.ids_RS[0].tolist(), *self.rows.new[0]][: stream.cache.lengths[0]]
            left = CachedPrefix(ids, stream.target, stream.cache, stream.drafter, stream.draft_state)
            self.prefix.leave(left, self._turn)
        if is_whole and self.is_done and self.request.returns_dict:
            self.left_cache = self._exported(replayed is not None)
        if is_whole and not leaves and self.pool is not None and self.is_done:
            self.pool.keep(stream.caches)

    def _exported(self, was_replayed: bool) -> Cache | None:
        """Return what `generate` leaves in its cache, where all rows are there and in step; None elsewhere."""
        stream = self.stream
        in_step = stream.cache.is_uniform and len(stream.running) == len(self.rows.new)
        whole = stream.cache.lengths[0] == self.rows.prompt + max(map(len, self.rows.new)) - 1
        usual = stream.target.cached_layers == len(stream.target.layers) and stream.target.rope_switch is None
        if was_replayed or not (in_step and whole and usual):
            return None
        return stream.cache.exported(stream.target.config)

    def prefill(self) -> DecodeStep:
        """Run the prompt and pick the first token of every row."""
        started = time.perf_counter()
        mask = self.request.attention_mask_RS
        self.stats.prompt_tokens = int(self.request.ids_RS.numel() if mask is None else mask.sum())
        self._resume()
        step = self._prefill(self.request.ids_RS, mask)
        if self.replays is not None and not self.is_done:
            self.replayed = self.replays(self.stream, self.chooser is not None)
        self.stats.prefill_seconds += time.perf_counter() - started
        return step

    def _prefill(self, ids_BS: torch.Tensor, mask_BS: torch.Tensor | None) -> DecodeStep:
        stream, prompt = self.stream, ids_BS.shape[1]
        for name, cache in stream.caches.items():
            cache.begin(prompt, self.request.limit)
            if self.pool is not None and max(cache.lengths) == 0:
                self.pool.lend(name, cache)
        self.stats.prefilled_tokens += sum(prompt - length for length in stream.cache.lengths)
        chunks = stream.target.prefill(ids_BS, mask_BS, stream.cache, stream.taps, self.request.prefill_chunk)
        for start, output in chunks:
            last_BV, newest_B1F = output.logits_BNV[:, -1], None
            if output.features_BNF is not None:
                # The last position's partner is the token still to be picked.
                self._observe_prompt(output.features_BNF, ids_BS[:, start + 1 :])
                newest_B1F = output.features_BNF[:, -1:]
            del output
        tree = root_only(torch.zeros(len(ids_BS), dtype=torch.int64, device=last_BV.device))
        acceptance, _, tokens = walk(self.request, self.rows, stream.running, tree, last_BV[:, None])
        stream.root_at(acceptance.next_token_B)
        if stream.drafter is not None and stream.draft_state is not None:
            assert newest_B1F is not None
            stream.drafter.observe(stream.draft_state, newest_B1F, stream.roots_B[:, None], [1] * len(ids_BS))
        return self._emit(tokens, [0] * len(ids_BS), None)

    def _observe_prompt(self, features_BSF: torch.Tensor, next_tokens_BS: torch.Tensor) -> None:
        """Show the drafter features of the prompt, as far as the tokens after them are known."""
        stream = self.stream
        assert stream.drafter is not None and stream.draft_state is not None
        known = min(features_BSF.shape[1], next_tokens_BS.shape[1])
        for first in range(0, known, READ):
            piece = slice(first, min(first + READ, known))
            counts = [piece.stop - first] * len(next_tokens_BS)
            stream.drafter.observe(stream.draft_state, features_BSF[:, piece], next_tokens_BS[:, piece], counts)

    def step(self) -> DecodeStep:
        """Draft, verify, accept and commit once."""
        started = time.perf_counter()
        self._drop_finished_rows()
        if self._crosses_switch():
            return self._recompute(started)
        active, running, runner = self.stream.active, self.stream.running, self.replayed or self.stream
        outcome = runner.run(self._shape(runner.context), self.stats)
        step = self._emit(outcome.tokens, outcome.walked.accepted, outcome.tree)
        self._learn(outcome, time.perf_counter() - started)
        accepted = {running[place]: outcome.walked.accepted[place] for place in active}
        self.stats.record_step(step.drafted, accepted, time.perf_counter() - started)
        return step

    def _shape(self, context: int) -> TreeConfig | None:
        """Choose the next step's tree; None takes the root alone, where nothing deeper pays or could be accepted."""
        state = self.stream.draft_state
        if state is None or max(self.stream.deepest) == 0:
            return None
        if self.chooser is None:
            return state.tree
        state.judge = self.chooser.judge
        return self.chooser.next(context)

    def _learn(self, outcome: StepOutcome, seconds: float) -> None:
        """Tell the chooser what a step brought, and how long it took."""
        if self.chooser is not None and self.stream.drafter is not None:
            self.chooser.learn(outcome, self.stream.active, seconds)

    def _crosses_switch(self) -> bool:
        """Tell whether the root is the first token beyond the switch of a target that then recomputes its cache."""
        switch = self.stream.target.rope_switch
        return switch is not None and switch.recompute and max(self.stream.cache.lengths) == switch.position

    def _recompute(self, started: float) -> DecodeStep:
        """Run everything so far through the target anew, as transformers does when long frequencies set in."""
        stream = self.stream
        stream.target.tell_of_switch()
        width = max(stream.cache.lengths) + 1
        stream.start(self._capacity, self.request.limit)
        mask = self.request.attention_mask_RS
        if mask is not None:
            mask = torch.nn.functional.pad(mask[stream.running], (0, width - mask.shape[1]), value=1)
        active = [stream.running[place] for place in stream.active]
        step = self._prefill(self.rows.padded(stream.running, width), mask)
        self.stats.record_step(0, dict.fromkeys(active, 0), time.perf_counter() - started)
        return step

    def _emit(self, tokens: Sequence[list[int]], accepted: Sequence[int], tree: DraftTree | None) -> DecodeStep:
        all_tokens: list[list[int]] = [[] for _ in self.rows.new]
        all_accepted = [0] * len(all_tokens)
        for row, new, n in zip(self.stream.running, tokens, accepted, strict=True):
            all_tokens[row], all_accepted[row] = new, n
        self.stats.record_tokens(sum(map(len, tokens)))
        rows, drafted = (tuple(self.stream.running), tree.size - 1) if tree is not None else ((), 0)
        return DecodeStep(all_tokens, drafted, all_accepted, list(self.rows.finished), tree, rows)

    def _drop_finished_rows(self) -> None:
        """Drop finished rows from the batch once half of it is done."""
        places, running = self.stream.active, self.stream.running
        if 2 * len(places) > len(running) or self.request.lockstep or self.replayed is not None:
            return
        self.stream.keep_rows(places)
        if self.chooser is not None:
            self.chooser.shrink(len(places))

    @property
    def is_done(self) -> bool:
        """Whether every row has ended."""
        return all(reason is not None for reason in self.rows.finished)


def decode(generation: Generation) -> Generator[DecodeStep, None, None]:
    """Yield the first tokens, then one step after another until every row has ended."""
    is_whole = False  # whether the last step ran to its end, so that the caches can serve another call
    try:
        with generation.stream.target.lock, without_gradients():
            step = generation.prefill()
        is_whole = True
        yield step
        while not generation.is_done:
            is_whole = False
            with generation.stream.target.lock, without_gradients():
                step = generation.step()
            is_whole = True
            yield step
        noise = generation.request.sampler.noise
        if noise is not None:
            noise.rewind(max(map(len, generation.rows.new)))
    finally:
        generation.close(is_whole)
