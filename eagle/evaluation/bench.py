"""Speed and acceptance of a pair, in alternating rounds through the public interface.

    python -m eagle.evaluation.bench --base-model-path TARGET --ea-model-path HEAD [HEAD ...]

Every round runs every method once, so that whatever else the machine does falls on all of them; a method's speed is
the median over rounds, its speed-up the median of the rounds' ratios to the faster of `generate` and plain decoding.
Prints a table; with `--json` a document with everything needed to repeat the run.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import eagle
from eagle.model.ea_model import EaModel
from eagle.model.reference import without_defaults
from eagle.model.stats import GenerationStats

TINY_PAIR = Path("examples/tiny_pair")
BASELINES = ("generate", "plain decoding")


@dataclass(frozen=True)
class Method:
    """A way to generate: ids [1, S] and new tokens -> ids, and what it did (None where nobody counts)."""

    name: str
    run: Callable[[torch.Tensor, int], torch.Tensor]
    stats: Callable[[], GenerationStats | None]


@dataclass
class Row:
    """What one method did over all rounds; `seconds` holds one total per round."""

    name: str
    tokens: int = 0
    steps: int = 0
    row_steps: int = 0
    accepted: int = 0
    ids_equal: bool = True
    seconds: list[float] = field(default_factory=list)
    speedup: float = float("nan")

    @property
    def acceptance_length(self) -> float:
        """τ over all prompts of one round; NaN for `generate`."""
        return 1 + self.accepted / self.row_steps if self.row_steps else float("nan")

    @property
    def tokens_per_second(self) -> float:
        """New tokens per second of the median round."""
        return self.tokens / statistics.median(self.seconds)


def methods(base: Any, models: dict[str, EaModel]) -> list[Method]:
    """Return `generate`, plain decoding and one method per model, all on the same base."""

    neutral = without_defaults(base)  # penalties and samplers of its own would measure something else

    def generate(ids: torch.Tensor, new: int) -> torch.Tensor:
        known = base.generation_config
        config = GenerationConfig(max_new_tokens=new, eos_token_id=known.eos_token_id, pad_token_id=0)
        return neutral.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)

    def drafted(model: EaModel, name: str) -> Method:
        def run(ids: torch.Tensor, new: int) -> torch.Tensor:
            return model.eagenerate(ids, max_new_tokens=new, max_length=ids.shape[1] + new)

        return Method(name, run, lambda: model.stats)

    plain = next(iter(models.values()))

    def undrafted(ids: torch.Tensor, new: int) -> torch.Tensor:
        return plain.naivegenerate(ids, max_new_tokens=new, max_length=ids.shape[1] + new)

    return [
        Method(BASELINES[0], generate, lambda: None),
        Method(BASELINES[1], undrafted, lambda: plain.stats),
        *(drafted(model, name) for name, model in models.items()),
    ]


def measure(chosen: Sequence[Method], prompts: Sequence[torch.Tensor], new: int, rounds: int) -> list[Row]:
    """Run all methods on all prompts in alternating rounds, after one unmeasured warm-up."""
    rows = [Row(method.name) for method in chosen]
    for method in chosen:
        method.run(prompts[0], min(new, 16))
    with tqdm(total=rounds * len(chosen) * len(prompts), unit="run", leave=False, disable=None) as bar:
        for number in range(rounds):
            wanted: list[torch.Tensor] = []
            for method, row in zip(chosen, rows, strict=True):
                row.seconds.append(0.0)
                for index, ids in enumerate(prompts):
                    started = time.perf_counter()
                    out = method.run(ids, new)
                    out[0, -1].item()
                    row.seconds[-1] += time.perf_counter() - started
                    if method is chosen[0]:
                        wanted.append(out)
                    row.ids_equal &= torch.equal(out, wanted[index])
                    if number == 0:
                        _count(row, out.shape[1] - ids.shape[1], method.stats())
                    bar.update()
    fastest = [min(times) for times in zip(*(row.seconds for row in rows if row.name in BASELINES), strict=True)]
    for row in rows:
        row.speedup = statistics.median(best / own for best, own in zip(fastest, row.seconds, strict=True))
    return rows


def _count(row: Row, tokens: int, stats: GenerationStats | None) -> None:
    row.tokens += tokens
    row.steps += stats.steps if stats is not None else tokens
    if stats is not None:
        row.row_steps += stats.row_steps
        row.accepted += sum(stats.accepted_per_step)


def table(rows: Sequence[Row]) -> str:
    """Return the rows as aligned text."""
    lines = [f"{'method':<16}{'tokens':>8}{'steps':>8}{'τ':>8}{'tokens/s':>10}{'speed-up':>10}  ids equal"]
    for row in rows:
        tau = f"{row.acceptance_length:.2f}" if row.row_steps else "–"
        lines.append(
            f"{row.name:<16}{row.tokens:>8}{row.steps:>8}{tau:>8}{row.tokens_per_second:>10.1f}"
            f"{row.speedup:>9.2f}x  {'yes' if row.ids_equal else 'no'}"
        )
    return "\n".join(lines)


def provenance() -> dict[str, Any]:
    """Return what a reader needs to repeat a measurement: versions, device, threads, commit."""
    folder = Path(eagle.__file__).parent
    commit = subprocess.run(["git", "-C", folder, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    names = [line for line in _cpu_info() if line.startswith("model name")]
    return {
        "eagle": eagle.__version__,
        "commit": commit.stdout.strip() or None,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "processor": names[0].split(":")[1].strip() if names else platform.processor(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
    }


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def read_prompts(path: Path, tokenizer: Any, count: int, kind: str | None = None) -> list[torch.Tensor]:
    """Read up to `count` prompts from JSON lines with `text` and optionally `kind`."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    texts = [line["text"] for line in lines if kind is None or line.get("kind") == kind]
    return [_with_bos(tokenizer, tokenizer(text)["input_ids"]) for text in texts[:count]]


