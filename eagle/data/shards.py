"""Samples in shards: safetensors files of many samples end to end, read sample by sample.

Every shard holds, beside what its samples are made of, `ends` int64 [samples]: where each of them ends.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from eagle.data.samples import Sample

Some = TypeVar("Some", bound=Sample)


def shard_path(folder: Path, index: int) -> Path:
    """Return the file of a shard."""
    return folder / f"shard_{index:05d}.safetensors"


def read_document(path: Path, version: int, command: str) -> dict[str, Any]:
    """Read the document that is written when a folder of shards is finished.

    Args:
        path: the document.
        version: the format that is read.
        command: what makes such folders.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is of another version.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} holds no {path.name}: make it, or finish it, with {command}")
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if document.get("format") != version:
        raise ValueError(f"{path} has format {document.get('format')}, this version reads {version}: make it anew")
    return document


class Shards(Sequence[Some], ABC, Generic[Some]):
    """The samples of a folder's shards; of a file only what is asked for is read.

    Args:
        folder: where the shards lie.
        files: how many there are.
    """

    framework = "numpy"

    def __init__(self, folder: Path, files: int) -> None:
        self.folder, self.files = folder, files

    @abstractmethod
    def _read(self, file: Any, tokens: slice) -> Some:
        """Return the sample that these tokens of a shard are."""

    @cached_property
    def _open(self) -> list[Any]:
        return [safe_open(shard_path(self.folder, index), self.framework) for index in range(self.files)]

    @cached_property
    def _ends(self) -> list[NDArray[np.int64]]:
        return [np.asarray(file.get_tensor("ends")) for file in self._open]

    @cached_property
    def _first(self) -> NDArray[np.int64]:
        """The number of samples before each shard, and of all: [shards + 1]."""
        return np.cumsum([0, *map(len, self._ends)], dtype=np.int64)

    @cached_property
    def lengths_N(self) -> NDArray[np.int64]:
        """Tokens of every sample: int64 [N]."""
        return np.concatenate([np.diff(ends, prepend=0) for ends in self._ends])

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, index: Any) -> Any:
        """Return a sample, or for a slice a list of them."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        shard = int(np.searchsorted(self._first, place, side="right")) - 1
        ends, place = self._ends[shard], place - int(self._first[shard])
        return self._read(self._open[shard], slice(int(ends[place - 1]) if place else 0, int(ends[place])))

    def __iter__(self) -> Iterator[Some]:
        return (self[place] for place in range(len(self)))


class Texts(Shards[Sample]):
    """Ids and masks alone."""

    @cached_property
    def fingerprint(self) -> str:
        """What folders share only if they hold the same samples in the same order, however cut into shards."""
        ids, masks, lengths = (hashlib.sha256() for _ in range(3))
        for file in self._open:
            ids.update(file.get_tensor("ids"))
            masks.update(file.get_tensor("mask"))
        lengths.update(self.lengths_N.tobytes())
        return hashlib.sha256(ids.digest() + masks.digest() + lengths.digest()).hexdigest()[:16]

    def _read(self, file: Any, tokens: slice) -> Sample:
        return Sample(file.get_slice("ids")[tokens], file.get_slice("mask")[tokens])
