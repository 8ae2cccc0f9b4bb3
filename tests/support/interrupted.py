"""Runs of `eagle.data` that are ended at random moments, each in a fork of a process that has loaded everything.

    python interrupted.py MOMENTS OUT ARGUMENT...

The answers are scripted. What a run leaves is checked after each: nothing that was finished is lost.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from authors import ScriptedAuthor

import eagle.data.command
import eagle.data.preparation
from eagle import interrupts
from eagle.data import __main__
from eagle.data.answer_file import ANSWERS

SECONDS = 0.004  # of an answer


def begin(arguments: list[str], errors: Path) -> int:
    """Fork a run and return its process id; it is what `python -m eagle.data` is once it has begun."""
    signal.signal(signal.SIGINT, interrupts.leave)
    child = os.fork()
    if child:
        return child
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    sys.argv[1:] = arguments
    sys.exit(__main__.main())


def answers(folder: Path) -> list[bytes]:
    """Return the whole lines of the answers that are there."""
    path = folder / ANSWERS
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [line for line in lines if line.endswith(b"\n")]


def main() -> None:
    """End runs until one is through."""
    moments, folder = int(sys.argv[1]), Path(sys.argv[2])
    arguments = [*sys.argv[3:], "--out", str(folder)]
    make = lambda *_: ScriptedAuthor(eagle.data.command.load_tokenizer(arguments[2]), seconds=SECONDS)  # noqa: E731
    eagle.data.preparation.author_of = make
    numbers, errors = random.Random(moments), folder.with_suffix(".err")
    left: list[bytes] = []
    for moment in range(moments):
        kind = (signal.SIGINT, signal.SIGKILL)[moment % 2]
        child, wanted = begin(arguments, errors), len(left) + numbers.choice([0, 1, 9, 20, 40])
        while len(answers(folder)) < wanted:
            time.sleep(0.01)
        time.sleep(numbers.uniform(0, 0.2 if wanted == len(left) else 0.01))
        before = answers(folder)
        os.kill(child, kind)
        _, status = os.waitpid(child, 0)
        now = answers(folder)
        assert now[: len(left)] == left and now[: len(before)] == before, "answers are lost"
        left = now
        said = errors.read_text()
        assert "Traceback" not in said, said
        if kind == signal.SIGINT and os.waitstatus_to_exitcode(status) != 0:
            assert os.waitstatus_to_exitcode(status) == 130, (status, said)
            last = said.rstrip("\n").replace("\r", "\n").split("\n")[-1]
            assert last.startswith("interrupted"), said
            assert "before any work" in last or f"saved in {folder}; to go on: eagle data " in last, said
            assert not list(folder.glob("*.tmp"))
    child = begin(arguments, errors)
    assert os.waitpid(child, 0)[1] == 0, errors.read_text()
    keys = [line.partition(b'"key": ')[2][:34] for line in answers(folder)[1:]]
    assert len(keys) == len(set(keys)), "a saved answer was asked for again"
    sys.stdout.write(f"{len(left)}\n")


if __name__ == "__main__":
    main()
