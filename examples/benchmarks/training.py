"""What training a head costs, beside what it cannot do without: the target's forward and the head's own steps.

    python examples/benchmarks/training.py --data build/tiny_pair/train --json examples/benchmarks/training.json

Every round takes one optimiser step of each kind and each of its parts alone; medians over rounds.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator

from eagle.evaluation.report import provenance
from eagle.model.target_features import read_features
from eagle.train.checkpoints import Checkpoints
from eagle.train.draft_vocabulary import DraftVocabulary
from eagle.train.heads import first_head, taps_of
from eagle.train.loop import Run, one_step
from eagle.train.optimizers import optimizers
from eagle.train.recipe import Eagle3Recipe, EagleRecipe, objective_of
from eagle.train.settings import Settings
from eagle.train.sources import source
from eagle.train.training_time_test import training_time_test

CASES = {"EAGLE-1/2": ("eagle", 1), "EAGLE-3, 4 steps": ("eagle3", 4), "EAGLE-3, 7 steps": ("eagle3", 7)}


def parts(kind: str, steps: int, args: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """Return a whole optimiser step, and what of it any trainer must do."""
    sizes = {"bs": args.bs, "length": args.length, "optimizer": "adamw", "ttt_length": steps}
    drafts = {"draft_vocab_size": 3072} if kind == "eagle3" else {}
    settings = Settings(
        tmpdir=args.data, cpdir=tempfile.mkdtemp(), kind=kind, mixed_precision="bf16", **sizes, **drafts
    )
    accelerator = Accelerator(cpu=not torch.accelerator.is_available(), mixed_precision="bf16")
    learnt_from = source(settings, accelerator.device)
    vocabulary = DraftVocabulary(learnt_from.texts, learnt_from.config.vocab_size)
    head = first_head(settings, learnt_from.config, vocabulary.tokens, learnt_from.output_VD)
    taps = taps_of(kind, head.config, learnt_from.config)
    teacher = learnt_from.teacher(taps, args.bs)
    recipe = (EagleRecipe if kind == "eagle" else Eagle3Recipe)(head, teacher, objective_of(settings))
    model, *optims = accelerator.prepare(recipe, *optimizers(head, settings))
    checkpoints = Checkpoints(Path(str(settings.cpdir)), accelerator, {}, 1)
    run = Run(settings, accelerator, recipe, model, optims, teacher, checkpoints, None)
    texts = teacher.batches.at(0)
    ids_BT = texts.ids_BS.to(accelerator.device)
    batch = teacher.train_batch(teacher.batches.rows_at(0), [0] * args.bs)

    def target() -> None:
        read_features(learnt_from.target, ids_BT, taps, texts.positions_BS, texts.segments_BS)

    def bare() -> None:
        embeds_BSD = teacher.embed(batch.entries.tokens_BS).to(head.dtype)
        with accelerator.autocast():
            hidden_BSD = head.fuse(batch.features_BSF.to(head.dtype))
            places = batch.entries.positions_BS, batch.entries.segments_BS
            outs = [out for out, _ in training_time_test(head, embeds_BSD, hidden_BSD, steps, *places)]
            logits = [head.logits(out) if kind == "eagle3" else teacher.output_logits(out) for out in outs]
        torch.autograd.backward([x.float().mean() for x in logits])

    return {"step": lambda: one_step(run, 0, 1e-5), "target forward": target, "head, bare": bare}


def main(argv: list[str] | None = None) -> int:
    """Measure every case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="build/tiny_pair/train")
    parser.add_argument("--bs", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args(argv)
    cases = {name: parts(*case, args) for name, case in CASES.items()}
    seconds: dict[str, dict[str, list[float]]] = {name: {part: [] for part in case} for name, case in cases.items()}
    for round_ in range(args.rounds + 1):
        for name, case in cases.items():
            for part, work in case.items():
                started = time.perf_counter()
                work()
                if round_:
                    seconds[name][part].append(time.perf_counter() - started)
    rows = []
    for name, case in seconds.items():
        took = {part: statistics.median(times) for part, times in case.items()}
        whole = took["target forward"] + took["head, bare"]
        rate = args.bs * args.length / took["step"]
        row = {"case": name, "tokens_per_second": round(rate), "against_bare": round(took["step"] / whole, 3)}
        rows.append(row | {"seconds": took})
        print(f"{name:18} {rate:7.0f} tokens/s  {row['against_bare']:.2f}x target and head bare")
    if args.json is not None:
        document = {
            "provenance": provenance(),
            "bs": args.bs,
            "length": args.length,
            "rounds": args.rounds,
            "results": rows,
        }
        args.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
