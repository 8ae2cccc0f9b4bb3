"""The drafter: a head, its own cache, and the growth of a draft tree.

Entry t of the head's cache pairs the target's feature at t with the token at t + 1, at position t. After every step
the entries of drafted nodes are dropped and rewritten from the target's true features; not doing so costs acceptance.
A `Drafter` holds no state of a generation: that is a `DraftState`, one per stream.

Shapes: B batch, S entries, A path, K top-k, D head width, F feature width, M candidates.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from eagle.model.configs import TreeConfig
from eagle.model.draft_state import BaseDraftState, DraftState, Judge
from eagle.model.draft_window import DraftWindow
from eagle.model.head import DraftHead
from eagle.model.kinds import whole
from eagle.model.kv_cache import BaseKVCache, KVCache
from eagle.model.reference_drafter import ReferenceDrafting
from eagle.model.support.prepack import PrepackedLinears, packed_forward
from eagle.model.tree import Candidates, DraftTree, StaticLevel, at_places, best, root_only, select

logger = logging.getLogger(__name__)


def likeliest(logits_BSW: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probabilities and draft ids [B, S, count] of the likeliest tokens."""
    top = logits_BSW.float().log_softmax(-1).topk(min(count, logits_BSW.shape[-1]), dim=-1)
    return top.values, top.indices


