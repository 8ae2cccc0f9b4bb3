"""Tiny models with every kind of rotary embedding that changes at a position."""

from typing import Any

import torch
from architectures import SMALL
from transformers import AutoConfig, AutoModelForCausalLM

SWITCH = 32


FACTORS = {"short_factor": [1.0] * 4, "long_factor": [2.0, 4.0, 6.0, 8.0]}


BEFORE = {"original_max_position_embeddings": SWITCH}


KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, **BEFORE},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **BEFORE},
    "longrope": {**FACTORS, **BEFORE},
    "proportional": {"partial_rotary_factor": 0.5},
}


def rotary_model(kind: str) -> Any:
    """Return a fresh tiny llama: a dynamic embedding keeps the longest sequence it has seen."""
    rope = {"rope_type": kind, "rope_theta": 10000.0, **KINDS[kind]}
    positions = SWITCH if kind == "dynamic" else 256
    fields = {**SMALL, "num_hidden_layers": 2, "max_position_embeddings": positions, "rope_parameters": rope}
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **fields), dtype=torch.float32).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim >= 2:
                weight.normal_(0.0, 1.5 / weight.shape[-1] ** 0.5)
    return model
