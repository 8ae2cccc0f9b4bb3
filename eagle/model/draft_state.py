"""Drafting state of one stream: the head's KV cache, and the target features that the head has yet to read.

True features and their tokens wait here for the next draft, over many steps while nothing is drafted.

Shapes: B batch, A entries of one step, T entries of several, F feature width, O observations.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from eagle.model.configs import TreeConfig
from eagle.model.kv_cache import KVCache
from eagle.model.tree import Candidates

# Entries that may wait for the next draft; beyond it the head reads them all the same.
RING = 256
# Entries of a prompt that the head reads at once.
READ = 1024


@dataclass(frozen=True)
class Observed:
    """Entries for the head: features and the tokens one position ahead; `counts[b]` of row b are real."""

    features_BAF: torch.Tensor
    tokens_BA: torch.Tensor
    counts: Sequence[int]


@dataclass
class DraftState:
    """What one stream's drafting remembers.

    Attributes:
        tree: how this stream's trees grow, whatever the drafter's attributes become while it runs.
        cache: the head's keys and values.
        pending: entries the next draft feeds to the head first.
        candidates: all that the last draft looked at.
    """

    tree: TreeConfig
    cache: KVCache
    pending: list[Observed] = field(default_factory=list)
    candidates: Candidates | None = None

    @property
    def observed(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The features and tokens that the head is to read next, several observations as one."""
        self.pending[:] = [merged(self.pending)]
        width = max(self.pending[0].counts)
        return self.pending[0].features_BAF[:, :width], self.pending[0].tokens_BA[:, :width]

    @property
    def counts(self) -> list[int]:
        """How many of the observed entries are real, per row."""
        return list(self.pending[0].counts)

    def commit(self, hidden_BTD: torch.Tensor) -> torch.Tensor:
        """Keep what the head has read of the observed entries; return what it made [B, D] of every row's last one."""
        counts = self.pending.pop().counts
        self.cache.advance(counts)
        if min(counts) == max(counts):
            return hidden_BTD[:, counts[0] - 1]
        return at_rows(hidden_BTD, torch.tensor(counts, device=hidden_BTD.device) - 1)

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Drop all rows of the batch but these."""
        self.cache.keep_rows(rows)
        self.pending = [
            Observed(seen.features_BAF[rows], seen.tokens_BA[rows], [seen.counts[row] for row in rows])
            for seen in self.pending
        ]


def at_rows(hidden_BTD: torch.Tensor, numbers_B: torch.Tensor) -> torch.Tensor:
    """Return entry `numbers_B[b]` of every row b, [B, D]."""
    return hidden_BTD[torch.arange(len(numbers_B), device=hidden_BTD.device), numbers_B]


def merged(pending: Sequence[Observed]) -> Observed:
    """Return several observations as one, every row's real entries first."""
    if len(pending) == 1:
        return pending[0]
    features_BTF = torch.cat([seen.features_BAF for seen in pending], 1)
    tokens_BT = torch.cat([seen.tokens_BA for seen in pending], 1)
    counts_BO = list(zip(*(seen.counts for seen in pending), strict=True))
    counts = [sum(row) for row in counts_BO]
    if min(counts) < tokens_BT.shape[1]:
        widths = [seen.tokens_BA.shape[1] for seen in pending]
        real = [[step < n for n, width in zip(row, widths, strict=True) for step in range(width)] for row in counts_BO]
        order_BT = torch.tensor(real, device=tokens_BT.device).int().argsort(dim=1, descending=True, stable=True)
        tokens_BT = tokens_BT.gather(1, order_BT)
        features_BTF = features_BTF.gather(1, order_BT[..., None].expand_as(features_BTF))
    return Observed(features_BTF, tokens_BT, counts)
