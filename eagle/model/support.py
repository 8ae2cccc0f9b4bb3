"""What a target must be like for a tree to be verified exactly; anything else is refused by property, in words.

Reads a loaded model from outside: where its decoder layers are, which masks its layers want, which rotary embedding
depends on the whole forward. Knows nothing of trees or caches.
"""

import inspect
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import GenerationMixin, PreTrainedConfig

from eagle.model.configs import text_config

WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
ATTENTION = ("sdpa", "eager")


@dataclass(frozen=True)
class LayerMask:
    """How far a kind of layer sees: everything, a sliding window, or the chunk of its own position."""

    kind: str = "full_attention"
    size: int | None = None


@dataclass(frozen=True)
class RopeSwitch:
    """A rotary embedding whose frequencies depend on the largest position of the forward.

    Attributes:
        position: first position at which the frequencies change.
        plain_beyond: they change with every further position, so only single tokens can be decoded there.
        recompute: transformers recomputes the whole cache when the switch is crossed.
    """

    position: int
    plain_beyond: bool
    recompute: bool


def decoder_layers(model: Any) -> nn.ModuleList:
    """Return the decoder layers of a causal LM.

    Raises:
        NotImplementedError: no list of `num_hidden_layers` layers sits directly in the decoder.
    """
    count = text_config(model.config).num_hidden_layers
    for child in model.get_decoder().children():
        if isinstance(child, nn.ModuleList) and len(child) == count:
            return child
    raise NotImplementedError(f"{type(model).__name__}: its decoder holds no list of {count} decoder layers")


def check_target(model: Any) -> None:
    """Refuse a model whose tree cannot be verified exactly.

    Raises:
        NotImplementedError: naming the property that stands in the way.
    """
    name, config = type(model).__name__, text_config(model.config)
    if model.config.is_encoder_decoder:
        raise NotImplementedError(f"{name} is an encoder-decoder; eagle needs a decoder-only causal LM")
    parameters = inspect.signature(type(model).forward).parameters
    if "position_ids" not in parameters:
        raise NotImplementedError(
            f"{name}.forward takes no position_ids, so siblings in a tree cannot share a position"
        )
    if getattr(config, "alibi", False):
        raise NotImplementedError(f"{name} uses ALiBi (config.alibi): its biases count slots, not tree depths")
    if model.config._attn_implementation not in ATTENTION:
        raise NotImplementedError(
            f"attn_implementation={model.config._attn_implementation!r} reads a tree mask as padding; "
            f"load the base model with one of {ATTENTION}"
        )
    # Windows that the model builds itself, from slots, where a tree's siblings would not share a position.
    own = [key for key, value in config.to_dict().items() if key.endswith("window_size") and isinstance(value, int)]
    if own or "local" in (getattr(config, "attention_layers", None) or ()):
        raise NotImplementedError(f"{name} builds a window of its own over slots ({own or 'attention_layers'})")
    layer_masks(config)


def layer_masks(config: PreTrainedConfig) -> LayerMask | dict[str, LayerMask]:
    """Return the mask all layers share, or one per layer type for models that take a dict of masks.

    Raises:
        NotImplementedError: a layer is no softmax attention (linear attention, state space, convolution).
    """
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        window = getattr(config, "sliding_window", None)
        return LayerMask("sliding_attention", window) if window is not None else LayerMask()
    unknown = sorted(set(kinds) - {"full_attention", *WINDOWS})
    if unknown:
        raise NotImplementedError(
            f"layers of type {unknown} are not softmax attention under a plain mask; a tree cannot branch through them"
        )
    return {kind: LayerMask(kind, getattr(config, WINDOWS.get(kind, ""), None)) for kind in dict.fromkeys(kinds)}


def rope_switch(model: Any) -> RopeSwitch | None:
    """Return where the rotary frequencies depend on the whole forward, or None where they never do."""
    config = text_config(model.config)
    parameters = getattr(config, "rope_parameters", None) or {}
    # One dict, or one per layer type.
    kinds = [parameters] if "rope_type" in parameters else [p for p in parameters.values() if isinstance(p, dict)]
    for rope in kinds:
        if rope.get("rope_type") == "longrope":
            own = type(model).prepare_inputs_for_generation is not GenerationMixin.prepare_inputs_for_generation
            recompute = own and hasattr(config, "original_max_position_embeddings")
            return RopeSwitch(rope["original_max_position_embeddings"], plain_beyond=False, recompute=recompute)
        if rope.get("rope_type") == "dynamic":
            return RopeSwitch(config.max_position_embeddings, plain_beyond=True, recompute=False)
    return None


def last_position(model: Any) -> int | None:
    """Return how many positions the target can embed, or None where its rotary embedding grows without end."""
    switch = rope_switch(model)
    if switch is not None and switch.plain_beyond:
        return None
    return getattr(text_config(model.config), "max_position_embeddings", None)
