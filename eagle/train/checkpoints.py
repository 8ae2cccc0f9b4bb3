"""Checkpoints that a run goes on from bit for bit: whole or not there, the last few kept.

    checkpoints/step_00000500/   what accelerate saves, weights and optimisers sharded or not
                      run.json   written last: the step, the run's identity, the best acceptance length so far

Order, noise and learning rate are functions of the step, so there is nothing else to save.
"""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError

from eagle.files import differing, finish_folder, unfinished_folder

try:
    import fcntl
except ImportError:  # on Windows nobody is kept out
    fcntl = None  # type: ignore[assignment]

RUN, LOCK = "run.json", "run.lock"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Point:
    """Where a run stands: optimiser steps done, and the best acceptance length so far, with its step."""

    step: int = 0
    best_tau: float | None = None
    best_step: int | None = None


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: of the run.
        accelerator: what saves and loads.
        identity: what a run that is continued must have in common with this one.
        keep: how many stay.

    Raises:
        ValueError: another process is training into this folder.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, identity: dict[str, Any], keep: int) -> None:
        self.folder, self.accelerator, self.identity, self.keep = folder / "checkpoints", accelerator, identity, keep
        self._claim = _claimed(folder) if accelerator.is_main_process else None

    def _whole(self) -> list[Path]:
        return sorted(path.parent for path in self.folder.glob(f"step_*/{RUN}") if path.parent.suffix != ".tmp")

    def resume(self) -> Point:
        """Load the last whole checkpoint, if there is one.

        Raises:
            ValueError: it belongs to another run, and the message names what differs, or it cannot be read.
        """
        whole = self._whole()
        if not whole:
            return Point()
        with _readable(whole[-1]):
            saved = json.loads((whole[-1] / RUN).read_text())
        made, now = saved["identity"], json.loads(json.dumps(self.identity))
        if others := differing(made, now):
            raise ValueError(f"{self.folder} belongs to a run with {others}: choose another folder, or delete it")
        with _readable(whole[-1]):
            self.accelerator.load_state(str(whole[-1]))
        # Its count of micro-batches goes on from one of another size where a batch is now divided otherwise.
        self.accelerator.step = 0
        point = Point(**saved["point"])
        logger.info("continuing after step %d", point.step)
        return point

    def save(self, point: Point) -> None:
        """Write a checkpoint and remove the oldest beyond `keep`; every process takes part.

        Raises:
            OSError: it could not be written, on a full disk for instance.
        """
        place = self.folder / f"step_{point.step:08d}"
        unfinished = place.with_name(f"{place.name}.tmp")
        if self.accelerator.is_main_process:
            unfinished_folder(place)
        self.accelerator.wait_for_everyone()
        try:
            self.accelerator.save_state(str(unfinished))
        except (OSError, RuntimeError, SafetensorError) as failure:
            shutil.rmtree(unfinished, ignore_errors=True)
            words = str(failure).partition("\n")[0]
            stays = "the last whole one stays" if self._whole() else "there is none yet"
            raise OSError(f"no checkpoint could be written to {self.folder} ({words}): {stays}") from failure
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            document = {"point": asdict(point), "identity": self.identity}
            (unfinished / RUN).write_text(json.dumps(document, indent=1) + "\n")
            finish_folder(unfinished, place)
            for old in self._whole()[: -self.keep]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()


def _claimed(folder: Path) -> Any:
    """Return a file that, while it is open, keeps other processes from this folder."""
    claim = (folder / LOCK).open("w")
    if fcntl is not None:
        try:
            fcntl.lockf(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as taken:
            raise ValueError(f"another process is training into {folder}: choose another folder, or wait") from taken
    return claim


@contextmanager
def _readable(place: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, EOFError, UnpicklingError, SafetensorError) as failure:
        words = str(failure).partition("\n")[0]
        raise ValueError(f"{place} is damaged ({words}): delete it to go on from an earlier one") from failure
