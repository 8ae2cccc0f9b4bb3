"""Heads that leave a run: gathered whole, written as users load them, the best by acceptance length kept."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from eagle.model.dialects.checkpoint import save_head
from eagle.model.head import DraftHead
from eagle.train.checkpoints import Point
from eagle.train.progress import Progress
from eagle.train.settings import Settings
from eagle.train.trial import Trial, decode

BEST = "best"


class Keeper:
    """Writes the head of a run.

    Args:
        folder: of the run.
        accelerator: gathers what is sharded.
        model: the wrapped recipe.
        head: the bare head.
        dtype: of what is written.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, model: Any, head: DraftHead, dtype: torch.dtype) -> None:
        self.folder, self.accelerator, self.model, self.head, self.dtype = folder, accelerator, model, head, dtype

    def write(self, place: Path) -> None:
        """Write the head as it is now; every process takes part."""
        state = self.accelerator.get_state_dict(self.model)
        own = {name.removeprefix("head."): value for name, value in (state or {}).items()}
        if self.accelerator.is_main_process:
            with torch.device("meta"):
                copy = type(self.head)(self.head.config, "embed_tokens.weight" in own)
            cast = {name: _cast(value, self.dtype) for name, value in own.items()}
            copy.load_state_dict(cast, assign=True)
            unfinished = place.with_suffix(".tmp")
            shutil.rmtree(unfinished, ignore_errors=True)
            save_head(copy, unfinished)
            shutil.rmtree(place, ignore_errors=True)
            unfinished.rename(place)
        self.accelerator.wait_for_everyone()

    def finish(self, point: Point) -> Path:
        """Put the best head, or the last where none was measured, into the run's folder."""
        if point.best_tau is None:
            self.write(self.folder / BEST)
        if self.accelerator.is_main_process:
            for file in (self.folder / BEST).iterdir():
                shutil.copy2(file, self.folder / file.name)
        self.accelerator.wait_for_everyone()
        return self.folder


def _cast(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return value.detach().cpu().to(dtype if value.is_floating_point() else value.dtype).contiguous()


class Examiner:
    """Measures a head by decoding, and keeps the best.

    Args:
        keeper: writes heads.
        base: the target.
        basepath: where it came from.
        texts: prompts [1, S]; every process takes its share of them.
        settings: the run's.
    """

    def __init__(self, keeper: Keeper, base: Any, basepath: str, texts: list[torch.Tensor], settings: Settings) -> None:
        self.keeper, self.base, self.basepath, self.texts, self.settings = keeper, base, basepath, texts, settings

    def __call__(self, point: Point, progress: Progress) -> Point:
        """Measure the head after a step; return the point with the best so far."""
        keeper, accelerator = self.keeper, self.keeper.accelerator
        place = keeper.folder / "candidate"
        keeper.write(place)
        mine = self.texts[accelerator.process_index :: accelerator.num_processes]
        trial = Trial.of(gather_object(decode(self.base, self.basepath, place, mine, self.settings)))
        progress.note({"step": point.step, "tau": trial.tau, "decoded_acceptance": trial.conditional})
        better = point.best_tau is None or trial.tau > point.best_tau
        if accelerator.is_main_process:
            progress.bar.write(f"step {point.step}: τ {trial.tau:.3f}{' (best)' if better else ''}")
            if better:
                shutil.rmtree(keeper.folder / BEST, ignore_errors=True)
                place.rename(keeper.folder / BEST)
            else:
                shutil.rmtree(place)
        accelerator.wait_for_everyone()
        return replace(point, best_tau=trial.tau, best_step=point.step) if better else point
