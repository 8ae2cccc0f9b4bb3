"""What `reuse_prefix` saves: one conversation, turn by turn, with and without it, in alternating rounds.

    eagle conversation --base-model-path TARGET --ea-model-path HEAD

Every turn's prompt is all that was said before plus the turn's own text. Both ways must give the same ids in fp32.
"""

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from types import SimpleNamespace

import torch

from eagle import progress
from eagle.commands.conversation import COMMAND
from eagle.commands.running import run
from eagle.evaluation.pairs import TINY_HEADS, TINY_PAIR, at_least, check_tree
from eagle.evaluation.prompts import read_prompts
from eagle.evaluation.report import check_json, write_json
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
    for _ in progress.bar(range(rounds), unit="round", leave=False):
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


def check(args: SimpleNamespace) -> None:
    """Check all options before anything is loaded.

    Raises:
        ValueError: naming the option.
    """
    at_least(1, args, "turns", "max_new_token", "rounds")
    check_tree([args.total_token], args.depth, args.top_k)
    if (args.base_model_path is None) != (args.ea_model_path is None):
        raise ValueError("--base-model-path and --ea-model-path go together")
    if not args.prompts.is_file():
        raise ValueError(f"--prompts={args.prompts} is not a file")
    check_json(args)


def work(args: SimpleNamespace) -> int:
    """Measure and report."""
    tree = {"total_token": args.total_token, "depth": args.depth, "top_k": args.top_k}
    paths = (args.base_model_path or str(TINY_PAIR / "target"), args.ea_model_path or TINY_HEADS[1])
    model = EaModel.from_pretrained(None, *paths, **tree, dtype=getattr(torch, args.dtype)).eval()
    texts = read_prompts(args.prompts, model.tokenizer, args.turns)
    turns, equal = measure(model, texts, args.max_new_token, args.rounds)
    sys.stdout.write(f"{table(turns)}\nids equal: {'yes' if equal else 'no'}\n")
    write_json(args, {"ids_equal": equal, "turns": [asdict(turn) for turn in turns]})
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    return run(COMMAND, argv)


if __name__ == "__main__":
    raise SystemExit(main())
