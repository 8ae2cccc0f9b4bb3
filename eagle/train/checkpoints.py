"""Checkpoints that a run goes on from bit for bit: whole or not there, the last few kept.

    checkpoints/step_00000500/   what accelerate saves, weights and optimisers sharded or not
                      run.json   written last: the step, the run's identity, the best acceptance length so far

Order, noise and learning rate are functions of the step, so there is nothing else to save.
"""

import hashlib
import json
import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError

from eagle.files import differing, file_checksums, finish_folder, unfinished_folder

try:
    import fcntl
except ImportError:  # on Windows nobody is kept out
    fcntl = None  # type: ignore[assignment]

RUN, LOCK = "run.json", "run.lock"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunPoint:
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

    def resume(self) -> RunPoint:
        """Load the last whole checkpoint, if there is one.

        Raises:
            ValueError: it belongs to another run, and the message names what differs, or it cannot be read.
        """
        whole = self._whole()
        if not whole:
            return RunPoint()
        try:
            saved = _document(whole[-1])
        except ValueError as problem:
            raise self._damaged(whole[-1], str(problem)) from problem
        made, now = saved["identity"], json.loads(json.dumps(self.identity))
        if others := differing(made, now):
            raise ValueError(f"{self.folder} belongs to a run with {others}: choose another folder, or delete it")
        try:
            self.accelerator.load_state(str(whole[-1]))
        except (OSError, ValueError, KeyError, RuntimeError, EOFError, UnpicklingError, SafetensorError) as failure:
            raise self._damaged(whole[-1], str(failure).partition("\n")[0]) from failure
        # Its count of micro-batches goes on from one of another size where a batch is now divided otherwise.
        self.accelerator.step = 0
        point = RunPoint(**saved["point"])
        logger.info("continuing after step %d", point.step)
        return point

    def _damaged(self, place: Path, problem: str) -> ValueError:
        earlier = next((path for path in reversed(self._whole()) if path < place and _is_whole(path)), None)
        rest = f"it goes on from {earlier.name}, which is whole" if earlier is not None else "it begins anew"
        return ValueError(f"{place} is damaged ({problem}): delete it and run the same command again; {rest}")

    def save(self, point: RunPoint) -> None:
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
            document: dict[str, Any] = {"point": asdict(point), "identity": self.identity}
            document["files"] = file_checksums(unfinished)
            document["checksum"] = _checksum(document)
            (unfinished / RUN).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
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


def _checksum(document: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _document(place: Path) -> dict[str, Any]:
    """Return what a checkpoint says of itself, its files compared with their checksums.

    Raises:
        ValueError: why it cannot be read.
    """
    try:
        document: dict[str, Any] = json.loads((place / RUN).read_text(encoding="utf-8"))
        RunPoint(**document["point"]), dict(document["identity"])
    except (OSError, ValueError, KeyError, TypeError) as failure:
        raise ValueError(f"{RUN}: {failure}") from failure
    wanted = document.get("files")  # older checkpoints have none
    if wanted is None:
        return document
    if document.pop("checksum", None) != _checksum(document):
        raise ValueError(f"{RUN} is not what was saved")
    found = {name: value for name, value in file_checksums(place).items() if name != RUN}
    if wrong := [name for name in sorted({*wanted, *found}) if wanted.get(name) != found.get(name)]:
        raise ValueError(f"{wrong[0]} is not what was saved")
    return document


def _is_whole(place: Path) -> bool:
    try:
        return bool(_document(place))
    except ValueError:
        return False
