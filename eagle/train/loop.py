"""The training loop: windows of ids in, optimiser steps out, resumable after any interruption.

Knows no recipe and no file format but its own checkpoint.
"""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from eagle.train.recipe import Outcome

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        tokens: tokens to train on.
        batch: rows per step.
        length: tokens per row.
        rate: peak learning rate.
        warmup: optimiser steps until the peak.
        seed: of the order of windows.
        save_every: steps between checkpoints.
    """

    tokens: int
    batch: int = 16
    length: int = 256
    rate: float = 5e-3
    warmup: int = 30
    seed: int = 0
    save_every: int = 100

    def __post_init__(self) -> None:
        for name in ("tokens", "batch", "length", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if not self.rate > 0:
            raise ValueError(f"rate={self.rate} must be above 0")

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return max(1, self.tokens // (self.batch * self.length))

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step: linear warm-up, cosine to 2 % of the peak."""
        done = step / self.steps
        return self.rate * min(1.0, (step + 1) / self.warmup) * (0.02 + 0.49 * (1 + math.cos(math.pi * done)))


def windows(ids_T: torch.Tensor, schedule: Schedule, start: int) -> Iterator[torch.Tensor]:
    """Yield [batch, length + 1] ids of step `start`, `start + 1`, …: every epoch is a new permutation of windows."""
    starts = torch.arange(0, len(ids_T) - schedule.length, schedule.length)
    per_epoch = len(starts) // schedule.batch
    if per_epoch == 0:
        raise ValueError(f"{len(ids_T)} training tokens do not fill one batch of {schedule.batch} x {schedule.length}")
    for step in range(start, schedule.steps):
        epoch, place = divmod(step, per_epoch)
        generator = torch.Generator().manual_seed(schedule.seed * 1_000_003 + epoch)
        order = torch.randperm(len(starts), generator=generator)
        chosen = starts[order[place * schedule.batch : (place + 1) * schedule.batch]]
        # Windows move from epoch to epoch, so that no boundary is always a boundary.
        shift = int(torch.randint(schedule.length, (1,), generator=generator)) if epoch else 0
        begin_B1 = (chosen + shift).clamp(max=len(ids_T) - schedule.length - 1)[:, None]
        yield ids_T[begin_B1 + torch.arange(schedule.length + 1)].long()


def optimizers(head: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layer, AdamW for the rest."""
    inner = [p for n, p in head.named_parameters() if p.ndim == 2 and not n.startswith(("lm_head", "embed_tokens"))]
    others = [p for n, p in head.named_parameters() if p.ndim != 2 or n.startswith(("lm_head", "embed_tokens"))]
    return [
        torch.optim.Muon(inner, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def train(
    head: nn.Module,
    ids_T: torch.Tensor,
    schedule: Schedule,
    run: Callable[[torch.Tensor], Outcome],
    checkpoint: Path,
    described: str = "",
) -> None:
    """Train in place; an existing checkpoint is continued.

    Args:
        head: the module whose parameters are trained.
        ids_T: all training ids in one row.
        run: a batch of ids -> loss and accuracies.
        checkpoint: file holding weights, optimisers and the step.
        described: what else makes this run what it is; a checkpoint of another one is refused.
    """
    described = f"{schedule!r} {described}".strip()
    optims, first = optimizers(head), 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        if state["run"] != described:
            raise ValueError(f"{checkpoint} belongs to {state['run']}, not to {described}: delete it to start anew")
        head.load_state_dict(state["head"])
        for optim, saved in zip(optims, state["optims"], strict=True):
            optim.load_state_dict(saved)
        torch.set_rng_state(state["rng"])
        first = state["step"]
        logger.info("continuing at step %d of %d", first, schedule.steps)
    bar = tqdm(total=schedule.steps, initial=first, unit="step", mininterval=5)
    mean: list[float] = []
    for step, ids_BT in enumerate(windows(ids_T, schedule, first), start=first):
        for optim in optims:
            for group in optim.param_groups:
                group["lr"] = schedule.rate_at(step)
        outcome = run(ids_BT)
        outcome.loss.backward()
        nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad(set_to_none=True)
        row = [outcome.loss.item(), *outcome.accuracies]
        mean = row if not mean else [0.97 * old + 0.03 * new for old, new in zip(mean, row, strict=True)]
        bar.set_postfix_str(f"loss {mean[0]:.3f} accuracy " + " ".join(f"{a:.3f}" for a in mean[1:]))
        bar.update()
        if (step + 1) % schedule.save_every == 0 or step + 1 == schedule.steps:
            state = {"head": head.state_dict(), "optims": [o.state_dict() for o in optims], "step": step + 1}
            state |= {"rng": torch.get_rng_state(), "run": described}
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
