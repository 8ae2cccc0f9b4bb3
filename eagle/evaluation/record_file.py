"""Records that are finished, one JSON object a line of a file that only grows, so that a run can go on where it was.

A line without its end is what a killed process left: it is cut off, and what it was about is done again. Any other line
that is no JSON object is a reason to stop: whoever damaged it knows what it said.
"""

import json
import logging
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a file of JSON lines; empty lines, and a last one without its end, are passed over.

    Raises:
        ValueError: a line is no JSON object; the message names it.
    """
    records = []
    lines = path.read_bytes().split(b"\n")
    unfinished = lines.pop()
    for number, line in enumerate(lines, start=1):
        if line.strip():
            records.append(_record(path, number, line))
    if unfinished.strip():
        try:
            records.append(_record(path, len(lines) + 1, unfinished))  # whole, but for its newline
        except ValueError:
            logger.warning("%s ends within line %d: what that was about is done again", path, len(lines) + 1)
    return records


def _record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as failure:
        raise ValueError(f"{path} line {number} is damaged ({failure}): without that line it is done again") from None
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
        self.records = read_records(path) if path.exists() else []
        self._is_clean = not path.exists()

    def add(self, record: dict[str, Any]) -> None:
        """Write a record at once.

        Raises:
            OSError: the disk is full, or fails; what was written before is kept.
        """
        line = json.dumps(record, ensure_ascii=False, allow_nan=False)
        if not self._is_clean:
            self._cut()
        with self.path.open("ab") as file:
            file.write(line.encode() + b"\n")
        self.records.append(record)

    def _cut(self) -> None:
        """End the last line, or cut it off where it is no record."""
        data = self.path.read_bytes()
        if data and not data.endswith(b"\n"):
            kept, _, last = data.rpartition(b"\n")
            try:
                json.loads(last)
                ending = b"\n"
            except ValueError:
                ending = b""
            size = len(data) if ending else len(kept) + (1 if kept else 0)
            with self.path.open("r+b") as file:
                file.truncate(size)
                file.seek(size)
                file.write(ending)
        self._is_clean = True
