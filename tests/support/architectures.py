"""Tiny random base models of many architectures: 7 layers, so that EAGLE-3's default taps exist."""

from functools import cache
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 89
LAYERS = 7
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
SLIDING = (["sliding_attention", "full_attention"] * LAYERS)[:LAYERS]
LONGROPE_SWITCH = 32
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [2.0, 4.0, 6.0, 8.0],
    "original_max_position_embeddings": LONGROPE_SWITCH,
}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 7},
    "mixtral": {**EXPERTS, "sliding_window": 7},
    "qwen2": {"use_sliding_window": True, "sliding_window": 7, "layer_types": SLIDING},
    "qwen3": {"head_dim": 8},
    "qwen3_moe": {**EXPERTS, "head_dim": 8, "mlp_only_layers": []},
    "gemma2": {"head_dim": 8, "sliding_window": 7, "query_pre_attn_scalar": 8, "final_logit_softcapping": 5.0},
    "gemma3_text": {"head_dim": 8, "sliding_window": 7, "query_pre_attn_scalar": 8, "layer_types": SLIDING},
    "phi3": {"rope_parameters": LONGROPE, "original_max_position_embeddings": LONGROPE_SWITCH, "sliding_window": None},
    "olmo2": {},
    "gpt_oss": {**EXPERTS, "head_dim": 8, "sliding_window": 7, "layer_types": SLIDING},
    "gpt_neox": {},
    "gpt2": {"n_positions": 64, "n_embd": 32, "n_layer": LAYERS, "n_head": 4},
}


@cache
def base_model(name: str) -> Any:
    """Return the architecture's model with random weights, fp32, the same in every call: copy it to edit it."""
    own = {"vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"} if name == "gpt2" else set(SMALL)
    config = AutoConfig.for_model(name, **{**{k: v for k, v in SMALL.items() if k in own}, **ARCHITECTURES[name]})
    torch.manual_seed(sum(map(ord, name)))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    # Matrices as initialised give nearly uniform logits; wider ones give sequences that vary and margins that hold.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(4)
    MADE[name] = model, _edits(model)
    return model


MADE: dict[str, tuple[Any, Any]] = {}


def _edits(model: Any) -> Any:
    """Return what changes when a parameter is written to, or gets other memory, as by `to`."""
    parameters = list(model.parameters())
    return sum(parameter._version for parameter in parameters), [parameter.data_ptr() for parameter in parameters]


def edited_models() -> list[str]:
    """Return which shared models were edited in place since the last call."""
    names = [name for name, (model, edits) in MADE.items() if _edits(model) != edits]
    for name in names:
        MADE[name] = MADE[name][0], _edits(MADE[name][0])
    return names


def prompts(model: Any, batch: int, length: int = 9, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids [batch, length] and their mask; the rows after the first are padded on the left by 2, 4, …."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(1, batch):
        ids[row, : 2 * row] = 0
        mask[row, : 2 * row] = 0
    return ids, mask
