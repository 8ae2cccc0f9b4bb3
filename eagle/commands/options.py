"""Options that several commands share, so that one thing has one name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from eagle.commands.help import Section
from eagle.commands.line import Several

# What the modules of these names know, said here so that help and completion need not load them; a test compares.
DTYPES = ("float32", "bfloat16", "float16")
SHAPES = ("tiny", "46m", "135m", "850m", "7b", "8b", "13b")
METHODS = ("generate", "plain", "lookup", "assistant", "eagle1", "eagle2", "eagle3")
LAYOUTS = ("eagle", "speculators", "sglang")
FLAGS = ("norm_before_fc", "fc_norm", "norm_before_residual", "norm_output")
PREFILL_CHUNK = 8192

TINY_PROMPTS = Path("examples/tiny_pair/prompts.jsonl")
STDOUT = Path("-")


def number(name: str, help: str = "", default: int | None = None) -> click.Option:
    """Return an option that takes a whole number."""
    return click.Option(name.split(), type=int, default=default, help=help)


def real(name: str, help: str = "", default: float | None = None) -> click.Option:
    """Return an option that takes any number."""
    return click.Option(name.split(), type=float, default=default, help=help)


def word(name: str, help: str = "", **settings: Any) -> click.Option:
    """Return an option that takes a text."""
    return click.Option(name.split(), help=help, **settings)


def choice(name: str, choices: Sequence[str], help: str = "", default: str | None = None) -> click.Option:
    """Return an option that takes one of some names."""
    return click.Option(name.split(), type=click.Choice(choices), default=default, help=help)


def switch(name: str, help: str = "") -> click.Option:
    """Return an option that is on where it is given."""
    return click.Option(name.split(), is_flag=True, default=False, help=help)


def file(name: str, help: str = "", default: Path | None = None, **settings: Any) -> click.Option:
    """Return an option that takes the path of a file."""
    return click.Option(name.split(), type=click.Path(path_type=Path), default=default, help=help, **settings)


def model(name: str, help: str, *, required: bool = False) -> click.Option:
    """Return an option that takes a model: a folder or a Hub id."""
    return click.Option(name.split(), type=click.Path(), metavar="MODEL", required=required, help=help)


def json_file() -> click.Option:
    """Return `--json` of a command without positional arguments: alone it prints, with a FILE it writes there."""
    return click.Option(
        ["--json"],
        type=click.Path(path_type=Path),
        is_flag=False,
        flag_value=str(STDOUT),
        metavar="[FILE]",
        help="also print everything as one JSON document, the last line; or write it to FILE",
    )


def json_line(what: str) -> click.Option:
    """Return `--json` of a command that takes positional arguments, or prints nothing else."""
    return switch("--json", f"print {what} as one JSON document, the last line")


def quiet() -> click.Option:
    """Return `--quiet`."""
    return switch("--quiet", "no progress bars and no notes, only warnings")


def model_options(*more: click.Option, dtype: str = "float32") -> Section:
    """Return which models are measured and how they run."""
    options = (
        model("--base-model-path --base", "folder or Hub id of the base model"),
        Several(
            ["--ea-model-path", "--head"],
            type=click.Path(),
            metavar="MODEL",
            help="its heads; without one only methods that need none",
        ),
        switch("--no-token-map", "EAGLE-1/2 heads draft from all tokens"),
        choice("--dtype", DTYPES, default=dtype),
        word("--device", "cuda where there is one, else cpu"),
        switch("--compile", "pack linear layers for this processor (CPU)"),
        switch("--cuda-graphs", "run steps as CUDA graphs"),
    )
    return Section("The pair (default: the shipped tiny one)", (*options, *more))


def pair_options(*more: click.Option, dtype: str = "float32") -> Section:
    """Return the same, and what makes a synthetic pair."""
    return model_options(
        choice("--synthetic", SHAPES, "make a pair of this shape instead"),
        choice("--kind", ("eagle", "eagle3"), "of the synthetic pair, eagle if not given"),
        real("--noise", "on the synthetic head: 0 accepts all, more accepts less"),
        number("--draft-vocabulary", "tokens that a synthetic head drafts"),
        *more,
        dtype=dtype,
    )


# What a command without these options has in their place.
NO_SYNTHETIC_PAIR = dict.fromkeys(("synthetic", "kind", "noise", "draft_vocabulary"))
NO_ASSISTANT = {"assistant_model_path": None}


def assistant() -> click.Option:
    """Return the smaller model that drafts in transformers' assisted generation."""
    return model("--assistant-model-path", "a smaller model of the same vocabulary, to draft with")


def prompts() -> click.Option:
    """Return where texts come from."""
    return file("--prompts", "JSON lines with `text`, `messages` or `turns`", TINY_PROMPTS)


def tree_limits(depth: int = 4, top_k: int = 4) -> tuple[click.Option, ...]:
    """Return what bounds every tree."""
    return (
        number("--depth", "expansions of the tree after the first", depth),
        number("--top-k", "children per expanded node", top_k),
    )


def tree(total_token: int = 12, depth: int = 4, top_k: int = 4) -> tuple[click.Option, ...]:
    """Return how one tree grows."""
    return (
        number("--total-token", "nodes of the tree, root included; -1: automatic", total_token),
        *tree_limits(depth, top_k),
    )


def trees(default: Sequence[int]) -> Several:
    """Return sizes of trees."""
    return Several(["--total-token"], type=int, default=list(default), help="sizes of trees; -1: automatic")


def methods() -> Several:
    """Return which methods are compared."""
    return Several(["--methods"], type=click.Choice(METHODS), help="all that the heads allow, or some of")


def talking_pair() -> Section:
    """Return which pair a person talks to, and how it is loaded."""
    options = (
        model("--base-model-path --base", "folder or Hub id of the base model"),
        model("--ea-model-path --head", "folder or Hub id of its draft head"),
        choice("--dtype", ("auto", *DTYPES), "auto: as it was saved", "auto"),
        word("--device-map", "auto, cpu, cuda, …; auto where there is a GPU, else cpu"),
        choice("--attn-implementation", ("sdpa", "eager")),
        switch("--trust-remote-code", "run code that comes with the model"),
        switch("--compile", "pack linear layers for this processor (CPU)"),
        switch("--cuda-graphs", "run steps as CUDA graphs"),
        word("--template", "one of FastChat's, where the tokenizer has none, or another than its own"),
        *tree(-1, 7, 10),
    )
    return Section("The pair (default: the chat pair once its target is made, else the tiny one)", options)


def answers(new: int) -> Section:
    """Return how an answer is made."""
    options = (
        number("--max-new-token --max-new-tokens", "most tokens of an answer", new),
        real("--temperature", "0: greedy", 0.0),
        real("--top-p", "sample from the likeliest tokens that make up this probability; 1: from all", 1.0),
        number("--sampling-top-k", "sample from so many likeliest tokens; 0: from all (--top-k is the tree's)", 0),
        number("--seed", "of sampling"),
        Several(["--stop"], metavar="TEXT", help="texts that end an answer"),
        click.Option(
            ["--eagle/--no-eagle"], default=True, show_default=False, help="draft with the head, or decode plainly"
        ),
    )
    return Section("The answer", options)
