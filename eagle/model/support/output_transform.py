"""A target's output matrix, and its output transform: the scale and soft-cap between the matrix and the logits."""

from typing import Any

import torch
from torch import nn

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


def output_matrix(model: Any) -> torch.Tensor | None:
    """Return a model's output matrix [V, D]; None where its numbers do not lie in memory as they are multiplied."""
    module = model.get_output_embeddings()
    weight: Any = getattr(module, "weight", None)
    # Quantised weights are of types of their own; offloaded ones are on meta.
    if type(weight) not in (torch.Tensor, nn.Parameter) or not weight.is_floating_point() or weight.is_meta:
        return None
    return weight.detach() if type(module).forward is nn.Linear.forward else None
