"""Features of a frozen target to disk, so that heads are trained without it.

    python -m eagle.ge_data.allocation --outdir FEATURES --data DATA

DATA is a folder of `python -m eagle.data`. Interrupted, by any signal, the same command goes on after the shards that
are there, with any number of processes, and ends with the very files of one run; so it does where DATA has become
longer or shorter.
"""

from eagle import interrupts

if __name__ == "__main__":
    interrupts.expect()  # before what takes seconds to load

import argparse
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from eagle.data.features import SUMMARY
from eagle.data.folder import load
from eagle.files import sweep
from eagle.ge_data.disk import check_room
from eagle.ge_data.plan import DTYPES, Plan, planned
from eagle.ge_data.shards import write_shard
from eagle.ge_data.target_embeddings import output, write_target_embeddings
from eagle.model.checks.diagnosis import checked_target
from eagle.model.support.loading import load_base
from eagle.model.target import TargetModel
from eagle.model.target_features import check_output

logger = logging.getLogger(__name__)

MISSING = (
    "--data missing: the texts, a folder that python -m eagle.data makes of conversations and documents:\n"
    "  python -m eagle.data chats.jsonl --base-model-path BASE --out DATA\n"
    "  python -m eagle.ge_data.allocation --outdir FEATURES --data DATA"
)
REFUSALS = (ValueError, OSError, NotImplementedError, ImportError)


@dataclass(frozen=True)
class Work:
    """What one process does.

    Attributes:
        plan: what is made.
        shards: the numbers of its shards.
        embeddings: whether it writes the target's embeddings and output matrix, too.
        device: where its target is; None for the host, or where `options` say.
        options: of `load_base`.
        threads: of the host; results round by their number.
    """

    plan: Plan
    shards: list[int]
    embeddings: bool
    device: str | None
    options: dict[str, Any]
    threads: int

    def run(self, report: Callable[[int], None]) -> None:
        """Load the target and write the shards.

        Args:
            report: called with the tokens of every batch that is done.
        """
        plan = self.plan
        torch.set_num_threads(self.threads)
        target = self.target()
        samples = load(plan.data, vocabulary=target.known_tokens)
        if self.embeddings:
            write_target_embeddings(plan, target)
        for shard in self.shards:
            part = plan.shards[shard]
            write_shard(plan, target, samples[part.start : part.stop], shard, report)

    def target(self) -> TargetModel:
        """Load the target.

        Raises:
            NotImplementedError: it is more than can be observed.
            ValueError: texts beyond its positions, or an output matrix that cannot be read where it is wanted.
        """
        plan, options = self.plan, dict(self.options)
        if self.device is not None:
            options["device_map"] = {"": self.device}
        transformers_logging.disable_progress_bar()
        target = checked_target(load_base(plan.target, options).eval())
        check_output(target)
        room, longest = target.last_position, int(plan.lengths_N.max())
        if room is not None and longest > room:
            raise ValueError(
                f"sample {int(plan.lengths_N.argmax())} has {longest} tokens, the target has {room} positions: prepare "
                f"the data with --max-length {room}"
            )
        if plan.top_k is None:
            output(target)
        return target


def devices() -> list[str]:
    """Return the accelerators of this machine."""
    kind = torch.accelerator.current_accelerator(check_available=True)
    return [f"{kind.type}:{index}" for index in range(torch.accelerator.device_count())] if kind is not None else []


def divided(plan: Plan, part: tuple[int, int], processes: int, options: dict[str, Any]) -> list[Work]:
    """Divide what is missing of every n-th shard, from the i-th on, over processes; some may have nothing to do."""
    first, step = part
    mine = [shard for shard in plan.missing if shard % step == first]
    embeddings = first == 0 and not plan.embeddings.exists()
    places = [] if "device_map" in options else devices()
    works = []
    for rank in range(processes):
        device = places[rank % len(places)] if places else None
        writes = embeddings and rank == 0
        if mine[rank::processes] or writes:
            works.append(Work(plan, mine[rank::processes], writes, device, options, torch.get_num_threads()))
    return works


def run(works: list[Work], bar: Any) -> None:
    """Do the work, in this process if it is one part.

    Raises:
        what a part raises; the others are stopped.
    """
    if len(works) == 1:
        works[0].run(bar.update)
        return
    spawned = multiprocessing.get_context("spawn")
    done, refusals = spawned.RawArray("q", len(works)), spawned.SimpleQueue()
    arguments = (works, done, refusals)
    with interrupts.held_back():
        context = multiprocessing.start_processes(
            _process, arguments, len(works), join=False, daemon=True, start_method="spawn"
        )
    try:
        while not context.join(timeout=0.5):
            bar.update(sum(done) - (bar.n - bar.initial))
        bar.update(sum(done) - (bar.n - bar.initial))
    except (ProcessExitedException, ProcessRaisedException) as failure:
        raise (failure if refusals.empty() else refusals.get()) from failure
    finally:
        for process in context.processes:
            process.terminate()
            process.join()


def _process(rank: int, works: list[Work], done: Any, refusals: Any) -> None:
    """Do one part in a process of its own, which ends with its parent."""

    def report(tokens: int) -> None:
        done[rank] += tokens

    interrupts.hear()  # which is also what its parent's end sends it
    try:
        works[rank].run(report)
    except REFUSALS as refusal:
        refusals.put(next(kind for kind in REFUSALS if isinstance(refusal, kind))(str(refusal)))
        raise


