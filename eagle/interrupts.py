"""Ctrl-C as one line: while libraries are being loaded, and where a command has nothing to say of it.

A command that can say what it has saved catches `KeyboardInterrupt` itself.
"""

import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STATUS = 130
LAUNCHERS = ("accelerate", "torchrun", "torch.distributed.run")
BEFORE = b"interrupted before any work: the same command begins anew\n"


def leave(*_: Any) -> None:
    """End at once: libraries that are being loaded take an exception for anything but Ctrl-C."""
    os.write(2, BEFORE)
    os._exit(STATUS)


def expect() -> None:
    """Leave at any Ctrl-C from here on, unless it is ignored, as in the background of a shell."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, leave)


def run(command: Callable[[], int]) -> int:
    """Run a command, which from here on is told of Ctrl-C; return its exit status."""
    try:
        if signal.getsignal(signal.SIGINT) is leave:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        status = command()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is written and said
    except KeyboardInterrupt:
        leave()
    return status


@contextmanager
def held_back() -> Iterator[None]:
    """Keep Ctrl-C back; processes that are begun meanwhile never hear of it, unless they say `hear`."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def hear() -> None:
    """End without a word at Ctrl-C, in a process that was begun in `held_back`."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def say(saved: str, module: str, arguments: Sequence[str] | None) -> int:
    """Say what is saved and how to go on; return the exit status.

    Without `arguments` the command is a process of its own: see `say_again`.
    """
    again = own_command(sys.argv[1:] if arguments is None else arguments, module)
    return say_again(saved, again, own_process=arguments is None)


def say_again(saved: str, again: str, *, own_process: bool) -> int:
    """Say what is saved and which command goes on; return the exit status.

    A process of its own hears of no further Ctrl-C while it ends; a program that called the command hears of them as
    before.
    """
    if own_process:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough
    sys.stderr.write(f"interrupted: {saved}; to go on: {again}\n")
    return STATUS


def own_command(argv: Sequence[str] | None, module: str) -> str:
    """Return the command line that does the same again, as far as it can be told."""
    if argv is not None:
        return shlex.join(["python", "-m", module, *argv])
    try:
        parent = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().decode().rstrip("\0").split("\0")
    except (OSError, ValueError):
        parent = []
    if any(Path(part).name in LAUNCHERS for part in parent):
        return shlex.join(parent)
    return "the same command" if is_launched() else shlex.join(sys.orig_argv)


def is_launched() -> bool:
    """Tell whether a launcher has begun this process, one of several."""
    return "LOCAL_RANK" in os.environ
