"""Configurations of new heads, derived from any base's: shapes from the base, the rest as published heads have it.

    python -m eagle.train.configure --base-model-path BASE --kind eagle3 --draft-vocab-size 32000 --out config.json

Only the base's configuration is read. Ready ones lie in `eagle/train/configs`.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from eagle.files import is_local, write_text
from eagle.model.configs import EAGLE3_FLAGS, EConfig, tapped_layers, text_config

KINDS = ("eagle", "eagle3")
EAGLE3 = (*EAGLE3_FLAGS, "tap_layers", "target_hidden_size")
# What a config.json says, in this order; of EAGLE-3's own only what is set.
WRITTEN = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "vocab_size",
    "max_position_embeddings",
    "bos_token_id",
    "eos_token_id",
)
DEFAULT_ROPE = 10000.0


def head_config(
    kind: str, base_config: PreTrainedConfig, draft_vocab_size: int | None = None, **fields: Any
) -> EConfig:
    """Return the configuration of a head shaped like one dense layer of its target.

    The rotary base is the target's for EAGLE-1/2 and 10000 for EAGLE-3, as in what SafeAILab published; its scaling is
    never copied. Of a mixture of experts the width is the one its configuration gives dense layers.

    Args:
        kind: "eagle" (EAGLE-1/2) or "eagle3".
        base_config: the target's; of one that reads more than text the part for text counts.
        draft_vocab_size: tokens an EAGLE-3 head drafts; None means all.
        fields: of `EConfig`, over what is derived; `rope_theta` too. With `hidden_size` an EAGLE-3 head is narrower
            than its target.

    Raises:
        ValueError: an unknown kind or field, one that heads of this kind do not have, or a size out of range.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} must be one of {', '.join(KINDS)}")
    base = text_config(base_config)
    theta = float(fields.pop("rope_theta", base_theta(base) if kind == "eagle" else DEFAULT_ROPE))
    derived = {**_shapes(base), "qkv_bias": kind == "eagle" and base.model_type in ("qwen2", "qwen2_moe")}
    if fields.get("hidden_size") not in (None, base.hidden_size):
        derived["target_hidden_size"] = base.hidden_size
    if draft_vocab_size is not None:
        fields["draft_vocab_size"] = draft_vocab_size
    chosen = derived | fields
    _check(kind, chosen)
    return EConfig(**chosen, rope_parameters={"rope_type": "default", "rope_theta": theta})


def _shapes(base: PreTrainedConfig) -> dict[str, Any]:
    names = ("intermediate_size", "ffn_dim", "n_inner")
    width = next((value for name in names if (value := getattr(base, name, None))), 4 * base.hidden_size)
    return {
        "hidden_size": base.hidden_size,
        "intermediate_size": width[0] if isinstance(width, (list, tuple)) else width,
        "num_hidden_layers": 1,
        "num_attention_heads": base.num_attention_heads,
        "num_key_value_heads": getattr(base, "num_key_value_heads", None) or base.num_attention_heads,
        "head_dim": getattr(base, "head_dim", None) or base.hidden_size // base.num_attention_heads,
        "rms_norm_eps": getattr(base, "rms_norm_eps", None) or 1e-6,
        "vocab_size": base.vocab_size,
        "max_position_embeddings": getattr(base, "max_position_embeddings", None) or 2048,
        "bos_token_id": base.bos_token_id,
        "eos_token_id": base.eos_token_id,
    }


def base_theta(base: PreTrainedConfig) -> float:
    """Return a target's rotary base, that of its full attention where layers differ; 10000 where it has none."""
    rope = getattr(base, "rope_parameters", None) or {}
    rope = rope.get("full_attention") or rope
    return float(rope.get("rope_theta") or getattr(base, "rope_theta", None) or DEFAULT_ROPE)


