"""Interruptions: Ctrl-C and SIGTERM end a command in words, without a traceback.

While a run takes its steps a first signal is only noted, so that it ends with a checkpoint; everywhere else it ends at
once what is being done, imports too. A second one always does. This file imports nothing that takes time, because it
watches over the imports of others, and does not know what is interrupted.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from eagle.interrupts import is_launched

SIGNALS = (signal.SIGINT, signal.SIGTERM)
ONE_PRESS = 1.0  # seconds within which the signals of a launcher and of a terminal are one
NOTED = "stopping after this step, with a checkpoint; once more stops at once"


class Interruption:
    """What signals do while a command works; made where it begins, and the former handlers' again where it ends.

    Args:
        own_process: whether the process ends with the command; then nothing is printed by what ends after it.

    Attributes:
        signal: the first one that came, or None.
        broke_in: whether it raised KeyboardInterrupt wherever the command was: any error may be what came of that.
        has_begun: whether it came to its steps: only then what lies in a run's folder is known to be its own.
        words: what to say of it, asked for when it is said.
    """

    def __init__(self, own_process: bool = False) -> None:
        self.signal: int | None = None
        self.broke_in, self.has_begun = False, False
        self.words: Callable[[], str] = lambda: "interrupted before anything was done"
        self._own_process, self._noting, self._came = own_process, False, 0.0
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                # A shell lets what it runs in the background ignore Ctrl-C.
                if signal.getsignal(number) != signal.SIG_IGN:
                    self._former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, traceback: TracebackType | None) -> None:
        for number, former in self._former.items():
            ends = self._own_process and self.signal is not None
            signal.signal(number, signal.SIG_DFL if ends else former)

    @property
    def noted(self) -> bool:
        """Whether a signal came."""
        return self.signal is not None

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Only note the first signal; whoever works here asks for it."""
        self._noting, self.has_begun = True, True
        try:
            yield
        finally:
            self._noting = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._came = number, time.monotonic()
            if not self._noting:
                self.broke_in = True
                raise KeyboardInterrupt
            say(NOTED)
        elif not (is_launched() and time.monotonic() - self._came < ONE_PRESS):
            say(self.words())
            os._exit(128 + number)


def interruptible(work: Callable[[Interruption], int], own_process: bool = False) -> int:
    """Do a command's work and return its exit code; of one that a signal ended 128 + the signal's number.

    Args:
        work: is given the interruption, to ask it and to give it words.
        own_process: see `Interruption`.
    """
    with Interruption(own_process) as interruption:
        try:
            return work(interruption)
        except BaseException as error:
            ended = interruption.broke_in or isinstance(error, KeyboardInterrupt)
            if interruption.signal is None or not ended:
                raise
            say(interruption.words())
            return 128 + interruption.signal


def say(words: str) -> None:
    """Write a line to standard error, from handlers too, by the first process alone."""
    if int(os.environ.get("RANK", 0)) == 0:
        os.write(2, f"\n{words}\n".encode(errors="backslashreplace"))
