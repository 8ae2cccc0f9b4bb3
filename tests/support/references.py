"""What transformers itself says: reference ids, uncached features."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig

from eagle.model.support.properties import cache_of


def generate_ids(
    base: Any, ids: torch.Tensor, mask: torch.Tensor, new: int, seed: int | None = None, **sampling: Any
) -> torch.Tensor:
    """Return `base.generate`'s ids, greedy without a seed, under a fresh configuration and with the whole prompt."""
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
    with whole_sequences(base):
        return base.generate(ids, attention_mask=mask, generation_config=config)


@contextmanager
def whole_sequences(base: Any) -> Iterator[None]:
    """Let a model's `generate` run the whole sequence wherever it drops the cache.

    Before transformers 5.20 it dropped the cache of a longrope model at the switch and went on with the newest token
    alone. May go when 5.20 is the oldest version.
    """
    prepare = base.prepare_inputs_for_generation

    @functools.wraps(prepare)
    def prepared(input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        inputs = prepare(input_ids, *args, **kwargs)
        if cache_of(inputs) is None and inputs["input_ids"].shape[1] < input_ids.shape[1]:
            whole = torch.arange(input_ids.shape[1], device=input_ids.device)
            step = {"next_sequence_length": None, "cache_position": whole}  # newer and older releases
            kwargs |= {name: step[name] for name in step if name in kwargs}
            inputs = prepare(input_ids, *args, **kwargs)
        return inputs

    base.prepare_inputs_for_generation = prepared
    try:
        yield
    finally:
        del base.prepare_inputs_for_generation


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
