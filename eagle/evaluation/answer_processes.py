"""Several processes that answer questions, each with GPUs of its own; they end with the process that began them."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from eagle import interrupts
from eagle.evaluation.answering import Answerer, AnswerSettings, TooLongError
from eagle.evaluation.questions import BenchQuestion

REFUSALS = (TooLongError, NotImplementedError, ValueError, OSError, ImportError, RuntimeError)
Said = dict[str, Any] | TooLongError


def answers_of_processes(
    settings: AnswerSettings, questions: Sequence[BenchQuestion], model_id: str, devices: Sequence[str]
) -> Generator[tuple[BenchQuestion, Said], None, None]:
    """Yield every question with its record, or with why it has none, as they are finished.

    Args:
        settings: what decides an answer.
        questions: those to answer.
        model_id: name in the records.
        devices: CUDA_VISIBLE_DEVICES of every process; "" leaves it as it is here.

    Raises:
        RuntimeError: a process has died.
        what a process was refused with, in its words.
    """
    spawned = multiprocessing.get_context("spawn")
    left, held, processes = deque(questions), dict[Any, BenchQuestion](), dict[Any, Any]()
    threads = max(1, torch.get_num_threads() // len(devices))
    try:
        for device in devices[: len(questions)]:
            mine, its = spawned.Pipe()
            process = spawned.Process(
                target=_answer, args=(settings, questions, model_id, device, threads, its), daemon=True
            )
            with interrupts.held_back():  # it is told to end otherwise
                process.start()
            its.close()  # so that its end is felt here
            processes[mine] = process
            _give(mine, left, held)
        while held:
            ready: list[Any] = wait(list(held))
            failures = list[Exception]()
            for end in ready:
                question, said = held.pop(end), _received(end, processes[end])
                if isinstance(said, TooLongError) or not isinstance(said, Exception):
                    _give(end, left, held)
                    yield question, said
                else:
                    failures.append(said)
            if failures:
                raise failures[0]
    finally:
        for process in processes.values():
            process.kill()
        for process in processes.values():
            process.join()


def _give(end: Connection, left: deque[BenchQuestion], held: dict[Any, BenchQuestion]) -> None:
    if left:
        held[end] = left.popleft()
        with suppress(OSError):  # a process that has died says so when it is read
            end.send(held[end])


def _received(end: Connection, process: Any) -> Said | Exception:
    try:
        said: Said | Exception = end.recv()
    except (EOFError, OSError):
        process.join()
        code = process.exitcode
        how = f"exit status {code}" if code >= 0 else signal.Signals(-code).name
        return RuntimeError(f"a process that answers has died ({how}): the same command goes on")
    return said


def _answer(
    settings: AnswerSettings,
    questions: Sequence[BenchQuestion],
    model_id: str,
    device: str,
    threads: int,
    end: Connection,
) -> None:
    """Answer what comes, in a process of its own."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if device:
        os.environ["CUDA_VISIBLE_DEVICES"] = device  # before anything here has asked for GPUs
    torch.set_num_threads(threads)
    transformers_logging.disable_progress_bar()  # they would be on top of each other
    try:
        answerer = Answerer(settings)
        answerer.warm_up(questions)
        while True:
            question = end.recv()
            try:
                end.send(answerer.answer(question, model_id))
            except TooLongError as refusal:
                end.send(refusal)
    except EOFError:
        return
    except REFUSALS as refusal:
        kind = next(kind for kind in REFUSALS if isinstance(refusal, kind))
        end.send(kind(str(refusal)))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
