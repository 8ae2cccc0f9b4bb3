"""Training batches for tests: texts from tensors, the teacher of a tiny target."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from architectures import VOCABULARY, base_model
from safetensors.torch import load_file

from eagle.data.batches import Bucketed, Packed
from eagle.data.folder import Counts, write_shard, write_summary
from eagle.data.samples import Sample
from eagle.model.head import DraftHead, EagleHead
from eagle.model.target import TargetModel
from eagle.train.heads import taps_of
from eagle.train.recipe import EAGLE, EAGLE3, Eagle3Recipe, EagleRecipe, Objective, Recipe
from eagle.train.teachers import TargetTeacher
from eagle.train.train_batches import TrainBatch


class Texts:
    """Samples in memory."""

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples
        self.lengths_N = np.array([len(sample) for sample in samples])

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


def texts(ids_BT: Any, mask_BT: Any = None) -> Texts:
    """Make a sample of every row."""
    masks = [torch.ones(len(row), dtype=torch.bool) for row in ids_BT] if mask_BT is None else mask_BT
    pairs = zip(ids_BT, masks, strict=True)
    return Texts([Sample(ids.numpy().astype(np.int32), torch.as_tensor(mask).numpy()) for ids, mask in pairs])


def random_texts(*lengths: int, seed: int = 0) -> Texts:
    """Make samples of random ids."""
    generator = torch.Generator().manual_seed(seed)
    return texts([torch.randint(3, 80, (length,), generator=generator) for length in lengths])


def recipe_for(
    head: DraftHead,
    target: TargetModel,
    samples: Texts,
    rows: int,
    steps: int = 1,
    length: int | None = None,
    objective: Objective | None = None,
) -> Recipe:
    """Return the recipe of a head, its teacher on the target in the loop; of an EAGLE-3 head with so many steps."""
    kind = "eagle" if isinstance(head, EagleHead) else "eagle3"
    batches = Bucketed(samples, rows) if length is None else Packed(samples, rows, length)
    teacher = TargetTeacher(target, taps_of(kind, head.config, target.config), batches, torch.device("cpu"))
    objective = objective or replace(EAGLE if kind == "eagle" else EAGLE3, steps=1 if kind == "eagle" else steps)
    return (EagleRecipe if kind == "eagle" else Eagle3Recipe)(head, teacher, objective)


def train_batch_of(recipe: Recipe, rows: list[list[int]], seed: int = 7) -> TrainBatch:
    """Return the batch of rows of samples."""
    return recipe.teacher[0].train_batch(rows, [seed + row for row in range(len(rows))])


def loss_of(recipe: Recipe, batch: TrainBatch) -> torch.Tensor:
    """Return the loss of a batch alone: a mean over its own entries."""
    return recipe(batch, recipe.weights(batch).sum(1))[0]


def data_folder(folder: Path, samples: Texts, target: str, vocabulary: int = VOCABULARY, **fields: Any) -> Path:
    """Write samples as `python -m eagle.data` does."""
    folder.mkdir(parents=True)
    counts = Counts(rows=len(samples.samples))
    for sample in samples.samples:
        counts.add(sample)
    settings = {"target": target, "template": None, "vocabulary": vocabulary, "vocabulary_hash": "none", **fields}
    write_shard(folder, 0, samples.samples, settings=settings, counts=counts)
    write_summary(folder, settings, counts, 1)
    return folder


def school(folder: Path, name: str = "llama") -> dict[str, str]:
    """Write a tiny target and data for it; return the settings that name them."""
    base_model(name).save_pretrained(folder / "base")
    samples = random_texts(*([24] * 24))
    data = data_folder(folder / "data", samples, str(folder / "base"))
    return {"tmpdir": str(data), "cpdir": str(folder / "head")}


def weights_of(folder: Path | str) -> dict[str, torch.Tensor]:
    """Read a head's tensors."""
    return load_file(Path(folder) / "model.safetensors")


def losses_of(folder: Path | str, name: str = "loss") -> list[float]:
    """Read the losses of a run, or other numbers of its metrics, step by step."""
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]
