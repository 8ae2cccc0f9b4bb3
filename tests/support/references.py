"""What transformers itself says: reference ids, uncached features."""

from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig


def generate_ids(
    base: Any, ids: torch.Tensor, mask: torch.Tensor, new: int, seed: int | None = None, **sampling: Any
) -> torch.Tensor:
    """Return `base.generate`'s ids, greedy without a seed, under a fresh configuration."""
    known = base.generation_config
    config = GenerationConfig(
        do_sample=seed is not None,
        max_new_tokens=new,
        eos_token_id=known.eos_token_id,
        pad_token_id=known.pad_token_id if known.pad_token_id is not None else 0,
        **({"top_k": 0, **sampling} if seed is not None else {}),
    )
    if seed is not None:
        torch.manual_seed(seed)
    return base.generate(ids, attention_mask=mask, generation_config=config)


@torch.no_grad()
def uncached_features(base: Any, ids: torch.Tensor, taps: Any) -> torch.Tensor:
    """Return the features [S, F] of one unpadded row from a forward without cache: `hidden_states`, concatenated."""
    states = base(input_ids=ids[None], output_hidden_states=True, use_cache=False).hidden_states
    if taps == "last":
        return states[-1][0]
    return torch.cat([states[layer] for layer in taps], -1)[0]


@contextmanager
def ends_at(base, eos):
    """Give the base other end-of-sequence ids for a while."""
    before = base.generation_config.eos_token_id
    base.generation_config.eos_token_id = eos
    try:
        yield
    finally:
        base.generation_config.eos_token_id = before
