"""See EAGLE at work on the tiny pair: drafted tokens in colour, then speeds and whether the ids are equal.

    python examples/quickstart.py            # or: make demo

Green tokens were drafted by the head and accepted by the target; plain ones the target chose itself. The numbers of a
2-core machine differ from run to run; the ids do not.
"""

import argparse
import os
import sys
from pathlib import Path

import torch
from transformers.utils import logging

from eagle import EaModel
from eagle.evaluation.bench import load_pair, measure, methods, read_prompts, table
from eagle.evaluation.prompts import batched

PAIR = Path(__file__).parent / "tiny_pair"
GREEN, GREY, PLAIN = "\033[32m", "\033[90m", "\033[0m"


def show(model: EaModel, prompt: torch.Tensor, new: int, colours: bool) -> None:
    """Print a continuation as it comes, one step at a time."""
    green, grey, plain = (GREEN, GREY, PLAIN) if colours else ("[", "", "]")
    end = plain if colours else ""
    decode = model.tokenizer.decode
    sys.stdout.write(f"{grey}{decode(prompt[0, 1:])}{end}")
    seen = prompt.shape[1]
    for ids in model.ea_generate(prompt, max_new_tokens=new):
        *drafted, own = ids[0, seen:].tolist()
        sys.stdout.write((f"{green}{decode(drafted)}{plain}" if drafted else "") + decode([own]))
        sys.stdout.flush()
        seen = ids.shape[1]
    stats = model.stats
    sys.stdout.write(
        f"\n\n{stats.new_tokens} tokens in {stats.steps} steps after the prompt: "
        f"{stats.acceptance_length:.2f} tokens per step (τ)\n\n"
    )


def main(argv: list[str] | None = None) -> int:
    """Show one continuation and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-new-token", type=int, default=96)
    parser.add_argument("--num-prompts", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    base, tokenizer, models = load_pair(PAIR)
    prompts = read_prompts(PAIR / "prompts.jsonl", tokenizer, args.num_prompts)
    colours = "NO_COLOR" not in os.environ and (sys.stdout.isatty() or "FORCE_COLOR" in os.environ)
    show(models["EAGLE-3"], prompts[0], args.max_new_token, colours)
    rows = measure(methods(base, models), batched(prompts), args.max_new_token, args.rounds)
    sys.stdout.write(table(rows) + "\n")
    return 0 if all(row.ids_equal for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
