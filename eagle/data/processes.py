"""Several processes that answer as one author, each with a copy of the target.

Questions go to whichever process has room and answers come back as they are written: what is answered is that of one
process, since it depends on the question alone. A process ends with its parent.
"""

import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from torch import multiprocessing
from transformers.utils import logging as transformers_logging

from eagle import interrupts
from eagle.data.answers import Answer, Author, Question

REFUSALS = (ValueError, OSError, NotImplementedError, ImportError)
AHEAD = 2  # questions that a process has, per answer that it writes at once
UNDERWAY = 1.0  # seconds that a question may take to come


@dataclass(frozen=True)
class Place:
    """Where one process computes.

    Attributes:
        device: an accelerator, or None for the host.
        threads: of the host.
    """

    device: str | None
    threads: int


def places(processes: int) -> list[Place]:
    """Divide the accelerators of this machine, or its threads, over processes."""
    kind = torch.accelerator.current_accelerator(check_available=True)
    if kind is None:
        return [Place(None, max(1, torch.get_num_threads() // processes))] * processes
    count = torch.accelerator.device_count()
    return [Place(f"{kind.type}:{number % count}", torch.get_num_threads()) for number in range(processes)]


class Processes:
    """Processes as the author of answers.

    Args:
        author: makes the author of one process; sent there by its name, so a function of a module or a partial of one.
        processes: how many.
        batch: answers that each writes at once.

    Attributes:
        longest: most tokens of a prompt that is answered.

    Raises:
        what an author's beginning raises, in its words.
    """

    def __init__(self, author: Callable[[Place], Author], processes: int, batch: int) -> None:
        self.batch = batch
        self.tokens_made: Callable[[int], None] | None = None
        spawned = multiprocessing.get_context("spawn")
        self._processes: list[Any] = []
        self._ends: list[Connection] = []
        self._without: set[Any] = set()  # the ends that know that there is nothing more for now
        try:
            for place in places(processes):
                mine, its = spawned.Pipe()
                process = spawned.Process(target=_answer, args=(author, place, its), daemon=True)
                with interrupts.held_back():  # it is told to end otherwise
                    process.start()
                its.close()  # so that its end is felt here
                self._processes.append(process)
                self._ends.append(mine)
            self.longest = {self._received(end) for end in self._ends}.pop()  # the same for all
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End all processes."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()

    def write(self, take: Callable[[], Question | None]) -> Iterator[Answer]:
        """Yield answers, each process's as they come; see `eagle.data.answers.Author`.

        Raises:
            RuntimeError: a process has died; the answers of the others until then have been yielded.
            what an author raises, in its words.
        """
        held, failure = dict.fromkeys(self._ends, 0), None
        try:
            while failure is None:
                self._give(take, held)
                if not any(held.values()):
                    return
                ready: list[Any] = wait([end for end in held if held[end]])
                for end in ready:
                    try:
                        said = self._received(end)
                    except (*REFUSALS, RuntimeError) as refusal:
                        failure, held[end] = refusal, 0
                        continue
                    if isinstance(said, Answer):
                        held[end] -= 1
                        yield said
                    elif self.tokens_made is not None:
                        self.tokens_made(said)
            for end in held:
                while held[end] and end.poll():
                    if isinstance(said := end.recv(), Answer):
                        yield said
            raise failure
        finally:
            self.close()

    def _give(self, take: Callable[[], Question | None], held: dict[Any, int]) -> None:
        """Give every process enough to do, the one with the least first, or say that there is no more for now."""
        while held[end := min(held, key=lambda end: held[end])] < AHEAD * self.batch:
            question = take()
            if question is None:
                for other in set(held) - self._without:
                    self._send(other, None)
                self._without = set(held)
                return
            self._send(end, question)
            self._without.discard(end)
            held[end] += 1

    def _send(self, end: Connection, question: Question | None) -> None:
        with suppress(OSError):  # a process that has died says so when it is read
            end.send(question)

    def _received(self, end: Any) -> Any:
        """Return what a process says: what its author begins with, an answer or a number of tokens.

        Raises:
            what it was refused with, or RuntimeError where it has died.
        """
        try:
            said = end.recv()
        except (EOFError, OSError) as gone:
            number = self._ends.index(end)
            process = self._processes[number]
            process.join()
            raise RuntimeError(
                f"process {number + 1} of {len(self._ends)} has died ({_how(process.exitcode)}): the same command goes "
                "on after the answers that are there"
            ) from gone
        if isinstance(said, Exception):
            raise said
        return said


def _how(code: int) -> str:
    return f"exit status {code}" if code >= 0 else signal.Signals(-code).name


def _answer(author: Callable[[Place], Author], place: Place, end: Any) -> None:
    """Answer in a process of its own, which ends with its parent."""
    questions = _Questions(end)
    torch.set_num_threads(place.threads)
    # Bars would be on top of each other, and their locks outlive a process that is ended.
    transformers_logging.disable_progress_bar()
    try:
        made = author(place)
        made.tokens_made = end.send
        end.send(made.longest)
        while True:
            questions.wait()
            for answer in made.write(questions.take):
                end.send(answer)
    except REFUSALS as refusal:
        end.send(next(kind for kind in REFUSALS if isinstance(refusal, kind))(str(refusal)))


class _Questions:
    """What a parent asks; read at once, so that it never waits for this process, and ended with it."""

    def __init__(self, end: Any) -> None:
        self._end = end
        self._given: queue.SimpleQueue[Question | None] = queue.SimpleQueue()
        self._first: Question | None = None
        self._more = False
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            while True:
                self._given.put(self._end.recv())
        except (EOFError, OSError):
            os._exit(1)

    def wait(self) -> None:
        """Wait for a question."""
        while self._first is None:
            self._first = self._given.get()
        self._more = True

    def take(self) -> Question | None:
        """Return the next question; wait for it where the parent has not said that there is none for now."""
        question, self._first = self._first, None
        if question is not None:
            return question
        try:
            question = self._given.get(timeout=UNDERWAY) if self._more else self._given.get_nowait()
        except queue.Empty:
            return None
        self._more = question is not None
        return question
