"""The pre-allocated key/value cache.

Owns the buffers, where a forward writes, and what a commit moves. Writing is not committing: a forward writes behind
`lengths` and only `commit` lets them grow, so a step that fails or is rejected leaves nothing to undo. Buffers start
as zeros because a NaN in a masked slot still poisons attention (0 * NaN), and grow with the tokens a call makes.

`BaseKVCache` writes, moves and masks. `KVCache` shows attention the slots in use and counts on the host;
`StaticKVCache` in `graphs` shows whole buffers and counts on the device, which is what a captured graph needs.

Shapes: B batch, H kv heads, C cache slots, E head size, N new entries, A accepted path.
"""

import logging
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache, DynamicCache

from eagle.model.cache_layer import CacheLayer

logger = logging.getLogger(__name__)

# New tokens that there is room for at first; each growth brings twice as many as the one before.
BLOCK = 256


class BaseKVCache(Cache):  # type: ignore[misc]
    """Keys and values of all layers of one model for one batch; how much of them is seen and counted is the kind's.

    Args:
        layers: number of layers.
        batch: rows.
        capacity: most slots per row, undecided tree nodes included; all of them are allocated at once.
        pads: left pads per row; they occupy slots but no position.

    Attributes:
        allocated: slots per row that layers allocate when they next do.
        lengths: slots used per row, pads included; host integers.
    """

    def __init__(self, layers: int, batch: int, capacity: int, pads: Sequence[int] | None = None) -> None:
        super().__init__(layers=[CacheLayer(self) for _ in range(layers)])
        self.capacity = self.allocated = capacity
        self.pads = list(pads) if pads is not None else [0] * batch
        self.lengths = [0] * batch
        self.offset = 0  # undecided entries already written behind the committed ones, by earlier draft levels
        self._slots: dict[tuple[int, int, torch.device], torch.Tensor] = {}

    @property
    @abstractmethod
    def is_uniform(self) -> bool:
        """Whether all rows are known to use the same number of slots."""

    @property
    @abstractmethod
    def has_pads(self) -> bool:
        """Whether some row may begin with pads."""

    @abstractmethod
    def visible(self, entries: int) -> int:
        """Return how many slots attention sees while `entries` new ones are being written."""

    @abstractmethod
    def reach(self, levels: int) -> int:
        """Return how far back the deepest of `levels` new entries could look."""

    @abstractmethod
    def lengths_on(self, device: torch.device) -> torch.Tensor:
        """Return `lengths` [B] as a tensor."""

    @abstractmethod
    def pads_on(self, device: torch.device) -> torch.Tensor:
        """Return `pads` [B] as a tensor."""

    @abstractmethod
    def commit(self, path_BA: torch.Tensor, counts: Any, in_place: bool = False) -> None:
        """Move the entries of the accepted path to the front of the undecided ones and keep some of them.

        Args:
            path_BA: node numbers, padded with any valid node.
            counts: accepted nodes per row, root included, as this kind of cache counts.
            in_place: the paths are known to be 0, 1, 2, …, so nothing has to move.
        """

    def room(self, slots: int) -> int:
        """Return how many slots a layer that needs this many is to have."""
        return self.allocated

    def advance(self, counts: Sequence[int]) -> None:
        """Commit the first `counts[b]` entries of row b where they lie."""
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        self.drop_undecided()
        assert max(self.lengths) <= self.capacity

    def positions_at(self, steps_BN: torch.Tensor) -> torch.Tensor:
        """Return the positions [B, N] of entries so many steps beyond each row's first undecided one; B may be 1."""
        if self.is_uniform and not self.has_pads:
            return (steps_BN + self.lengths[0]).expand(len(self.lengths), -1)
        return steps_BN + (self.lengths_on(steps_BN.device) - self.pads_on(steps_BN.device))[:, None]

    def slots(self, entries: int, device: torch.device) -> torch.Tensor:
        """Return the slots [B, N] that `entries` new ones go to, made once per forward and device."""
        key = (entries, self.offset, device)
        if key not in self._slots:
            starts_B1 = self.lengths_on(device)[:, None] + self.offset
            self._slots[key] = starts_B1 + torch.arange(entries, device=device)
        return self._slots[key]

    def write(self, buffer_BHCE: torch.Tensor, new_BHNE: torch.Tensor, end: int) -> torch.Tensor:
        """Write new entries and return the view of `end` slots that attention reads."""
        entries = new_BHNE.shape[2]
        if not self.is_uniform:
            slots_BN = self.slots(entries, new_BHNE.device)
            buffer_BHCE.scatter_(2, slots_BN[:, None, :, None].expand_as(new_BHNE), new_BHNE)
        else:
            start = self.lengths[0] + self.offset
            buffer_BHCE[:, :, start : start + entries] = new_BHNE
        return buffer_BHCE[:, :, :end]

    def drop_undecided(self) -> None:
        """Let the next entry follow the committed ones again."""
        self.offset = 0
        self._slots.clear()

    def _move_all(self, path_BA: torch.Tensor) -> None:
        start = self.lengths[0] if self.is_uniform and len(self.lengths) == 1 else None
        where: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}
        for layer in self.layers:
            if not layer.is_initialized:
                continue
            device = layer.keys.device
            if device not in where:
                starts_B1 = self.lengths_on(device)[:, None]
                steps_A = torch.arange(path_BA.shape[1], device=device)
                where[device] = starts_B1 + path_BA.to(device), starts_B1 + steps_A
            layer.move(*where[device], start)

    def copy_from(self, other: "BaseKVCache") -> None:
        """Hold what another cache of the same rows has committed, and nothing else."""
        used = max(other.lengths)
        assert used <= self.capacity
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            if theirs.is_initialized:
                mine.copy_from(theirs, used)
        self.lengths, self.pads = list(other.lengths), list(other.pads)
        self.drop_undecided()

    def committed(self, entries: int, device: torch.device) -> torch.Tensor:
        """Return what `entries` that see all committed slots but pads see, [B, N, slots before the new ones]."""
        if self.is_uniform and not self.has_pads:
            return torch.ones(len(self.lengths), entries, self.visible(0), dtype=torch.bool, device=device)
        slots_C = torch.arange(self.visible(0), device=device)
        seen_BC = (slots_C < self.lengths_on(device)[:, None]) & (slots_C >= self.pads_on(device)[:, None])
        return seen_BC[:, None].expand(-1, entries, -1)

    def mask(self, own_BNN: torch.Tensor, earlier_BNC: torch.Tensor | None = None) -> torch.Tensor:
        """Return what N new entries see, [B, N, visible slots].

        Args:
            own_BNN: which of each other.
            earlier_BNC: which slots before them; by default all committed ones but pads.
        """
        entries, device = own_BNN.shape[1], own_BNN.device
        earlier_BNC = self.committed(entries, device) if earlier_BNC is None else earlier_BNC
        if self.is_uniform and not self.has_pads:
            return torch.cat([earlier_BNC, own_BNN], -1)
        mask_BNC = torch.nn.functional.pad(earlier_BNC, (0, self.visible(entries) - earlier_BNC.shape[2]))
        mask_BNC = mask_BNC.scatter(2, self.slots(entries, device)[:, None].expand_as(own_BNN), own_BNN)
        # New entries may be pads too, which nothing sees.
        is_token_BC = torch.arange(mask_BNC.shape[2], device=device) >= self.pads_on(device)[:, None]
        return mask_BNC & is_token_BC[:, None]

    def positions(self, own_BN: torch.Tensor) -> torch.Tensor:
        """Return the position of what every visible slot holds, [B, C]; `own_BN` are those of the N being written."""
        entries, device = own_BN.shape[1], own_BN.device
        slots_C = torch.arange(self.visible(entries), device=device)
        positions_BC = slots_C - self.pads_on(device)[:, None]
        return positions_BC.scatter(1, self.slots(entries, device), own_BN)


