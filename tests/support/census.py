"""Every causal LM of the installed transformers, tiny and random, found in its own auto mapping."""

import copy
import dataclasses
import re
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

NAMES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
VOCABULARY = 89
LAYERS = 4
WINDOW = 7
LIMIT = 10_000_000  # parameters; a configuration that stays larger was not made small

# What a field of a configuration is set to where a type has it. Windows and blocks are smaller than the sequences.
FIELDS: dict[str, Any] = {
    r"vocab_size|vocab_size_per_layer_input": VOCABULARY,
    r"hidden_size|n_embd|d_model|emb_dim|embed_dim|(input_)?embedding_size|dim_model|word_embed_proj_dim": 32,
    r"hidden_size_per_layer_input|dim_model_base|laurel_rank": 8,
    r".*intermediate_size|.*ffn_hidden_size|.*ffn_dim|n_inner|dff|dim_ff": 48,
    r"num_hidden_layers|n_layers?|num_layers|decoder_layers|encoder_layers|vision_layers": LAYERS,
    r".*num_attention_heads|n_heads?|.*(decoder|encoder)_attention_heads|attention_heads|num_heads": 4,
    r".*num_key_value_heads|num_kv_heads": 2,
    r"(swa_|global_|qk_nope_|qk_rope_|v_|index_|linear_)?head_dim|.*(key|value)_head_dim|dim_head|kv_channels": 8,
    r"rotary_dim|mamba_(n|num)_heads|n_mamba_heads": 4,
    r"encoder_hash_byte_group_vocab": 30,
    r"num_kv_shared_layers": 2,
    r"indexer_(n_heads|compress_ratio)": 2,
    r"indexer_kv_heads": 1,
    r"indexer_(head_dim|budget)": 8,
    r"max_position_embeddings|n_positions|max_seq_len|n_ctx|max_sequence_length": 256,
    r".*num(_local|_routed)?_experts|n_routed_experts": 4,
    r"num_experts_per_tok.*|moe_topk|moe_k|top_k_experts": 2,
    r"n_shared_experts|.*num_shared_experts": 1,
    r"n_group|topk_group": 1,
    r"(q|kv|o)_lora_rank|index_n_heads|linear_num_heads": 4,
    r"sliding_window(_size)?|attention_chunk_size|(attention_)?window_size|local_attention(_window_len)?": WINDOW,
    r"keep_window_size|index_block_size": 4,
    r"floor_scale": 300,
    r"index_topk_blocks": 2,
    r"use_sliding_window|causal": True,
    r"max_window_layers": 1,
    r"bos_token_id": 1,
    r"eos_token_id": 2,
    r"pad_token_id": 0,
}
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
ALTERNATING = (["sliding_attention", "full_attention"] * LAYERS)[:LAYERS]
ATTENTION_ONLY = ({"full_attention"}, {"sliding_attention"}, {"full_attention", "sliding_attention"})
# Encoders that attend in one direction only when told so; published causal ones are.
ENCODERS = (
    *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert"),
    *("reformer", "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer"),
    *("xlm-roberta", "xlm-roberta-xl", "xmod"),
)
# Types that need more than small numbers to be built, or to show what sets them apart.
OVERRIDES: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "mamba2": {"head_dim": 16, "num_heads": 4, "n_groups": 1, "expand": 2},
    "zaya": {"num_experts_per_tok": 1},
    "roc_bert": {f"{part}_{size}": 8 for part in ("pronunciation", "shape") for size in ("vocab_size", "embed_dim")},
    "longcat_flash": {"num_layers": 2, "num_hidden_layers": LAYERS, "zero_expert_num": 2},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "llama4_text": {"max_position_embeddings": 512},
    "lfm2": {"full_attn_idxs": [1, 3]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "reformer": {"axial_pos_embds": False},
    "zamba": {"layers_block_type": ["mamba", "hybrid"] * 2},
    "zamba2": {"layer_types": ["linear_attention", "hybrid"] * 2},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48},
    },
    "cohere_compass_text": {"rope_parameters": dict.fromkeys(sorted(set(ALTERNATING)), PLAIN_ROPE)},
    "dots3_note_text": {"per_layer_config": None, "head_dim": 16},
    "gemma3n_text": {"layer_types": ALTERNATING},
    "gemma4_text": {"layer_types": ALTERNATING},
    "gemma4_unified_text": {"layer_types": ALTERNATING},
    "minimax_m3_vl_text": {"layer_types": ["full_attention", "minimax_m3_sparse"] * 2},
}


def fields(cls: type[PreTrainedConfig]) -> dict[str, Any]:
    """Return small values for the fields a configuration class has."""
    names = [field.name for field in dataclasses.fields(cls)]
    chosen = {name: value for name in names for pattern, value in FIELDS.items() if re.fullmatch(pattern, name)}
    if "kv_lora_rank" in chosen:
        chosen["num_key_value_heads"] = 4  # MLA: one key and value per head
    if cls.model_type in ENCODERS:
        chosen["is_decoder"] = True
    chosen |= OVERRIDES.get(cls.model_type, {})
    parts = {key for key in cls.sub_configs if key not in chosen}
    default = cls() if parts else None
    for key in parts:
        part = type(getattr(default, key))
        if dataclasses.is_dataclass(part):
            chosen[key] = {**fields(part), "model_type": part.model_type}
    return chosen


def tiny_config(name: str) -> PreTrainedConfig:
    """Return a tiny configuration of a model type; attention windows alternate where the type has them."""
    cls = CONFIG_MAPPING[name]
    chosen = fields(cls)
    config = cls(**chosen)
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds in ATTENTION_ONLY and getattr(config, "sliding_window", None) and "layer_types" not in chosen:
        return cls(**chosen, layer_types=ALTERNATING)
    return config


def tiny_model(name: str) -> Any:
    """Return a model type's causal LM with random weights wide enough for sequences that vary, fp32."""
    config = tiny_config(name)
    with torch.device("meta"):
        count = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(copy.deepcopy(config)).parameters())
    if count > LIMIT:
        raise ValueError(f"{count} parameters: not tiny")
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim >= 2:
                weight.normal_(0.0, 1.5 / weight.shape[-1] ** 0.5)
            else:
                weight.add_(torch.randn_like(weight), alpha=0.1)
        # Large embeddings drown the layers: every token would be followed by itself.
        model.get_input_embeddings().weight.mul_(0.2)
    return model
