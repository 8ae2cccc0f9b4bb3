"""Rows as documents and conversations: what a JSON object says, or why it cannot be used.

Nothing that a model would see vanishes: a key that is neither read nor known to be about a row rather than a part of it
is a reason to refuse the row. Whatever JSON a row is, the answer is a document, a conversation or a `RowError`. Knows
ShareGPT and UltraChat-style JSON, chat messages, and questions without answers; knows no files and no tokenizer.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from eagle.chat import Message, RowError

COLUMNS = ("conversations", "messages", "data", "text", "turns", "prompt", "question")
EXPECTED = f"one of the columns {', '.join(COLUMNS)}"
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant"}
SHAREGPT, CHAT = ("from", "value"), ("role", "content")

UNREAD = (
    *("tools", "functions", "tool_calls", "function_call", "system", "system_prompt", "documents"),
    *("image", "images", "audio", "audios", "video", "videos"),
)
"""Keys beside a column that the model would see and that are not read; all others are about the row."""

REMARKS = (
    *("name", "id", "message_id", "msg_id", "parent_id", "turn_id", "turn_identifier", "index", "idx", "hash"),
    *("source", "url", "origin", "metadata", "meta", "tags", "header", "model", "country", "state", "hashed_ip"),
    *("timestamp", "created_at", "create_time", "date", "time", "lang", "language", "markdown", "tokens"),
    *("num_tokens", "token_count", "length", "score", "rating", "rank", "quality", "toxic", "redacted", "moderation"),
)
"""Keys of a turn that are about it and no part of it; any other is refused."""

LEARNED = ("weight", "train")
"""Keys of a turn that say whether it is learned: every answer is, and nothing else."""


@dataclass(frozen=True)
class Document:
    """Text of which every token counts in the loss."""

    text: str


@dataclass(frozen=True)
class Conversation:
    """Messages in order, with the roles system, user, assistant or what else `role` named.

    Where no answer stands after a question, one may be wanted there.
    """

    messages: tuple[Message, ...]

    def to_the_first_open_question(self) -> tuple[Message, ...]:
        """Return the messages up to the first question without an answer, else up to the last question.

        Raises:
            RowError: there is no question.
        """
        roles = [message["role"] for message in self.messages]
        asked = [place for place, role in enumerate(roles, start=1) if role == "user"]
        if not asked:
            raise RowError("no user turn")
        bounds = zip(asked, [*asked[1:], len(roles) + 1], strict=True)
        opened = (place for place, end in bounds if "assistant" not in roles[place : end - 1])
        return self.messages[: next(opened, asked[-1])]


def parse_json(text: bytes) -> Document | Conversation:
    """Turn JSON into a document or a conversation.

    Raises:
        RowError: it is not JSON, or see `parse`.
    """
    try:
        row = json.loads(text)
    except UnicodeDecodeError as broken:
        raise RowError("not UTF-8 text") from broken
    except json.JSONDecodeError as broken:
        raise RowError(f"not JSON ({broken.msg} at column {broken.colno})") from broken
    except RecursionError as broken:
        raise RowError("JSON that is nested too deeply") from broken
    except ValueError as broken:  # what is left is Python's limit on the digits of a number
        raise RowError("JSON with a number of too many digits") from broken
    return parse(row)


def parse(row: Any) -> Document | Conversation:
    """Turn a JSON value into a document or a conversation.

    Raises:
        RowError: it is neither, or says something that would be lost; the message says what.
    """
    if not isinstance(row, dict):
        raise RowError(f"a {type(row).__name__} where an object is expected")
    column = next((name for name in COLUMNS if row.get(name) is not None), None)
    if column is None:
        raise RowError(f"expected {EXPECTED}, found {', '.join(map(str, row)) or 'none'}")
    if lost := [name for name in UNREAD if not _says_nothing(row.get(name))]:
        raise RowError(f"{', '.join(lost)} beside {column} would be lost")
    if column == "text":
        return _document(row["text"])
    return Conversation(tuple(_messages(column, row[column])))


def _messages(column: str, found: Any) -> Iterator[Message]:
    if column in ("prompt", "question") and isinstance(found, str):
        return iter([_question(1, found)])
    if not isinstance(found, list) or not found or column == "question":
        wanted = {"prompt": "a text or a list of turns", "question": "a text"}.get(column, "a list of turns")
        raise RowError(f"{column} is empty" if found in ([], None) else f"{column} is not {wanted}")
    read = {"conversations": _sharegpt, "data": _alternating, "turns": _question}.get(column, _chat)
    return (read(number, turn) for number, turn in enumerate(found, start=1))


def _document(text: Any) -> Document:
    if not isinstance(text, str):
        raise RowError(f"text is a {type(text).__name__}, not a string")
    if not text.strip():
        raise RowError("an empty document")
    return Document(_encodable(text))


def _sharegpt(number: int, found: Any) -> Message:
    return _keyed(f"turn {number}", found, SHAREGPT, CHAT)


def _chat(number: int, found: Any) -> Message:
    return _keyed(f"turn {number}", found, CHAT, SHAREGPT)


def _alternating(number: int, found: Any) -> Message:
    return _message(f"turn {number}", ("assistant", "user")[number % 2], found)


def _question(number: int, found: Any) -> Message:
    return _message(f"turn {number}", "user", found)


def _keyed(turn: str, found: Any, usual: tuple[str, str], other: tuple[str, str]) -> Message:
    """Read a turn with the keys that are usual in its column, or with the other ones where it has none of those."""
    if not isinstance(found, dict):
        raise RowError(f"{turn} has no {' and no '.join(usual)}")
    has = {name for name in (*usual, *other) if found.get(name) is not None}
    names = other if has and not has & set(usual) else usual
    _nothing_lost(turn, found, {*names, *LEARNED})
    if missing := [name for name in names if name not in has]:
        raise RowError(f"{turn} has no {' and no '.join(missing)}")
    role, content = (found[name] for name in names)
    if names == SHAREGPT and isinstance(role, str) and role not in ROLES and role != "system":
        raise RowError(f"{turn} is from {role!r}, expected human, gpt or system")
    message = _message(turn, role, content)
    for name in LEARNED:
        if message["role"] == "assistant" and found.get(name) not in (None, 1):
            raise RowError(f"{turn} is an answer whose {name} is not 1: all answers are learned alike")
    return message


def _message(turn: str, role: Any, content: Any) -> Message:
    if isinstance(content, list):
        content = "".join(_part(turn, part) for part in content)
    if not isinstance(role, str) or not isinstance(content, str):
        raise RowError(f"{turn} is not text")
    if role != "system" and not content.strip():
        raise RowError(f"{turn} is empty")
    return {"role": ROLES.get(role, _encodable(role)), "content": _encodable(content)}


def _part(turn: str, part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else part
    if not isinstance(part, dict) or kind != "text":
        raise RowError(f"{turn} has a part {repr(kind) if isinstance(kind, str) else 'of another kind'}, expected text")
    _nothing_lost(turn, part, {"type", "text"})
    if not isinstance(part.get("text"), str):
        raise RowError(f"{turn} is not text")
    return part["text"]


def _nothing_lost(turn: str, found: Mapping[str, Any], read: set[str]) -> None:
    if lost := [name for name in found if name not in (*read, *REMARKS) and not _says_nothing(found[name])]:
        raise RowError(f"{turn} has {', '.join(map(str, lost))}, which would be lost")


def _says_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, (str, list, dict)) and value in ("", "[]", [], {}))


def _encodable(text: str) -> str:
    # JSON can escape half of a character, which no tokenizer takes.
    try:
        text.encode()
    except UnicodeEncodeError as broken:
        raise RowError(f"half a character ({text[broken.start]!r}) at {broken.start}") from broken
    return text
