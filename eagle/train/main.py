"""Train a draft head.

    accelerate launch -m --mixed_precision=bf16 eagle.train.main --tmpdir DATA --cpdir HEAD --kind eagle3

DATA is a folder of `python -m eagle.data`. One process needs no launcher: python -m eagle.train.main. Interrupted, the
same command goes on after its last checkpoint.
"""

import logging
from pathlib import Path
from typing import Any

from eagle.data_folder import load
from eagle.train.card import write_card
from eagle.train.checkpoints import Checkpoints
from eagle.train.heads import first_head, taps_of
from eagle.train.keeping import Examiner, Keeper
from eagle.train.loop import Run, train
from eagle.train.optimizers import optimizers
from eagle.train.processes import accelerator, shards_weights
from eagle.train.progress import Progress
from eagle.train.recipe import Eagle3Recipe, EagleRecipe, Recipe
from eagle.train.settings import Settings, parse
from eagle.train.sources import Source, source
from eagle.train.trial import prompts

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None, **defaults: Any) -> int:
    """Train a head; `defaults` are settings of another entry point."""
    settings = parse(argv, "python -m eagle.train.main", (__doc__ or "").split("\n")[0], **defaults)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # it names every file of every checkpoint
    try:
        run_of(settings)
    except (ValueError, OSError, ImportError, NotImplementedError, FloatingPointError) as refusal:
        raise SystemExit(f"python -m eagle.train.main: {refusal}") from refusal
    return 0


def run_of(settings: Settings) -> None:
    """Build a run, train, and write its head."""
    processes = accelerator(settings)
    learnt_from = source(settings, processes.device)
    head = first_head(settings, learnt_from.config, learnt_from.counts, learnt_from.output_VD)
    folder = Path(str(settings.cpdir))
    folder.mkdir(parents=True, exist_ok=True)
    identity = {**settings.identity(processes.num_processes), "fsdp": processes.is_fsdp2}  # checkpoints of its own kind
    rows = identity["rows"]
    teacher = learnt_from.teacher(taps_of(settings.kind, head.config, learnt_from.config), rows)
    recipe: Recipe
    if settings.kind == "eagle":
        recipe = EagleRecipe(head, teacher, settings.gradient_checkpointing)
    else:
        recipe = Eagle3Recipe(head, teacher, settings.ttt_length, settings.gradient_checkpointing)
    size = sum(weight.numel() for weight in head.parameters())
    recipe.sharded = shards_weights(processes)
    model, *optims = processes.prepare(recipe, *optimizers(head, settings))
    keeper = Keeper(folder, processes, model, head, learnt_from.dtype)
    run = Run(
        settings=settings,
        accelerator=processes,
        recipe=recipe,
        model=model,
        optims=optims,
        teacher=teacher,
        checkpoints=Checkpoints(folder, processes, identity, settings.keep_checkpoints),
        trial=_examiner(settings, keeper, learnt_from),
    )
    processes.init_trackers("eagle", {name: str(value) for name, value in identity.items()})
    point = train(run, lambda first, steps: Progress(processes, folder, first, steps, settings.log_every))
    place = keeper.finish(point)
    if processes.is_main_process:
        tokens = int(teacher.batches.samples.lengths_N.sum() * point.step / teacher.batches.per_epoch)
        write_card(place, head, size, learnt_from.basepath, settings, point, tokens, learnt_from.template)
        logger.info("%s holds the head", place)
    processes.end_training()


def _examiner(settings: Settings, keeper: Keeper, learnt_from: Source) -> Examiner | None:
    if settings.testpath is None:
        return None
    texts = prompts(load(settings.testpath), settings.eval_prompts)
    return Examiner(keeper, learnt_from.target.model, learnt_from.basepath, texts, settings)


if __name__ == "__main__":
    raise SystemExit(main())
