"""Samples in shards: safetensors files of many samples end to end, read sample by sample.

Every shard holds, beside what its samples are made of, `ends` int64 [samples]: where each of them ends.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from eagle.data.samples import Sample
from eagle.data.tensor_files import TensorFile
from eagle.files import differing, write_text

SHOWN = 3  # missing shards that are named
Some = TypeVar("Some", bound=Sample)


def shard_path(folder: Path, index: int) -> Path:
    """Return the file of a shard."""
    return folder / f"shard_{index:05d}.safetensors"


def read_document(path: Path, versions: Sequence[int], command: str) -> dict[str, Any]:
    """Read the document that is written when a folder of shards is finished.

    Args:
        path: the document.
        versions: the formats that are read, the present one first.
        command: what makes such folders.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or of another version.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} holds no {path.name}: make it, or finish it, with {command}")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as failure:
        raise ValueError(f"{path} is damaged ({failure}): delete it, and {command} finishes it anew") from failure
    made = document.get("format") if isinstance(document, dict) else None
    if made not in versions:
        known = " and ".join(map(str, sorted(versions)))
        raise ValueError(f"{path} has format {made}, this version reads {known}: make it anew")
    checksum = document.pop("checksum", None)
    if made != 1 and checksum != _checksum(document):
        raise ValueError(f"{path} is not what was written: delete it, and {command} finishes it anew")
    return dict(document)


def write_document(path: Path, document: dict[str, Any]) -> None:
    """Write what `read_document` reads, with a checksum: the folder is finished."""
    document = {**document, "checksum": _checksum(document)}
    text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    # Names of files may hold what is not UTF-8, which escaped is JSON all the same.
    write_text(path, text.encode(errors="backslashreplace").decode())


def _checksum(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()[:16]


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
    def _read(self, file: TensorFile, tokens: slice) -> Some:
        """Return the sample that these tokens of a shard are."""

    @property
    def missing(self) -> list[Path]:
        """The first shards that are not there."""
        paths = (shard_path(self.folder, index) for index in range(self.files))
        return list(islice((path for path in paths if not path.is_file()), SHOWN))

    @cached_property
    def _open(self) -> list[TensorFile]:
        return [TensorFile(shard_path(self.folder, index), self.framework) for index in range(self.files)]

    @cached_property
    def _ends(self) -> list[NDArray[np.int64]]:
        return [_checked_ends(file, index) for index, file in enumerate(self._open)]

    @cached_property
    def _first(self) -> NDArray[np.int64]:
        """The number of samples before each shard, and of all: [shards + 1]."""
        return np.cumsum([0, *map(len, self._ends)], dtype=np.int64)

    @cached_property
    def lengths_N(self) -> NDArray[np.int64]:
        """Tokens of every sample: int64 [N]."""
        return np.concatenate([np.diff(ends, prepend=0) for ends in self._ends])

    def check_counts(self, summary: dict[str, Any]) -> None:
        """Compare what the shards hold with what the folder's document says.

        Raises:
            ValueError: they differ, or a shard is damaged.
        """
        found = {"samples": len(self), "tokens": int(self.lengths_N.sum()) if self.files else 0}
        if others := differing(found, {name: summary[name] for name in found}):
            raise ValueError(f"the shards of {self.folder} do not match its document ({others}): make the folder anew")

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

    def check(self) -> None:
        """Read everything.

        Raises:
            ValueError: a shard is damaged.
        """
        for file in self._open:
            for name in file.names:
                file.read(name)

    @cached_property
    def fingerprint(self) -> str:
        """What folders share only if they hold the same samples in the same order, however cut into shards."""
        ids, masks, lengths = (hashlib.sha256() for _ in range(3))
        for file in self._open:
            ids.update(file.read("ids"))
            masks.update(file.read("mask"))
        lengths.update(self.lengths_N.tobytes())
        return hashlib.sha256(ids.digest() + masks.digest() + lengths.digest()).hexdigest()[:16]

    def _read(self, file: TensorFile, tokens: slice) -> Sample:
        return Sample(file.read("ids", tokens), file.read("mask", tokens))


def _checked_ends(file: TensorFile, index: int) -> NDArray[np.int64]:
    """Return where the samples of a shard end.

    Raises:
        ValueError: the shard is damaged, has parts of other lengths, or is another one.
    """
    if "ends" not in file.names or "ids" not in file.names:
        raise file.damaged("it holds no samples")
    ends = np.asarray(file.read("ends"))
    if ends.ndim != 1 or not len(ends) or (np.diff(ends, prepend=0) < 0).any():
        raise file.damaged("its samples do not follow one another")
    lengths = {name: file.shape(name)[0] for name in file.names if name not in ("ends", "rows")}
    if others := [f"{name} has {length} tokens" for name, length in lengths.items() if length != int(ends[-1])]:
        raise file.damaged(f"its samples end at {int(ends[-1])}, {others[0]}")
    if file.about.get("shard", index) != index:
        raise file.damaged(f"it is shard {file.about['shard']}")
    return ends