def _with_bos(tokenizer: Any, ids: list[int]) -> torch.Tensor:
    bos = tokenizer.bos_token_id
    return torch.tensor([ids if bos is None or ids[:1] == [bos] else [bos, *ids]])


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m eagle.evaluation.bench", description=__doc__.split("\n")[0])
    parser.add_argument("--base-model-path", default=str(TINY_PAIR / "target"))
    parser.add_argument(
        "--ea-model-path",
        nargs="+",
        default=[str(TINY_PAIR / "eagle_head"), str(TINY_PAIR / "eagle3_head")],
        help="heads",
    )
    parser.add_argument("--num-prompts", type=int, default=8)
    parser.add_argument("--max-new-token", type=int, default=128)
    add_common(parser)
    return parser


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add what every benchmark asks: prompts, rounds, tree, dtype, where to write."""
    parser.add_argument("--prompts", type=Path, default=TINY_PAIR / "prompts.jsonl", help="JSON lines with `text`")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--total-token", type=int, default=12)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--top-k", type=int, default=4)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--json", type=Path, default=None, help="also write everything here")


def write_json(args: argparse.Namespace, results: dict[str, Any]) -> None:
    """Write results beside provenance and settings, where `--json` asks for it."""
    if args.json is not None:
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
        document = {"provenance": provenance(), "settings": settings, **results}
        args.json.write_text(json.dumps(document, indent=1).replace("NaN", "null") + "\n")


def load_models(base: Any, args: argparse.Namespace) -> dict[str, EaModel]:
    """Load every head on one base; an EAGLE-1/2 head is measured with the static tree and the dynamic one."""
    models: dict[str, EaModel] = {}
    options = (args.total_token, args.depth, args.top_k)
    for path in args.ea_model_path:
        dynamic = EaModel(None, base, args.base_model_path, path, *options)
        kind = "EAGLE-3" if dynamic.use_eagle3 else "EAGLE-2"
        suffix = f" {Path(path).name}" if kind in models else ""
        if not dynamic.use_eagle3:
            models["EAGLE-1" + suffix] = EaModel(None, base, args.base_model_path, path, *options, tree="static")
        models[kind + suffix] = dynamic
    return models


def load_pair(folder: Path, *options: str) -> tuple[Any, Any, dict[str, EaModel]]:
    """Return base (fp32), tokenizer and models of the tiny pair in `folder`; `options` are this command's own."""
    heads = [str(folder / "eagle_head"), str(folder / "eagle3_head")]
    args = parser().parse_args(["--base-model-path", str(folder / "target"), "--ea-model-path", *heads, *options])
    base = AutoModelForCausalLM.from_pretrained(args.base_model_path, dtype=torch.float32).eval()
    return base, AutoTokenizer.from_pretrained(args.base_model_path), load_models(base, args)


def main(argv: list[str] | None = None) -> int:
    """Measure and report."""
    args = parser().parse_args(argv)
    for name in ("num_prompts", "max_new_token", "rounds"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')}={getattr(args, name)} must be at least 1")
    dtype = getattr(torch, args.dtype)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base = AutoModelForCausalLM.from_pretrained(args.base_model_path, dtype=dtype).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.base_model_path)
    prompts = [ids.to(device) for ids in read_prompts(args.prompts, tokenizer, args.num_prompts)]
    rows = measure(methods(base, load_models(base, args)), prompts, args.max_new_token, args.rounds)
    sys.stdout.write(table(rows) + "\n")
    results = [
        asdict(row) | {"acceptance_length": row.acceptance_length, "tokens_per_second": row.tokens_per_second}
        for row in rows
    ]
    write_json(args, {"results": results})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
