"""Checkpoints that a run goes on from bit for bit: whole or not there, the last few kept.

    checkpoints/step_00000500/   what accelerate saves, weights and optimisers sharded or not
                      run.json   written last: the step, the best acceptance length so far, the run's identity, and
                                 what of the head is not in its weights, so that it can be taken out by itself

Order, noise and learning rate are functions of the step, so there is nothing else to save. Of inputs the identity holds
what is in them, never where they are.
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

from eagle.files import differing, file_checksums, finish_folder, sweep, unfinished_folder

try:
    import fcntl
except ImportError:  # on Windows nobody is kept out
    fcntl = None  # type: ignore[assignment]

FOLDER, RUN, LOCK = "checkpoints", "run.json", "run.lock"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunPoint:
    """Where a run stands.

    Attributes:
        step: optimiser steps done.
        best_tau: the best acceptance length so far, or None.
        best_step: after which step.
        measured_step: after which step it was measured last.
        measured_by: what it was measured by, see `AcceptanceEvaluator`.
    """

    step: int = 0
    best_tau: float | None = None
    best_step: int | None = None
    measured_step: int = 0
    measured_by: str | None = None


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: of the run.
        accelerator: what saves and loads.
        identity: what a run that is continued must have in common with this one.
        keep: how many stay.
        facts: what else is to be kept with them, so that a head is had without its run, and a run without guessing.

    Raises:
        ValueError: another process is training into this folder.
    """

    def __init__(
        self,
        folder: Path,
        accelerator: Accelerator,
        identity: dict[str, Any],
        keep: int,
        facts: dict[str, Any] | None = None,
    ) -> None:
        self.run, self.folder, self.accelerator = folder, folder / FOLDER, accelerator
        self.identity, self.keep, self.facts = identity, keep, facts or {}
        self._claim = _claimed(folder) if accelerator.is_main_process else None

    def best_steps(self) -> set[int]:
        """The steps whose heads are the best ones of checkpoints."""
        points = [json.loads((place / RUN).read_text(encoding="utf-8"))["point"] for place in whole(self.run)]
        return {point["best_step"] for point in points if point.get("best_step") is not None}

    def resume(self) -> RunPoint:
        """Load the last whole checkpoint, if there is one.

        Raises:
            ValueError: it belongs to another run, and the message names what differs, or it cannot be read.
        """
        if self.accelerator.is_main_process:
            sweep(self.run)  # what processes that were killed have left
            for half in self.folder.glob("step_*.tmp"):
                shutil.rmtree(half)
        self.accelerator.wait_for_everyone()
        if not (places := whole(self.run)):
            return RunPoint()
        last = places[-1]
        try:
            saved = document(last)
        except ValueError as problem:
            raise self._damaged(last, str(problem)) from problem
        made, now = saved["identity"], json.loads(json.dumps(self.identity))
        if others := differing(made, now):
            raise ValueError(f"{self.folder} belongs to a run with {others}: choose another folder, or delete it")
        try:
            self.accelerator.load_state(str(last))
        except (OSError, ValueError, KeyError, RuntimeError, EOFError, UnpicklingError, SafetensorError) as failure:
            raise self._damaged(last, str(failure).partition("\n")[0]) from failure
        # Its count of micro-batches goes on from one of another size where a batch is now divided otherwise.
        self.accelerator.step = 0
        point = RunPoint(**saved["point"])
        logger.info("continuing after step %d", point.step)
        return point

    def _damaged(self, place: Path, problem: str) -> ValueError:
        earlier = next((path for path in reversed(whole(self.run)) if path < place and _is_whole(path)), None)
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
            stays = "the last whole one stays" if whole(self.run) else "there is none yet"
            raise OSError(f"no checkpoint could be written to {self.folder} ({words}): {stays}") from failure
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            made: dict[str, Any] = {"point": asdict(point), "identity": self.identity, **self.facts}
            made["files"] = file_checksums(unfinished)
            made["checksum"] = _checksum(made)
            (unfinished / RUN).write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
            finish_folder(unfinished, place)
            for old in whole(self.run)[: -self.keep]:
                # Not half a checkpoint under a whole one's name, whenever this is killed.
                shutil.rmtree(old.rename(old.with_name(f"{old.name}.tmp")))
        self.accelerator.wait_for_everyone()


def whole(run: Path) -> list[Path]:
    """Return the finished checkpoints of a run's folder, the last one last."""
    return sorted(path.parent for path in (run / FOLDER).glob(f"step_*/{RUN}") if path.parent.suffix != ".tmp")


def begun(run: Path) -> dict[str, Any]:
    """Return what the last checkpoint in a run's folder says of the run; nothing where there is none."""
    try:
        return document(whole(run)[-1], checked=False)
    except (IndexError, ValueError):
        return {}


def _claimed(folder: Path) -> Any:
    """Return a file that, while it is open, keeps other processes from this folder."""
    claim = (folder / LOCK).open("w")
    if fcntl is not None:
        try:
            fcntl.lockf(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as taken:
            raise ValueError(f"another process is training into {folder}: choose another folder, or wait") from taken
    return claim


def _checksum(made: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()


def document(place: Path, checked: bool = True) -> dict[str, Any]:
    """Return what a checkpoint says of itself.

    Args:
        place: its folder.
        checked: compare its files with their checksums.

    Raises:
        ValueError: why it cannot be read.
    """
    try:
        made: dict[str, Any] = json.loads((place / RUN).read_text(encoding="utf-8"))
        RunPoint(**made["point"]), dict(made["identity"])
    except (OSError, ValueError, KeyError, TypeError) as failure:
        raise ValueError(f"{RUN}: {failure}") from failure
    wanted = made.get("files")  # older checkpoints have none
    if wanted is None or not checked:
        return made
    if made.pop("checksum", None) != _checksum(made):
        raise ValueError(f"{RUN} is not what was saved")
    found = {name: value for name, value in file_checksums(place).items() if name != RUN}
    if wrong := [name for name in sorted({*wanted, *found}) if wanted.get(name) != found.get(name)]:
        raise ValueError(f"{wrong[0]} is not what was saved")
    return made


def _is_whole(place: Path) -> bool:
    try:
        return bool(document(place))
    except ValueError:
        return False
