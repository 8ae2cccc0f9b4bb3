"""Records that are finished, one JSON object a line of a file that only grows, so that a run can go on where it was.

A line without its end is what a killed process left: it is cut off, and what it was about is done again. Any other line
that is no JSON object is a reason to stop: whoever damaged it knows what it said.
"""

import json
import logging
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def read_records(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return the objects of a file of JSON lines, each with the number of its line, from 1.

    Empty lines are passed over, and so is a last one that is cut off.

    Raises:
        ValueError: a line is no JSON object; the message names it.
    """
    records = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if number == len(lines) and not _is_whole(line):
            if line.strip():
                logger.warning("%s ends within line %d, which does not count", path, number)
        elif line.strip():
            records.append((number, _record(path, number, line)))
    return records


def _is_whole(last: bytes) -> bool:
    """Tell whether a line is JSON, only its newline missing."""
    try:
        json.loads(last)
    except (ValueError, RecursionError):
        return False
    return True


def _record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as failure:
        raise ValueError(f"{path} line {number} is damaged ({failure}): mend it, or delete that line") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} line {number} is {type(found).__name__}, not an object: delete it")
    return found


class RecordFile:
    """A file of records to add to.

    Args:
        path: made with the first record.

    Attributes:
        records: all, in order.

    Raises:
        ValueError: see `read_records`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records = [record for _, record in read_records(path)] if path.exists() else []
        self._is_clean = not path.exists()

    def add(self, record: dict[str, Any]) -> None:
        """Write a record at once.

        Raises:
            OSError: the disk is full, or fails; what was written before is kept.
            ValueError: JSON does not know what the record holds.
        """
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        if not self._is_clean:
            self._cut()
        self._is_clean = False  # should the disk take a part of the line only
        with self.path.open("ab") as file:
            file.write(line)
        self._is_clean = True
        self.records.append(record)

    def _cut(self) -> None:
        """End the last line, or cut it off where it is no record."""
        data = self.path.read_bytes() if self.path.exists() else b""
        last = data.rpartition(b"\n")[2]
        if last:
            whole = _is_whole(last)
            with self.path.open("r+b") as file:
                file.truncate(len(data) if whole else len(data) - len(last))
                file.seek(0, 2)
                file.write(b"\n" if whole else b"")
