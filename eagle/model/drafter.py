"""The drafter: a head, its own cache, and the growth of a draft tree.

Entry t of the head's cache pairs the target's feature at t with the token at t + 1, at position t. After every step
the entries of drafted nodes are dropped and rewritten from the target's true features; not doing so costs acceptance.
A `Drafter` holds no state of a generation: that is a `DraftState`, one per stream.

Shapes: B batch, S entries, A path, K top-k, D head width, F feature width, M candidates.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from eagle.model.configs import TreeConfig
from eagle.model.draft_state import RING, DraftState, Observed
from eagle.model.head import DraftHead
from eagle.model.kv_cache import KVCache
from eagle.model.packing import Packed, packed_forward
from eagle.model.tree import Candidates, DraftTree, StaticLevel, best, root_only, select


class Drafter(nn.Module):
    """Grows draft trees with a head.

    Args:
        head: the draft head.
        tree: how trees grow.
        embed: token ids -> target embeddings, used where the head has none of its own.
        output_logits: the target's output transform, used by heads without an output matrix.
    """

    def __init__(
        self,
        head: DraftHead,
        tree: TreeConfig,
        embed: Callable[[torch.Tensor], torch.Tensor],
        output_logits: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        super().__init__()
        self.head = head
        self.tree = tree
        self.packed: Packed | None = None
        self._target_embed = embed
        self._output_logits = output_logits
        self._made: dict[tuple[StaticLevel, torch.device], tuple[torch.Tensor, ...]] = {}

    @property
    def total_tokens(self) -> int:
        """Drafted nodes per tree, the root not counted (the reference's attribute)."""
        return self.tree.nodes - 1

    @total_tokens.setter
    def total_tokens(self, drafted: int) -> None:
        self.tree = replace(self.tree, total_token=drafted + 1)

    @property
    def depth(self) -> int:
        """Expansions after the first."""
        return self.tree.depth

    @depth.setter
    def depth(self, depth: int) -> None:
        self.tree = replace(self.tree, depth=depth)

    @property
    def top_k(self) -> int:
        """Children per expanded node."""
        return self.tree.top_k

    @top_k.setter
    def top_k(self, top_k: int) -> None:
        self.tree = replace(self.tree, top_k=top_k)

    @property
    def threshold(self) -> float:
        """Least cumulative probability of a kept node; 1.0 keeps all."""
        return self.tree.threshold

    @threshold.setter
    def threshold(self, threshold: float) -> None:
        self.tree = replace(self.tree, threshold=threshold)

    def start(self, batch: int, capacity: int, pads: Sequence[int]) -> DraftState:
        """Return the state of a new stream; `capacity` counts tokens, room for drafting is added."""
        cache = KVCache(self.head.layers_count, batch, capacity + self.tree.scratch, pads)
        return DraftState(self.tree, cache)

    @torch.no_grad()
    def resume(self, state: DraftState, entries: int, capacity: int) -> DraftState:
        """Return the state of a new stream that begins with the first entries of an earlier one's."""
        if state.pending:
            self._feed(state)
        state.cache.rewind(entries, capacity + self.tree.scratch)
        return DraftState(self.tree, state.cache)

    def observe(
        self, state: DraftState, features_BAF: torch.Tensor, tokens_BA: torch.Tensor, counts: Sequence[int]
    ) -> None:
        """Remember true features and the tokens one position ahead of them; the head reads them at the next draft."""
        waiting = sum(seen.tokens_BA.shape[1] for seen in state.pending)
        if waiting and waiting + tokens_BA.shape[1] > RING:
            self._feed(state)
        state.pending.append(Observed(features_BAF, tokens_BA, counts))

    def catch_up(self, state: DraftState) -> None:
        """Let the head read all that waits but the newest observation."""
        newest = state.pending.pop()
        if state.pending:
            self._feed(state)
        state.pending.append(newest)

    @torch.no_grad()
    def draft(self, state: DraftState, root_B: torch.Tensor) -> DraftTree:
        """Feed what was observed and grow a tree from the root.

        Args:
            state: the stream; its last observed token of every row is the root.
            root_B: the last chosen tokens.
        """
        hidden_BD = self._feed(state)
        root_B = root_B.to(hidden_BD.device)
        tree = state.tree
        if tree.static is not None:
            candidates = self._grow_static(state.cache, hidden_BD, tree.static)
        else:
            candidates = self._grow(state.cache, hidden_BD, tree)
        state.cache.drop_undecided()
        state.candidates = candidates
        drafted = tree.nodes - 1
        if tree.threshold == 1.0:
            return select(root_B, candidates, drafted, tree.levels)
        # The only read of the draft: how many nodes the row with most of them keeps.
        floor = math.log(tree.threshold)
        drafted = min(drafted, int((candidates.scores_BM >= floor).sum(-1).max()))
        if drafted == 0:
            return root_only(root_B)
        grown = select(root_B, candidates, drafted, min(tree.levels, drafted + 1))
        return replace(grown, parents_BN=grown.parents_BN.masked_fill(grown.scores_BN < floor, -1))

    @torch.no_grad()
    def _feed(self, state: DraftState) -> torch.Tensor:
        """Run the observed entries through the head, commit them, return the last real hidden state [B, D]."""
        features_BSF, tokens_BS = state.observed
        with packed_forward(self.packed):
            fused_BSD = self.head.fuse(features_BSF.to(self.head.device, self.head.dtype))
        hidden_BSD = self._entries(state.cache, fused_BSD, tokens_BS)
        last_B = state.commit(hidden_BSD.device)
        return hidden_BSD[torch.arange(len(last_B), device=last_B.device), last_B]

    def _entries(self, cache: KVCache, hidden_BSD: torch.Tensor, tokens_BS: torch.Tensor) -> torch.Tensor:
        """Run S consecutive entries, each seeing those before it."""
        entries, device = tokens_BS.shape[1], hidden_BSD.device
        steps_S = torch.arange(entries, device=device)
        causal_BSS = (steps_S <= steps_S[:, None]).expand(len(tokens_BS), -1, -1)
        return self._step(cache, hidden_BSD, tokens_BS, steps_S.expand(len(tokens_BS), -1), causal_BSS)

    def _step(
        self,
        cache: KVCache,
        hidden_BSD: torch.Tensor,
        tokens_BS: torch.Tensor,
        steps_BS: torch.Tensor,
        own_BSM: torch.Tensor,
    ) -> torch.Tensor:
        """Run the head over new entries behind the committed ones.

        Args:
            steps_BS: positions relative to the first undecided one.
            own_BSM: which undecided entries each sees.
        """
        positions_BS = (steps_BS + cache.next_positions(hidden_BSD.device)[:, None]).clamp(min=0)
        single = tokens_BS.shape[1] == 1 and cache.offset == 0 and cache.is_uniform
        mask = None if single and not cache.has_pads else cache.mask(own_BSM)[:, None]
        if mask is not None and cache.has_pads:
            # An entry among the pads sees nothing, which softmax turns into NaN: it looks at everything instead.
            mask = mask | ~mask.any(-1, keepdim=True)

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            k, v = cache.update(k, v, layer)
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])

        embed = self.head.embed_tokens if hasattr(self.head, "embed_tokens") else self._target_embed
        embeds_BSD = embed(tokens_BS).to(hidden_BSD)
        with packed_forward(self.packed):
            return self.head(embeds_BSD, hidden_BSD, positions_BS, attend)

    def _children(self, hidden_BSD: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log-probabilities and target ids [B, S, count] of the likeliest next tokens."""
        with packed_forward(self.packed):
            logits_BSW = self.head.logits(hidden_BSD)
        if logits_BSW is None:
            logits_BSW = self._output_logits(hidden_BSD).to(hidden_BSD.device)
        top = logits_BSW.float().log_softmax(-1).topk(min(count, logits_BSW.shape[-1]), dim=-1)
        return top.values, self.head.target_ids(top.indices)

    def _grow(self, cache: KVCache, hidden_BD: torch.Tensor, tree: TreeConfig) -> Candidates:
        """EAGLE-2: expand the k likeliest nodes of every level (arXiv 2406.16858 section 4.1)."""
        batch, device = len(hidden_BD), hidden_BD.device
        scores_B1K, tokens_B1K = self._children(hidden_BD[:, None], tree.top_k)
        width = scores_B1K.shape[-1]
        scores_BK, tokens_BK = scores_B1K[:, 0], tokens_B1K[:, 0]
        hidden_BKD = hidden_BD[:, None].expand(-1, width, -1)
        places_BK = torch.arange(width, device=device).expand(batch, -1)
        all_scores, all_tokens, all_parents = [scores_BK], [tokens_BK], [torch.full_like(tokens_BK, -1)]
        eye_BKK = torch.eye(width, dtype=torch.bool, device=device).expand(batch, -1, -1)
        seen_BKM, total = eye_BKK, width
        for depth in range(tree.depth):
            cache.offset = depth * width
            steps_BK = torch.full_like(tokens_BK, depth)
            hidden_BKD = self._step(cache, hidden_BKD, tokens_BK, steps_BK, seen_BKM)
            logp_BKK, children_BKK = self._children(hidden_BKD, width)
            candidates_BM = (scores_BK[..., None] + logp_BKK).flatten(1)
            all_scores.append(candidates_BM)
            all_tokens.append(children_BKK.flatten(1))
            all_parents.append(places_BK.repeat_interleave(width, dim=1))
            if depth == tree.depth - 1:
                break
            scores_BK, chosen_BK = best(candidates_BM, width)
            tokens_BK, parent_BK = all_tokens[-1].gather(1, chosen_BK), chosen_BK // width
            hidden_BKD = hidden_BKD.gather(1, parent_BK[..., None].expand_as(hidden_BKD))
            seen_BKM = torch.cat([seen_BKM.gather(1, parent_BK[..., None].expand_as(seen_BKM)), eye_BKK], -1)
            places_BK, total = total + chosen_BK, total + width * width
        return Candidates(torch.cat(all_tokens, 1), torch.cat(all_parents, 1), torch.cat(all_scores, 1), width)

    def _indices(self, level: StaticLevel, device: torch.device) -> tuple[torch.Tensor, ...]:
        """Return a level's `expand`, `parent` and `rank` as tensors, made once: a captured step may copy nothing."""
        key = (level, device)
        if key not in self._made:
            made = (torch.tensor(numbers, device=device) for numbers in (level.expand, level.parent, level.rank))
            self._made[key] = tuple(made)
        return self._made[key]

    def _grow_static(self, cache: KVCache, hidden_BD: torch.Tensor, levels: Sequence[StaticLevel]) -> Candidates:
        """EAGLE-1: fill a fixed tree; every level expands the nodes that have children in it."""
        batch, device = len(hidden_BD), hidden_BD.device
        out_BSD, scores_BS = hidden_BD[:, None], hidden_BD.new_zeros(batch, 1, dtype=torch.float32)
        seen_BSM = torch.zeros(batch, 1, 0, dtype=torch.bool, device=device)
        tokens_BS = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        all_scores: list[torch.Tensor] = []
        all_tokens: list[torch.Tensor] = []
        all_parents: list[torch.Tensor] = []
        first, written = -1, 0
        for depth, level in enumerate(levels):
            expand, parent, rank = self._indices(level, device)
            scores_BS, tokens_BS = scores_BS[:, expand], tokens_BS[:, expand]
            if depth > 0:
                eye = torch.eye(len(expand), dtype=torch.bool, device=device).expand(batch, -1, -1)
                seen_BSM = torch.cat([seen_BSM[:, expand], eye], -1)
                cache.offset = written
                written += len(expand)
                steps_BS = torch.full_like(tokens_BS, depth - 1)
                out_BSD = self._step(cache, out_BSD[:, expand], tokens_BS, steps_BS, seen_BSM)
            logp_BSK, children_BSK = self._children(out_BSD, max(level.rank) + 1)
            all_parents.append((first + expand[parent]).expand(batch, -1))
            first = 0 if depth == 0 else first + all_tokens[-1].shape[1]
            scores_BS = scores_BS[:, parent] + logp_BSK[:, parent, rank]
            tokens_BS = children_BSK[:, parent, rank]
            out_BSD, seen_BSM = out_BSD[:, parent], seen_BSM[:, parent]
            all_scores.append(scores_BS)
            all_tokens.append(tokens_BS)
        return Candidates(torch.cat(all_tokens, 1), torch.cat(all_parents, 1), torch.cat(all_scores, 1))
