"""Train a draft head, or take one out of a checkpoint.

    accelerate launch -m --mixed_precision=bf16 eagle.train.main --tmpdir DATA --cpdir HEAD --kind eagle3
    python -m eagle.train.main --export HEAD/checkpoints/step_00000500 --cpdir OUT

DATA is a folder of `python -m eagle.data`. One process needs no launcher: python -m eagle.train.main. Interrupted, by
Ctrl-C or anything else, the same command goes on after its last checkpoint.

What takes time to import is imported where it is used, so that an interruption is answered from the beginning.
"""

import logging
import os
from pathlib import Path
from typing import Any

from eagle.interrupts import own_command
from eagle.train.interruption import Interruption, interruptible

MODULE = "eagle.train.main"
logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None, command: str | None = None, **defaults: Any) -> int:
    """Train a head.

    Args:
        argv: the arguments; None means the process's own.
        command: the command line to say when this is interrupted; None means that of `argv`.
        defaults: settings of another entry point.

    Returns:
        0; of a run that a signal ended 128 + the signal's number.
    """
    command = command or own_command(argv, MODULE)
    return interruptible(lambda interruption: _work(argv, command, interruption, defaults), argv is None)


def _work(argv: list[str] | None, command: str, interruption: Interruption, defaults: dict[str, Any]) -> int:
    interruption.words = lambda: f"interrupted before anything was done; to go on: {command}"
    from eagle.train.settings import parse

    settings = parse(argv, f"python -m {MODULE}", (__doc__ or "").split("\n")[0], **defaults)
    logging.basicConfig(level=logging.INFO if _is_first() else logging.WARNING, format="%(message)s")
    logging.getLogger("accelerate").setLevel(logging.WARNING)  # it names every file of every checkpoint
    if settings.cpdir is not None and settings.export is None:
        interruption.words = lambda: how_to_go_on(Path(str(settings.cpdir)), command, interruption.has_begun)
    try:
        _train_or_export(settings, interruption)
    except (ValueError, OSError, ImportError, NotImplementedError, FloatingPointError) as refusal:
        if interruption.broke_in:  # what a library made of it
            raise
        raise SystemExit(f"python -m {MODULE}: {refusal}") from refusal
    return 0


def _train_or_export(settings: Any, interruption: Interruption) -> None:
    if settings.export is None:
        from eagle.train.run import run_of

        run_of(settings, interruption)
        return
    from eagle.train.checkpoint_head import export

    if settings.cpdir is None:
        raise ValueError("missing: --cpdir, the folder for the head")
    point = export(Path(settings.export), Path(settings.cpdir), settings.head_dtype)
    logger.info("%s holds the head of step %d", settings.cpdir, point.step)


def how_to_go_on(folder: Path, command: str, has_begun: bool) -> str:
    """Say how a run goes on that was interrupted, and how a head is had of what there is.

    Args:
        folder: of the run.
        command: the command line that does the same again.
        has_begun: whether the checkpoints are known to be this run's, and not those of another one.
    """
    from eagle.train.checkpoints import document, whole

    if not (places := whole(folder)):
        return f"interrupted before the first checkpoint: nothing is kept; to begin anew: {command}"
    if not has_begun:
        return f"interrupted before anything was done; to go on: {command}"
    step, out = document(places[-1], checked=False)["point"]["step"], f"{folder}-step-{places[-1].name[5:].lstrip('0')}"
    return (
        f"interrupted: step {step} is saved; to go on: {command}\n"
        f"a head of it: python -m {MODULE} --export {places[-1]} --cpdir {out}"
    )


def _is_first() -> bool:
    return int(os.environ.get("RANK", 0)) == 0


if __name__ == "__main__":
    raise SystemExit(main())
