"""The schedule of a run: its length, the learning rate of every step, when it is saved and measured.

A function of length and step alone: a run that is made longer or shorter follows the new length from where it is.
"""

import math
from dataclasses import dataclass

from eagle.train.settings import Settings

FINAL = 0.02  # of the peak, where cosine and linear schedules end
# Where a setting is not given: a part of the steps, and the most.
WARMUP, SAVE, MEASURE = (1 / 25, 500), (1 / 10, 500), (1 / 5, 500)


@dataclass(frozen=True)
class Schedule:
    """What happens at which step.

    Attributes:
        settings: the run's.
        steps: optimiser steps.
    """

    settings: Settings
    steps: int

    @classmethod
    def of(cls, settings: Settings, per_epoch: int) -> "Schedule":
        """Make the schedule of a run with so many steps per epoch."""
        if settings.max_steps is not None:
            return cls(settings, settings.max_steps)
        return cls(settings, max(1, math.ceil(settings.epochs * per_epoch)))

    @property
    def warmup(self) -> int:
        """Steps until the peak: as set, or 4 % of all, at most 500."""
        return self._or(self.settings.warmup_steps, WARMUP)

    @property
    def save_every(self) -> int:
        """Steps between checkpoints: as set, or a tenth of all, at most 500."""
        return self._or(self.settings.save_every, SAVE)

    @property
    def eval_every(self) -> int:
        """Steps between measurements: as set, or a fifth of all, at most 500."""
        return self._or(self.settings.eval_every, MEASURE)

    def _or(self, given: int | None, rule: tuple[float, int]) -> int:
        part, most = rule
        return given if given is not None else min(most, math.ceil(part * self.steps))

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: linear warm-up, then cosine or linear to 2 % of the peak, or constant."""
        shares = {
            "constant": 1.0,
            "linear": 1 - (1 - FINAL) * step / self.steps,
            "cosine": FINAL + (1 - FINAL) * (1 + math.cos(math.pi * step / self.steps)) / 2,
        }
        warm = min(1.0, (step + 1) / max(1, self.warmup))
        return self.settings.peak_rate * warm * shares[self.settings.lr_scheduler]

    def saves_after(self, step: int) -> bool:
        """Tell whether there is a checkpoint after so many steps."""
        return step % self.save_every == 0 or step >= self.steps

    def measures_after(self, step: int) -> bool:
        """Tell whether the acceptance length is measured after so many steps."""
        return step > 0 and (step % self.eval_every == 0 or step >= self.steps)
