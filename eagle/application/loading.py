"""Which pair a person talks to, and loading it as the options of a command say."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import eagle
from eagle.application.session import Session, SessionSettings
from eagle.model.configs import tree_config
from eagle.model.ea_model import EaModel

# Base and head; the first's base is made by a script and does not come with the repository.
PAIRS = (
    (Path("build/chat_pair/target"), Path("examples/chat_pair/eagle3_head")),
    (Path("examples/tiny_pair/target"), Path("examples/tiny_pair/eagle3_head")),
)


def check_pair(args: SimpleNamespace) -> None:
    """Check what would only be found after loading.

    Raises:
        ValueError: a path without the other one, no pair to be found, or a tree out of its range.
    """
    paths_of(args)
    tree_config(args.total_token, args.depth, args.top_k, 1.0)


def paths_of(args: SimpleNamespace) -> tuple[str, str]:
    """Return where base and head are: as asked, else those of a repository around, or of the one installed from.

    Raises:
        ValueError: one path without the other, or none and no pair to be found.
    """
    if (args.base_model_path is None) != (args.ea_model_path is None):
        raise ValueError("--base-model-path and --ea-model-path go together: a head is made for one base")
    if args.base_model_path is not None:
        return args.base_model_path, args.ea_model_path
    for base, head in PAIRS:
        for root in (Path(), Path(eagle.__file__).parents[1]):
            if (root / base / "config.json").is_file() and (root / head / "config.json").is_file():
                return str(root / base), str(root / head)
    raise ValueError("no pair is shipped with an installed package: add --base-model-path and --ea-model-path")


def settings_of(args: SimpleNamespace) -> SessionSettings:
    """Return how answers are made.

    Raises:
        ValueError: a value out of its range.
    """
    return SessionSettings(
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.sampling_top_k,
        max_new_tokens=args.max_new_token,
        stop=tuple(args.stop or ()),
        drafts=args.eagle,
        seed=args.seed,
    )


def load_session(args: SimpleNamespace) -> Session:
    """Load the pair.

    Raises:
        ValueError, OSError, NotImplementedError, ImportError: see `EaModel.from_pretrained` and `Session`.
    """
    base, head = paths_of(args)
    options: dict[str, Any] = {"dtype": args.dtype}
    wanted = {
        "device_map": args.device_map or ("auto" if torch.accelerator.is_available() else None),
        "attn_implementation": args.attn_implementation,
        "trust_remote_code": args.trust_remote_code or None,
    }
    options |= {name: value for name, value in wanted.items() if value is not None}
    options |= {"total_token": args.total_token, "depth": args.depth, "top_k": args.top_k}
    options |= {"compile": args.compile, "cuda_graphs": args.cuda_graphs}
    model = EaModel.from_pretrained(base_model_path=base, ea_model_path=head, **options)
    return Session(model.eval(), args.template)
