"""Sources of a run: the folder it is given, the target that folder names, and the teacher they make.

Shapes: V vocabulary, D hidden width.
"""

from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedConfig

from eagle.data.batches import Batches, Bucketed, Packed, Samples
from eagle.data.features import SUMMARY as FEATURES
from eagle.data.features import Features, load_features
from eagle.data.folder import SUMMARY as TEXTS
from eagle.data.folder import load
from eagle.data.samples import token_counts
from eagle.model.checks.diagnosis import checked_target
from eagle.model.support.loading import load_base
from eagle.model.support.output_transform import output_matrix
from eagle.model.target import Taps, TargetModel
from eagle.train.settings import Settings
from eagle.train.teachers import FeatureTeacher, TargetTeacher, Teacher


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
        dtype: what a head is written in.
        config: the target's text configuration.
        output_VD: the target's output matrix, or None where it cannot be read (quantised, offloaded, not stored).
    """

    dtype: torch.dtype
    config: PreTrainedConfig
    output_VD: torch.Tensor | None

    def __init__(self, settings: Settings, texts: Any, summary: dict[str, Any], device: torch.device) -> None:
        self.settings, self.texts, self.device = settings, texts, device
        self.basepath: str = settings.basepath or summary["target"]
        self.template: str | None = summary["template"]

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
    def fingerprint(self) -> str:
        """What a run that goes on must find again."""
        return str(self.texts.fingerprint)

    def counts(self) -> NDArray[np.int64]:
        """Return how often each token counts in the loss: [V]."""
        return token_counts(self.texts, self.config.vocab_size)

    @abstractmethod
    def teacher(self, taps: Taps, rows: int) -> Teacher:
        """Return the teacher of a head that reads these features, in batches of so many rows per step."""


class TextSource(Source):
    """Texts of `python -m eagle.data`: the target runs in the loop."""

    def __init__(self, settings: Settings, folder: Path, device: torch.device) -> None:
        data = load(folder)
        super().__init__(settings, data, data.summary, device)
        load(folder, vocabulary=self.target.known_tokens)
        self.config, self.dtype = self.target.config, self.target.model.dtype
        self.output_VD = output_matrix(self.target.model)

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
        self.output_VD, self.dtype = embeddings.output_VD, embeddings.embeddings_VD.dtype
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
    def fingerprint(self) -> str:
        """What a run that goes on must find again: texts, and how their features were stored."""
        summary = self.features.summary
        return f"{super().fingerprint} {summary['dtype']} {summary['top_k']}"

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


def source(settings: Settings, device: torch.device) -> Source:
    """Open what a run is told to learn from.

    Raises:
        ValueError, FileNotFoundError: something is missing, with how to make it.
    """
    wanted = {"tmpdir": "the folder to learn from, made with python -m eagle.data", "cpdir": "the folder for the head"}
    missing = [f"--{name}, {words}" for name, words in wanted.items() if getattr(settings, name) is None]
    if settings.tmpdir is None or missing:
        raise ValueError(f"missing: {'; '.join(missing)}")
    folder = Path(settings.tmpdir)
    if (folder / TEXTS).is_file():
        return TextSource(settings, folder, device)
    if (folder / FEATURES).is_file():
        return FeatureSource(settings, folder, device)
    state = f"holds neither {TEXTS} nor {FEATURES}" if folder.is_dir() else "does not exist"
    raise FileNotFoundError(
        f"tmpdir {folder} {state}: make it, or finish it, with python -m eagle.data or "
        "python -m eagle.ge_data.allocation"
    )


def batched(samples: Samples, rows: int, settings: Settings) -> Batches:
    """Return the order of texts: packed into rows of `length`, or one per row."""
    if settings.length is None:
        return Bucketed(samples, rows, seed=settings.seed)
    return Packed(samples, rows, settings.length, seed=settings.seed)