class Drafter(ReferenceDrafting, nn.Module):
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
        self.packed: PrepackedLinears | None = None
        self._embed = head.embed_tokens if hasattr(head, "embed_tokens") else embed
        self._output_logits = output_logits
        self._made: dict[tuple[StaticLevel, torch.device], tuple[torch.Tensor, ...]] = {}

    @property
    def tree(self) -> TreeConfig:
        """How trees grow; what was asked beyond what such trees can hold is clipped."""
        return self._tree

    @tree.setter
    def tree(self, asked: TreeConfig) -> None:
        self._asked, self._tree = asked, asked.fitted(self.head.draft_size)
        if asked.static is not None:
            return
        got = {"total_token": self._tree.nodes, "depth": self._tree.depth, "top_k": self._tree.top_k}
        clipped = [
            f"{name}={getattr(asked, name)} to {most}" for name, most in got.items() if getattr(asked, name) > most
        ]
        if clipped:
            logger.info("clipped %s: the tree can hold no more", ", ".join(clipped))

    @property
    def total_tokens(self) -> int:
        """Drafted nodes per tree, the root not counted (the reference's attribute)."""
        return self.tree.nodes - 1

    @total_tokens.setter
    def total_tokens(self, drafted: int) -> None:
        self.tree = replace(self._asked, total_token=whole("total_tokens", drafted, 1) + 1)

    @property
    def depth(self) -> int:
        """Expansions after the first."""
        return self.tree.depth

    @depth.setter
    def depth(self, depth: int) -> None:
        self.tree = replace(self._asked, depth=depth)

    @property
    def top_k(self) -> int:
        """Children per expanded node."""
        return self.tree.top_k

    @top_k.setter
    def top_k(self, top_k: int) -> None:
        self.tree = replace(self._asked, top_k=top_k)

    @property
    def threshold(self) -> float:
        """Least cumulative probability of a kept node; 1.0 keeps all."""
        return self.tree.threshold

    @threshold.setter
    def threshold(self, threshold: float) -> None:
        self.tree = replace(self._asked, threshold=threshold)

    def start(self, batch: int, capacity: int, pads: Sequence[int]) -> DraftState:
        """Return the state of a new stream; `capacity` counts tokens, room for drafting is added."""
        cache = KVCache(self.head.layers_count, batch, capacity + self.tree.scratch, pads)
        return DraftState(self.tree, cache)

    def resume(self, state: DraftState, entries: int, capacity: int) -> DraftState:
        """Return the state of a new stream that begins with the first entries of an earlier one's."""
        if state.pending:
            self._feed(state)
        state.cache.rewind(entries, capacity + self.tree.scratch)
        return DraftState(self.tree, state.cache)

    def observe(self, state: BaseDraftState, features_BAF: torch.Tensor, tokens_BA: torch.Tensor, counts: Any) -> None:
        """Remember true features and the tokens one position ahead of them; the head reads them at the next draft.

        Args:
            counts: how many are real per row, as the state counts.
        """
        if state.is_full(tokens_BA.shape[1]):
            self._feed(state)
        state.observe(features_BAF, tokens_BA, counts)

    def catch_up(self, state: DraftState) -> None:
        """Let the head read all that waits but the newest observation."""
        newest = state.pending.pop()
        if state.pending:
            self._feed(state)
        state.pending.append(newest)

    @torch.no_grad()
    def draft(self, state: BaseDraftState, root_B: torch.Tensor) -> DraftTree:
        """Feed what was observed and grow a tree from the root.

        Args:
            state: the stream; its last observed token of every row is the root.
            root_B: the last chosen tokens.
        """
        tree = state.tree
        hidden_BD = self._feed(state)
        with packed_forward(self.packed):
            if tree.static is not None:
                candidates = self._grow_static(state.cache, hidden_BD, tree.static)
            else:
                candidates = self._grow(state.cache, hidden_BD, tree, state.judge)
        root_B = root_B.to(hidden_BD.device)
        state.cache.drop_undecided()
        state.candidates = candidates
        drafted, floor = tree.nodes - 1, math.log(tree.threshold)
        # The only reads of the draft: what the judge says, and how many nodes the row with most of them keeps.
        if state.judge is not None:
            drafted = min(drafted, state.judge.drafted(candidates.scores_BM))
        if tree.threshold < 1.0:
            drafted = min(drafted, int((candidates.scores_BM >= floor).sum(-1).max()))
        if drafted == 0:
            return root_only(root_B)
        grown = select(root_B, candidates, drafted, min(tree.levels, candidates.levels + 1, drafted + 1))
        if tree.threshold == 1.0:
            return grown
        return replace(grown, parents_BN=grown.parents_BN.masked_fill(grown.scores_BN < floor, -1))

    @torch.no_grad()
    def read(self, cache: BaseKVCache, features_BSF: torch.Tensor, tokens_BS: torch.Tensor) -> torch.Tensor:
        """Run entries through the head and return what it makes of them [B, S, D]; the cache is written, not committed.

        Args:
            features_BSF, tokens_BS: entries that follow one another, each paired with the token one position ahead.
        """
        with packed_forward(self.packed):
            fused_BSD = self.head.fuse(features_BSF.to(next(self.head.parameters())))
            return self._entries(cache, fused_BSD, tokens_BS)

    def _feed(self, state: BaseDraftState) -> torch.Tensor:
        """Run what waits through the head, commit it, return the last real hidden state [B, D]."""
        return state.commit(self.read(state.cache, *state.waiting()))

    def _entries(self, cache: BaseKVCache, hidden_BSD: torch.Tensor, tokens_BS: torch.Tensor) -> torch.Tensor:
        """Run S consecutive entries, each seeing those before it."""
        (batch, entries), device = tokens_BS.shape, hidden_BSD.device
        steps_S = torch.arange(entries, device=device)
        positions_BS = cache.positions_at(steps_S[None]).clamp(min=0)
        mask_BSC = None
        if entries > 1 or not cache.is_uniform or cache.has_pads:
            mask_BSC = cache.mask((steps_S <= steps_S[:, None]).expand(batch, -1, -1))
            if cache.has_pads:
                # An entry among the pads sees nothing, which softmax turns into NaN: it looks at everything instead.
                mask_BSC = mask_BSC | ~mask_BSC.any(-1, keepdim=True)
        return self._step(cache, hidden_BSD, tokens_BS, positions_BS, mask_BSC, self._window(cache))

    def _window(self, cache: BaseKVCache) -> DraftWindow | None:
        """Return what narrows the masks of one run over the cache, None where every layer sees everything."""
        windows = self.head.config.windows
        return DraftWindow(windows, cache) if windows and any(windows) else None

    def _level_positions(self, cache: BaseKVCache, levels: int, device: torch.device) -> torch.Tensor:
        """Return the position [L, B, 1] that the nodes of each level share."""
        return cache.positions_at(torch.arange(levels, device=device)[None]).clamp(min=0).T[..., None]

    def _step(
        self,
        cache: BaseKVCache,
        hidden_BSD: torch.Tensor,
        tokens_BS: torch.Tensor,
        positions_BS: torch.Tensor,
        mask_BSC: torch.Tensor | None,
        window: DraftWindow | None,
    ) -> torch.Tensor:
        """Run the head over new entries behind those that are there; without a mask each sees all slots."""
        masks = window.masks(positions_BS, mask_BSC) if window is not None else [mask_BSC] * self.head.layers_count

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            k, v = cache.update(k, v, layer)
            mask_BSC = masks[layer]
            mask = None if mask_BSC is None else mask_BSC[:, None]
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1])

        return self.head(self.embeddings(tokens_BS).to(hidden_BSD), hidden_BSD, positions_BS, attend)

    def embeddings(self, tokens_BS: torch.Tensor) -> torch.Tensor:
        """Return the embeddings [B, S, D] that the head reads: its own, or the target's."""
        return self._embed(tokens_BS)

    def logits(self, hidden_BSD: torch.Tensor) -> torch.Tensor:
        """Return logits [B, S, W] over the draft vocabulary, the head's own or the target's."""
        logits_BSW = self.head.logits(hidden_BSD)
        if logits_BSW is None:
            logits_BSW = self._output_logits(self.head.normed(hidden_BSD)).to(hidden_BSD.device)
        return logits_BSW

    def _children(self, hidden_BSD: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log-probabilities and target ids [B, S, count] of the likeliest next tokens."""
        scores_BSK, draft_ids_BSK = likeliest(self.logits(hidden_BSD), count)
        return scores_BSK, self.head.target_ids(draft_ids_BSK)

    def _grow(self, cache: BaseKVCache, hidden_BD: torch.Tensor, tree: TreeConfig, judge: Judge | None) -> Candidates:
        """EAGLE-2: expand the k likeliest nodes of every level (arXiv 2406.16858 section 4.1), while a judge agrees."""
        batch, device = len(hidden_BD), hidden_BD.device
        scores_B1K, tokens_B1K = self._children(hidden_BD[:, None], tree.top_k)
        width = scores_B1K.shape[-1]
        scores_BK, tokens_BK = scores_B1K[:, 0], tokens_B1K[:, 0]
        hidden_BKD = hidden_BD[:, None].expand(-1, width, -1)
        positions = self._level_positions(cache, tree.depth, device).expand(-1, -1, width).unbind()
        eye_BKK = torch.eye(width, dtype=torch.bool, device=device).expand(batch, -1, -1)
        place_BK = torch.arange(width, device=device).expand(batch, -1)
        # The root's children see what is committed.
        parent_BKC, window = cache.committed(width, device), self._window(cache)
        all_scores, all_tokens, expanded = [scores_BK], [tokens_BK], []
        for depth in range(tree.depth):
            if judge is not None and not judge.goes_on(scores_BK):
                break
            cache.offset = depth * width
            mask_BKC = cache.mask(eye_BKK, parent_BKC)
            hidden_BKD = self._step(cache, hidden_BKD, tokens_BK, positions[depth], mask_BKC, window)
            logp_BKK, children_BKK = self._children(hidden_BKD, width)
            all_scores.append((scores_BK[..., None] + logp_BKK).flatten(1))
            all_tokens.append(children_BKK.flatten(1))
            expanded.append(place_BK)
            if depth == tree.depth - 1:
                break
            scores_BK, chosen_BK = best(all_scores[-1], width)
            tokens_BK, parent_BK = all_tokens[-1].gather(1, chosen_BK), chosen_BK // width
            hidden_BKD, parent_BKC = at_places(hidden_BKD, parent_BK), at_places(mask_BKC, parent_BK)
            place_BK = chosen_BK + (width + depth * width**2)
        # Every expanded node is the parent of `width` candidates.
        parents = [torch.cat(expanded, 1).repeat_interleave(width, dim=1)] if expanded else []
        parents_BM = torch.cat([torch.full_like(all_tokens[0], -1), *parents], 1)
        return Candidates(torch.cat(all_tokens, 1), parents_BM, torch.cat(all_scores, 1), width)

    def _indices(self, level: StaticLevel, device: torch.device) -> tuple[torch.Tensor, ...]:
        """Return a level's `expand`, `parent` and `rank` as tensors, made once: a captured step may copy nothing."""
        key = (level, device)
        if key not in self._made:
            made = (torch.tensor(numbers, device=device) for numbers in (level.expand, level.parent, level.rank))
            self._made[key] = tuple(made)
        return self._made[key]

    def _grow_static(self, cache: BaseKVCache, hidden_BD: torch.Tensor, levels: Sequence[StaticLevel]) -> Candidates:
        """EAGLE-1: fill a fixed tree; every level expands the nodes that have children in it."""
        batch, device = len(hidden_BD), hidden_BD.device
        out_BSD, scores_BS = hidden_BD[:, None], hidden_BD.new_zeros(batch, 1, dtype=torch.float32)
        mask_BSC, window = cache.committed(1, device), self._window(cache)
        tokens_BS = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        all_scores: list[torch.Tensor] = []
        all_tokens: list[torch.Tensor] = []
        all_parents: list[torch.Tensor] = []
        positions_LB1 = self._level_positions(cache, len(levels) - 1, device)
        first, written = -1, 0
        for depth, level in enumerate(levels):
            expand, parent, rank = self._indices(level, device)
            scores_BS, tokens_BS = scores_BS[:, expand], tokens_BS[:, expand]
            if depth > 0:
                cache.offset = written
                eye_BSS = torch.eye(len(expand), dtype=torch.bool, device=device).expand(batch, -1, -1)
                mask_BSC = cache.mask(eye_BSS, mask_BSC[:, expand])
                written += len(expand)
                positions_BS = positions_LB1[depth - 1].expand_as(tokens_BS)
                out_BSD = self._step(cache, out_BSD[:, expand], tokens_BS, positions_BS, mask_BSC, window)
            logp_BSK, children_BSK = self._children(out_BSD, max(level.rank) + 1)
            all_parents.append((first + expand[parent]).expand(batch, -1))
            first = 0 if depth == 0 else first + all_tokens[-1].shape[1]
            scores_BS = scores_BS[:, parent] + logp_BSK[:, parent, rank]
            tokens_BS = children_BSK[:, parent, rank]
            out_BSD, mask_BSC = out_BSD[:, parent], mask_BSC[:, parent]
            all_scores.append(scores_BS)
            all_tokens.append(tokens_BS)
        return Candidates(torch.cat(all_tokens, 1), torch.cat(all_parents, 1), torch.cat(all_scores, 1))
