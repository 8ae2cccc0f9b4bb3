"""The acceptance length τ of a head on held-out texts, by really decoding with it.

The head is written and read back as users will have it, so what is measured is what is saved.
"""

import hashlib
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from tqdm import tqdm

from eagle.data.folder import Prepared
from eagle.data.samples import Sample
from eagle.model.ea_model import EaModel
from eagle.model.stats import GenerationStats
from eagle.train.checkpoints import RunPoint
from eagle.train.export import CANDIDATE, HeadExporter
from eagle.train.progress import Progress
from eagle.train.settings import MEASURED, Settings

logger = logging.getLogger(__name__)

DOCUMENT_PROMPT = 64  # tokens of a text without questions that are given


@dataclass(frozen=True)
class MeasuredAcceptance:
    """What a head is worth.

    Attributes:
        tau: the acceptance length.
        conditional: at each depth, how often a draft was accepted whose ancestors were.
    """

    tau: float
    conditional: list[float]

    @classmethod
    def of(cls, accepted: list[int]) -> "MeasuredAcceptance":
        """Make it of the drafted tokens that every verify forward accepted."""
        stats = GenerationStats(row_steps=len(accepted), accepted_per_step=accepted)
        reached = [stats.row_steps, *stats.accepted_per_depth]
        return cls(stats.acceptance_length, [now / before for before, now in pairwise(reached)])


def prompts(data: Prepared, count: int) -> list[torch.Tensor]:
    """Return the ids [1, S] of what is before the first answer of the first texts, or the start of plain ones.

    Raises:
        ValueError: no text is long enough.
    """
    found = [prompt for sample in data[: 4 * count] if len(prompt := _asked(sample)) >= 2][:count]
    if not found:
        raise ValueError(f"no text in {data.folder} is long enough to be continued")
    return [torch.from_numpy(ids).long()[None] for ids in found]


def _asked(sample: Sample) -> Any:
    first = int(sample.mask.argmax())
    return sample.ids[: first if first > 1 else min(DOCUMENT_PROMPT, len(sample) // 2)]


def decode(
    base: Any,
    path: str,
    head: Path,
    texts: Sequence[torch.Tensor],
    settings: Settings,
    stopped: Callable[[], bool] = lambda: False,
) -> list[int]:
    """Decode greedily and return how many drafted tokens every verify forward accepted.

    Args:
        base: the target.
        path: where it came from.
        head: folder of the head.
        texts: prompt ids [1, S] each.
        settings: tree and tokens.
        stopped: whether to leave out the texts that are still to come.
    """
    model = EaModel(None, base, path, str(head), total_token=settings.eval_total_token)
    accepted = list[int]()
    for ids in tqdm(texts, desc="τ", leave=False, disable=None):
        if stopped():
            break
        room = model.target.last_position
        tokens = settings.eval_tokens if room is None else min(settings.eval_tokens, room - ids.shape[1])
        if tokens < 1:
            continue
        device_ids = ids.to(model.target.device)
        model.eagenerate(device_ids, max_new_tokens=tokens, max_length=ids.shape[1] + tokens)
        accepted += model.stats.accepted_per_step
    return accepted


class AcceptanceEvaluator:
    """Measures a head by decoding, and keeps the best.

    Args:
        exporter: writes heads.
        base: the target.
        basepath: where it came from.
        texts: prompts [1, S]; every process takes its share of them.
        settings: the run's.
        stopped: whether the run is to stop, and this with it.

    Attributes:
        identity: what acceptance lengths have in common that can be compared: prompts, tree, dtype of the head.
    """

    def __init__(
        self,
        exporter: HeadExporter,
        base: Any,
        basepath: str,
        texts: list[torch.Tensor],
        settings: Settings,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.exporter, self.base, self.basepath, self.texts, self.settings = exporter, base, basepath, texts, settings
        self.stopped = stopped
        told = *(getattr(settings, name) for name in MEASURED), exporter.origin.dtype, [t.tolist() for t in texts]
        self.identity = hashlib.sha256(repr(told).encode()).hexdigest()[:16]

    def __call__(self, point: RunPoint, progress: Progress) -> RunPoint:
        """Measure the head after a step; return the point with the best so far, unmeasured if it is to stop."""
        exporter, accelerator = self.exporter, self.exporter.accelerator
        place = exporter.folder / CANDIDATE
        exporter.write(place)
        measured = self._measured(place)
        better = measured is not None and (point.best_tau is None or measured.tau > point.best_tau)
        if accelerator.is_main_process:
            if better:
                kept = exporter.best(point.step)
                shutil.rmtree(kept, ignore_errors=True)
                kept.parent.mkdir(exist_ok=True)
                place.rename(kept)
            else:
                shutil.rmtree(place)
        accelerator.wait_for_everyone()
        if measured is None:
            return point
        progress.note({"step": point.step, "tau": measured.tau, "decoded_acceptance": measured.conditional})
        progress.say(f"step {point.step}: τ {measured.tau:.3f}{' (best)' if better else ''}")
        point = replace(point, measured_step=point.step, measured_by=self.identity)
        return replace(point, best_tau=measured.tau, best_step=point.step) if better else point

    def comparable(self, point: RunPoint) -> RunPoint:
        """Measure the best head again where it was measured otherwise; return the point with what came out."""
        if point.best_step is None or point.measured_by == self.identity:
            return point
        place = self.exporter.best(point.best_step)
        if not place.is_dir():
            return replace(point, best_tau=None, best_step=None)
        measured = self._measured(place)
        if measured is None:
            return point
        words = "the best head, of step %d, measured as is asked for now: τ %.3f"
        logger.info(words, point.best_step, measured.tau)
        return replace(point, best_tau=measured.tau, measured_by=self.identity)

    def _measured(self, place: Path) -> MeasuredAcceptance | None:
        """Decode with the head in a folder; None if a process is to stop."""
        accelerator = self.exporter.accelerator
        mine = self.texts[accelerator.process_index :: accelerator.num_processes]
        accepted = decode(self.base, self.basepath, place, mine, self.settings, self.stopped)
        every = gather_object(accepted)
        return None if any(gather_object([self.stopped()])) else MeasuredAcceptance.of(every)
