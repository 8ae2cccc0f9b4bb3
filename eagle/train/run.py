"""A run put together from its settings: inputs, head, recipe, checkpoints; then trained, and its head written."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from eagle.data.batches import Batches
from eagle.data.folder import Prepared, load
from eagle.model.configs import tapped_layers
from eagle.model.head import DraftHead
from eagle.train.acceptance import AcceptanceEvaluator, prompts
from eagle.train.checkpoints import Checkpoints, begun
from eagle.train.configure import as_published
from eagle.train.distributed import accelerator, shards_weights
from eagle.train.draft_vocabulary import DraftVocabulary
from eagle.train.export import HeadExporter, Origin, changed
from eagle.train.heads import first_head, taps_of
from eagle.train.interruption import Interruption
from eagle.train.loop import Run, train
from eagle.train.optimizers import optimizers
from eagle.train.precision import chosen_precision
from eagle.train.progress import Progress
from eagle.train.recipe import Eagle3Recipe, EagleRecipe, objective_of
from eagle.train.settings import Settings
from eagle.train.sources import Source, fingerprint, source

logger = logging.getLogger(__name__)


def run_of(settings: Settings, interruption: Interruption | None = None) -> None:
    """Build a run, train, and write its head.

    Args:
        settings: the run's.
        interruption: what a signal is noted by; None lets it do what it does.

    Raises:
        ValueError, OSError, ImportError, NotImplementedError: what the run asks for cannot be done.
        FloatingPointError: the loss became infinite, or no number.
        KeyboardInterrupt: it was interrupted; what it had done is in its last checkpoint.
    """
    interruption = interruption or Interruption()
    folder = Path(str(settings.cpdir))
    before = begun(folder) if settings.cpdir is not None else {}
    precision = chosen_precision(settings, before.get("identity", {}).get("mixed_precision"))
    settings = replace(settings, mixed_precision=precision.name)  # type: ignore[arg-type]
    processes = accelerator(settings)
    learnt_from = source(settings, processes.device, before.get("shards"))
    held_out = _held_out(settings, learnt_from)
    texts = prompts(held_out, settings.eval_prompts) if held_out is not None else []
    folder.mkdir(parents=True, exist_ok=True)
    logger.info("%s", precision)
    head = _head(settings, learnt_from, held_out)
    identity = _identity(settings, processes.num_processes, learnt_from, head)
    identity |= {"fsdp": processes.is_fsdp2}  # whose checkpoints are of its own kind
    taps = taps_of(settings.kind, head.config, learnt_from.config)
    teacher = learnt_from.teacher(taps, identity["rows"])
    kinds: dict[str, type[EagleRecipe | Eagle3Recipe]] = {"eagle": EagleRecipe, "eagle3": Eagle3Recipe}
    recipe = kinds[settings.kind](head, teacher, objective_of(settings), settings.gradient_checkpointing)
    recipe.sharded = shards_weights(processes)
    origin = _origin(settings, learnt_from, head, teacher.batches)
    model, *optims = processes.prepare(recipe, *optimizers(head, settings))
    exporter = HeadExporter(folder, processes, model, head, origin)
    stopped = lambda: interruption.noted  # noqa: E731
    run = Run(
        settings=settings,
        accelerator=processes,
        recipe=recipe,
        model=model,
        optims=optims,
        teacher=teacher,
        checkpoints=Checkpoints(
            folder,
            processes,
            identity,
            settings.keep_checkpoints,
            {"origin": vars(origin), "shards": learnt_from.shards},
        ),
        evaluate=AcceptanceEvaluator(exporter, learnt_from.target.model, learnt_from.basepath, texts, settings, stopped)
        if texts
        else None,
        stopped=stopped,
    )
    processes.init_trackers("eagle", {name: str(value) for name, value in identity.items()})
    with interruption.noting():
        point = train(run, lambda first, steps: Progress(processes, folder, first, steps, settings.log_every))
    if not texts and point.best_step is not None:
        logger.info("without --testpath the head is the last one; the best measured one stays in %s", folder / "best")
        point = replace(point, best_tau=None, best_step=None)
    logger.info("%s holds the head", exporter.finish(point))
    processes.end_training()


def _held_out(settings: Settings, learnt_from: Source) -> Prepared | None:
    if settings.testpath is None:
        return None
    return load(settings.testpath, vocabulary=learnt_from.config.vocab_size)


def _head(settings: Settings, learnt_from: Source, held_out: Prepared | None) -> DraftHead:
    """Return the head that the run begins with, and say what its draft vocabulary covers."""
    vocabulary = DraftVocabulary(learnt_from.texts, learnt_from.config.vocab_size, held_out, str(settings.testpath))
    head = first_head(settings, learnt_from.config, vocabulary.tokens, learnt_from.output_VD)
    if settings.kind == "eagle3" and settings.ea_model_path is None:
        logger.info("%s", vocabulary.report(head.draft_size))
    return head


def _identity(settings: Settings, processes: int, learnt_from: Source, head: DraftHead) -> dict[str, Any]:
    """Return what a run that goes on must have in common with its beginning: of inputs what is in them."""
    identity = settings.identity(processes) | learnt_from.identity | as_published(settings.kind, head.config)
    if settings.kind == "eagle3":
        layers = tapped_layers(head.config, learnt_from.config.num_hidden_layers)
        identity |= {"tap_layers": list(layers), "draft_vocab_size": head.draft_size}
    if settings.ea_model_path is not None:
        identity["begun_with_head"] = fingerprint(head.state_dict())
    if settings.deepspeed_config is not None:
        identity["deepspeed"] = json.loads(Path(settings.deepspeed_config).read_text(encoding="utf-8"))
    return identity


def _origin(settings: Settings, learnt_from: Source, head: DraftHead, batches: Batches) -> Origin:
    """Return what a head's card says of it; before the head's weights are divided over processes."""
    return Origin(
        kind=settings.kind,
        config=_config(head),
        base=learnt_from.basepath,
        template=learnt_from.template,
        parameters=sum(weight.numel() for weight in head.parameters()),
        tokens_per_step=int(batches.samples.lengths_N.sum()) / batches.per_epoch,
        settings=changed(settings),
        tree=settings.eval_total_token,
        dtype=settings.head_dtype or "bfloat16",
    )


def _config(head: DraftHead) -> dict[str, Any]:
    return {name: value for name, value in head.config.to_diff_dict().items() if name != "transformers_version"}
