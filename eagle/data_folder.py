"""Prepared data on disk: shards of ids and masks, and `data.json`, which says what they are.

    shard_00000.safetensors   ids int32 [tokens], mask bool [tokens], ends int64 [samples]: where each sample ends
    data.json                 written last: a folder without it is unfinished

Every shard carries the settings it was made with and the counts up to its end, so that the shards of an interrupted
run say themselves where to go on. Files appear whole or not at all.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from eagle.chat import RowError
from eagle.data_samples import Sample

FORMAT = 1
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
        rest = "; …" if self.skipped > len(self.first) else ""
        return f"{self.skipped} of {self.rows} rows skipped: {'; '.join(self.first)}{rest}"


def vocabulary_hash(tokenizer: Any) -> str:
    """Return what two tokenizers share only if they have the same ids for the same tokens."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()[:16]


def shard_path(folder: Path, index: int) -> Path:
    """Return the file of a shard."""
    return folder / f"shard_{index:05d}.safetensors"


def write_shard(path: Path, samples: Sequence[Sample], settings: dict[str, Any], counts: Counts) -> None:
    """Write samples, and the counts up to their end."""
    tensors = {
        "ids": np.concatenate([sample.ids for sample in samples]),
        "mask": np.concatenate([sample.mask for sample in samples]),
        "ends": np.cumsum([len(sample) for sample in samples], dtype=np.int64),
    }
    unfinished = path.with_suffix(".tmp")
    save_file(tensors, unfinished, {"settings": json.dumps(settings), "counts": json.dumps(asdict(counts))})
    unfinished.replace(path)


def unfinished_run(folder: Path, settings: dict[str, Any]) -> tuple[int, Counts]:
    """Return how many shards a run with these settings has left here, and the counts up to their end.

    Raises:
        ValueError: the folder holds shards made otherwise.
    """
    shards, counts = 0, Counts()
    while shard_path(folder, shards).exists():
        with safe_open(shard_path(folder, shards), "numpy") as file:
            metadata = file.metadata()
        check_settings(folder, json.loads(metadata["settings"]), settings)
        counts, shards = Counts(**json.loads(metadata["counts"])), shards + 1
    return shards, counts


def check_settings(folder: Path, made: dict[str, Any], settings: dict[str, Any]) -> None:
    """Compare what a folder was made with and what is asked for.

    Raises:
        ValueError: they differ; the message says where.
    """
    differing = [
        f"{name}={made.get(name)!r}, now {value!r}" for name, value in settings.items() if made.get(name) != value
    ]
    if differing:
        raise ValueError(f"{folder} was made with {'; '.join(differing)}: choose another folder, or delete it")


def write_summary(folder: Path, settings: dict[str, Any], counts: Counts, shards: int) -> None:
    """Write `data.json`: the folder is finished."""
    unfinished = folder / f"{SUMMARY}.tmp"
    document = {"format": FORMAT, **settings, **asdict(counts), "shards": shards}
    unfinished.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    unfinished.replace(folder / SUMMARY)


def read_summary(folder: Path) -> dict[str, Any]:
    """Read `data.json`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is of another version.
    """
    path = folder / SUMMARY
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {SUMMARY}: make it, or finish it, with python -m eagle.data")
    summary = json.loads(path.read_text(encoding="utf-8"))
    if summary.get("format") != FORMAT:
        raise ValueError(f"{path} has format {summary.get('format')}, this version reads {FORMAT}: prepare it anew")
    return summary


class Prepared(Sequence[Sample]):
    """A folder of prepared samples, read from the files as they are asked for.

    Attributes:
        folder: where it lies.
        summary: the contents of `data.json`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.summary = read_summary(folder)

    @cached_property
    def _shards(self) -> list[Any]:
        return [safe_open(shard_path(self.folder, index), "numpy") for index in range(self.summary["shards"])]

    @cached_property
    def _ends(self) -> list[NDArray[np.int64]]:
        return [shard.get_tensor("ends") for shard in self._shards]

    @cached_property
    def _first(self) -> NDArray[np.int64]:
        """The number of samples before each shard, and of all: [shards + 1]."""
        return np.cumsum([0, *map(len, self._ends)], dtype=np.int64)

    @cached_property
    def lengths_N(self) -> NDArray[np.int64]:
        """Tokens of every sample: int64 [N]."""
        return np.concatenate([np.diff(ends, prepend=0) for ends in self._ends])

    def __len__(self) -> int:
        return int(self.summary["samples"])

    def __getitem__(self, index: Any) -> Any:
        """Return a `Sample`, or for a slice a list of them."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        shard = int(np.searchsorted(self._first, place, side="right")) - 1
        ends, place = self._ends[shard], place - int(self._first[shard])
        begin, end = int(ends[place - 1]) if place else 0, int(ends[place])
        file = self._shards[shard]
        return Sample(file.get_slice("ids")[begin:end], file.get_slice("mask")[begin:end])

    def __iter__(self) -> Iterator[Sample]:
        return (self[place] for place in range(len(self)))


def load(folder: str | Path, *, vocabulary: int | None = None, tokenizer: Any = None) -> Prepared:
    """Open a prepared folder.

    Args:
        folder: what `python -m eagle.data --out` wrote.
        vocabulary: rows of the target's embedding, which may be more than its tokenizer has tokens.
        tokenizer: the target's, to be compared token by token.

    Raises:
        FileNotFoundError: no finished data there.
        ValueError: another format version, or data for another vocabulary than the given target's.
    """
    data = Prepared(Path(folder))
    made = f"{folder} was made with the tokenizer of {data.summary['target']}"
    size = data.summary["vocabulary"]
    if vocabulary is not None and size > vocabulary:
        raise ValueError(f"{made}, {size} tokens, and the target knows {vocabulary}: prepare it with the target's own")
    if tokenizer is not None and vocabulary_hash(tokenizer) != data.summary["vocabulary_hash"]:
        raise ValueError(f"{made}, and the target's gives its {len(tokenizer)} tokens other ids: prepare it anew")
    return data
