"""A target's features on disk: what training reads where the target itself is not there.

    shard_00000.safetensors   end to end, of every sample: ids int32 [tokens], mask bool [tokens], features [tokens, F],
                              hidden [tokens, D] or, instead, top_ids int32 and top_logits [tokens, K]; ends int64
    doors.safetensors         the target's ends: embeddings [V, D]; output [V, D] and bias [V], unless logits are stored
    features.json             written last: a folder without it is unfinished

Shapes: T tokens of a sample, F feature width, D hidden width, K stored logits, V rows of the target's embeddings.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from eagle.data.samples import Sample
from eagle.data.shards import Shards, Texts, read_document, shard_path

FORMAT = 1
SUMMARY = "features.json"
DOORS = "doors.safetensors"
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
class Doors:
    """Where tokens enter the target and leave it, in its own dtype.

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

    def doors(self) -> Doors:
        """Read the target's embeddings and output matrix."""
        found = load_file(self.folder / DOORS)
        return Doors(found["embeddings"], found.get("output"), found.get("bias"), self.summary["transform"])

    def _read(self, file: Any, tokens: slice) -> FeatureSample:
        found = {name: file.get_slice(name)[tokens] for name in file.keys() if name != "ends"}  # noqa: SIM118
        return FeatureSample(
            found["ids"].numpy(),
            found["mask"].numpy(),
            found["features"],
            found.get("hidden"),
            found.get("top_ids"),
            found.get("top_logits"),
        )


def read_summary(folder: Path) -> dict[str, Any]:
    """Read `features.json`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is of another version.
    """
    return read_document(folder / SUMMARY, FORMAT, MAKE)


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
    files = [shard_path(features.folder, index) for index in range(features.files)] + [features.folder / DOORS]
    if missing := [path.name for path in files if not path.is_file()]:
        raise FileNotFoundError(f"{folder} has lost {', '.join(missing[:3])}: the command that made it makes them anew")
    size = features.summary["vocabulary"]
    if vocabulary is not None and size > vocabulary:
        made = f"{folder} was made with {features.summary['target']}"
        raise ValueError(f"{made}, of texts in {size} tokens, more than {vocabulary}: make it with the right target")
    return features
