"""What the head has yet to read: true features and their tokens, stored while nothing is drafted.

Shapes: B batch, A entries of one step, T entries of several, F feature width, O observations.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

# Entries that may wait for the next draft; beyond it the head reads them all the same.
RING = 256


@dataclass(frozen=True)
class Observed:
    """Entries for the head: features and the tokens one position ahead; `counts[b]` of row b are real."""

    features_BAF: torch.Tensor
    tokens_BA: torch.Tensor
    counts: Sequence[int]


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
