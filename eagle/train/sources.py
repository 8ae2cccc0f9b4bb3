"""Sources of a run: the folder it is given, the target that folder names, and the teacher they make.

Shapes: V vocabulary, D hidden width.
"""

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from eagle.data.batches import Batches, Bucketed, Packed, Samples
from eagle.data.features import SUMMARY as FEATURES
from eagle.data.features import Features, load_features
from eagle.data.folder import SUMMARY as TEXTS
from eagle.data.folder import load
from eagle.data.shards import Texts, shard_path
from eagle.data.tensor_files import TensorFile
from eagle.model.checks.diagnosis import checked_target
from eagle.model.support.loading import load_base
from eagle.model.support.output_transform import output_matrix
from eagle.model.target import Taps, TargetModel
from eagle.train.settings import Settings
from eagle.train.teachers import FeatureTeacher, TargetTeacher, Teacher

logger = logging.getLogger(__name__)
SAMPLED = 16  # values of every tensor that tell one model from another


class Source(ABC):
    """Texts and their target, which is loaded when it is first asked for.

    Args:
        settings: the run's.
        texts: samples, without features.
        summary: of the folder.
        device: where the head is.

    Attributes:
        basepath: where the target is.
        template: of the chats, or None.
        shards: that the texts are in.
        config: the target's text configuration.
        output_VD: the target's output matrix, or None where it cannot be read (quantised, offloaded, not stored).
    """

    config: PreTrainedConfig
    output_VD: torch.Tensor | None

    def __init__(self, settings: Settings, texts: Texts, summary: dict[str, Any], device: torch.device) -> None:
        self.settings, self.texts, self.device = settings, texts, device
        self.basepath: str = settings.base_model_path or summary["target"]
        self.template: str | None = summary["template"]
        self.shards = int(texts.files)

    @cached_property
    def target(self) -> TargetModel:
        """The frozen target."""
        settings = self.settings
        options: dict[str, Any] = {"dtype": settings.dtype, "trust_remote_code": settings.trust_remote_code}
        options |= {name: True for name in ("load_in_4bit", "load_in_8bit") if getattr(settings, name)}
        where = settings.target_device_map
        if where is not None:
            options["device_map"] = where
        try:
            base = load_base(self.basepath, options).eval().requires_grad_(False)
        except (OSError, ValueError, RuntimeError, AssertionError) as failure:
            words = str(failure).partition("\n")[0]
            raise ValueError(f"the target {self.basepath} cannot be loaded: {words}") from failure
        placed = where is not None or settings.load_in_4bit or settings.load_in_8bit
        return checked_target(base if placed else base.to(self.device))

    @property
    def identity(self) -> dict[str, str]:
        """What a run that goes on must find again, wherever it lies now: the texts and the target."""
        return {"data": str(self.texts.fingerprint), "target": self.target_fingerprint}

    @property
    @abstractmethod
    def target_fingerprint(self) -> str:
        """What only the same target shares."""

    @abstractmethod
    def teacher(self, taps: Taps, rows: int) -> Teacher:
        """Return the teacher of a head that reads these features, in batches of so many rows per step."""


class TextSource(Source):
    """Texts of `python -m eagle.data`: the target runs in the loop.

    Args:
        shards: that a run began with, which it goes on with where the folder has grown; None means all.
    """

    def __init__(self, settings: Settings, folder: Path, device: torch.device, shards: int | None = None) -> None:
        prepared = load(folder)
        data: Texts = prepared
        if shards is not None and shards < data.files:
            logger.info("%s has grown: the run goes on with the %d shards that it began with", folder, shards)
            data = Texts(folder, shards)
        super().__init__(settings, data, prepared.summary, device)
        if prepared.summary["vocabulary"] > self.target.known_tokens:
            load(folder, vocabulary=self.target.known_tokens)  # which says what is wrong
        self.config, self.output_VD = self.target.config, output_matrix(self.target.model)

    @property
    def target_fingerprint(self) -> str:
        """What only the same target shares, in the same dtype."""
        return fingerprint(self.target.model.state_dict())

    def teacher(self, taps: Taps, rows: int) -> Teacher:
        """Return the target as a teacher."""
        return TargetTeacher(self.target, taps, batched(self.texts, rows, self.settings), self.device)


