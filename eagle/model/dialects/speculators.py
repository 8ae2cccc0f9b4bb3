"""Heads of the speculators library (vLLM, Red Hat), in and out: EAGLE-3 with `layers.N`, a nested configuration.

The first layer's own fields are in `transformer_layer_config`, a Llama's or a Qwen3's with that class's defaults left
out; a Qwen3's has q and k norms. Layer ids are those whose inputs are read. The library writes the target's embeddings
into every file, and reads a file without any as one of whatever lies in memory (0.9.0): they are written here too.
"""

import logging
from typing import Any

import torch
from transformers import AutoConfig

from eagle.model.configs import EAGLE3_FLAGS, EConfig
from eagle.model.dialects.keys import (
    EAGLE3,
    FIRST,
    FREQUENCIES,
    FURTHER,
    Dialect,
    Key,
    Saved,
    Verifier,
    same,
    unsupported,
)

logger = logging.getLogger(__name__)

LAYERS = ("llama", "qwen3")
VERSION = "0.9.0"  # whose layout is written
# Rotary embeddings that ask for the positions of the configuration where they have none of their own.
POSITIONED = ("dynamic", "yarn", "longrope")
# Around the layer's: what the library says about itself, its target and its training.
SILENT = (
    "speculators_model_type",
    "speculators_version",
    "speculators_config",
    "embed_requires_grad",
    "tie_word_embeddings",
    "has_no_defaults_at_init",
)
# Of the layer's configuration, what has a meaning here under the same name.
KEPT = (
    "attention_bias",
    "bos_token_id",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "mlp_bias",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "pad_token_id",
    "rms_norm_eps",
    "rope_parameters",
    "sliding_window",
    "vocab_size",
)


def flat(fields: dict[str, Any], path: str) -> dict[str, Any]:
    """Return the layer's fields and those around it side by side.

    Raises:
        NotImplementedError: a speculator of another kind, or of another layer.
        ValueError: no layer is described.
    """
    kind, layer = fields["speculators_model_type"], fields.pop("transformer_layer_config", None)
    if kind != "eagle3":
        raise NotImplementedError(f"{path}: a speculator of kind {kind!r} is not supported, only 'eagle3'")
    if not isinstance(layer, dict):
        raise ValueError(f"{path}: config.json says transformer_layer_config={layer!r}, which must hold fields")
    model_type = layer.get("model_type", "qwen3")
    if model_type not in LAYERS:
        raise NotImplementedError(f"{path}: a layer of {model_type!r} is not supported, only of {' and '.join(LAYERS)}")
    if "norm_before_residual" not in fields:
        logger.warning(
            "%s: config.json does not say norm_before_residual: read as false, while vLLM takes it for true; eagle "
            "doctor tells which one the head was trained with",
            path,
        )
    fields = {name: value for name, value in fields.items() if name not in SILENT}
    return {**_whole(layer, model_type, path), **fields, "qk_norm": model_type == "qwen3"}


def _whole(layer: dict[str, Any], model_type: str, path: str) -> dict[str, Any]:
    """Return a layer's fields with the defaults of its class."""
    try:
        config = AutoConfig.for_model(model_type, **{k: v for k, v in layer.items() if k != "model_type"}).to_dict()
    except Exception as failure:  # whatever a configuration's own checks raise
        words = " ".join(str(failure).split())
        raise ValueError(f"{path}: transformer_layer_config describes no {model_type} layer ({words})") from failure
    whole = {name: config[name] for name in KEPT if name in config}
    # As they were written: a class may round or complete them.
    whole |= {name: layer[name] for name in ("rope_theta", "rope_scaling") if name in layer}
    if "rope_parameters" not in layer and ("rope_theta" in layer or "rope_scaling" in layer):
        whole.pop("rope_parameters", None)
    return whole


SPECULATORS = Dialect(
    name="speculators",
    writer="the speculators library",
    is_of=lambda fields: "speculators_model_type" in fields,
    keys=(
        FIRST,
        FURTHER,
        *same("fc.weight", "embed_tokens.weight", *EAGLE3),
        Key("verifier_lm_head.weight", "", "the target's, for training"),
        Key("verifier_norm.weight", "", "the target's, for training"),
        FREQUENCIES,
    ),
    flat=flat,
    version="speculators_version",
)


def saved(config: EConfig, state: dict[str, torch.Tensor], taps: tuple[int, ...] | str, verifier: Verifier) -> Saved:
    """Return an EAGLE-3 head's fields and tensors in this layout.

    Args:
        config: the head's.
        state: its tensors under our names.
        taps: the layers that it reads.
        verifier: its target.

    Raises:
        NotImplementedError: the library, or vLLM, would read another head.
    """
    who = "speculators and vLLM"
    if not any(name.startswith("midlayer.") for name in state):
        raise unsupported("EAGLE-1/2's layer", "speculators")
    if taps == "last":
        raise unsupported("use_aux_hidden_state=false", who)
    if config.target_hidden_size not in (None, config.hidden_size):
        raise unsupported(f"hidden_size={config.hidden_size} for a target of {config.target_hidden_size}", who)
    if config.qkv_bias and not config.attention_bias:
        raise unsupported("qkv_bias", who)
    if config.qk_norm and config.mlp_bias:
        raise unsupported("qk_norm and mlp_bias together", who)
    if config.norm_before_fc and config.fc_norm:
        raise unsupported("norm_before_fc and fc_norm together", who)
    layer = {name: value for name, value in config.to_dict().items() if name in KEPT and value is not None}
    layer |= {
        "model_type": "qwen3" if config.qk_norm else "llama",
        "tie_word_embeddings": False,
        **_windows(config, who),
    }
    rope = config.rope_parameters
    if verifier.positions and (rope["rope_type"] not in POSITIONED or "original_max_position_embeddings" in rope):
        # Engines serve no longer texts than this.
        layer["max_position_embeddings"] = max(config.max_position_embeddings, verifier.positions)
    if len(taps) != 3:
        layer["num_aux_hidden_states"] = len(taps)  # vLLM asks this how wide fc is
    if "embed_tokens.weight" not in state:
        if verifier.embeddings_VD is None:
            raise unsupported("the embeddings of a target that cannot be read", who)
        state = {**state, "embed_tokens.weight": verifier.embeddings_VD}
    fields = {
        "architectures": ["Eagle3DraftModel"],
        "speculators_model_type": "eagle3",
        "speculators_version": VERSION,
        "draft_vocab_size": config.draft_vocab_size or config.vocab_size,
        "eagle_aux_hidden_state_layer_ids": list(taps),
        "embed_requires_grad": False,
        "tie_word_embeddings": False,
        **{name: getattr(config, name) for name in EAGLE3_FLAGS},
        "transformer_layer_config": layer,
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": 3}],
            "verifier": {"name_or_path": verifier.name, "architectures": list(verifier.architectures)},
        },
    }
    first = "midlayer."
    return fields, {
        f"layers.0.{name.removeprefix(first)}" if name.startswith(first) else name: tensor
        for name, tensor in state.items()
    }


def _windows(config: EConfig, who: str) -> dict[str, Any]:
    sizes = {window for window in config.windows or () if window is not None}
    if not sizes:
        return {}
    if len(sizes) > 1:
        raise unsupported(f"windows of several sizes {sorted(sizes)}", who)
    kinds = ["full_attention" if window is None else "sliding_attention" for window in config.windows or ()]
    used = {"use_sliding_window": True} if config.qk_norm else {}
    return {"sliding_window": sizes.pop(), "layer_types": kinds, **used}
