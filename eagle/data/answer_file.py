"""Answers that are finished, one a line of a file that only grows: `answers.jsonl`.

A line has the conversation up to its answer, for people, and the answer's ids. It is known by the content of what was
asked, so that other sources, another order or another limit find again what was answered before. A line that is not
what was written, as the last one of a killed process, counts as none: its answer is written anew.
"""

import io
import json
import logging
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eagle.data.answers import Answer, Question
from eagle.files import differing

FORMAT = 1
ANSWERS = "answers.jsonl"
LINE = re.compile(rb'\{"crc": "([0-9a-f]{8})", (.*\})\n', re.DOTALL)
KEY = re.compile(rb'"key": "([0-9a-f]+)", "turn": (\d+), ')
logger = logging.getLogger(__name__)


class AnswerFile:
    """The answers of a folder.

    Args:
        path: the file; made with the first answer.
        made: all that decides an answer besides its question.

    Raises:
        ValueError: the file has answers that were made otherwise, or is of another version.
    """

    def __init__(self, path: Path, made: dict[str, Any]) -> None:
        self.path = path
        self._places: dict[tuple[str, int], int] = {}
        self._about: dict[str, Any] = {"format": FORMAT, "made": made}
        self._file: io.FileIO | None = None
        self._end = 0
        for number, line in enumerate(_whole_lines(path) if path.exists() else (), start=1):
            self._note(number, line)
            self._end += len(line)

    def __len__(self) -> int:
        return len(self._places)

    def find(self, question: Question) -> Answer | None:
        """Return the answer to a question, None where there is none yet."""
        place = self._places.get((question.key, question.turn))
        if place is None:
            return None
        with self.path.open("rb") as file:
            file.seek(place)
            found = json.loads(file.readline())
        text = found["messages"][-1]["content"]
        return Answer(question, found["ids"], text, found["ended"], found["looped"])

    def add(self, answer: Answer) -> None:
        """Write an answer.

        Raises:
            OSError: the disk is full, or fails; the answers before are kept.
        """
        if self._file is None:
            self._open()
        question = answer.question
        self._places[question.key, question.turn] = self._end
        messages = [*question.messages, {"role": "assistant", "content": answer.text}]
        about = {"key": question.key, "turn": question.turn, "ended": answer.ended, "looped": answer.looped}
        self._write({**about, "messages": messages, "ids": answer.ids})

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _open(self) -> None:
        self.path.touch()
        # Unbuffered: a line is written at once, so that nothing is lost with the process.
        self._file = io.FileIO(self.path, "r+")
        self._file.truncate(self._end)
        if not self._end:
            self._write(self._about)

    def _note(self, number: int, line: bytes) -> None:
        found = LINE.fullmatch(line)
        whole = found is not None and zlib.crc32(found[2]) == int(found[1], 16)
        if found is not None and whole and number == 1:
            self._check(json.loads(b"{" + found[2]))
        elif found is not None and whole and (key := KEY.match(found[2])):
            self._places[key[1].decode(), int(key[2])] = self._end
        elif number == 1:
            raise ValueError(f"{self.path} is damaged, or no file of answers: delete it, and they are written anew")
        else:
            logger.warning("%s line %d is damaged: what it answered is answered anew", self.path, number)

    def _check(self, found: dict[str, Any]) -> None:
        if found.get("format") != FORMAT:
            raise ValueError(
                f"{self.path} has format {found.get('format')}, this version reads {FORMAT}: choose another folder"
            )
        if others := differing(found["made"], self._about["made"]):
            raise ValueError(f"{self.path} was made with {others}: choose another folder, or delete it")

    def _write(self, document: dict[str, Any]) -> None:
        assert self._file is not None
        text = json.dumps(document, ensure_ascii=False).encode()[1:]
        line = b'{"crc": "%08x", %s\n' % (zlib.crc32(text), text)
        self._file.seek(self._end)
        try:
            written = self._file.write(line)
        except OSError as failure:
            raise OSError(f"{self.path} could not be written ({failure}): the same command goes on") from failure
        if written != len(line):
            self._file.truncate(self._end)
            raise OSError(
                f"{self.path} could not be written, the disk is full: with more room the same command goes on"
            )
        self._end += len(line)


def written(path: Path) -> int:
    """Return how many answers a file has."""
    return max(0, sum(1 for _ in _whole_lines(path)) - 1)


def _whole_lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from (line for line in file if line.endswith(b"\n"))
