"""Speed and acceptance of a pair, in alternating rounds through the public interface.

    eagle bench --base-model-path TARGET --ea-model-path HEAD [HEAD ...]
    eagle bench --synthetic 7b --dtype bfloat16

Every round runs every method once, so that whatever else the machine does falls on all of them; a method's speed is
the median over rounds, its speed-up the median of the rounds' ratios to the faster of `generate` and plain decoding.
Prints a table, with `--split` where the time goes; `--json` gives everything needed to repeat the run, `--plots`
pictures.
"""

import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from eagle.commands.bench import COMMAND
from eagle.commands.running import run as run_command
from eagle.evaluation.measure import Row, measure
from eagle.evaluation.methods import choose_methods, methods
from eagle.evaluation.model_meter import ModelMeter
from eagle.evaluation.pairs import (
    SYNTHETIC_PROMPT,
    BenchPair,
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
from eagle.evaluation.report import check_json, provenance, split_table, table, verdict, write_json
from eagle.model.ea_model import EaModel

__all__ = ["load_pair", "main", "measure", "methods", "provenance", "read_prompts", "table"]


def check(args: SimpleNamespace) -> None:
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
    check_json(args)
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
    args = COMMAND.arguments(["--base-model-path", str(folder / "target"), "--ea-model-path", *heads, *options])
    with opened(args) as pair:
        return pair.base, pair.tokenizer, load_models(pair, args.total_token, args.depth, args.top_k)


def run(pair: BenchPair, args: SimpleNamespace) -> list[Row]:
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


def report(rows: Sequence[Row], args: SimpleNamespace) -> None:
    """Print, write and draw what was asked for."""
    sys.stdout.write(table(rows) + "\n")
    if args.split:
        sys.stdout.write("\n" + split_table(rows) + "\n")
    sys.stdout.write(f"\n{verdict(rows)}\n")
    if args.plots is not None:
        for path in draw_bench(rows, args.plots):
            sys.stdout.write(f"{path}\n")
    write_json(args, {"results": [row.figures() for row in rows]})


def work(args: SimpleNamespace) -> int:
    """Measure and report."""
    with opened(args) as pair:
        rows = run(pair, args)
    report(rows, args)
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    return run_command(COMMAND, argv)


if __name__ == "__main__":
    raise SystemExit(main())
