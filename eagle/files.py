"""Files that appear whole or not at all, paths that are folders or Hub ids, and settings that differ.

Knows nothing of what is in a file. A name that ends in `.tmp` is unfinished, whoever was writing it.
"""

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PIECE = 1 << 20  # bytes that are read at once


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a place to write a file to, which is put in its own at the end; a failure leaves the old one as it was.

    Raises:
        OSError: the disk is full, or fails; nothing of the new file is left.
    """
    # A name of this process: what another one, believed dead, is still writing is never renamed by this one.
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    unfinished.unlink(missing_ok=True)
    try:
        # Made here, so that no link that lies there is followed, and with the mode that new files have.
        unfinished.touch(exist_ok=False)
        mode = unfinished.stat().st_mode
        yield unfinished
        unfinished.chmod(mode)
        _sync(unfinished)  # where disks are remote only this says that there was no room
        unfinished.replace(path)
        _sync(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text whole or not at all; see `whole_file`."""
    with whole_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def unfinished_folder(place: Path) -> Path:
    """Return an empty folder to fill before `finish_folder` puts it in its place."""
    unfinished = place.with_name(f"{place.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    return unfinished


def finish_folder(unfinished: Path, place: Path) -> None:
    """Put a filled folder in its place, instead of what is there."""
    for path in (*unfinished.rglob("*"), unfinished):
        _sync(path)
    shutil.rmtree(place, ignore_errors=True)
    unfinished.rename(place)
    _sync(place.parent)


def file_checksum(path: Path) -> str:
    """Return a file's SHA-256."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def file_checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder, by its path in it."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): file_checksum(path) for path in files}


def sweep(folder: Path, name: str = "*") -> None:
    """Delete what processes that were killed have left of a folder's files, or of one of them."""
    for unfinished in folder.glob(f"{name}.*.tmp"):
        unfinished.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_local(path: str) -> bool:
    """Tell whether a path means a folder of this machine, there or not, rather than a repository of the Hub."""
    return Path(path).exists() or path.startswith((".", "/", "~")) or "\\" in path or path.count("/") > 1


def differing(made: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """Return which settings something was made with otherwise than is asked for now, in words; "" for none."""
    return "; ".join(
        f"{name}={made.get(name)!r}, now {value!r}" for name, value in asked.items() if made.get(name) != value
    )
