"""Heads of NVIDIA's Model-Optimizer: EAGLE-3 with `layers.N`, no embeddings, `d2t` without `t2d`.

They share SpecForge's `architectures`; what tells them is how `eagle_config` describes the layer.
"""

from collections.abc import Mapping
from typing import Any

from eagle.model.dialects.keys import COMMON, EAGLE3, FIRST, FREQUENCIES, FURTHER, Dialect, architectures, same

# The values of an EAGLE-3 head of a Llama layer, in `eagle_config` or beside it.
LAYER = {
    "use_input_layernorm_in_first_layer": True,
    "use_last_layernorm": True,
    "use_mtp_layernorm": False,
    "next_layer_regular": True,
    "parallel_draft_step": 1,
    "has_lm_head": None,
    "head_num": 1,
    "parallel_draft_heads_num_layers": None,
}


def is_of(fields: Mapping[str, Any]) -> bool:
    """Tell whether the layer is described as only this trainer does."""
    nested = fields.get("eagle_config")
    return isinstance(nested, Mapping) and any(name in nested for name in LAYER)


def checked_layer(fields: dict[str, Any], path: str) -> dict[str, Any]:
    """Return the fields without those that describe the layer.

    Raises:
        NotImplementedError: they describe another one.
    """
    fields, nested = dict(fields), fields.get("eagle_config")
    places = [fields]
    if isinstance(nested, Mapping):
        fields["eagle_config"] = nested = dict(nested)
        places.append(nested)
    for place in places:
        for name, usual in LAYER.items():
            found = place.pop(name, usual)
            if usual is not None and found not in (None, usual):
                raise NotImplementedError(f"{path}: {name}={found!r} is not supported, only {usual!r}")
    if "Eagle3DeepseekV2ForCausalLM" in architectures(fields):
        raise NotImplementedError(
            f"{path}: a head with latent attention (Eagle3DeepseekV2ForCausalLM) is not supported"
        )
    return fields


MODEL_OPTIMIZER = Dialect(
    name="Model-Optimizer",
    writer="NVIDIA Model-Optimizer",
    is_of=is_of,
    keys=(FIRST, FURTHER, *same(*COMMON, *EAGLE3), FREQUENCIES),
)
