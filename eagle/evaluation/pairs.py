"""The pair under measurement: loaded from paths, or synthetic of any shape; its prompts, and checks of its options."""

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoTokenizer

from eagle.evaluation.prompts import of_length, random_prompts, read_prompts
from eagle.evaluation.synthetic import SHAPES, synthetic_eagle3_head, synthetic_eagle_head, synthetic_target
from eagle.model.configs import tree_config
from eagle.model.dialects.checkpoint import read_config, save_head
from eagle.model.dialects.token_maps import write_token_map
from eagle.model.ea_model import EaModel
from eagle.model.support.loading import load_base
from eagle.model.target import TargetModel

TINY_PAIR = Path("examples/tiny_pair")
TINY_HEADS = (str(TINY_PAIR / "eagle_head"), str(TINY_PAIR / "eagle3_head"))
SYNTHETIC_PROMPT = 64  # tokens, where no length is asked for


@dataclass(frozen=True)
class BenchPair:
    """A base model and the folders of its heads; a synthetic pair has no tokenizer, and its folder is temporary.

    `options` are those of `EaModel` that say how both run (`compile`, `cuda_graphs`, `token_map`); `assistant` is a
    smaller model to draft with, where one was named.
    """

    base: Any
    path: str
    heads: tuple[str, ...]
    tokenizer: Any | None
    options: dict[str, Any] = field(default_factory=dict)
    assistant: Any | None = None

    def model(self, head: str, total_token: int, depth: int, top_k: int, tree: str = "dynamic") -> EaModel:
        """Put one of the heads on the base."""
        return EaModel(None, self.base, self.path, head, total_token, depth, top_k, tree=tree, **self.options)

    def prompts(self, args: SimpleNamespace, count: int, length: int | None) -> list[torch.Tensor]:
        """Return up to `count` prompts [1, S] on the base's device, of `length` tokens or as they are."""
        if self.tokenizer is None:
            rows = random_prompts(count, length or SYNTHETIC_PROMPT, self.base.config.vocab_size)
        else:
            rows = read_prompts(args.prompts, self.tokenizer, count)
            rows = rows if length is None else of_length(rows, length, self.tokenizer.bos_token_id)
        return [row.to(self.base.device) for row in rows]


def at_least(low: float, args: object, *names: str) -> None:
    """Check options, each a number or several.

    Raises:
        ValueError: one is below `low`; the message names it.
    """
    for name in names:
        value = getattr(args, name)
        for one in value if isinstance(value, list) else [value]:
            if one is not None and not low <= one < math.inf:
                raise ValueError(f"--{name.replace('_', '-')}={one} must be at least {low:g}")


def check_pair(args: SimpleNamespace, *, needs_heads: bool = True) -> None:
    """Check which pair is asked for before anything is loaded.

    Raises:
        ValueError: options that exclude each other or are out of range.
    """
    own = [name for name in ("kind", "noise", "draft_vocabulary") if getattr(args, name) is not None]
    if args.synthetic is None and own:
        raise ValueError(f"--{own[0].replace('_', '-')} shapes a synthetic pair: add --synthetic")
    if args.synthetic is not None and (args.base_model_path or args.ea_model_path):
        raise ValueError("--synthetic makes both models: leave out --base-model-path and --ea-model-path")
    if args.ea_model_path is not None and args.base_model_path is None:
        raise ValueError("--ea-model-path needs its base: add --base-model-path")
    if args.base_model_path is not None and args.ea_model_path is None:
        if needs_heads:
            raise ValueError("--base-model-path needs a head here: add --ea-model-path")
        if args.compile or args.cuda_graphs:
            raise ValueError("--compile and --cuda-graphs speed up a pair: add --ea-model-path")
    if args.cuda_graphs and not torch.cuda.is_available():
        raise ValueError("--cuda-graphs: there is no CUDA device here")
    at_least(0, args, "noise")
    at_least(1, args, "draft_vocabulary")
    if args.synthetic is not None:
        most = SHAPES[args.synthetic].vocab_size - 1
        if (args.draft_vocabulary or 0) > most:
            raise ValueError(f"--draft-vocabulary={args.draft_vocabulary} must be at most {most}")


def check_choices(args: SimpleNamespace, *names: str) -> None:
    """Check options that take several values each, `--methods` among them.

    Raises:
        ValueError: one names something twice, or generate is not among the methods.
    """
    for name in names:
        values = getattr(args, name) or []
        if len(set(values)) < len(values):
            raise ValueError(f"--{name.replace('_', '-')} names something twice: {values}")
    if args.methods is not None and "generate" not in args.methods:
        raise ValueError("--methods must hold generate: its ids and its speed are what the others are held to")


