"""Heads of any trainer, written as this package, vLLM or SGLang reads them: `eagle convert`.

The tensors stay as they are, bit by bit; only names and configuration change. What a layout cannot say of a head is
refused rather than left out.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from eagle.commands.convert import COMMAND
from eagle.commands.running import run
from eagle.model.configs import overridden, text_config
from eagle.model.dialects.checkpoint import build_head, describe, readable
from eagle.model.dialects.keys import Verifier
from eagle.model.dialects.layouts import check_layout, write_layout
from eagle.model.dialects.publish import push_folder
from eagle.model.dialects.speculators import SPECULATORS
from eagle.model.dialects.token_maps import head_tokens
from eagle.model.dialects.weights import HUB_KEYWORDS, read_tensor, read_weights
from eagle.model.head import DraftHead, EagleHead
from eagle.model.support.loading import load_base


def convert_head(
    base: str | PathLike[str],
    head: str | PathLike[str],
    to: str,
    out: str | PathLike[str],
    *,
    capture_layers: Sequence[int] | None = None,
    changes: Mapping[str, Any] | None = None,
    push_to_hub: str | None = None,
    private: bool | None = None,
    **hub: Any,
) -> Path:
    """Write a head in another layout; return its folder.

    Args:
        base: folder or Hub id of the head's target, of which the configuration is read, and the embeddings where the
            head has some of its own.
        head: folder or Hub id of the head, in any dialect.
        to: "eagle", "speculators" (vLLM) or "sglang".
        out: folder, empty or not there.
        capture_layers: layers whose inputs an EAGLE-3 head reads, in place of those that its configuration names.
        changes: flags of its configuration that are wrong (`norm_output`, …, `rope_theta`), with their right values.
        push_to_hub: repository to upload the folder to as well.
        private: whether a repository that is made is private.
        hub: revision (of the head), token, cache_dir, … for the Hub.

    Raises:
        ValueError, FileNotFoundError: a head that is damaged or does not fit, or `out` holds something.
        NotImplementedError: whoever reads the layout would read another head.
        OSError: the Hub cannot be reached, or refuses.
    """
    unknown = sorted(set(hub) - set(HUB_KEYWORDS))
    if unknown:
        raise TypeError(f"unknown arguments {unknown}; beyond the signature: {sorted(HUB_KEYWORDS)}")
    check_layout(to)
    base, head = str(base), str(head)
    described, state = describe(head, **hub), read_weights(head, **hub)
    config = overridden(described.config, capture_layers, changes)
    own = {name: value for name, value in hub.items() if name != "revision"}
    whole_config = AutoConfig.from_pretrained(base, **own)
    target = text_config(whole_config)
    has_embeddings = any(name.endswith("embed_tokens.weight") for name in state)
    embeddings_VD = base_embeddings(base, own) if has_embeddings or to == "speculators" else None
    built = build_head(config, state, target, dialect=described.dialect, embeddings_VD=embeddings_VD)
    if described.dialect is SPECULATORS and to != "speculators":
        _drop_copy(built, embeddings_VD)
    verifier = Verifier(
        base,
        tuple(whole_config.architectures or ()),
        target.num_hidden_layers,
        getattr(target, "max_position_embeddings", None),
        embeddings_VD,
    )
    tokens = head_tokens(head, **hub) if isinstance(built, EagleHead) else None
    folder = write_layout(built, str(out), to, verifier, target, source=head, here=push_to_hub, tokens=tokens)
    if push_to_hub is not None:
        push_folder(folder, push_to_hub, private=private, token=hub.get("token"))
    return folder


def base_embeddings(base: str, hub: Mapping[str, Any]) -> torch.Tensor | None:
    """Return a base model's input embeddings, from its files alone where they are there under their name.

    Args:
        base: folder or Hub id.
        hub: keywords of a download.
    """
    config = AutoConfig.from_pretrained(base, **hub)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    weight = model.get_input_embeddings().weight
    name = next(name for name, parameter in model.named_parameters() if parameter is weight)
    found = read_tensor(base, name, **hub)
    return found if found is not None else readable(load_base(base, {"dtype": "auto", **hub}).get_input_embeddings())


def _drop_copy(head: DraftHead, embeddings_VD: torch.Tensor | None) -> None:
    """Leave out the target's embeddings, which speculators writes into every file, where the head's are equal."""
    own = getattr(head, "embed_tokens", None)
    if own is None or embeddings_VD is None or own.weight.shape != embeddings_VD.shape:
        return
    if torch.equal(own.weight, embeddings_VD):
        del head.embed_tokens


def check(args: SimpleNamespace) -> None:
    """Check the options before anything is loaded.

    Raises:
        ValueError: a private repository has no name.
    """
    if args.private and args.push_to_hub is None:
        raise ValueError("--private: of use with --push-to-hub alone")


def work(args: SimpleNamespace) -> int:
    """Convert a head and say where it is."""
    hub = {"revision": args.revision} if args.revision else {}
    folder = convert_head(
        args.base_model_path,
        args.ea_model_path,
        args.to,
        args.out,
        capture_layers=args.capture_layers,
        changes=dict(args.set),
        push_to_hub=args.push_to_hub,
        private=args.private or None,
        **hub,
    )
    url = f"https://huggingface.co/{args.push_to_hub}" if args.push_to_hub else None
    if args.json:
        sys.stdout.write(json.dumps({"folder": str(folder), "layout": args.to, "url": url}) + "\n")
        return 0
    pushed = f", and at {url}" if url else ""
    sys.stdout.write(
        f"{folder}: the head in the {args.to} layout{pushed}; README.md there has the command that uses it\n"
    )
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    return run(COMMAND, argv)


if __name__ == "__main__":
    raise SystemExit(main())
