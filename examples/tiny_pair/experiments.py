"""Train variants of the tiny pair's heads on equal terms, measure them on held-out prompts, and compare them.

    python examples/tiny_pair/experiments.py --out build/experiments --jobs 14

A folder per variant below `--out` holds its head, `metrics.jsonl`, `log.txt` and `result.json`; variants that have a
result are not trained again. `experiments.json` and the table that is printed say, for every variant, the acceptance
length τ as a tree of 26 nodes (greedy, and at temperature 1) and as a chain of 8, what it gains on its base with a 95 %
interval (a bootstrap over prompts, the same ones for both), and how often the chain's 1st, 2nd, … draft is accepted if
those before it were. In fp32 every variant writes the same text, so differences are those of the heads alone.
"""

import argparse
import gc
import json
import multiprocessing
import os
import sys
import time
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
from own_answers import own_answers
from variants import NAMES, RATES, SETTINGS, USUAL, Variant, rate_name, variants

from eagle.data.folder import load
from eagle.evaluation.bench import provenance, read_prompts
from eagle.evaluation.prompts import batched
from eagle.files import write_text
from eagle.model.ea_model import EaModel
from eagle.model.support.loading import load_base, load_tokenizer
from eagle.train.main import main as train

PAIR = Path(__file__).parent
TARGET = PAIR / "target"
RESULT, OWN = "result.json", "own-answers"
RESAMPLED = 2000
# Equal for all heads.
SHARED = {
    "optimizer": "muon",
    "weight_decay": 0.01,
    "warmup_steps": 30,
    "max_grad_norm": 1.0,
    "save_every": 1_000_000,  # once, at the end
    "log_every": 61,
}
# How a head is measured: its tree, and the temperature.
MODES: dict[str, tuple[dict[str, int], float]] = {
    "tree": ({"total_token": 26}, 0.0),
    "chain": ({"total_token": 9, "depth": 7, "top_k": 1}, 0.0),
    "tree T=1": ({"total_token": 26}, 1.0),
}


@dataclass(frozen=True)
class Task:
    """A variant with nothing left to choose, or the target's own answers: what a worker is told.

    Attributes:
        name: of its folder.
        base: name of the variant it is compared with; None for the answers, and for what is compared with nothing.
        settings: of the training run; empty for the answers.
    """

    name: str
    base: str | None
    settings: dict[str, Any]


def task_of(variant: Variant, rate: float, args: argparse.Namespace) -> Task:
    """Return a variant's training run at a rate."""
    data = args.data / "train" if variant.data == "train" else args.out / OWN / variant.data
    settings: dict[str, Any] = {"kind": variant.kind, "basepath": str(TARGET), "tmpdir": str(data), "lr": rate}
    settings |= SHARED | {"bs": args.bs, "max_steps": args.steps * variant.times, "mixed_precision": args.precision}
    settings |= SETTINGS[variant.kind] | variant.changes
    if variant.output_rate is not None:
        settings["lm_head_lr"] = variant.output_rate * rate
    base = variant.base or rate_name(variant.kind, rate)
    return Task(variant.name, base if base != variant.name else None, settings)


def flags(settings: dict[str, Any]) -> list[str]:
    """Return settings as arguments of `python -m eagle.train.main`."""
    made = []
    for name, value in settings.items():
        if isinstance(value, list):
            made += [f"--{name}", *map(str, value)]
        elif value is not None:
            made.append(f"--{name}={value}")
    return made


def measuring(args: argparse.Namespace) -> dict[str, Any]:
    """Return what every head of a comparison must be measured with."""
    return {"prompts": args.prompts, "new_tokens": args.new_tokens}


@cache
def exact_target(device: str) -> Any:
    """Return the target in fp32, loaded once per worker."""
    return load_base(str(TARGET), {"dtype": torch.float32}).to(device).eval()


