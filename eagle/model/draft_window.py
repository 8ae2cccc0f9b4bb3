"""Layers of a head that see only so far back: their masks, for one run of the head over its cache.

Windows are measured in positions, never slots: drafted nodes of one level share a position.

Shapes: B batch, S new entries, C cache slots.
"""

from collections.abc import Sequence

import torch

from eagle.model.kv_cache import BaseKVCache


class DraftWindow:
    """Narrows masks layer by layer; remembers the positions of nodes that earlier levels of a draft have written.

    Args:
        windows: per layer how many positions an entry sees, its own included; None for all.
        cache: the head's.
    """

    def __init__(self, windows: Sequence[int | None], cache: BaseKVCache) -> None:
        self.windows, self.cache = windows, cache
        self._earlier: list[tuple[torch.Tensor, torch.Tensor]] = []

    def masks(self, positions_BS: torch.Tensor, mask_BSC: torch.Tensor | None) -> list[torch.Tensor | None]:
        """Return every layer's mask [B, S, C] of entries that are about to be written.

        Args:
            positions_BS: of the new entries.
            mask_BSC: who sees whom where nothing is out of sight; None means each sees all slots.
        """
        entries, device = positions_BS.shape[1], positions_BS.device
        slots_BS = self.cache.slots(entries, device)
        positions_BS = positions_BS.expand(len(slots_BS), -1)
        keys_BC = self.cache.positions(positions_BS)
        for earlier_BN, places_BN in self._earlier:
            keys_BC = keys_BC.scatter(1, earlier_BN, places_BN)
        self._earlier.append((slots_BS, positions_BS))
        back_BSC = positions_BS[..., None] - keys_BC[:, None]
        masks: list[torch.Tensor | None] = []
        for window in self.windows:
            if window is None:
                masks.append(mask_BSC)
            else:
                masks.append(back_BSC < window if mask_BSC is None else mask_BSC & (back_BSC < window))
        return masks
