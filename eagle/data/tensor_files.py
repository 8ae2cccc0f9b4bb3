"""Files of tensors that tell when they are damaged: safetensors with a checksum of everything in them.

The only metadata entry, `about`, is a JSON document: what the file's owner says about it, the CRC-32 of every tensor
with its name, type and shape, and of the document itself. What is read is checked, a tensor at its first use. Files
from before there were checksums are read unchecked.
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy as numpy_files
from safetensors import SafetensorError, safe_open

from eagle.files import whole_file

CHECKSUMS = "crc32"
PIECE = 1 << 24  # bytes that are read at once to be checked


def write_tensors(path: Path, tensors: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write tensors, all of NumPy or all of torch, and what is to be said about them, whole or not at all.

    Raises:
        OSError: the disk is full, or fails; nothing of the file is left.
    """
    checksums = {name: _crc(tensor, _seed(name, tensor)) for name, tensor in tensors.items()}
    document = {**about, CHECKSUMS: checksums}
    document[CHECKSUMS]["about"] = _document_crc(document)
    try:
        with whole_file(path) as unfinished:
            # One entry: several would be written in any order, and the same data would not be the same bytes.
            _save(dict(tensors), unfinished, {"about": json.dumps(document)})
    except SafetensorError as failure:
        raise OSError(str(failure)) from failure


def _save(tensors: dict[str, Any], path: Path, metadata: dict[str, str]) -> None:
    if all(isinstance(tensor, np.ndarray) for tensor in tensors.values()):
        numpy_files.save_file(tensors, path, metadata)
    else:
        import safetensors.torch as torch_files

        torch_files.save_file(tensors, path, metadata)


class TensorFile:
    """An open file of tensors.

    Args:
        path: the file.
        framework: "numpy" or "pt", what tensors are read as.

    Attributes:
        about: what its owner said about it.

    Raises:
        ValueError: it is damaged, or no such file; the message says so and what to do.
    """

    def __init__(self, path: Path, framework: str = "numpy") -> None:
        self.path = path
        try:
            self._file = safe_open(path, framework)
            metadata = self._file.metadata() or {}
            self.about: dict[str, Any] = json.loads(metadata.get("about") or metadata["made"])
            self._checksums = self.about.pop(CHECKSUMS, None)
            self.names: list[str] = sorted(self._file.keys())
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError) as failure:
            raise self.damaged(str(failure).partition("\n")[0]) from failure
        self._unchecked = set(self.names) if self._checksums is not None else set()
        if self._checksums is not None:
            wanted = {name: value for name, value in self._checksums.items() if name != "about"}
            if self._checksums.get("about") != _document_crc({**self.about, CHECKSUMS: wanted}):
                raise self.damaged("what it says of itself does not match its checksum")
            if sorted(wanted) != self.names:
                raise self.damaged("tensors are missing")

    def damaged(self, how: str) -> ValueError:
        """Return the error that says that the file cannot be used."""
        return ValueError(
            f"{self.path} is damaged or no file of this kind ({how}): delete it, and the command that made it makes "
            "it anew"
        )

    def shape(self, name: str) -> list[int]:
        """Return a tensor's shape."""
        return list(self._file.get_slice(name).get_shape())

    def read(self, name: str, rows: slice = slice(None)) -> Any:
        """Return some rows of a tensor.

        Raises:
            ValueError: the tensor is damaged.
        """
        try:
            if name in self._unchecked:
                self._check(name)
            return self._file.get_tensor(name) if rows == slice(None) else self._file.get_slice(name)[rows]
        except SafetensorError as failure:
            raise self.damaged(str(failure).partition("\n")[0]) from failure

    def _check(self, name: str) -> None:
        part = self._file.get_slice(name)
        length = self.shape(name)[0]
        first = part[0:1]
        step = max(1, PIECE // max(1, first.nbytes))
        crc = _seed(name, first, self.shape(name))
        for start in range(0, length, step):
            crc = _crc(part[start : min(start + step, length)], crc)
        if crc != self._checksums[name]:
            raise self.damaged(f"{name} does not match its checksum")
        self._unchecked.discard(name)


def _seed(name: str, tensor: Any, shape: list[int] | None = None) -> int:
    kind = str(tensor.dtype).removeprefix("torch.")
    return zlib.crc32(f"{name} {kind} {list(tensor.shape) if shape is None else shape}".encode())


def _crc(tensor: Any, crc: int) -> int:
    """Return the checksum that goes on from another over a tensor's bytes."""
    if not isinstance(tensor, np.ndarray):
        import torch

        tensor = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return zlib.crc32(np.ascontiguousarray(tensor).data, crc)


def _document_crc(document: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(document, sort_keys=True).encode())