def measured(head: Path, args: argparse.Namespace) -> dict[str, dict[str, list[int]]]:
    """Decode with a head in every mode; return verify forwards and accepted tokens by prompt, and those by depth."""
    tokenizer = load_tokenizer(str(TARGET))
    prompts = read_prompts(args.prompt_file, tokenizer, args.prompts, "held_out")
    found = {}
    for mode, (tree, temperature) in MODES.items():
        model = EaModel(None, exact_target(args.device), str(TARGET), str(head), **tree)
        by_prompt: list[list[int]] = []
        # The same noise for every head: a token's noise belongs to its position.
        torch.manual_seed(0)
        for part in batched(prompts, min(args.batch, len(prompts)), tokenizer.pad_token_id):
            ids_BS, mask_BS = part.ids_BS.to(args.device), part.mask_BS.to(args.device)
            model.eagenerate(ids_BS, temperature=temperature, max_new_tokens=args.new_tokens, attention_mask=mask_BS)
            by_prompt += [model.stats.accepted_per_row.get(row, []) for row in range(len(ids_BS))]
        del by_prompt[len(prompts) :]  # the last batch is filled up
        flat = [accepted for row in by_prompt for accepted in row]
        found[mode] = {
            "forwards": [len(row) for row in by_prompt],
            "accepted": [sum(row) for row in by_prompt],
            "reached": [sum(n >= depth for n in flat) for depth in range(max(flat, default=0) + 1)],
        }
    return found


def perform(task: Task, args: argparse.Namespace) -> None:
    """Train and measure a variant, or write the target's own answers; the result is written last."""
    folder, began = args.out / task.name, time.monotonic()
    if task.name == OWN:
        most = args.steps * args.bs
        own_answers(TARGET, args.data / "train", folder, args.device, most, args.answers)
        write_text(folder / RESULT, json.dumps({"task": asdict(task), "seconds": time.monotonic() - began}) + "\n")
        return
    train([*flags(task.settings), f"--cpdir={folder}"])
    gc.collect()
    trained = time.monotonic()
    result: dict[str, Any] = {"task": asdict(task), "measured": measuring(args), "modes": measured(folder, args)}
    lengths_N = load(task.settings["tmpdir"]).lengths_N
    result["tokens"] = round(float(lengths_N.mean()) * args.bs * task.settings["max_steps"])
    result["seconds"] = {"training": trained - began, "measuring": time.monotonic() - trained}
    write_text(folder / RESULT, json.dumps(result) + "\n")


def work(channel: Connection, args: argparse.Namespace) -> None:
    """Perform what is sent, one after another, each with a log of its own; the process of a worker."""
    torch.set_num_threads(args.threads)
    while (task := channel.recv()) is not None:
        folder = args.out / task.name
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log.txt").open("w") as log:
            for stream in (1, 2):
                os.dup2(log.fileno(), stream)
        perform(task, args)
        channel.send(task.name)


class Worker:
    """A process that performs one task at a time."""

    def __init__(self, args: argparse.Namespace) -> None:
        context = multiprocessing.get_context("spawn")
        self.channel, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, args), daemon=True)
        self.process.start()
        theirs.close()
        self.task: Task | None = None

    def begin(self, task: Task) -> None:
        """Send a task."""
        self.task = task
        self.channel.send(task)

    def outcome(self) -> bool:
        """Tell whether the task that has ended came to its end."""
        try:
            self.channel.recv()
        except EOFError:
            return False
        return True

    def end(self) -> None:
        """End the process; what it has begun is left as it is."""
        if self.task is None:
            self.channel.send(None)
        else:
            self.process.terminate()
        self.process.join()