def allocate(plan: Plan, part: tuple[int, int], processes: int, options: dict[str, Any]) -> bool:
    """Make what is missing of a part of a folder; return whether the folder is whole.

    Args:
        plan: what is to be made.
        part: (i, n): every n-th shard, from the i-th on.
        processes: that share the part.
        options: of `load_base`.

    Raises:
        OSError: too little room on the disk.
        ValueError: a folder made with other settings.
        RuntimeError: a process was stopped from outside.
        whatever stops a part.
    """
    plan.check_folder()
    works = divided(plan, part, processes, options)
    beyond = [path for path in plan.beyond if int(path.stem.rpartition("_")[2]) % part[1] == part[0]]
    own = [shard for shard in range(len(plan.shards)) if shard % part[1] == part[0]]
    files = [plan.path(shard) for shard in own] + ([plan.embeddings] if part[0] == 0 else [])
    if works or beyond:
        (plan.folder / SUMMARY).unlink(missing_ok=True)  # of fewer or more texts
    for path in beyond:
        path.unlink()
    if works:
        # The whole folder's need: the other parts go to the same disk.
        check_room(plan.folder, plan.size(plan.missing, not plan.embeddings.exists()))
        plan.folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            sweep(file.parent, file.name)
        there, total = plan.tokens(set(own) - set(plan.missing)), plan.tokens(own)
        try:
            with tqdm(total=total, initial=there, unit=" tokens", unit_scale=True, mininterval=1) as bar:
                run(works, bar)
        finally:
            for file in files:
                sweep(file.parent, file.name)
    if lost := [path.name for path in files if not path.exists()]:
        raise RuntimeError(f"{', '.join(lost[:3])} not written: a process was stopped; the same command goes on")
    if plan.missing or plan.beyond or not plan.embeddings.exists():
        return False
    if not (plan.folder / SUMMARY).exists():
        plan.finish()
    return True


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    about = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m eagle.ge_data.allocation", description=about, allow_abbrev=False)
    parser.add_argument("--outdir", type=Path, required=True, help="where the features go")
    parser.add_argument("--data", type=Path, help="folder of python -m eagle.data")
    parser.add_argument("--base-model-path", "--basepath", help="target; default: the one that the data was made for")
    parser.add_argument("--kind", choices=("eagle3", "eagle"), default="eagle3", help="which head reads the features")
    parser.add_argument("--tap-layers", type=int, nargs="+", help="layers whose inputs they are; default: 2, n//2, n-3")
    parser.add_argument("--top-logits", type=int, metavar="K", help="store the target's K highest logits instead of "
                        "its last hidden states and its output matrix")  # fmt: skip
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bfloat16", help="of what is stored")
    parser.add_argument("--bs", type=int, default=8, help="samples of one forward")
    parser.add_argument("--shard-mb", type=float, default=512, help="size of a shard")
    parser.add_argument("--processes", type=int, help="default: one per accelerator")
    parser.add_argument("--shards-of", type=_part, default=(0, 1), metavar="I/N", help="this machine's part: 0/2, 1/2")
    bits = parser.add_mutually_exclusive_group()
    for name in ("4", "8"):
        bits.add_argument(f"--load-in-{name}bit", dest="quantised", action="store_const", const=f"load_in_{name}bit")
    parser.add_argument("--device-map", help="one target over several devices: auto, cpu, cuda:1, …")
    return parser


def _part(text: str) -> tuple[int, int]:
    first, slash, count = text.partition("/")
    if not (slash and first.isdecimal() and count.isdecimal() and int(first) < int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} must be I/N with I from 0 to N - 1, as 0/2 and 1/2")
    return int(first), int(count)


def processes_of(args: argparse.Namespace) -> int:
    """Return how many processes share the work.

    Raises:
        ValueError: none, or several for one target over several devices.
    """
    if args.processes is None:
        return 1 if args.device_map is not None else max(1, len(devices()))
    if args.processes < 1:
        raise ValueError(f"--processes {args.processes} must be at least 1")
    if args.processes > 1 and args.device_map is not None:
        raise ValueError(f"--device-map {args.device_map} spreads one target: it goes with --processes 1")
    return int(args.processes)


def main(argv: list[str] | None = None) -> int:
    """Make a folder of features and print what it holds."""
    command = parser()
    args = command.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    chosen = {"target": args.base_model_path, "batch": args.bs, "top_k": args.top_logits}
    chosen |= {name: getattr(args, name) for name in ("kind", "tap_layers", "dtype", "shard_mb", "quantised")}
    options: dict[str, Any] = {"dtype": "auto"} | ({args.quantised: True} if args.quantised else {})
    if args.device_map is not None:
        options["device_map"] = args.device_map
    try:
        if args.data is None:
            raise ValueError(MISSING)
        processes = processes_of(args)
        plan = planned(args.outdir, args.data, **chosen)
        whole = allocate(plan, args.shards_of, processes, options)
    except REFUSALS as refusal:
        raise SystemExit(f"{command.prog}: {refusal}") from refusal
    except KeyboardInterrupt:
        there = len(list(args.outdir.glob("shard_*.safetensors")))
        return interrupts.say(f"{there} shards are saved in {args.outdir}", "eagle.ge_data.allocation", argv)
    there = len(plan.shards) - len(plan.missing)
    unfinished = f"{args.outdir}: {there} of {len(plan.shards)} shards; other parts are still to come\n"
    sys.stdout.write(plan.report() if whole else unfinished)
    return 0


if __name__ == "__main__":
    raise SystemExit(interrupts.run(main))
