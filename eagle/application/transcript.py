"""What was said in a terminal: messages, and the ids and figures of the answers; from and to a file."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eagle.chat import Message
from eagle.data.rows import Conversation, parse
from eagle.files import write_text
from eagle.model.stats import GenerationStats


@dataclass(frozen=True)
class Reply:
    """One answer.

    Attributes:
        text: without special tokens.
        ids: its tokens.
        finished: why it ended; "stopped" where somebody ended it.
        stats: what it took.
    """

    text: str
    ids: list[int]
    finished: str
    stats: GenerationStats

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, as JSON knows it."""
        return vars(self) | {"stats": self.stats.to_dict()}


@dataclass
class Transcript:
    """A conversation, or a text that two write in turn.

    Attributes:
        messages: in order.
        answers: those that were made here, the last ones of the messages.
    """

    messages: list[Message] = field(default_factory=list)
    answers: list[Reply] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All messages as one text; what somebody types begins a line of its own."""
        text = ""
        for message in self.messages:
            is_new_line = message["role"] == "user" and text and not text.endswith("\n")
            text += ("\n" if is_new_line else "") + message["content"]
        return text

    def ask(self, content: str) -> None:
        """Add what somebody types."""
        self.messages.append({"role": "user", "content": content})

    def answer(self, reply: Reply) -> None:
        """Add an answer."""
        self.messages.append({"role": "assistant", "content": reply.text})
        self.answers.append(reply)

    def undo(self) -> str | None:
        """Take the last question and its answer back; return the question, None where there is none."""
        while self.messages:
            message = self.messages.pop()
            if message["role"] == "user":
                return message["content"]
            if self.answers:
                self.answers.pop()
        return None

    def save(self, path: Path) -> None:
        """Write everything as JSON.

        Raises:
            OSError: it cannot be written.
        """
        if not path.absolute().parent.is_dir():
            raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
        answers = [answer.to_dict() for answer in self.answers]
        write_text(path, json.dumps({"messages": self.messages, "answers": answers}, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Transcript":
        """Read a file that `save` wrote, or any JSON object with a conversation.

        Raises:
            OSError: it cannot be read.
            ValueError: it holds no conversation.
        """
        try:
            found = json.loads(path.read_bytes())
            if not isinstance(found, dict):
                raise ValueError("no JSON object")
            if "answers" in found:
                replies = [
                    Reply(**one | {"stats": GenerationStats.from_dict(one["stats"])}) for one in found["answers"]
                ]
                return cls([_message(one) for one in found["messages"]], replies)
            row = parse(found)
        except (ValueError, TypeError, LookupError, AttributeError) as broken:
            raise ValueError(f"{path} holds no conversation: {broken}") from broken
        if not isinstance(row, Conversation):
            raise ValueError(f"{path} holds a text, no conversation")
        return cls(list(row.messages))


def _message(found: Any) -> Message:
    """Return a message that `save` wrote; an answer that was stopped at once is empty."""
    return {name: str(found[name]) for name in ("role", "content")}
