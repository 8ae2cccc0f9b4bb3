"""The acceptance length τ of a head on held-out texts, by really decoding with it.

The head is written and read back as users will have it, so what is measured is what is saved.
"""

import shutil
from collections.abc import Sequence
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
from eagle.train.export import BEST, HeadExporter
from eagle.train.progress import Progress
from eagle.train.settings import Settings

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


def decode(base: Any, path: str, head: Path, texts: Sequence[torch.Tensor], settings: Settings) -> list[int]:
    """Decode greedily and return how many drafted tokens every verify forward accepted.

    Args:
        base: the target.
        path: where it came from.
        head: folder of the head.
        texts: prompt ids [1, S] each.
        settings: tree and tokens.
    """
    model = EaModel(None, base, path, str(head), total_token=settings.eval_total_token)
    accepted = list[int]()
    for ids in tqdm(texts, desc="τ", leave=False, disable=None):
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
    """

    def __init__(
        self, exporter: HeadExporter, base: Any, basepath: str, texts: list[torch.Tensor], settings: Settings
    ) -> None:
        self.exporter, self.base, self.basepath, self.texts, self.settings = exporter, base, basepath, texts, settings

    def __call__(self, point: RunPoint, progress: Progress) -> RunPoint:
        """Measure the head after a step; return the point with the best so far."""
        exporter, accelerator = self.exporter, self.exporter.accelerator
        place = exporter.folder / "candidate"
        exporter.write(place)
        mine = self.texts[accelerator.process_index :: accelerator.num_processes]
        measured = MeasuredAcceptance.of(gather_object(decode(self.base, self.basepath, place, mine, self.settings)))
        progress.note({"step": point.step, "tau": measured.tau, "decoded_acceptance": measured.conditional})
        better = point.best_tau is None or measured.tau > point.best_tau
        if accelerator.is_main_process:
            progress.bar.write(f"step {point.step}: τ {measured.tau:.3f}{' (best)' if better else ''}")
            if better:
                shutil.rmtree(exporter.folder / BEST, ignore_errors=True)
                place.rename(exporter.folder / BEST)
            else:
                shutil.rmtree(place)
        accelerator.wait_for_everyone()
        return replace(point, best_tau=measured.tau, best_step=point.step) if better else point
