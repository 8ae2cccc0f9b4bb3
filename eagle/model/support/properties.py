"""Which targets can be verified exactly, decided by their properties; all others are refused in words.

Reads a loaded model from outside: where its decoder is, which masks its layers want, which rotary embedding
depends on the whole forward. Knows nothing of trees or caches.
"""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, GenerationMixin, PreTrainedConfig

from eagle.model.configs import text_config

# What a forward calls its cache, and its output too: since transformers 5.24, and before. Code that comes with a model
# may have either, whatever the release.
CACHE_NAMES = ("cache", "past_key_values")
WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
ATTENTION = ("sdpa", "eager")
# Slots kept free before a scale that counts slots, and so the largest tree on such a target.
TREE_SLOTS = 256


@dataclass(frozen=True)
class LayerMask:
    """How far a kind of layer sees: everything, a sliding window, or the chunk of its own position."""

    kind: str = "full_attention"
    size: int | None = None


@dataclass(frozen=True)
class RopeSwitch:
    """Where attention begins to depend on more than a token's own position.

    Either the rotary frequencies follow the largest position of the forward, or queries are scaled by slot.

    Attributes:
        position: first position at which that shows.
        plain_beyond: it changes with every further position, so only single tokens can be decoded there.
        recompute: transformers drops the cache when the switch is crossed, and the sequence must be run anew.
        nodes: most nodes of a tree that stays before the switch, where slots count; None where positions do.
    """

    position: int
    plain_beyond: bool
    recompute: bool
    nodes: int | None = None


@dataclass(frozen=True)
class Decoder:
    """The module that runs a causal LM's decoder layers, final norm included, and those layers."""

    module: nn.Module
    layers: nn.ModuleList


def token_ids(value: Any) -> list[int]:
    """Return the ids of a special token as configurations give them: None, a number, a list or a tensor."""
    return [] if value is None else torch.as_tensor(value).flatten().tolist()


def decoder(model: Any) -> Decoder:
    """Find the decoder of a causal LM: the outermost module that directly holds its list of layers.

    Lists inside a layer (its attentions, its experts) may be as long as the list of layers, and are never meant.
    `get_decoder()` alone is not enough: for some models it returns the output matrix or the causal LM itself.

    Raises:
        NotImplementedError: no module holds a list of as many layers as the configuration counts.
    """
    config = text_config(model.config)
    # Two caches per layer: `num_hidden_layers` counts caches there, `num_layers` layers.
    counts = [count for key in ("num_hidden_layers", "num_layers") if (count := getattr(config, key, None)) is not None]
    for count in counts:
        for top in (model.get_decoder(), model):
            inside = {id(part) for part in top.modules() if isinstance(part, nn.ModuleList) for part in _below(part)}
            found = [
                (name.count("."), Decoder(module, child))
                for name, module in top.named_modules()
                for child in module.children()
                if isinstance(child, nn.ModuleList) and len(child) == count and id(child) not in inside
            ]
            if found:
                return min(found, key=lambda pair: pair[0] if pair[1].module is not top else -1)[1]
    raise NotImplementedError(
        f"{type(model).__name__} has no list of {' or '.join(map(str, counts)) or 'any count of'} decoder layers "
        "that run once each"
    )


def _below(module: nn.Module) -> Iterator[nn.Module]:
    """Yield all that a module holds but the module itself."""
    return (part for child in module.children() for part in child.modules())


def cache_keyword(model: Any) -> str:
    """Return what a causal LM's forward calls its cache.

    Raises:
        NotImplementedError: it takes none, or a dictionary of its own making.
    """
    parameters = inspect.signature(type(model).forward).parameters
    for name in CACHE_NAMES:
        if name in parameters and "dict" not in str(parameters[name].annotation).lower():
            return name
    raise NotImplementedError(
        f"{type(model).__name__}.forward takes no {' or '.join(CACHE_NAMES)}: there is no cache for a tree"
    )


def cache_of(output: Mapping[str, Any]) -> Any:
    """Return the cache that a forward put out, under whichever name; None without one."""
    # The old name is there in new releases too, but reading it warns.
    held = dict(output.items())
    return next((held[name] for name in CACHE_NAMES if name in held), None)


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
    cache_keyword(model)
    if not hasattr(config, "hidden_size"):
        raise NotImplementedError(f"{name} has no hidden_size: it is no single stack of decoder layers over tokens")
    if getattr(config, "attention_type", None) == "block_sparse":
        raise NotImplementedError(f"{name} attends to blocks of slots (config.attention_type is 'block_sparse')")
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


def check_mode(model: Any) -> None:
    """Refuse a model that computes differently every time.

    Raises:
        ValueError: it is in training mode, with dropout or gradient checkpointing.
    """
    if not model.training:
        return
    rates = [value for key, value in text_config(model.config).to_dict().items() if key.endswith(("dropout", "pdrop"))]
    rates += [module.p for module in model.modules() if isinstance(module, nn.Dropout) and module.training]
    # Its name since transformers 5.24, and before; reading the old one warns.
    names = ("is_activation_checkpointing", "is_gradient_checkpointing")
    checkpoints = next((bool(getattr(model, name)) for name in names if hasattr(type(model), name)), False)
    if any(isinstance(rate, float) and rate > 0 for rate in rates) or checkpoints:
        raise ValueError(
            "the base model is in training mode, where dropout or gradient checkpointing make every forward another: "
            "call model.eval() first"
        )


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
    """Return where attention depends on the whole forward, or None where it never does."""
    config = text_config(model.config)
    if getattr(config, "attn_temperature_tuning", False) and hasattr(config, "floor_scale"):
        # Queries are scaled by slot, in steps of `floor_scale`; the first step's scale is 1.
        return RopeSwitch(max(0, int(config.floor_scale) - TREE_SLOTS), True, False, TREE_SLOTS)
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


def generate_forgets(model: Any, switch: RopeSwitch) -> bool:
    """Tell whether `generate` runs the newest token alone, without all before it, where it drops the cache at a switch.

    Releases of transformers before 5.20 do, and later ones with some models. What is asked is the step itself: how the
    model prepares the first forward across the switch.
    """
    if not switch.recompute:
        return False
    ids = torch.zeros(1, switch.position + 1, dtype=torch.int64)
    step = {"next_sequence_length": 1, "cache_position": torch.tensor([switch.position])}  # newer and older releases
    filled = {cache_keyword(model): DynamicCache(config=text_config(model.config))}
    try:
        inputs = model.prepare_inputs_for_generation(
            ids, attention_mask=torch.ones_like(ids), use_cache=True, **step, **filled
        )
        return inputs["input_ids"].shape[1] < ids.shape[1]
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return False  # code that comes with a model may be of another time; then `generate` has no answer at all


def last_position(model: Any) -> int | None:
    """Return how many positions the target can embed, or None where its rotary embedding grows without end."""
    switch = rope_switch(model)
    if switch is not None and switch.plain_beyond and switch.nodes is None:
        return None
    return getattr(text_config(model.config), "max_position_embeddings", None)
