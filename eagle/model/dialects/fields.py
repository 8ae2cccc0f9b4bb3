"""What a head's `config.json` means: every field is honoured, refused, or named as unknown.

Knows the fields of Llama configurations and those that other trainers add; knows no tensors.
"""

import logging
import math
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from eagle.model.configs import EAGLE3_FLAGS, EConfig
from eagle.model.dialects.known import dialect_of
from eagle.model.dialects.model_optimizer import checked_layer

logger = logging.getLogger(__name__)

# What says nothing about the arithmetic of a head, and is not kept.
SILENT = (
    "architectures",
    "auto_map",
    "model_type",
    "transformers_version",
    "target_model_type",
    "torch_dtype",
    "torchscript",
)
# Older names of fields that configurations of transformers translate.
OLDER = ("rope_theta", "rope_scaling", "partial_rotary_factor")
ROPES = ("rope_scaling", "rope_parameters")
# Configurations of heads are of Llama, or say by their name that they are a head's.
LLAMA_LIKE = (None, "llama", "eagle", "eagle3", "eagle_head")
TAPS = "eagle_aux_hidden_state_layer_ids"
NUMBERS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "draft_vocab_size",
    "target_hidden_size",
)
SWITCHES = (*EAGLE3_FLAGS, "bias", "qkv_bias", "attention_bias", "mlp_bias", "qk_norm", "use_aux_hidden_state")
FULL, SLIDING = "full_attention", "sliding_attention"
# A head dimension or a count beyond it is a damaged file; no head is near it.
MOST = 1 << 24


def head_config_from(fields: dict[str, Any], path: str) -> EConfig:
    """Return the configuration that a head's `config.json` at `path` describes.

    Raises:
        NotImplementedError: a layout or a field of another trainer that would be misread.
        ValueError: a field of a wrong type or size.
    """
    dialect = dialect_of(fields, path)
    fields = checked_layer(dialect.flat(dict(fields), path), path)
    # Null is what a field is where it is not there.
    fields = {name: value for name, value in fields.items() if value is not None}
    _check_numbers(fields, path)
    _read_taps(fields, path)
    _read_windows(fields, path)
    if fields.get("model_type") not in LLAMA_LIKE:
        logger.info("%s: model_type=%r is read as a Llama layer with the fields given", path, fields["model_type"])
    for name in ROPES:
        rope = fields.get(name)
        if isinstance(rope, dict) and "mrope" in (rope.get("type"), rope.get("rope_type")):
            # Three rows of positions, all equal for text: the default embedding.
            fields[name] = {**rope, "type": "default", "rope_type": "default"}
    _check_kinds(fields, path)
    # Older releases of transformers leave fields at their defaults out of `to_dict`.
    known = {*EConfig().to_dict(), *EConfig.__annotations__, *SILENT, *OLDER}
    unknown = sorted(set(fields) - known)
    if unknown:
        logger.warning("%s: fields %s of config.json are not known here and have no effect", path, unknown)
    kept = {name: value for name, value in fields.items() if name not in SILENT and name not in unknown}
    try:
        config = EConfig(**kept)
    except (TypeError, ValueError, KeyError, AttributeError, StrictDataclassError) as failure:
        words = " ".join(str(failure).split())
        raise ValueError(f"{path}: config.json describes no head ({words})") from failure
    return config


def _check_numbers(fields: dict[str, Any], path: str) -> None:
    for name in NUMBERS:
        value = fields.get(name)
        if value is not None and not (type(value) is int and 1 <= value <= MOST):
            raise ValueError(f"{path}: config.json says {name}={value!r}, which must be a whole number of at least 1")


def _check_kinds(fields: dict[str, Any], path: str) -> None:
    for name in SWITCHES:
        if type(fields.get(name, False)) is not bool:
            raise ValueError(f"{path}: config.json says {name}={fields[name]!r}, which must be true or false")
    act = fields.get("hidden_act", "silu")
    if not isinstance(act, str) or act not in ACT2FN:
        raise ValueError(f"{path}: config.json says hidden_act={act!r}, which transformers does not know")
    eps = fields.get("rms_norm_eps", 1e-6)
    if not (type(eps) is float and 0 < eps < 1):
        raise ValueError(f"{path}: config.json says rms_norm_eps={eps!r}, which must lie between 0 and 1")
    _check_rope(fields, path)


