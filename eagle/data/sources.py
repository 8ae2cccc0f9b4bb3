"""Rows from files: conversations and documents, each with its place, good or not.

Knows JSON in lines, arrays and objects, plain text, parquet and names of `datasets`; what a row says `eagle.data.rows`
knows, and nobody here a tokenizer.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eagle.chat import RowError
from eagle.data.rows import COLUMNS, EXPECTED, UNREAD, Conversation, Document, parse, parse_json
from eagle.files import file_checksum, is_local

SUFFIXES = (".json", ".jsonl", ".parquet", ".txt")
BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{},]', re.DOTALL)  # and strings, so that theirs are passed over


@dataclass(frozen=True)
class Raw:
    """A row as it was found: its place for error messages, and JSON as bytes, a JSON value or a document."""

    where: str
    found: Any

    def parsed(self) -> Document | Conversation:
        """Check the row.

        Raises:
            RowError: it is no text, not JSON, or no document or conversation; the message says what is wrong.
        """
        if isinstance(self.found, bytes):
            return parse_json(self.found)
        if not isinstance(self.found, Document):
            return parse(self.found)
        try:
            self.found.text.encode()
        except UnicodeEncodeError as broken:  # see `_text_lines`
            raise RowError("not UTF-8 text") from broken
        return self.found

    @property
    def digest(self) -> int:
        """What tells a row's content, wherever it stands, from another one's: 64 bits."""
        content: Any = self.found
        if isinstance(content, Document):
            content = content.text.encode(errors="surrogateescape")
        elif not isinstance(content, bytes):
            content = json.dumps(content, sort_keys=True, default=str).encode()
        return int.from_bytes(hashlib.blake2b(content.strip(), digest_size=8).digest(), "little")


def files_of(source: str) -> list[Path] | None:
    """Return the files a source stands for, in sorted order, or None for a name of `datasets`.

    Raises:
        FileNotFoundError: it looks like a path and does not exist.
        ValueError: a folder without known files, an empty file, or a file of another kind.
    """
    path = Path(source).expanduser()
    if not path.exists():
        if path.suffix in SUFFIXES or is_local(source):
            raise FileNotFoundError(f"{source} does not exist")
        return None
    files = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file()) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{source} holds no {', '.join(SUFFIXES)} file")
    for file in files:
        if file.suffix not in SUFFIXES:
            raise ValueError(f"{file} is no {', '.join(SUFFIXES)} file")
        if file.stat().st_size == 0:
            raise ValueError(f"{file} is empty: expected JSON rows, text or parquet")
    return files


def contents_of(source: str) -> list[dict[str, Any]]:
    """Return what tells a source from another one: the contents of its files, or a name of `datasets`.

    Raises:
        FileNotFoundError, ValueError: see `files_of`.
    """
    files = files_of(source)
    if files is None:
        return [{"name": source}]
    return [{"name": str(file), "bytes": file.stat().st_size, "sha256": file_checksum(file)} for file in files]


def read(source: str, *, by_paragraph: bool = False) -> Iterator[Raw]:
    """Yield the rows of a file, a folder or a name of `datasets` (`name` or `name:split`).

    Args:
        source: path or name.
        by_paragraph: documents of text files end at blank lines, not at the file's end.

    Raises:
        FileNotFoundError, ValueError: see `files_of`; also parquet and data sets without a known column.
        ImportError: pyarrow or datasets is needed and missing.
    """
    files = files_of(source)
    if files is None:
        yield from _from_datasets(source)
        return
    readers: dict[str, Callable[[Path], Iterator[Raw]]] = {
        ".json": _json,
        ".jsonl": json_lines,
        ".parquet": _parquet,
        ".txt": _paragraphs if by_paragraph else _whole,
    }
    for path in files:
        yield from readers[path.suffix](path)


def _json(path: Path) -> Iterator[Raw]:
    """Read an array or an object over several lines whole; anything else is lines of JSON under another name."""
    with path.open("rb") as file:
        first = next((line for line in file if line.strip(b"\xef\xbb\xbf \t\r\n")), b"")
    begins = first.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    if begins == b"[":
        yield from _array(path)
    elif begins == b"{" and not _closed(first):
        yield from _object(path)
    else:
        yield from json_lines(path)


def _array(path: Path) -> Iterator[Raw]:
    """Read an array; where that fails, its rows one by one, so that only those fail that are the reason."""
    text = path.read_bytes()
    try:
        rows: list[Any] = json.loads(text)
    except (ValueError, RecursionError) as broken:
        rows = _elements(text)
        if not rows:
            raise ValueError(f"{path} begins like a JSON array and is none: {broken}") from broken
    yield from (Raw(f"{path} row {number}", row) for number, row in enumerate(rows, start=1))


def _object(path: Path) -> Iterator[Raw]:
    """Read an object, one row, whose first line does not end it; it may be a broken first row of many as well."""
    text = path.read_bytes()
    try:
        json.loads(text)
    except (ValueError, RecursionError) as broken:
        if any(line.startswith(b"{") and _closed(line) for line in text.split(b"\n")):
            yield from json_lines(path)
            return
        if isinstance(broken, json.JSONDecodeError):
            raise ValueError(
                f"{path} begins like a JSON object and is none: {broken}; expected an array, an object or one a line"
            ) from broken
    yield Raw(f"{path} row 1", text)


def _closed(text: bytes) -> bool:
    """Tell whether the brackets of JSON close within a text."""
    marks = [mark[0] for mark in BRACKETS.findall(text)]
    return sum(mark in b"[{" for mark in marks) == sum(mark in b"]}" for mark in marks)


def _elements(text: bytes) -> list[bytes]:
    """Return the elements of a JSON array as they stand there, [] where its brackets do not close at its end."""
    found, depth, begin = list[bytes](), 0, 0
    for mark in BRACKETS.finditer(text):
        depth += (mark[0] in b"[{") - (mark[0] in b"]}")
        if (depth, mark[0]) == (1, b"["):
            begin = mark.end()
        elif (depth, mark[0]) in ((1, b","), (0, b"]")):
            found.append(text[begin : mark.start()].strip())
            begin = mark.end()
    return found if depth == 0 and not text[begin:].strip() else []


def json_lines(path: Path) -> Iterator[Raw]:
    """Yield the lines of a file that hold something, each to be JSON."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield Raw(f"{path} line {number}", line)


