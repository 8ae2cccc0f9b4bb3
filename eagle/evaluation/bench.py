"""Speed and acceptance of a pair, in alternating rounds through the public interface.

    eagle bench --base-model-path TARGET --ea-model-path HEAD [HEAD ...]
    eagle bench --synthetic 7b --dtype bfloat16

Every round runs every method once, so that whatever else the machine does falls on all of them; a method's speed is
the median over rounds, its speed-up the median of the rounds' ratios to the faster of `generate` and plain decoding.
Prints a table, with `--split` where the time goes; with `--json` writes everything needed to repeat the run, with
`--plots` pictures.
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from eagle.evaluation.measure import Row, measure
from eagle.evaluation.methods import NAMES, choose_methods, methods
from eagle.evaluation.model_meter import ModelMeter
from eagle.evaluation.pairs import (
    SYNTHETIC_PROMPT,
    BenchPair,
    add_assistant,
    add_pair_options,
    add_prompts,
    add_tree_limits,
    at_least,
    check_choices,
    check_pair,
    check_prompts,
    check_tree,
    load_models,
    opened,
    positions,
)
from eagle.evaluation.plots import check_plotting, draw_bench
from eagle.evaluation.prompts import batched, read_prompts
from eagle.evaluation.report import provenance, split_table, table, verdict, write_json
from eagle.model.ea_model import EaModel

__all__ = ["load_pair", "main", "measure", "methods", "provenance", "read_prompts", "table"]


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="eagle bench", description=(__doc__ or "").split("\n")[0])
    add_pair_options(parser)
    add_assistant(parser)
    group = parser.add_argument_group("what is run")
    group.add_argument("--methods", nargs="+", choices=tuple(NAMES), help="default: all that the heads allow")
    group.add_argument("--total-token", type=int, nargs="+", default=[12], help="sizes of trees; -1: automatic")
    add_tree_limits(parser)
    add_prompts(parser)
    group.add_argument("--num-prompts", type=int, default=8, help="per round")
    group.add_argument("--batch-sizes", type=int, nargs="+", default=[1])
    group.add_argument("--prompt-lengths", type=int, nargs="+", help="tokens; default: prompts as they are")
    group.add_argument("--max-new-token", "--max-new-tokens", type=int, default=128)
    group.add_argument("--rounds", type=int, default=5)
    group.add_argument("--temperature", type=float, default=0.0)
    group.add_argument("--seed", type=int, default=0, help="before every run, for sampling")
    group = parser.add_argument_group("what comes out")
    group.add_argument("--split", action="store_true", help="also print where the time goes")
    group.add_argument("--json", type=Path, help="also write everything here")
    group.add_argument("--plots", type=Path, help="also draw PNG files into this folder")
    return parser


def check(args: argparse.Namespace) -> None:
    """Check all options before anything is loaded.

    Raises:
        ValueError: naming the option.
        ImportError: `--plots` without matplotlib.
    """
    at_least(1, args, "num_prompts", "max_new_token", "rounds", "batch_sizes", "prompt_lengths")
    at_least(0, args, "temperature")
    check_tree(args.total_token, args.depth, args.top_k)
    check_pair(args, needs_heads=False)
    check_prompts(args)
    if args.json is not None and not args.json.absolute().parent.is_dir():
        raise ValueError(f"--json={args.json}: there is no such folder")
    check_choices(args, "methods", "total_token", "batch_sizes", "prompt_lengths")
    if args.synthetic is not None and args.methods is not None:
        foreign = {"eagle1", "eagle2"} if args.kind == "eagle3" else {"eagle3"}
        if wrong := sorted(foreign & set(args.methods)):
            raise ValueError(f"--methods {wrong[0]} does not go with --kind {args.kind or 'eagle'}")
    if args.plots is not None:
        check_plotting()


def load_pair(folder: Path, *options: str) -> tuple[Any, Any, dict[str, EaModel]]:
    """Return base (fp32), tokenizer and models of the tiny pair in `folder`; `options` are this command's own."""
    heads = [str(folder / "eagle_head"), str(folder / "eagle3_head")]
    args = parser().parse_args(["--base-model-path", str(folder / "target"), "--ea-model-path", *heads, *options])
    with opened(args) as pair:
        return pair.base, pair.tokenizer, load_models(pair, args.total_token, args.depth, args.top_k)


def run(pair: BenchPair, args: argparse.Namespace) -> list[Row]:
    """Measure every batch size and prompt length, one after another."""
    models = load_models(pair, args.total_token, args.depth, args.top_k)
    chosen = choose_methods(pair.base, models, args.methods, args.temperature, pair.assistant)
    lengths = args.prompt_lengths or [None if pair.tokenizer is not None else SYNTHETIC_PROMPT]
    room = positions(pair.base, models)
    longest = max(length or 0 for length in lengths) + args.max_new_token
    if room is not None and longest > room:
        raise ValueError(f"prompt and new tokens make {longest} tokens, the base model has {room} positions")
    meter = ModelMeter(pair.base, models.values())
    rows: list[Row] = []
    for batch, length in product(args.batch_sizes, lengths):
        prompts = batched(pair.prompts(args, max(args.num_prompts, batch), length), batch)
        able = [method for method in chosen if batch == 1 or not method.one_row]
        measured = measure(able, prompts, args.max_new_token, args.rounds, seed=args.seed, meter=meter)
        for row in measured:
            row.prompt_length = length
        rows += measured
    return rows


def report(rows: Sequence[Row], args: argparse.Namespace) -> None:
    """Print, write and draw what was asked for."""
    sys.stdout.write(table(rows) + "\n")
    if args.split:
        sys.stdout.write("\n" + split_table(rows) + "\n")
    sys.stdout.write(f"\n{verdict(rows)}\n")
    write_json(args, {"results": [row.figures() for row in rows]})
    if args.plots is not None:
        for path in draw_bench(rows, args.plots):
            sys.stdout.write(f"{path}\n")


def main(argv: list[str] | None = None) -> int:
    """Measure and report."""
    options = parser()
    args = options.parse_args(argv)
    try:
        check(args)
    except (ValueError, ImportError) as refusal:
        options.error(str(refusal))
    try:
        with opened(args) as pair:
            rows = run(pair, args)
    except (ValueError, NotImplementedError, OSError) as refusal:
        options.error(str(refusal))
    report(rows, args)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
