"""The training loop: batches in, optimiser steps out, the same weights however often it is interrupted.

Knows neither recipes nor files: it divides a step's rows over processes and micro-batches, and calls.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator

from eagle.train.acceptance import AcceptanceEvaluator
from eagle.train.checkpoints import Checkpoints, RunPoint
from eagle.train.optimizers import set_rate
from eagle.train.progress import Progress
from eagle.train.recipe import Recipe
from eagle.train.schedule import Schedule
from eagle.train.settings import Settings
from eagle.train.teachers import Teacher

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """Everything a loop needs.

    Attributes:
        settings: the run's.
        accelerator: processes, precision, devices.
        recipe: the bare module.
        model: the recipe as accelerate wrapped it.
        optims: as accelerate wrapped them.
        teacher: where batches come from.
        checkpoints: of the run.
        evaluate: measures the acceptance length and keeps the best head; None without held-out texts.
        stopped: whether the run is to stop after its next checkpoint.
    """

    settings: Settings
    accelerator: Accelerator
    recipe: Recipe
    model: Any
    optims: list[Any]
    teacher: Teacher
    checkpoints: Checkpoints
    evaluate: AcceptanceEvaluator | None
    stopped: Callable[[], bool] = lambda: False

    @property
    def schedule(self) -> Schedule:
        """What happens at which step."""
        return Schedule.of(self.settings, self.teacher.batches.per_epoch)


def train(run: Run, progress: Callable[[int, int], Progress]) -> RunPoint:
    """Train from the last checkpoint to the end, and return where that is.

    Args:
        run: what to train.
        progress: makes the progress of a run from its first step and its number of steps.

    Raises:
        KeyboardInterrupt: the run is to stop, and has been saved.
    """
    point, schedule = run.checkpoints.resume(), run.schedule
    if schedule.warmup > schedule.steps:
        logger.info("the %d steps end within the warm-up: lr is not reached", schedule.steps)
    if point.step > schedule.steps:
        logger.info("it stands at step %d, beyond the %d that are asked for: it ends there", point.step, schedule.steps)
    shown, stops = progress(point.step, schedule.steps), False
    if run.evaluate is not None:
        point = run.evaluate.comparable(point)
        if schedule.measures_after(point.step) and point.measured_step != point.step:  # it was interrupted in this
            point, stops = run.evaluate(point, shown), _agreed(run)
    while point.step < schedule.steps and not stops:
        rate = schedule.rate(point.step)
        loss, tallies_4K, tokens = one_step(run, point.step, rate)
        point = replace(point, step=point.step + 1)
        shown.add(point.step, loss, tallies_4K, tokens, rate)
        with shown.aside():
            point, stops = _after_step(run, schedule, point, loss, shown)
    shown.bar.close()
    if stops:
        raise KeyboardInterrupt
    return point


def _after_step(
    run: Run, schedule: Schedule, point: RunPoint, loss: torch.Tensor, shown: Progress
) -> tuple[RunPoint, bool]:
    """Measure and save where it is time; return the point, and whether the run is to stop, which is saved then."""
    stops, saves = _agreed(run), schedule.saves_after(point.step)
    measures = run.evaluate is not None and schedule.measures_after(point.step)
    if stops or saves or measures:
        _check_finite(run.accelerator.reduce(loss, "sum").item(), point)
    if run.evaluate is not None and measures and not stops:
        point, stops = run.evaluate(point, shown), _agreed(run)
    if stops or saves:
        run.checkpoints.save(point)
        if run.evaluate is not None:
            run.evaluate.exporter.keep_best(run.checkpoints.best_steps())
    return point, stops


def _agreed(run: Run) -> bool:
    """Tell whether any process is to stop: all then do, after the same step."""
    stops, accelerator = run.stopped(), run.accelerator
    if accelerator.num_processes == 1:
        return stops
    return bool(accelerator.reduce(torch.tensor(float(stops), device=accelerator.device), "sum").item())


def _check_finite(loss: float, point: RunPoint) -> None:
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss} at step {point.step}, which is not saved: try a lower lr")


def one_step(run: Run, step: int, rate: float) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Take an optimiser step; return this process's part of its loss, its tallies [4, K], and the tokens of all."""
    accelerator, settings, batches = run.accelerator, run.settings, run.teacher.batches
    rows = batches.rows_at(step)
    divided = shares(rows, step, settings, accelerator.process_index, accelerator.num_processes)
    # All of a step is looked at before any of it is learnt: what its loss is divided by must be known.
    micro_batches = [run.teacher.train_batch(*share) for share in divided]
    weights = [run.recipe.weights(batch).sum(1) for batch in micro_batches]
    counts_K = accelerator.reduce(torch.stack(weights).sum(0), "sum")
    set_rate(run.optims, rate)
    losses, tallies = [], []
    parts = len(micro_batches)
    while micro_batches:
        batch = micro_batches.pop(0)
        with accelerator.accumulate(run.model):
            loss, tallies_4K = run.model(batch, counts_K)
            # Wrappers average over processes, accumulation over micro-batches; these are parts of one sum.
            accelerator.backward(loss * (accelerator.num_processes * parts))
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(run.model.parameters(), settings.max_grad_norm)
            for optim in run.optims:
                optim.step()
                optim.zero_grad()
        losses.append(loss.detach())
        tallies.append(tallies_4K)
    tokens = int(sum(batches.samples.lengths_N[index] for row in rows for index in row))
    return torch.stack(losses).sum(), torch.stack(tallies).sum(0), tokens


def shares(
    rows: list[list[int]], step: int, settings: Settings, process: int, processes: int
) -> list[tuple[list[list[int]], list[int]]]:
    """Return this process's rows of a step, micro-batch by micro-batch, and a seed for each row.

    The last batch of an epoch is filled with empty rows, so that every process has as many as the others.
    """
    whole = settings.bs * settings.gradient_accumulation_steps * processes
    filled = rows + [[]] * (whole - len(rows))
    seeds = [settings.seed * 1_000_003 + step * whole + place for place in range(whole)]
    starts = range(process * settings.bs, whole, processes * settings.bs)
    return [(filled[start : start + settings.bs], seeds[start : start + settings.bs]) for start in starts]
