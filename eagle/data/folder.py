"""Prepared data on disk: shards of ids and masks, and `data.json`, which says what they are.

    shard_00000.safetensors   ids int32 [tokens], mask bool [tokens], ends int64 [samples]: where each sample ends
    data.json                 written last: a folder without it is unfinished

Every shard carries the settings it was made with and the counts up to its end, so that the shards of an interrupted
run say themselves where to go on. Files appear whole or not at all.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from eagle.chat import RowError
from eagle.data.samples import Sample
from eagle.data.shards import Texts, read_document, shard_path, write_document
from eagle.data.tensor_files import TensorFile, write_tensors
from eagle.files import differing, sweep

FORMATS = (2, 1)  # 1 is without checksums
SHOWN = 5
SUMMARY = "data.json"


@dataclass
class Counts:
    """What was read and what became of it; `reasons` counts skipped rows, `first` names the first few with places."""

    rows: int = 0
    samples: int = 0
    tokens: int = 0
    loss_tokens: int = 0
    truncated: int = 0
    skipped: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    first: list[str] = field(default_factory=list)

    def skip(self, where: str, reason: RowError) -> None:
        """Count a row that cannot be used."""
        self.skipped += 1
        self.reasons[str(reason)] = self.reasons.get(str(reason), 0) + 1
        if len(self.first) < SHOWN:
            self.first.append(f"{where}: {reason}")

    def add(self, sample: Sample) -> None:
        """Count a sample."""
        self.samples += 1
        self.tokens += len(sample)
        self.loss_tokens += int(sample.mask.sum())

    @property
    def skips(self) -> str:
        """The skipped rows in one line."""
        if not self.rows:
            return "there is none"
        rest = "; …" if self.skipped > len(self.first) else ""
        return f"{self.skipped} of {self.rows} rows skipped: {'; '.join(self.first)}{rest}"


def vocabulary_hash(tokenizer: Any) -> str:
    """Return what two tokenizers share only if they have the same ids for the same tokens."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()[:16]


def write_shard(
    folder: Path, shard: int, samples: Sequence[Sample], *, settings: dict[str, Any], counts: Counts
) -> None:
    """Write samples, and the counts up to their end.

    Raises:
        OSError: the disk is full, or fails; nothing of the shard is left.
    """
    path = shard_path(folder, shard)
    tensors = {
        "ids": np.concatenate([sample.ids for sample in samples]),
        "mask": np.concatenate([sample.mask for sample in samples]),
        "ends": np.cumsum([len(sample) for sample in samples], dtype=np.int64),
    }
    try:
        write_tensors(path, tensors, {"shard": shard, "settings": settings, "counts": asdict(counts)})
    except OSError as failure:
        raise OSError(
            f"{path} could not be written ({failure}): with more room the same command goes on after what is there"
        ) from failure


def unfinished_run(folder: Path, settings: dict[str, Any]) -> tuple[int, Counts]:
    """Return how many shards a run with these settings has left here, and the counts up to their end.

    Raises:
        ValueError: the folder holds shards made otherwise, or a damaged one.
    """
    shards, counts = 0, Counts()
    while shard_path(folder, shards).exists():
        made = TensorFile(shard_path(folder, shards)).about
        check_settings(folder, made["settings"], settings)
        counts, shards = Counts(**made["counts"]), shards + 1
    return shards, counts


def check_settings(folder: Path, made: dict[str, Any], settings: dict[str, Any]) -> None:
    """Compare what a folder was made with and what is asked for.

    Raises:
        ValueError: they differ; the message says where.
    """
    if others := differing(made, settings):
        raise ValueError(f"{folder} was made with {others}: choose another folder, or delete it")


def write_summary(folder: Path, settings: dict[str, Any], counts: Counts, shards: int) -> None:
    """Write `data.json`: the folder is finished."""
    write_document(folder / SUMMARY, {"format": FORMATS[0], **settings, **asdict(counts), "shards": shards})


def read_summary(folder: Path) -> dict[str, Any]:
    """Read `data.json`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is of another version.
    """
    return read_document(folder / SUMMARY, FORMATS, "python -m eagle.data")


class Writer:
    """A folder in the making: rows in, shards out. Those that an interrupted run with the same settings left stay.

    Attributes:
        shards: written so far.
        counts: up to the last row that was added.

    Raises:
        ValueError: the folder holds shards made otherwise.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        self.folder, self.settings = folder, settings
        self.shards, self.counts = unfinished_run(folder, settings)
        self._held: list[Sample] = []
        self._written = self.counts.tokens

    @property
    def held_tokens(self) -> int:
        """Tokens that no shard has yet."""
        return self.counts.tokens - self._written

    def add(self, sample: Sample) -> None:
        """Count a sample and hold it for the next shard."""
        self.counts.add(sample)
        self._held.append(sample)

    def write(self) -> None:
        """Write what is held as a shard; to be called after whole rows."""
        if self._held:
            write_shard(self.folder, self.shards, self._held, settings=self.settings, counts=self.counts)
            self._held, self._written, self.shards = [], self.counts.tokens, self.shards + 1

    def finish(self) -> None:
        """Write the last shard and `data.json`."""
        self.write()
        write_summary(self.folder, self.settings, self.counts, self.shards)


class Prepared(Texts):
    """A folder of prepared samples, read from the files as they are asked for.

    Attributes:
        folder: where it lies.
        summary: the contents of `data.json`.
    """

    def __init__(self, folder: Path) -> None:
        self.summary = read_summary(folder)
        super().__init__(folder, self.summary["shards"])


def load(folder: str | Path, *, vocabulary: int | None = None, tokenizer: Any = None) -> Prepared:
    """Open a prepared folder.

    Args:
        folder: what `python -m eagle.data --out` wrote.
        vocabulary: rows of the target's embedding, which may be more than its tokenizer has tokens.
        tokenizer: the target's, to be compared token by token.

    Raises:
        FileNotFoundError: no finished data there, or not all of it.
        ValueError: another format version, a damaged file, or data for another vocabulary than the given target's.
    """
    data = Prepared(Path(folder))
    if missing := data.missing:
        raise FileNotFoundError(f"{folder} has lost {missing[0].name}: the command that made it makes it anew")
    data.check_counts(data.summary)
    made = f"{folder} was made with the tokenizer of {data.summary['target']}"
    size = data.summary["vocabulary"]
    if vocabulary is not None and size > vocabulary:
        raise ValueError(f"{made}, {size} tokens, and the target knows {vocabulary}: prepare it with the target's own")
    if tokenizer is not None and vocabulary_hash(tokenizer) != data.summary["vocabulary_hash"]:
        raise ValueError(f"{made}, and the target's gives its {len(tokenizer)} tokens other ids: prepare it anew")
    return data
