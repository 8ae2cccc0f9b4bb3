"""What `reuse_prefix` saves: one conversation, turn by turn, with and without it, in alternating rounds.

    python -m eagle.evaluation.conversation --base-model-path TARGET --ea-model-path HEAD

Every turn's prompt is all that was said before plus the turn's own text. Both ways must give the same ids in fp32.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from eagle.evaluation.pairs import DTYPES, TINY_PAIR, add_prompts, add_tree
from eagle.evaluation.prompts import read_prompts
from eagle.evaluation.report import write_json
from eagle.model.cache_reuse import Prefix
from eagle.model.ea_model import EaModel

WAYS = ("afresh", "reusing")


@dataclass
class Turn:
    """One turn: prompt tokens, tokens run by each way, seconds until the first token and in all, one per round."""

    prompt: int = 0
    run: dict[str, int] = field(default_factory=dict)
    first_token: dict[str, list[float]] = field(default_factory=lambda: {way: [] for way in WAYS})
    seconds: dict[str, list[float]] = field(default_factory=lambda: {way: [] for way in WAYS})

    def saved(self, times: dict[str, list[float]]) -> float:
        """Return the median over rounds of the time afresh to the time reusing."""
        return statistics.median(a / b for a, b in zip(times["afresh"], times["reusing"], strict=True))


def measure(model: EaModel, texts: Sequence[torch.Tensor], new: int, rounds: int) -> tuple[list[Turn], bool]:
    """Return every turn's figures and whether both ways said the same in every round."""
    turns, equal = [Turn() for _ in texts], True
    model.eagenerate(texts[0], max_new_tokens=8)  # warm
    for _ in tqdm(range(rounds), unit="round", leave=False, disable=None):
        said = dict.fromkeys(WAYS, texts[0][:, :0])
        prefix = Prefix()
        for turn, text in zip(turns, texts, strict=True):
            for way in WAYS:
                prompt = torch.cat([said[way], text], 1)
                started = time.perf_counter()
                reused = prefix if way == "reusing" else None
                said[way] = model.eagenerate(prompt, max_new_tokens=new, max_length=10**9, reuse_prefix=reused)
                turn.seconds[way].append(time.perf_counter() - started)
                turn.first_token[way].append(model.stats.prefill_seconds)
                turn.prompt, turn.run[way] = prompt.shape[1], model.stats.prefilled_tokens
            equal &= torch.equal(said["afresh"], said["reusing"])
    return turns, equal


def table(turns: Sequence[Turn]) -> str:
    """Return the turns as aligned text."""
    lines = [f"{'turn':>4}{'prompt':>8}{'run':>6}{'first token, ms':>24}{'':>8}{'turn, ms':>18}"]
    for number, turn in enumerate(turns, start=1):
        columns = ""
        for times in (turn.first_token, turn.seconds):
            before, after = (1000 * statistics.median(times[way]) for way in WAYS)
            columns += f"{before:>12.1f} → {after:>7.1f}{turn.saved(times):>7.2f}x"
        lines.append(f"{number:>4}{turn.prompt:>8}{turn.run['reusing']:>6}{columns}")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m eagle.evaluation.conversation", description=__doc__.split("\n")[0])
    parser.add_argument("--base-model-path", default=str(TINY_PAIR / "target"))
    parser.add_argument("--ea-model-path", default=str(TINY_PAIR / "eagle3_head"))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--max-new-token", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--json", type=Path, help="also write everything here")
    add_tree(parser)
    add_prompts(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure and report."""
    options = parser()
    args = options.parse_args(argv)
    for name in ("turns", "max_new_token", "rounds"):
        if getattr(args, name) < 1:
            options.error(f"--{name.replace('_', '-')}={getattr(args, name)} must be at least 1")
    tree = {"total_token": args.total_token, "depth": args.depth, "top_k": args.top_k}
    paths = (args.base_model_path, args.ea_model_path)
    model = EaModel.from_pretrained(None, *paths, **tree, dtype=getattr(torch, args.dtype)).eval()
    texts = read_prompts(args.prompts, model.tokenizer, args.turns)
    turns, equal = measure(model, texts, args.max_new_token, args.rounds)
    sys.stdout.write(f"{table(turns)}\nids equal: {'yes' if equal else 'no'}\n")
    write_json(args, {"ids_equal": equal, "turns": [asdict(turn) for turn in turns]})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
