"""KV cache of a fixed size for CUDA-graph replay: whole buffers, and the counts on the device.

Attention sees whole buffers, and what a step needs to know (slots used, pads) is read from device tensors that stay
where they are and that the step itself moves on. The host's `lengths` are a mirror, settled once the step's outcome has
been read; nothing inside a step looks at them.

Shapes: B batch, A accepted path.
"""

from collections.abc import Sequence

import torch

from eagle.model.kv_cache import BaseKVCache


class StaticKVCache(BaseKVCache):
    """Keys and values in buffers of a fixed size for rows that never leave; arguments as in `BaseKVCache`.

    Args:
        device: where the counts are.

    Attributes:
        lengths_B, pads_B: slots used and left pads per row, int64, at addresses that stay.
    """

    def __init__(
        self, layers: int, batch: int, capacity: int, pads: Sequence[int] | None, device: torch.device
    ) -> None:
        super().__init__(layers, batch, capacity, pads)
        self.lengths_B = torch.zeros(batch, dtype=torch.int64, device=device)
        self.pads_B = torch.zeros_like(self.lengths_B)
        self._publish()

    @property
    def is_uniform(self) -> bool:
        """Say no: which rows agree is not known while a step is captured."""
        return False

    @property
    def has_pads(self) -> bool:
        """Say yes: the same graph serves rows with and without."""
        return True

    def visible(self, entries: int) -> int:
        """Return all slots."""
        return self.capacity

    def reach(self, levels: int) -> int:
        """Return the farthest any entry could ever look back."""
        return self.capacity

    def lengths_on(self, device: torch.device) -> torch.Tensor:
        """Return the slots used [B]."""
        return self.lengths_B.to(device)

    def pads_on(self, device: torch.device) -> torch.Tensor:
        """Return the left pads [B]."""
        return self.pads_B.to(device)

    def advance(self, counts: Sequence[int]) -> None:
        """Commit on host and device; between steps only."""
        super().advance(counts)
        self._publish()

    def advance_on_device(self, counts_B: torch.Tensor) -> None:
        """Commit the first `counts_B` entries of every row where they lie; the host learns of it by `sync_host`."""
        self.lengths_B.add_(counts_B)
        self.drop_undecided()

    def commit(self, path_BA: torch.Tensor, counts: torch.Tensor, in_place: bool = False) -> None:
        """Move the accepted path to the front of the undecided entries and keep `counts[b]` of it.

        Args:
            counts: a tensor [B]; 0 leaves a row where it is.
        """
        if not in_place:
            self._move_all(path_BA)
        self.advance_on_device(counts)

    def sync_host(self, counts: Sequence[int]) -> None:
        """Tell the host what a step has kept of every row."""
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]

    def copy_from(self, other: BaseKVCache) -> None:
        """Hold what another cache of the same rows has committed, and nothing else; between steps only."""
        super().copy_from(other)
        self._publish()

    def _publish(self) -> None:
        self.lengths_B.copy_(torch.tensor(self.lengths))
        self.pads_B.copy_(torch.tensor(self.pads))
