"""How far a model's own logits move with the shape of a forward."""

import torch
from transformers import DynamicCache

from eagle.model.support.properties import cache_keyword


@torch.no_grad()
def noise_floor(base, ids: torch.Tensor) -> float:
    """Return the largest logit difference between one causal forward and token-by-token forwards, no tree."""
    whole = base(ids).logits[0].float()
    return float((whole - one_by_one(base, ids)).abs().max())


@torch.no_grad()
def one_by_one(base, ids: torch.Tensor) -> torch.Tensor:
    cache, rows, name = DynamicCache(), [], cache_keyword(base)
    for position in range(ids.shape[1]):
        rows.append(base(ids[:, position : position + 1], **{name: cache}).logits[0, -1].float())
    return torch.stack(rows)