class FeatureSource(Source):
    """Features of `python -m eagle.ge_data.allocation`: the target is loaded for acceptance lengths alone.

    Raises:
        ValueError: features for another kind of head.
    """

    def __init__(self, settings: Settings, folder: Path, device: torch.device) -> None:
        self.features: Features = load_features(folder)
        summary = self.features.summary
        super().__init__(settings, self.features.texts, summary, device)
        if summary["kind"] != settings.kind:
            raise ValueError(f"{folder} holds features for kind={summary['kind']!r}, the run's is {settings.kind!r}")
        self.config = PreTrainedConfig.from_dict(summary["config"])
        embeddings = self.features.target_embeddings()
        self.output_VD = embeddings.output_VD
        if settings.kind == "eagle" and embeddings.output_VD is None:
            raise ValueError(
                f"{folder} holds logits instead of the target's output matrix, through which an EAGLE-1/2 head drafts: "
                "make it without --top-logits"
            )
        if settings.feature_weight and embeddings.output_VD is None:
            raise ValueError(
                f"{folder} holds logits instead of last hidden states, which feature_weight={settings.feature_weight} "
                "compares with: make it without --top-logits"
            )

    @property
    def identity(self) -> dict[str, str]:
        """What a run that goes on must find again: texts, target, and how its features were stored."""
        summary, found = self.features.summary, super().identity
        return found | {"data": f"{found['data']} {summary['dtype']} {summary['top_k']}"}

    @property
    def target_fingerprint(self) -> str:
        """What only features of the same target share: its embeddings, and what it says of the first and last text."""
        some: dict[str, Any] = {"embeddings": self.features.target_embeddings().embeddings_VD}
        for place in (0, len(self.features) - 1):
            sample = self.features[place]
            some |= {f"{name} {place}": getattr(sample, name) for name in ("features_TF", "hidden_TD", "top_logits_TK")}
        return fingerprint({name: tensor for name, tensor in some.items() if tensor is not None})

    def teacher(self, taps: Taps, rows: int) -> Teacher:
        """Return the stored features as a teacher.

        Raises:
            ValueError: they are of other layers.
        """
        stored = self.features.summary["taps"]
        if stored != (list(taps) if isinstance(taps, tuple) else taps):
            raise ValueError(f"{self.features.folder} holds features of layers {stored}, the head reads {taps}")
        batches = batched(self.texts, rows, self.settings)
        return FeatureTeacher(self.features, self.config, batches, self.device)


def source(settings: Settings, device: torch.device, shards: int | None = None) -> Source:
    """Open what a run is told to learn from.

    Args:
        settings: the run's.
        device: where the head is.
        shards: see `TextSource`.

    Raises:
        ValueError, FileNotFoundError: something is missing, with how to make it.
    """
    wanted = {"tmpdir": "the folder to learn from, made with python -m eagle.data", "cpdir": "the folder for the head"}
    missing = [f"--{name}, {words}" for name, words in wanted.items() if getattr(settings, name) is None]
    if settings.tmpdir is None or missing:
        raise ValueError(f"missing: {'; '.join(missing)}")
    folder = Path(settings.tmpdir)
    held = holds(folder)
    if held == TEXTS:
        return TextSource(settings, folder, device, shards)
    if held == FEATURES:
        return FeatureSource(settings, folder, device)
    state = f"holds neither {TEXTS} nor {FEATURES}" if folder.is_dir() else "does not exist"
    raise FileNotFoundError(
        f"tmpdir {folder} {state}: make it, or finish it, with python -m eagle.data or "
        "python -m eagle.ge_data.allocation"
    )


def holds(folder: Path) -> str | None:
    """Return the document of the kind of folder that this is, finished or not: texts, features, or neither."""
    for name in (TEXTS, FEATURES):
        if (folder / name).is_file():
            return name
    if not (first := shard_path(folder, 0)).is_file():
        return None
    return FEATURES if "features" in TensorFile(first, "pt").names else TEXTS


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return what tensors share only if they agree in names, shapes, types and a few values of each.

    A checksum of all values would take minutes for a large target; what was trained further differs everywhere.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        if tensor.device.type != "meta" and tensor.numel():
            flat = tensor.detach().reshape(-1)
            some = flat[:: max(1, flat.numel() // SAMPLED)][:SAMPLED].cpu().contiguous()
            digest.update(some.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def batched(samples: Samples, rows: int, settings: Settings) -> Batches:
    """Return the order of texts: packed into rows of `length`, or one per row."""
    if settings.length is None:
        return Bucketed(samples, rows, seed=settings.seed)
    return Packed(samples, rows, settings.length, seed=settings.seed)
