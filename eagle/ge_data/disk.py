"""Files of tensors on a disk that may be too small."""

import logging
import shutil
from pathlib import Path
from typing import Any

import torch

from eagle.data.tensor_files import write_tensors

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


def write(path: Path, tensors: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
    """Write tensors, and what they are.

    Raises:
        OSError: the disk is full, or fails; nothing of the file is left.
    """
    try:
        write_tensors(path, tensors, about)
    except OSError as failure:
        raise OSError(
            f"{path} could not be written, {readable(free(path.parent))} are free ({failure}): nothing of it is left; "
            "with more room the same command goes on after what is there"
        ) from failure