class Plan:
    """Which task is next: those whose data and rate are known, in order.

    Args:
        chosen: the variants.
        args: the command's.
    """

    def __init__(self, chosen: list[Variant], args: argparse.Namespace) -> None:
        self.args, self.waiting, self.failed = args, list(chosen), set[str]()
        self.answers = any(variant.data != "train" for variant in chosen)
        self.tasks: dict[str, Task] = {}

    def next(self) -> Task | None:
        """Return a task that can be begun; None where all wait or nothing is left."""
        if self.answers:
            self.answers = False
            task = Task(OWN, None, {})
            if not self.is_done(task):
                return task
        for variant in list(self.waiting):
            if OWN in self.failed and variant.data != "train":
                self.waiting.remove(variant)
                continue
            rate = variant.rate or self.best_rate(variant.kind)
            known = variant.data == "train" or (self.args.out / OWN / RESULT).exists()
            if rate is None or not known:
                continue
            self.waiting.remove(variant)
            task = self.tasks[variant.name] = task_of(variant, rate, self.args)
            if not self.is_done(task):
                return task
        return None

    def best_rate(self, kind: str) -> float | None:
        """Return the rate with the best τ of a tree; None while one is being trained. Alone, the usual one."""
        names = {rate: rate_name(kind, rate) for rate in RATES}
        if any(variant.name in names.values() for variant in self.waiting):
            return None
        there = {name for name in names.values() if (self.args.out / name / RESULT).exists()}
        if any(name in self.tasks for name in set(names.values()) - there - self.failed):
            return None
        names = {rate: name for rate, name in names.items() if name in there}
        found = {rate: tau(self.result(name)["modes"]["tree"]) for rate, name in names.items()}
        return max(found, key=lambda rate: found[rate], default=USUAL)

    def result(self, name: str) -> dict[str, Any]:
        """Read a result."""
        read: dict[str, Any] = json.loads((self.args.out / name / RESULT).read_text())
        return read

    def is_done(self, task: Task) -> bool:
        """Tell whether a task has its result.

        Raises:
            ValueError: it is that of other settings.
        """
        if not (self.args.out / task.name / RESULT).exists():
            return False
        found = self.result(task.name)
        wanted = measuring(self.args)
        if found["task"]["settings"] != task.settings or found.get("measured", wanted) != wanted:
            raise ValueError(f"{self.args.out / task.name} was made otherwise: choose another --out, or delete it")
        return True


def perform_all(plan: Plan, args: argparse.Namespace) -> None:
    """Perform a plan's tasks on as many workers as asked for, until all are done or the time is up."""
    began, workers = time.monotonic(), list[Worker]()
    while True:
        busy = [worker for worker in workers if worker.task is not None]
        idle = [worker for worker in workers if worker.task is None]
        while len(busy) < args.jobs and (task := plan.next()) is not None:
            worker = idle.pop() if idle else Worker(args)
            worker.begin(task)
            workers, busy = [*(w for w in workers if w is not worker), worker], [*busy, worker]
        left = args.minutes * 60 - (time.monotonic() - began)
        if not busy or left < 0:
            break
        for channel in wait([worker.channel for worker in busy], timeout=min(left, 60) + 0.1):
            (worker,) = (one for one in busy if one.channel is channel)
            assert worker.task is not None
            name, ended = worker.task.name, worker.outcome()
            worker.task = None
            if not ended:
                plan.failed.add(name)
                workers.remove(worker)
            print(f"{time.monotonic() - began:6.0f} s  {name}{'' if ended else ' FAILED, see its log.txt'}", flush=True)
    for worker in workers:
        worker.end()


def tau(found: dict[str, list[int]]) -> float:
    """Return the acceptance length over all prompts."""
    return 1 + sum(found["accepted"]) / max(1, sum(found["forwards"]))


def resampled(found: dict[str, list[int]]) -> np.ndarray:
    """Return τ of `RESAMPLED` sets of prompts, the same sets for every head."""
    prompts = len(found["forwards"])
    drawn = np.random.default_rng(0).integers(0, prompts, (RESAMPLED, prompts))
    accepted, forwards = (np.asarray(found[name])[drawn].sum(1) for name in ("accepted", "forwards"))
    return 1 + accepted / np.maximum(1, forwards)


def interval(values: np.ndarray) -> list[float]:
    """Return the middle 95 %."""
    return [round(float(bound), 4) for bound in np.quantile(values, (0.025, 0.975))]


