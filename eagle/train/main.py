"""Train a draft head.

    accelerate launch -m --mixed_precision=bf16 eagle.train.main --tmpdir DATA --cpdir HEAD --kind eagle3

DATA is a folder of `python -m eagle.data`. One process needs no launcher: python -m eagle.train.main. Interrupted, the
same command goes on after its last checkpoint.
"""

import logging
import os
from pathlib import Path
from typing import Any

import torch

from eagle.data.folder import load
from eagle.train.acceptance import AcceptanceEvaluator, HeadExporter, prompts
from eagle.train.checkpoints import Checkpoints
from eagle.train.distributed import accelerator, shards_weights
from eagle.train.export import write_card
from eagle.train.heads import first_head, taps_of
from eagle.train.loop import Run, train
from eagle.train.optimizers import optimizers
from eagle.train.progress import Progress
from eagle.train.recipe import Eagle3Recipe, EagleRecipe, Recipe, objective_of
from eagle.train.settings import Settings, parse
from eagle.train.sources import Source, source

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None, **defaults: Any) -> int:
    """Train a head; `defaults` are settings of another entry point."""
    settings = parse(argv, "python -m eagle.train.main", (__doc__ or "").split("\n")[0], **defaults)
    first = int(os.environ.get("RANK", 0)) == 0
    logging.basicConfig(level=logging.INFO if first else logging.WARNING, format="%(message)s")
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # it names every file of every checkpoint
    try:
        run_of(settings)
    except (ValueError, OSError, ImportError, NotImplementedError, FloatingPointError) as refusal:
        raise SystemExit(f"python -m eagle.train.main: {refusal}") from refusal
    except KeyboardInterrupt:
        logger.info("\ninterrupted: the same command goes on after its last checkpoint")
        return 130
    return 0


def run_of(settings: Settings) -> None:
    """Build a run, train, and write its head."""
    processes = accelerator(settings)
    learnt_from = source(settings, processes.device)
    texts = _held_out(settings, learnt_from)
    folder = Path(str(settings.cpdir))
    folder.mkdir(parents=True, exist_ok=True)
    head = first_head(settings, learnt_from.config, learnt_from.counts, learnt_from.output_VD)
    identity = settings.identity(processes.num_processes)
    # FSDP's checkpoints are of its own kind.
    identity |= {"fsdp": processes.is_fsdp2, "data": learnt_from.fingerprint}
    rows = identity["rows"]
    teacher = learnt_from.teacher(taps_of(settings.kind, head.config, learnt_from.config), rows)
    recipe: Recipe
    if settings.kind == "eagle":
        recipe = EagleRecipe(head, teacher, objective_of(settings), settings.gradient_checkpointing)
    else:
        recipe = Eagle3Recipe(head, teacher, objective_of(settings), settings.gradient_checkpointing)
    size = sum(weight.numel() for weight in head.parameters())
    recipe.sharded = shards_weights(processes)
    model, *optims = processes.prepare(recipe, *optimizers(head, settings))
    exporter = HeadExporter(folder, processes, model, head, learnt_from.dtype)
    run = Run(
        settings=settings,
        accelerator=processes,
        recipe=recipe,
        model=model,
        optims=optims,
        teacher=teacher,
        checkpoints=Checkpoints(folder, processes, identity, settings.keep_checkpoints),
        evaluate=AcceptanceEvaluator(exporter, learnt_from.target.model, learnt_from.basepath, texts, settings)
        if texts
        else None,
    )
    processes.init_trackers("eagle", {name: str(value) for name, value in identity.items()})
    point = train(run, lambda first, steps: Progress(processes, folder, first, steps, settings.log_every))
    place = exporter.finish(point)
    if processes.is_main_process:
        tokens = int(teacher.batches.samples.lengths_N.sum() * point.step / teacher.batches.per_epoch)
        write_card(place, head, size, learnt_from.basepath, settings, point, tokens, learnt_from.template)
        logger.info("%s holds the head", place)
    processes.end_training()


def _held_out(settings: Settings, learnt_from: Source) -> list[torch.Tensor]:
    if settings.testpath is None:
        return []
    return prompts(load(settings.testpath, vocabulary=learnt_from.config.vocab_size), settings.eval_prompts)


if __name__ == "__main__":
    raise SystemExit(main())
