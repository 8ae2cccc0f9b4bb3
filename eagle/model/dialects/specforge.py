"""Heads of SpecForge, and of all that SGLang serves, in and out: `midlayer`, layer ids in `eagle_config`.

SGLang's own names of the norms before `fc` are understood as well: `aux_norm_low`, `aux_norm_mid`, `aux_norm_high`, and
`use_aux_norm` for `fc_norm`. Its EAGLE-1/2 layer (`LlamaForCausalLMEagle`) always has `fc.bias`, and takes a `bias` in
the configuration for its attention's: what is written for it has `fc_bias` instead, and zeros for a bias that is none.
"""

import logging
from typing import Any

import torch

from eagle.model.configs import EConfig
from eagle.model.dialects.keys import (
    COMMON,
    EAGLE3,
    FIRST,
    FREQUENCIES,
    FURTHER,
    MIDLAYER,
    Dialect,
    Key,
    Saved,
    Verifier,
    architectures,
    same,
    unsupported,
)

logger = logging.getLogger(__name__)

EAGLE1_CLASS, EAGLE3_CLASS = "LlamaForCausalLMEagle", "LlamaForCausalLMEagle3"
# What SGLang does not read of a head, and the value with which it makes no difference.
UNREAD = {
    "norm_before_residual": False,
    "norm_before_fc": False,
    "qkv_bias": False,
    "attention_bias": False,
    "mlp_bias": False,
    "qk_norm": False,
    "use_aux_hidden_state": True,
}


def flat(fields: dict[str, Any], path: str) -> dict[str, Any]:
    """Return the fields under one name each; say what `norm_output` is taken for."""
    if fields.pop("use_aux_norm", None):
        fields["fc_norm"] = True
    if "fc_bias" in fields:
        fields["bias"] = fields.pop("fc_bias")
    if fields.get("norm_output") and fields.get("tap_layers") is None:  # which only this package writes
        logger.warning(
            "%s: norm_output=true is read as EAGLE-3.1's; heads that SpecForge wrote before September 2026 carry it "
            "and are plain EAGLE-3: if few drafts are accepted, set it to false, or ask eagle doctor",
            path,
        )
    return fields


SPECFORGE = Dialect(
    name="SpecForge",
    writer="SpecForge or SGLang's users",
    is_of=lambda fields: any(name in (EAGLE1_CLASS, EAGLE3_CLASS) for name in architectures(fields)),
    keys=(
        MIDLAYER,
        FIRST,
        FURTHER,
        *(Key(f"aux_norm_{name}.weight", f"fc_norm.{n}.weight") for n, name in enumerate(("low", "mid", "high"))),
        *same(*COMMON, *EAGLE3),
        FREQUENCIES,
    ),
    flat=flat,
)


def saved(config: EConfig, state: dict[str, torch.Tensor], taps: tuple[int, ...] | str, verifier: Verifier) -> Saved:
    """Return a head's fields and tensors as SGLang reads them, without embeddings, which it takes from the target.

    Args:
        config: the head's.
        state: its tensors under our names.
        taps: what it reads.
        verifier: its target, with the embeddings where the head has some of its own.

    Raises:
        NotImplementedError: SGLang would read another head.
    """
    for name, harmless in UNREAD.items():
        if getattr(config, name) != harmless:
            raise unsupported(f"{name}={getattr(config, name)}", "SGLang")
    if any(config.windows or ()):
        raise unsupported("a sliding window in its configuration", "SGLang")
    is_narrow = config.target_hidden_size not in (None, config.hidden_size)
    state = dict(state) if is_narrow else _without_embeddings(state, verifier)
    fields = {name: value for name, value in config.to_diff_dict().items() if value is not None}
    fields |= {"model_type": "llama", "tie_word_embeddings": False, "fc_bias": fields.pop("bias", config.bias)}
    if verifier.positions and config.rope_parameters["rope_type"] in ("default", "linear", "llama3"):
        fields["max_position_embeddings"] = max(config.max_position_embeddings, verifier.positions)
    rope = config.rope_parameters
    fields["rope_theta"] = rope["rope_theta"]
    if rope["rope_type"] != "default":
        fields["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
    if taps == "last":
        if "fc.bias" not in state:
            state["fc.bias"] = torch.zeros_like(state["fc.weight"][:, 0])
        return {**fields, "architectures": [EAGLE1_CLASS]}, state
    if config.num_hidden_layers > 1:
        raise unsupported(f"{config.num_hidden_layers} layers", "SGLang")
    if taps[-1] == verifier.layers:
        raise unsupported(f"layer {verifier.layers}, the last one's output,", "SGLang")
    fields |= {
        "architectures": [EAGLE3_CLASS],
        "eagle_config": {
            # SGLang reads the outputs of these layers.
            "eagle_aux_hidden_state_layer_ids": [int(layer) - 1 for layer in taps],
            "use_aux_hidden_state": True,
        },
        "tap_layers": list(taps),  # ours, so that no rule has to tell the two conventions
    }
    if "lm_head.weight" in state:
        fields["draft_vocab_size"] = config.draft_vocab_size or config.vocab_size
    fields.pop("fc_bias")
    return fields, state


def _without_embeddings(state: dict[str, torch.Tensor], verifier: Verifier) -> dict[str, torch.Tensor]:
    own_VD, theirs_VD = state.get("embed_tokens.weight"), verifier.embeddings_VD
    if own_VD is not None and (
        theirs_VD is None
        or own_VD.shape != theirs_VD.shape
        or not torch.equal(own_VD.cpu(), theirs_VD.to(own_VD).cpu())
    ):
        raise unsupported("embed_tokens.weight other than the target's", "SGLang")
    return {name: tensor for name, tensor in state.items() if name != "embed_tokens.weight"}
