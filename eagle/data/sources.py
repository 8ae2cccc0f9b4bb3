"""Rows from files: conversations and documents, each with its place, good or not.

Knows ShareGPT and UltraChat-style JSON, chat messages, plain text, parquet and names of `datasets`; knows no tokenizer.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eagle.chat import Message, RowError

COLUMNS = ("conversations", "messages", "data", "text")
SUFFIXES = (".json", ".jsonl", ".parquet", ".txt")
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant"}
EXPECTED = f"one of the columns {', '.join(COLUMNS)}"


@dataclass(frozen=True)
class Document:
    """Text of which every token counts in the loss."""

    text: str


@dataclass(frozen=True)
class Conversation:
    """Messages in order, with the roles system, user, assistant or what else `messages` named."""

    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Raw:
    """A row as it was found: its place for error messages, and a line of JSON, a JSON value or a document."""

    where: str
    found: Any

    def parsed(self) -> Document | Conversation:
        """Check the row.

        Raises:
            RowError: it is not JSON, or no document or conversation; the message says what is wrong.
        """
        if isinstance(self.found, Document):
            return self.found
        if not isinstance(self.found, bytes):
            return parse(self.found)
        try:
            return parse(json.loads(self.found))
        except UnicodeDecodeError as broken:
            raise RowError("not UTF-8 text") from broken
        except json.JSONDecodeError as broken:
            raise RowError(f"not JSON ({broken.msg} at column {broken.colno})") from broken


def parse(row: Any) -> Document | Conversation:
    """Turn a JSON object into a document or a conversation.

    Raises:
        RowError: it is neither; the message says what is wrong.
    """
    if not isinstance(row, dict):
        raise RowError(f"a {type(row).__name__} where an object is expected")
    column = next((name for name in COLUMNS if row.get(name) is not None), None)
    if column is None:
        raise RowError(f"expected {EXPECTED}, found {', '.join(map(str, row)) or 'none'}")
    if column == "text":
        return _document(row["text"])
    turns = row[column]
    if not isinstance(turns, list) or not turns:
        raise RowError(f"{column} is not a list of turns" if turns else f"{column} is empty")
    read = {"conversations": _sharegpt, "messages": _message, "data": _alternating}[column]
    return Conversation(tuple(read(index, turn) for index, turn in enumerate(turns)))


def _document(text: Any) -> Document:
    if not isinstance(text, str):
        raise RowError(f"text is a {type(text).__name__}, not a string")
    if not text.strip():
        raise RowError("an empty document")
    return Document(_encodable(text))


def _sharegpt(index: int, turn: Any) -> Message:
    role, content = _fields(index, turn, "from", "value")
    if role not in ROLES and role != "system":
        raise RowError(f"turn {index + 1} is from {role!r}, expected human, gpt or system")
    return _turn(index, ROLES.get(role, role), content)


def _message(index: int, turn: Any) -> Message:
    return _turn(index, *_fields(index, turn, "role", "content"))


def _alternating(index: int, turn: Any) -> Message:
    return _turn(index, ("user", "assistant")[index % 2], turn)


def _fields(index: int, turn: Any, *names: str) -> tuple[Any, Any]:
    missing = [name for name in names if not isinstance(turn, dict) or turn.get(name) is None]
    if missing:
        raise RowError(f"turn {index + 1} has no {' and no '.join(missing)}")
    return turn[names[0]], turn[names[1]]


def _turn(index: int, role: Any, content: Any) -> Message:
    if not isinstance(role, str) or not isinstance(content, str):
        raise RowError(f"turn {index + 1} is not text")
    if role != "system" and not content.strip():
        raise RowError(f"turn {index + 1} is empty")
    return {"role": role, "content": _encodable(content)}


def _encodable(text: str) -> str:
    # JSON can escape half of a character, which no tokenizer takes.
    try:
        text.encode()
    except UnicodeEncodeError as broken:
        raise RowError(f"half a character ({text[broken.start]!r}) at {broken.start}") from broken
    return text


def files_of(source: str) -> list[Path] | None:
    """Return the files a source stands for, in sorted order, or None for a name of `datasets`.

    Raises:
        FileNotFoundError: it looks like a path and does not exist.
        ValueError: a folder without known files, an empty file, or a file of another kind.
    """
    path = Path(source).expanduser()
    if not path.exists():
        if path.suffix in SUFFIXES or source.startswith((".", "/", "~")) or source.count("/") > 1:
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
        ".jsonl": _lines,
        ".parquet": _parquet,
        ".txt": _paragraphs if by_paragraph else _whole,
    }
    for path in files:
        yield from readers[path.suffix](path)


def _json(path: Path) -> Iterator[Raw]:
    """Read an array whole; anything else is lines of JSON under another name."""
    with path.open("rb") as file:
        first = next((line.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] for line in file if line.strip()), b"")
    if first != b"[":
        yield from _lines(path)
        return
    try:
        rows = json.loads(path.read_bytes())
    except ValueError as broken:
        raise ValueError(f"{path} begins like a JSON array and is none: {broken}") from broken
    yield from (Raw(f"{path} row {number}", row) for number, row in enumerate(rows, start=1))


def _lines(path: Path) -> Iterator[Raw]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield Raw(f"{path} line {number}", line)


def _text_lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from file
    except UnicodeDecodeError as broken:
        raise ValueError(f"{path} is not UTF-8 text") from broken


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
    known = [name for name in COLUMNS if name in columns]
    if not known:
        raise ValueError(f"{source} has the columns {', '.join(columns)}; expected {EXPECTED}")
    return known
