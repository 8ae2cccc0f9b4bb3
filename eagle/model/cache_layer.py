"""One layer's keys and values: the buffers, and the interface through which `transformers` writes them.

Where keys and values are equally wide they share one buffer, so that what moves them moves both at once.

Shapes: B batch, H kv heads, C cache slots, E head size, N new entries, A accepted path.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from transformers.cache_utils import CacheLayerMixin


class Owner(Protocol):
    """The cache a layer belongs to; it decides where entries go."""

    allocated: int
    capacity: int
    lengths: list[int]

    def visible(self, entries: int) -> int:
        """Return how many slots attention sees while `entries` new ones are being written."""

    def room(self, slots: int) -> int:
        """Return how many slots a layer that needs this many is to have."""

    def write(self, buffer_BHCE: torch.Tensor, new_BHNE: torch.Tensor, end: int) -> torch.Tensor:
        """Write new entries and return the view of `end` slots that attention reads."""


class CacheLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer's keys [B,H,C,Ek] and values [B,H,C,Ev], allocated by the first update on that layer's own device.

    Attributes:
        buffers: one tensor [2,B,H,C,E] that holds both, or keys and values apart; empty before the first update.
        keys, values: views of them.
        slots: C, slots per row of the buffers; 0 before the first update.
    """

    is_sliding = False
    keys: Any  # a tensor once there is one
    values: Any

    def __init__(self, owner: Owner) -> None:
        super().__init__()
        self.owner = owner
        self.buffers: list[torch.Tensor] = []
        self.slots = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Provide buffers for these widths, dtype and device: those of an earlier call where they fit, else zeros."""
        states, least = (key_states, value_states), self.owner.allocated
        shapes = [(*part.shape[:2], least, part.shape[3]) for part in states]
        if shapes[0] == shapes[1] and key_states.dtype == value_states.dtype:
            shapes = [(2, *shapes[0])]
        fits = len(shapes) == len(self.buffers) and all(
            _fits(old, like, shape) for old, like, shape in zip(self.buffers, states, shapes, strict=False)
        )
        if not fits:
            self._hold([like.new_zeros(shape) for like, shape in zip(states, shapes, strict=False)])
        else:
            # A single row sees only what it has written; of several the longest shows the others slots they have not.
            self._hold([old.zero_() if len(key_states) > 1 else old for old in self.buffers])
        self.is_initialized = True

    def _hold(self, buffers: Sequence[torch.Tensor]) -> None:
        self.buffers = list(buffers)
        self.keys, self.values = buffers[0] if len(buffers) == 1 else buffers
        self.slots = min(buffer.shape[-2] for buffer in buffers)

    def adopt(self, other: "CacheLayer") -> None:
        """Take over the buffers of a layer that nobody needs any more, if they fit the first update."""
        assert not self.is_initialized
        self.buffers = other.buffers
        other.buffers, other.keys, other.values, other.is_initialized = [], None, None, False

    def grow(self, slots: int) -> None:
        """Move to larger buffers, one after the other, so that no more than one is there twice."""
        buffers = self.buffers
        self.keys = self.values = None
        for number, buffer in enumerate(buffers):
            buffers[number] = _grown(buffer, slots)
            del buffer
        self._hold(buffers)

    def move(self, source_BA: torch.Tensor, target_BA: torch.Tensor, start: int | None) -> None:
        """Copy entries from slots `source_BA` to `target_BA`, which may overlap.

        Args:
            start: first target slot of an only row, whose targets follow one another; None for any rows.
        """
        width = target_BA.shape[1]
        for buffer in self.buffers:
            if start is not None:
                buffer.narrow(-2, start, width).copy_(buffer.index_select(-2, source_BA[0]))
                continue
            shape = (*buffer.shape[:-2], width, buffer.shape[-1])
            moved = buffer.gather(-2, source_BA[:, None, :, None].expand(shape))
            buffer.scatter_(-2, target_BA[:, None, :, None].expand(shape), moved)

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Drop all rows of the batch but these."""
        index = torch.tensor(rows, device=self.keys.device)
        self._hold([buffer.index_select(-4, index) for buffer in self.buffers])

    def copy_from(self, other: "CacheLayer", used: int) -> None:
        """Hold the first `used` slots of another layer's rows, and nothing else."""
        if not self.is_initialized:
            self.lazy_initialization(other.keys, other.values)
        if used > self.slots:
            self.grow(self.owner.room(used))
        for mine, theirs in zip(self.buffers, other.buffers, strict=True):
            mine[..., :used, :] = theirs[..., :used, :]
            mine[..., used:, :] = 0  # an earlier call may have left NaN there

    def take_in(self, rows: Sequence[int], other: "CacheLayer", source_RC: torch.Tensor, batch: int) -> None:
        """Hold in the first slots of some of `batch` rows what another layer has in slots `source_RC` of its rows."""
        width = source_RC.shape[1]
        if not self.is_initialized:
            self.lazy_initialization(*(part[:1].expand(batch, -1, -1, -1) for part in (other.keys, other.values)))
        if width > self.slots:
            self.grow(self.owner.room(width))
        index, source = torch.tensor(rows).to(self.keys.device), source_RC.to(self.keys.device)[:, None, :, None]
        for mine, theirs in zip(self.buffers, other.buffers, strict=True):
            moved = theirs.gather(-2, source.expand(*theirs.shape[:-2], width, theirs.shape[-1]))
            mine.narrow(-2, 0, width).index_copy_(mine.dim() - 4, index, moved)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write N new entries behind the committed ones; return all keys and values that attention may see."""
        end = self.owner.visible(key_states.shape[2])
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if end > self.slots:
            self.grow(self.owner.room(end))
        return self.owner.write(self.keys, key_states, end), self.owner.write(self.values, value_states, end)

    def get_mask_sizes(self, query_length: int | torch.Tensor) -> tuple[int, int]:
        """Return how many slots attention sees and the first one's number."""
        # Until 5.3 transformers asks with the positions [N] of the new entries. May go when that is too old.
        entries = query_length if isinstance(query_length, int) else query_length.shape[0]
        return self.owner.visible(entries), 0

    def get_seq_length(self) -> int:
        """Return the slots used by the longest row."""
        return max(self.owner.lengths)

    def get_max_length(self) -> int:
        """Return the slots there may be."""
        return self.owner.capacity

    get_max_cache_shape = get_max_length  # its name until 5.12; may go when that is too old


def _fits(old: torch.Tensor, like: torch.Tensor, shape: tuple[int, ...]) -> bool:
    """Tell whether a buffer is like such states and has at least this shape's slots."""
    is_like = (old.dtype, old.device) == (like.dtype, like.device)
    return is_like and (*old.shape[:-2], old.shape[-1]) == (*shape[:-2], shape[-1]) and old.shape[-2] >= shape[-2]


def _grown(old: torch.Tensor, slots: int) -> torch.Tensor:
    """Return a buffer of more slots that holds the same."""
    new = old.new_zeros(*old.shape[:-2], slots, old.shape[-1])
    new[..., : old.shape[-2], :] = old
    return new