def _text_lines(path: Path) -> Iterator[str]:
    # What is not UTF-8 becomes halves of characters, which `Raw.parsed` refuses: one document of many, not the run.
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        yield from file


def _whole(path: Path) -> Iterator[Raw]:
    text = "".join(_text_lines(path))
    if text.strip():
        yield Raw(str(path), Document(text))


def _paragraphs(path: Path) -> Iterator[Raw]:
    begin, lines = 1, list[str]()
    for number, line in enumerate(_text_lines(path), start=1):
        if line.strip():
            begin = begin if lines else number
            lines.append(line)
        elif lines:
            yield Raw(f"{path} line {begin}", Document("".join(lines)))
            lines = []
    if lines:
        yield Raw(f"{path} line {begin}", Document("".join(lines)))


def _parquet(path: Path) -> Iterator[Raw]:
    try:
        from pyarrow import parquet
    except ImportError as missing:
        raise ImportError(f"{path} needs pyarrow: pip install 'eagle-decoding[data]'") from missing
    with parquet.ParquetFile(path) as file:
        columns = _known(str(path), file.schema_arrow.names)
        number = 0
        for batch in file.iter_batches(batch_size=256, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield Raw(f"{path} row {number}", row)


def _from_datasets(source: str) -> Iterator[Raw]:
    try:
        from datasets import load_dataset
    except ImportError as missing:
        raise ImportError(f"{source} is no file, and data sets need: pip install 'eagle-decoding[data]'") from missing
    name, _, split = source.partition(":")
    for number, row in enumerate(load_dataset(name, split=split or "train", streaming=True), start=1):
        if number == 1:
            _known(source, list(row))
        yield Raw(f"{source} row {number}", row)


def _known(source: str, columns: list[str]) -> list[str]:
    """Return the columns that say what a row is, or why it cannot be used."""
    if not set(COLUMNS) & set(columns):
        raise ValueError(f"{source} has the columns {', '.join(columns)}; expected {EXPECTED}")
    return [name for name in (*COLUMNS, *UNREAD) if name in columns]
