"""EAGLE-1 heads in the layout that vLLM converted them to: fields within `model`, the target's output matrix added."""

from typing import Any

from eagle.model.dialects.keys import COMMON, FIRST, FREQUENCIES, FURTHER, Dialect, Key, same


def flat(fields: dict[str, Any], path: str) -> dict[str, Any]:
    """Return the fields of the layer with those beside it.

    Raises:
        NotImplementedError: the head drafts some of the target's tokens.
    """
    inner = dict(fields.pop("model"))
    truncated = fields.pop("truncated_vocab_size", None)
    if truncated not in (None, inner.get("vocab_size", truncated)):
        raise NotImplementedError(
            f"{path}: truncated_vocab_size={truncated}: a token map within the head is not read; convert the head to "
            "SafeAILab's layout and keep the map beside it"
        )
    bias = {"bias": bool(inner.pop("eagle_fc_bias"))} if "eagle_fc_bias" in inner else {"bias": False}
    silent = ("method", "num_lookahead_tokens")
    return {**inner, **{name: value for name, value in fields.items() if name not in silent}, **bias}


VLLM_EAGLE = Dialect(
    name="vLLM EAGLE-1",
    writer="vLLM's first converter",
    is_of=lambda fields: isinstance(fields.get("model"), dict),
    keys=(
        FIRST,
        FURTHER,
        *same(*COMMON),
        Key("lm_head.weight", "", "a copy of the target's output matrix"),
        FREQUENCIES,
    ),
    flat=flat,
)
