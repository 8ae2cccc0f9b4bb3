"""A target's output transform: the scale and soft-cap between its output matrix and its logits."""

from typing import Any

import torch

FIELDS = ("logit_scale", "logits_scaling", "final_logit_softcapping")


def transform_of(config: Any) -> dict[str, float | None]:
    """Return the fields of a text configuration that `transformed` reads; None where the model has none."""
    return {name: getattr(config, name, None) for name in FIELDS}


def transformed(logits: torch.Tensor, transform: dict[str, float | None]) -> torch.Tensor:
    """Apply a target's logit scale or soft-cap."""
    # Each only where the model has it: a product with 1 costs as much as any.
    scale, scaling, cap = (transform[name] for name in FIELDS)
    logits = logits * scale if scale else logits
    logits = logits / scaling if scaling else logits
    return cap * torch.tanh(logits / cap) if cap else logits