def compared(mode: str, own: dict[str, Any], base: dict[str, Any] | None) -> dict[str, Any]:
    """Return τ and what it gains on the base's."""
    found = own["modes"][mode]
    row: dict[str, Any] = {"tau": round(tau(found), 4), "interval": interval(resampled(found))}
    row["conditional"] = [round(now / before, 4) for before, now in pairwise(found["reached"])]
    if base is not None:
        theirs = base["modes"][mode]
        row["gain"] = round(tau(found) - tau(theirs), 4)
        row["gain_interval"] = interval(resampled(found) - resampled(theirs))
    return row


def report(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row for every variant that has a result, in their order."""
    read = {v.name: args.out / v.name / RESULT for v in variants()}
    results = {name: json.loads(path.read_text()) for name, path in read.items() if path.exists()}
    rows = []
    for name, own in results.items():
        base = args.against or own["task"]["base"]
        theirs = results.get(base) if base != name else None
        row = {"variant": name, "base": base if theirs else None, "tokens": own["tokens"], "seconds": own["seconds"]}
        row["modes"] = {mode: compared(mode, own, theirs) for mode in MODES}
        rows.append(row | {"settings": own["task"]["settings"]})
    return rows


def printed(rows: list[dict[str, Any]]) -> str:
    """Return the table."""
    lines = [
        f"{'':30}{'tokens':>7}" + "".join(f"  {mode:>8} gain [95 %]         " for mode in MODES) + "  by depth, chain"
    ]
    for row in rows:
        line = f"{row['variant']:30}{row['tokens'] / 1e6:6.2f}M"
        for found in row["modes"].values():
            gain = found.get("gain")
            bounds = "" if gain is None else "{:+.2f} [{:+.2f}, {:+.2f}]".format(gain, *found["gain_interval"])
            line += f"  {found['tau']:8.3f} {bounds:20}"
        by_depth = row["modes"]["chain"]["conditional"]
        lines.append(f"{line}  {' '.join(f'{share:.2f}' for share in by_depth)}  on {row['base'] or '-'}")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/experiments"))
    parser.add_argument("--data", type=Path, default=Path("build/tiny_pair"), help="holds the prepared folder train")
    help = "of prompts.py --count 320; default: the 64 of each kind that are shipped"
    parser.add_argument("--prompt-file", type=Path, default=PAIR / "prompts.jsonl", help=help)
    parser.add_argument("--prompts", type=int, default=320, help="held-out prompts, at most")
    parser.add_argument("--new-tokens", type=int, default=64, help="of each prompt")
    parser.add_argument("--steps", type=int, default=976, help="optimiser steps of most variants")
    parser.add_argument("--bs", type=int, default=16, help="texts of a step")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="variants, or beginnings of their names")
    parser.add_argument("--against", metavar="NAME", help="compare all with this variant")
    parser.add_argument("--jobs", type=int, default=1, help="variants that are trained side by side")
    parser.add_argument("--threads", type=int, default=1, help="of the processor, for each")
    parser.add_argument("--minutes", type=float, default=1e6, help="then what is unfinished is left")
    parser.add_argument("--device", help="cpu, cuda, …; default: the accelerator where there is one")
    parser.add_argument("--precision", default="bf16", choices=("bf16", "no"), help="of training")
    parser.add_argument("--batch", type=int, default=32, help="prompts that are decoded side by side")
    parser.add_argument("--answers", type=int, default=256, help="answers of the target that are written side by side")
    parser.add_argument("--list", action="store_true", help="print the variants' names")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Train what is missing, and print the table."""
    args = parser().parse_args(argv)
    chosen = [v for v in variants() if not args.only or v.name.startswith(tuple(args.only))]
    if args.list:
        print("\n".join(f"{v.name:32} {NAMES[v.kind]}  {v.changes}" for v in chosen))
        return 0
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif args.device is None:
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        args.device = found.type if found is not None else "cpu"
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    plan = Plan(chosen, args)
    perform_all(plan, args)
    rows = report(args)
    if not rows:
        return 1
    document = {"provenance": provenance(), "steps": args.steps, **measuring(args), "variants": rows}
    write_text(args.out / "experiments.json", json.dumps(document, indent=1) + "\n")
    print(printed(rows))
    return 1 if plan.failed else 0


if __name__ == "__main__":
    sys.exit(main())
