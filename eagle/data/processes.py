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
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from torch import multiprocessing

from eagle.data.answers import Answer, Author, Question

REFUSALS = (ValueError, OSError, NotImplementedError, ImportError)
AHEAD = 2  # questions that a process has, per answer that it writes at once


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
        try:
            for place in places(processes):
                mine, its = spawned.Pipe()
                process = spawned.Process(target=_answer, args=(author, place, its), daemon=True)
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
        """Give every process enough to do, the one with the least first."""
        while held[end := min(held, key=lambda end: held[end])] < AHEAD * self.batch:
            if (question := take()) is None:
                return
            self._send(end, question)
            held[end] += 1

    def _send(self, end: Connection, question: Question) -> None:
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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C does
    questions: queue.SimpleQueue[Question] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(end, questions), daemon=True).start()
    torch.set_num_threads(place.threads)
    try:
        made = author(place)
        made.tokens_made = end.send
        end.send(made.longest)
        while True:
            first = [questions.get()]
            for answer in made.write(partial(_next, first, questions)):
                end.send(answer)
    except REFUSALS as refusal:
        end.send(next(kind for kind in REFUSALS if isinstance(refusal, kind))(str(refusal)))


def _read(end: Any, questions: "queue.SimpleQueue[Question]") -> None:
    """Take what the parent sends at once, so that it never waits for this process to read, and end with it."""
    try:
        while True:
            questions.put(end.recv())
    except (EOFError, OSError):
        os._exit(1)


def _next(first: list[Question], questions: "queue.SimpleQueue[Question]") -> Question | None:
    if first:
        return first.pop()
    try:
        return questions.get_nowait()
    except queue.Empty:
        return None