class KVCache(BaseKVCache):
    """The slots in use, counted by the host, in buffers that grow; arguments as in `BaseKVCache`.

    All slots are allocated at once unless `begin` says otherwise.
    """

    def __init__(self, layers: int, batch: int, capacity: int, pads: Sequence[int] | None = None) -> None:
        super().__init__(layers, batch, capacity, pads)
        self._block = BLOCK

    def begin(self, tokens: int, limit: int) -> None:
        """Allocate at first for the `tokens` there are and a block of new ones, of the `limit` there may be."""
        self.allocated = max(tokens, self.capacity - max(0, limit - tokens - BLOCK))
        self._block = BLOCK

    def room(self, slots: int) -> int:
        """Return how many slots a layer that needs this many is to have: all the next block brings."""
        if slots > self.allocated:
            self._block *= 2
            self.allocated = max(slots, min(self.capacity, self.allocated + self._block))
        return self.allocated

    def adopt(self, other: "KVCache") -> None:
        """Take over the buffers of a cache that nobody needs any more; each layer uses those that fit it."""
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            mine.adopt(theirs)

    @property
    def is_uniform(self) -> bool:
        """Whether all rows use the same number of slots."""
        return min(self.lengths) == max(self.lengths)

    @property
    def has_pads(self) -> bool:
        """Whether some row may begin with pads."""
        return any(self.pads)

    def visible(self, entries: int) -> int:
        """Return how many slots attention sees while `entries` new ones are being written."""
        return max(self.lengths) + self.offset + entries

    def reach(self, levels: int) -> int:
        """Return how far back the deepest of `levels` new entries could look."""
        return max(self.lengths) + levels

    def lengths_on(self, device: torch.device) -> torch.Tensor:
        """Return `lengths` [B] as a tensor."""
        return torch.tensor(self.lengths, device=device)

    def pads_on(self, device: torch.device) -> torch.Tensor:
        """Return `pads` [B] as a tensor."""
        return torch.tensor(self.pads, device=device)

    def commit(self, path_BA: torch.Tensor, counts: Sequence[int], in_place: bool = False) -> None:
        """Move the entries of the accepted path to the front of the undecided ones and keep `counts[b]` of them."""
        if not in_place:
            self._move_all(path_BA[:, : max(counts)])
        self.advance(counts)

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Drop all rows of the batch but these."""
        self.lengths = [self.lengths[row] for row in rows]
        self.pads = [self.pads[row] for row in rows]
        self._slots.clear()
        for layer in self.layers:
            if layer.is_initialized:
                layer.keep_rows(rows)

    def take_in(self, rows: Sequence[int], other: "KVCache") -> None:
        """Hold in some rows what another cache has committed in its own, one for each; its pads stay behind."""
        width = max(other.lengths)
        starts_R1 = torch.tensor(other.pads)[:, None]
        source_RC = (starts_R1 + torch.arange(width - min(other.pads))).clamp(max=width - 1)
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            if theirs.is_initialized:
                mine.take_in(rows, theirs, source_RC, len(self.lengths))
        for row, length, pads in zip(rows, other.lengths, other.pads, strict=True):
            self.lengths[row], self.pads[row] = length - pads, 0
        self.drop_undecided()

    def exported(self, config: Any) -> Cache:
        """Return a copy of what is committed as transformers' own cache, for a forward or `generate` of its own.

        Args:
            config: the text configuration, which says what kind of cache each layer has.
        """
        cache = DynamicCache(config=config)
        used = max(self.lengths)
        for number, layer in enumerate(self.layers):
            if layer.is_initialized:
                cache.update(layer.keys[:, :, :used], layer.values[:, :, :used], number)  # which copies
        return cache

    def rewind(self, length: int, capacity: int) -> None:
        """Keep the first entries of every row and allow for `capacity`; buffers that are large enough stay."""
        assert length <= min(self.lengths)
        self.lengths = [length] * len(self.lengths)
        self.drop_undecided()
        self.capacity = max(capacity, self.capacity)


def initialize_past_key_values(model: Any, max_length: int = 2048) -> tuple[None, None, None]:
    """Return the reference's three cache objects, as None: calls make their own caches, sized for what they need."""
    logger.info("initialize_past_key_values has no effect: every call makes its own caches")
    return None, None, None