def _check_rope(fields: dict[str, Any], path: str) -> None:
    """Refuse what a rotary embedding would ignore, or cannot be."""
    given = [name for name in ROPES if fields.get(name)]
    for name in given:
        rope = fields[name]
        if not isinstance(rope, dict):
            raise ValueError(f"{path}: config.json says {name}={rope!r}, which must hold a rotary embedding's fields")
        kind = rope.get("rope_type", rope.get("type"))
        if kind is None and set(rope) <= {"rope_theta"}:
            kind = "default"
        if kind not in ("default", "mrope", *ROPE_INIT_FUNCTIONS):
            raise ValueError(f"{path}: config.json says {name}={rope!r}, a rotary embedding transformers does not know")
        if any(isinstance(value, dict) for value in rope.values()):
            raise NotImplementedError(f"{path}: {name}={rope!r} has one for every kind of layer; a head has one layer")
    thetas = [fields.get("rope_theta"), *(fields[name].get("rope_theta") for name in given)]
    numbers = {theta for theta in thetas if theta is not None}
    if any(type(theta) not in (int, float) or not 0 < theta < math.inf for theta in thetas if theta is not None):
        raise ValueError(f"{path}: config.json says rope_theta={thetas!r}, which must be above 0")
    if len(numbers) > 1:
        raise ValueError(f"{path}: config.json says rope_theta twice, and differently: {sorted(numbers)}")
    part = [where.get("partial_rotary_factor") for where in (fields, *(fields[name] for name in given))]
    if any(value not in (None, 1, 1.0) for value in part):
        raise NotImplementedError(f"{path}: partial_rotary_factor is not supported, heads rotate all of a key")


def _read_taps(fields: dict[str, Any], path: str) -> None:
    """Turn the layer ids of other trainers into `tap_layers`."""
    nested = fields.pop("eagle_config", None) or {}
    if not isinstance(nested, dict):
        raise ValueError(f"{path}: config.json says eagle_config={nested!r}, which must hold fields")
    nested = {name: value for name, value in nested.items() if value is not None}
    inner, outer = nested.pop(TAPS, None), fields.pop(TAPS, None)
    for name in ("use_aux_hidden_state", *EAGLE3_FLAGS):
        if name in nested:
            fields[name] = nested.pop(name)
    if nested:
        logger.warning("%s: fields %s of eagle_config are not known here and have no effect", path, sorted(nested))
    if fields.get("use_aux_hidden_state", True) is False:
        inner = outer = None  # nothing is tapped, whatever a list says
    for name, ids in ((f"eagle_config.{TAPS}", inner), (TAPS, outer), ("tap_layers", fields.get("tap_layers"))):
        if ids is not None and not (isinstance(ids, list) and ids and all(type(layer) is int for layer in ids)):
            raise ValueError(f"{path}: config.json says {name}={ids!r}, which must be a list of layers")
    counts = [len(ids) for ids in (fields.get("tap_layers"), inner, outer) if ids is not None]
    told = fields.pop("num_aux_hidden_states", None)
    if told is not None and told != (counts or [3])[0]:
        raise ValueError(
            f"{path}: config.json says num_aux_hidden_states={told!r}, and names {(counts or [3])[0]} layers"
        )
    if fields.get("tap_layers") is not None:
        return
    if inner is not None:
        # Lists that begin with 1 name layers whose *output* is read, the same tensor as the next layer's input.
        fields["tap_layers"] = [layer + 1 for layer in inner] if inner[0] == 1 else inner
    elif outer is not None:
        fields["tap_layers"] = outer


def _read_windows(fields: dict[str, Any], path: str) -> None:
    """Turn the kinds of layers into `windows`; a head that sees only so far back drafts worse without its window."""
    kinds, window = fields.pop("layer_types", None) or [], fields.pop("sliding_window", None)
    used = fields.pop("use_sliding_window", True)
    fields.pop("max_window_layers", None)
    layers = fields.get("num_hidden_layers", 1)
    if not isinstance(kinds, list) or not set(map(str, kinds)) <= {FULL, SLIDING}:
        raise NotImplementedError(
            f"{path}: layer_types={kinds!r}: a layer that sees only so far back in another way than by a "
            "sliding window is not supported, and without it the head would draft worse in silence"
        )
    if SLIDING in kinds:
        if not (type(window) is int and 1 <= window <= MOST) or len(kinds) != layers:
            raise ValueError(
                f"{path}: config.json says layer_types={kinds} and sliding_window={window!r}; it needs one kind for "
                f"each of num_hidden_layers={layers} and a window of at least 1: a head that sees only so far back "
                "drafts worse without its window, in silence"
            )
        fields["windows"] = [window if kind == SLIDING else None for kind in kinds]
    elif window is not None and used:
        logger.info("%s: sliding_window=%s has no effect without layer_types", path, window)
    windows = fields.get("windows")
    if windows is None:
        return
    if not isinstance(windows, list) or len(windows) != layers or any(not _is_window(one) for one in windows):
        raise ValueError(
            f"{path}: config.json says windows={windows!r}, which must be a whole number or null for each of "
            f"num_hidden_layers={layers}"
        )


def _is_window(window: Any) -> bool:
    return window is None or (type(window) is int and 1 <= window <= MOST)