def check_prompts(args: SimpleNamespace) -> None:
    """Check `--prompts`, which a synthetic pair does not read.

    Raises:
        ValueError: it is not a file.
    """
    if args.synthetic is None and not args.prompts.is_file():
        raise ValueError(f"--prompts={args.prompts} is not a file")


def check_tree(total_tokens: Sequence[int], depth: int, top_k: int) -> None:
    """Check a tree's bounds by building its configuration; -1 stands for any size.

    Raises:
        ValueError: see `TreeConfig`.
    """
    for total_token in total_tokens:
        tree_config(total_token, depth, top_k, 1.0)


def device_of(args: SimpleNamespace) -> torch.device:
    """Return where the pair runs: as asked, else on a GPU where there is one."""
    return torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))


@contextmanager
def opened(args: SimpleNamespace, default_heads: Sequence[str] = TINY_HEADS) -> Iterator[BenchPair]:
    """Load or make the pair; models must be put together within the block.

    Args:
        args: of the command.
        default_heads: those of the shipped pair, where no model is named.
    """
    device, dtype = device_of(args), getattr(torch, args.dtype)
    options = {"compile": args.compile, "cuda_graphs": args.cuda_graphs}
    if args.no_token_map:
        options["token_map"] = False
    if args.synthetic is None:
        path = args.base_model_path or str(TINY_PAIR / "target")
        heads = tuple(args.ea_model_path or (default_heads if args.base_model_path is None else ()))
        for head in heads:
            read_config(head)  # a missing head is found before minutes of loading
        base, assistant = load_base(path, {"dtype": dtype}).to(device).eval(), None
        if args.assistant_model_path is not None:
            assistant = load_base(args.assistant_model_path, {"dtype": dtype}).to(device).eval()
            _check_assistant(base, assistant)
        yield BenchPair(base, path, heads, AutoTokenizer.from_pretrained(path), options, assistant)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield replace(_synthetic(args, dtype, device, folder), options=options)


def _check_assistant(base: Any, assistant: Any) -> None:
    own, other = base.config.get_text_config().vocab_size, assistant.config.get_text_config().vocab_size
    if own != other:
        raise ValueError(f"--assistant-model-path has a vocabulary of {other} tokens, the base one of {own}")


def _synthetic(args: SimpleNamespace, dtype: torch.dtype, device: torch.device, folder: str) -> BenchPair:
    kind, vocabulary = args.kind or "eagle", args.draft_vocabulary
    base = synthetic_target(SHAPES[args.synthetic], kind, generated=vocabulary, dtype=dtype, device=device)
    if kind == "eagle":
        save_head(synthetic_eagle_head(base, noise=args.noise or 0.0), folder)
        if vocabulary is not None:
            write_token_map(Path(folder), torch.arange(1, vocabulary + 1))
    else:
        save_head(synthetic_eagle3_head(base, draft_vocabulary=vocabulary, noise=args.noise or 0.0), folder)
    return BenchPair(base, f"synthetic {args.synthetic}", (folder,), None)


def positions(base: Any, models: dict[str, EaModel]) -> int | None:
    """Return how many tokens a row may have; None where the base knows no limit."""
    target = next(iter(models.values())).target if models else TargetModel(base)
    return target.last_position


def load_models(pair: BenchPair, total_tokens: Sequence[int], depth: int, top_k: int) -> dict[str, EaModel]:
    """Put every head on the base, by name: the static tree of EAGLE-1/2 heads, and dynamic ones of every size.

    Args:
        pair: base and heads.
        total_tokens: sizes of dynamic trees, -1 for an automatic one; several are told apart as "EAGLE-2 [26]".
        depth, top_k: what bounds the dynamic trees.
    """
    models: dict[str, EaModel] = {}
    for folder in pair.heads:
        first = pair.model(folder, 2, depth, top_k)  # tells the kind; the others share its weights
        kind = "EAGLE-3" if first.use_eagle3 else "EAGLE-2"
        clash = any(name.split()[0] == kind for name in models)
        suffix = f" {Path(folder).name}" if clash else ""
        made: dict[str, EaModel] = {}
        if not first.use_eagle3:
            made["EAGLE-1" + suffix] = pair.model(folder, 2, depth, top_k, "static")
        for total_token in total_tokens:
            size = f" [{'auto' if total_token == -1 else total_token}]"
            label = size if len(total_tokens) > 1 or total_token == -1 else ""
            made[kind + suffix + label] = pair.model(folder, total_token, depth, top_k)
        for model in made.values():
            model.ea_layer.head, model.ea_layer.packed = first.ea_layer.head, first.ea_layer.packed
            model._packed = first._packed  # else the heads that were replaced stay in memory
        models |= made
    return models
