"""Progress of a run: a bar, `metrics.jsonl`, and accelerate's trackers."""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tqdm import tqdm

from eagle.files import write_text

METRICS = "metrics.jsonl"
TRIED = 5  # steps after which it is said how long all will take; the first of them counts not
logger = logging.getLogger(__name__)


class Progress:
    """Collects what steps yield and shows it every few steps, so that no step waits for the device.

    Args:
        accelerator: sums over processes and owns the trackers.
        folder: of `metrics.jsonl`.
        first: the step it begins at; lines of later steps, from before an interruption, are dropped.
        steps: optimiser steps of the run.
        every: steps between lines.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, first: int, steps: int, every: int) -> None:
        self.accelerator, self.path, self.every = accelerator, folder / METRICS, every
        self.bar = tqdm(total=steps, initial=first, unit="step", mininterval=1, disable=not accelerator.is_main_process)
        self._first, self._tried = first, (0.0, 0)
        self._clear()
        if accelerator.is_main_process:
            write_text(self.path, "".join(f"{line}\n" for line in _until(self.path, first)))

    def _clear(self) -> None:
        self._since, self._count, self._tokens = time.monotonic(), 0, 0
        self._loss: Any = 0.0
        self._tallies: Any = 0

    def add(self, step: int, loss: torch.Tensor, tallies_4K: torch.Tensor, tokens: int, rate: float) -> None:
        """Count a step, the `step`-th: its loss and tallies of this process, tokens of all, learning rate."""
        self._loss, self._tallies = self._loss + loss.detach(), self._tallies + tallies_4K
        self._count, self._tokens = self._count + 1, self._tokens + tokens
        self.bar.update()
        self._estimate(step, tokens)
        if step % self.every == 0 or step == self.bar.total:
            self._show(step, rate)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Do what is no step, whose time no rate counts."""
        began = time.monotonic()
        yield
        took = time.monotonic() - began
        self._since, self._tried = self._since + took, (self._tried[0] + took, self._tried[1])

    def say(self, words: str) -> None:
        """Print a line above the bar."""
        if self.accelerator.is_main_process:
            self.bar.write(words)

    def _estimate(self, step: int, tokens: int) -> None:
        """After a few steps say how fast they are and how long all that are left will take."""
        taken, began = step - self._first, self._tried[0]
        if taken == 1 or taken == TRIED:
            self._loss.item()  # what a device still has to do takes its time, too
        if taken == 1:
            self._tried = time.monotonic(), 0
        elif taken <= TRIED:
            self._tried = began, self._tried[1] + tokens
        if taken == TRIED and (seconds := time.monotonic() - began) > 0:
            whole = self.bar.total - self._first
            rest = tqdm.format_interval(seconds / (TRIED - 1) * whole)
            self.say(
                f"{self._tried[1] / seconds:,.0f} tokens/s: {whole:,} steps take about {rest}, without checkpoints "
                "and measurements"
            )

    def _show(self, step: int, rate: float) -> None:
        loss = self.accelerator.reduce(self._loss, "sum").item() / self._count
        of, right, begun, alive = self.accelerator.reduce(self._tallies, "sum").tolist()
        line = {
            "step": step,
            "loss": loss,
            "learning_rate": rate,
            "accuracy": _shares(right, of),
            "conditional_acceptance": _shares(alive, begun),
            "tokens_per_second": round(self._tokens / (time.monotonic() - self._since), 1),
        }
        shown = (" ".join(f"{share:.2f}" for share in line[name]) for name in ("accuracy", "conditional_acceptance"))
        words = "{:,.0f} tokens/s | loss {:.3f} | accuracy {} | if accepted so far {}"
        self.bar.set_postfix_str(words.format(line["tokens_per_second"], loss, *shown), refresh=False)
        self._clear()
        self.note(line)

    def note(self, line: dict[str, Any]) -> None:
        """Write a line of metrics and hand its numbers to the trackers."""
        if self.accelerator.is_main_process:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        flat = {name: value for name, value in line.items() if isinstance(value, float)}
        flat |= {
            f"{name}/{depth}": share
            for name, shares in line.items()
            if isinstance(shares, list)
            for depth, share in enumerate(shares)
        }
        self.accelerator.log(flat, step=line["step"])


def _until(path: Path, step: int) -> Iterator[str]:
    """Yield the whole lines of a file of metrics up to a step; a crash may have left half a line."""
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            if json.loads(line)["step"] <= step:
                yield line
        except ValueError:
            continue


def _shares(parts: list[float], wholes: list[float]) -> list[float]:
    return [round(part / whole, 4) if whole else 0.0 for part, whole in zip(parts, wholes, strict=True)]