def _check(kind: str, chosen: dict[str, Any]) -> None:
    unknown = sorted(name for name in chosen if not hasattr(EConfig(), name))
    if unknown:
        raise ValueError(f"a head's configuration has no {', '.join(unknown)}")
    others = [name for name in (*EAGLE3, "draft_vocab_size") if chosen.get(name)] if kind == "eagle" else []
    if others:
        raise ValueError(f"{', '.join(others)}: of EAGLE-3 heads alone, kind={kind!r}")
    for name in ("hidden_size", "intermediate_size", "draft_vocab_size"):
        value, most = chosen.get(name), chosen["vocab_size"] if name == "draft_vocab_size" else None
        if value is not None and not (value >= 1 and (most is None or value <= most)):
            raise ValueError(f"{name}={value} must be at least 1" + (f" and at most {most}" if most else ""))


def as_published(kind: str, config: EConfig) -> dict[str, Any]:
    """Return a configuration as its `config.json` says it: the fields SafeAILab's heads have, EAGLE-3.1's if set."""
    document = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    document |= {name: getattr(config, name) for name in WRITTEN}
    document["rope_theta"] = config.rope_parameters["rope_theta"]
    if kind == "eagle":
        return {**document, "bias": config.bias, "qkv_bias": config.qkv_bias}
    own = {name: getattr(config, name) for name in ("draft_vocab_size", *EAGLE3)}
    return document | {name: value for name, value in own.items() if value}


def base_config(basepath: str) -> PreTrainedConfig:
    """Read a base's configuration.

    Raises:
        FileNotFoundError: no such folder, or no configuration in it.
        OSError: the Hub has none of that name.
    """
    if is_local(basepath) and not (Path(basepath) / "config.json").is_file():
        raise FileNotFoundError(f"base_model_path {basepath} holds no config.json")
    return AutoConfig.from_pretrained(basepath)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    about = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(
        prog="python -m eagle.train.configure", description=about, argument_default=argparse.SUPPRESS
    )
    parser.add_argument(
        "--base-model-path", "--basepath", required=True, help="folder or Hub id of the target; no weights are read"
    )
    parser.add_argument("--kind", choices=KINDS, default="eagle", help="EAGLE-1/2 or EAGLE-3")
    parser.add_argument("--out", type=Path, required=True, help="the config.json to write")
    parser.add_argument("--draft-vocab-size", type=int, help="EAGLE-3: tokens that are drafted; default: all")
    parser.add_argument("--hidden-size", type=int, help="EAGLE-3: of a head narrower than its target")
    parser.add_argument("--intermediate-size", type=int, help="width of the MLP; default: the target's")
    parser.add_argument("--rope-theta", type=float, help="default: the target's for eagle, 10000 for eagle3")
    biased = argparse.BooleanOptionalAction
    parser.add_argument("--bias", action=biased, help="EAGLE-1/2: of fc; published for LLaMA-3 without")
    parser.add_argument("--qkv-bias", action=biased, help="of q, k and v; default: as Qwen2 has it")
    for name in EAGLE3_FLAGS:
        parser.add_argument(f"--{name.replace('_', '-')}", action="store_true", help="EAGLE-3.1")
    help = "EAGLE-3: layers whose inputs are read; default: 2, n//2, n-3"
    parser.add_argument("--tap-layers", type=int, nargs="+", metavar="LAYER", help=help)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Write a head's config.json and say for what it is."""
    command = parser()
    fields = vars(command.parse_args(argv))
    basepath, kind, out = (fields.pop(name) for name in ("base_model_path", "kind", "out"))
    try:
        base = base_config(basepath)
        config = head_config(kind, base, **fields)
        if kind == "eagle3":
            tapped_layers(config, text_config(base).num_hidden_layers)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, json.dumps(as_published(kind, config), indent=2) + "\n")
    except (ValueError, OSError) as refusal:
        command.error(str(refusal).partition("\n")[0])
    drafts = config.draft_vocab_size or config.vocab_size
    sys.stdout.write(f"{out}: {kind} head of width {config.hidden_size} for {basepath}, drafts {drafts:,} tokens\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
