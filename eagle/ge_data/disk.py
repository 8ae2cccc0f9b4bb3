"""Files that appear whole or not at all, on a disk that may be too small."""

import logging
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

logger = logging.getLogger(__name__)


def readable(size: float) -> str:
    """Return a number of bytes for a person."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.0f} B" if units[0] == "B" else f"{size:.1f} {units[0]}"


def free(folder: Path) -> int:
    """Return the free bytes of the disk that a folder, there or not yet, is on."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def check_room(folder: Path, needed: int) -> None:
    """Say how much disk is needed and how much is free.

    Raises:
        OSError: more is needed.
    """
    room = free(folder)
    words = f"{folder} needs {readable(needed)}, {readable(room)} are free"
    if needed > room:
        raise OSError(
            f"{words}: choose another disk, fewer texts, or --top-logits, which is smaller than hidden states"
        )
    logger.info("%s", words)


def write(path: Path, tensors: dict[str, torch.Tensor], about: str) -> None:
    """Write tensors, and what they are.

    Raises:
        OSError: the disk is full, or fails; nothing of the file is left.
    """
    # A name of this process: what another one, believed dead, is still writing is never renamed by this one.
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        # One entry: safetensors writes several in any order.
        save_file(tensors, unfinished, {"about": about})
        with unfinished.open("rb+") as file:
            os.fsync(file.fileno())  # Where disks are remote only this says that there was no room.
        unfinished.replace(path)
    except (OSError, SafetensorError) as failure:
        raise OSError(
            f"{path} could not be written, {readable(free(path.parent))} are free ({failure}): nothing of it is left; "
            "with more room the same command goes on after what is there"
        ) from failure
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a small file."""
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def sweep(paths: Iterable[Path]) -> None:
    """Delete what processes that were killed have left of these files of one folder."""
    places = {(path.parent, path.stem) for path in paths}
    for folder in {folder for folder, _ in places}:
        for unfinished in folder.glob("*.tmp"):
            if (folder, unfinished.name.partition(".")[0]) in places:
                unfinished.unlink(missing_ok=True)
