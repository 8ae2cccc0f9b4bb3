"""A target's features on disk: what training reads where the target itself is not there.

    shard_00000.safetensors   end to end, of every sample: ids int32 [tokens], mask bool [tokens], features [tokens, F],
                              hidden [tokens, D] or, instead, top_ids int32 and top_logits [tokens, K]; ends int64
    target_embeddings.safetensors   embeddings [V, D]; output [V, D] and bias [V], unless logits are stored
    features.json             written last: a folder without it is unfinished

Shapes: T tokens of a sample, F feature width, D hidden width, K stored logits, V rows of the target's embeddings.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from eagle.data.samples import Sample
from eagle.data.shards import Shards, Texts, read_document
from eagle.data.tensor_files import TensorFile

FORMATS = (2, 1)  # 1 is without checksums, and its target's ends are in another file
SUMMARY = "features.json"
EMBEDDINGS, OLD_EMBEDDINGS = "target_embeddings.safetensors", "doors.safetensors"
MAKE = "python -m eagle.ge_data.allocation"


@dataclass(frozen=True)
class FeatureSample(Sample):
    """A sample with what the target said about it.

    Attributes:
        features_TF: what a head reads.
        hidden_TD: output of the target's final norm, for EAGLE-3; None where it is the features (EAGLE-1/2), or where
            logits are stored instead.
        top_ids_TK: int32; the target's likeliest next tokens at every token, likeliest first, or None.
        top_logits_TK: their logits, or None.
    """

    features_TF: torch.Tensor
    hidden_TD: torch.Tensor | None = None
    top_ids_TK: torch.Tensor | None = None
    top_logits_TK: torch.Tensor | None = None


@dataclass(frozen=True)
class TargetEmbeddings:
    """The target's input embeddings and output matrix, in its own dtype.

    Attributes:
        embeddings_VD: what `embed` returns for every token.
        output_VD: the output matrix; None where logits are stored.
        bias_V: of the output matrix, or None.
        transform: what comes after it, for `eagle.model.support.output_transform.transformed`.
    """

    embeddings_VD: torch.Tensor
    output_VD: torch.Tensor | None
    bias_V: torch.Tensor | None
    transform: dict[str, float | None]


class Features(Shards[FeatureSample]):
    """A folder of features, read from the files as they are asked for.

    Attributes:
        folder: where it lies.
        summary: the contents of `features.json`.
    """

    framework = "pt"

    def __init__(self, folder: Path) -> None:
        self.summary = read_summary(folder)
        super().__init__(folder, self.summary["shards"])

    @cached_property
    def texts(self) -> Texts:
        """The same samples without features: what batches are made of."""
        return Texts(self.folder, self.files)

    def target_embeddings(self) -> TargetEmbeddings:
        """Read the target's embeddings and output matrix."""
        file = TensorFile(embeddings_path(self.folder), "pt")
        found = {name: file.read(name) for name in file.names}
        return TargetEmbeddings(found["embeddings"], found.get("output"), found.get("bias"), self.summary["transform"])

    def _read(self, file: TensorFile, tokens: slice) -> FeatureSample:
        found = {name: file.read(name, tokens) for name in file.names if name != "ends"}
        return FeatureSample(
            found["ids"].numpy(),
            found["mask"].numpy(),
            found["features"],
            found.get("hidden"),
            found.get("top_ids"),
            found.get("top_logits"),
        )


def embeddings_path(folder: Path) -> Path:
    """Return the file of a folder's `TargetEmbeddings`, by the name it has in folders of format 1 if it is there."""
    old = folder / OLD_EMBEDDINGS
    return old if old.exists() else folder / EMBEDDINGS


def read_summary(folder: Path) -> dict[str, Any]:
    """Read `features.json`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is of another version.
    """
    return read_document(folder / SUMMARY, FORMATS, MAKE)


def load_features(folder: str | Path, *, vocabulary: int | None = None) -> Features:
    """Open a folder of features.

    Args:
        folder: what `python -m eagle.ge_data.allocation --outdir` wrote.
        vocabulary: tokens that a target or a head knows.

    Raises:
        FileNotFoundError: no finished features there.
        ValueError: another format version, or features of texts in a larger vocabulary.
    """
    features = Features(Path(folder))
    ends = embeddings_path(features.folder)
    if missing := [*features.missing, *([] if ends.is_file() else [ends])]:
        names = ", ".join(path.name for path in missing[:3])
        raise FileNotFoundError(f"{folder} has lost {names}: the command that made it makes them anew")
    features.check_counts(features.summary)
    size = features.summary["vocabulary"]
    if vocabulary is not None and size > vocabulary:
        made = f"{folder} was made with {features.summary['target']}"
        raise ValueError(f"{made}, of texts in {size} tokens, more than {vocabulary}: make it with the right target")
    return features
