"""What is asked of whoever writes answers, and what comes back: the words between conversations and authors.

An author is asked by `take` and answers in any order. What it answers depends on a question's `key` and `turn`, and on
its own settings and seed, never on what else it was asked, when, or in which order.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from eagle.chat import Message


def content_key(messages: Sequence[Message]) -> str:
    """Return what messages share only if they are the same, wherever they come from: 32 hexadecimal digits."""
    return hashlib.sha256(json.dumps(list(messages), sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Question:
    """One answer that is wanted.

    Attributes:
        place: the number of its row among all rows.
        turn: how many answers of the conversation stand before it.
        key: `content_key` of the messages up to here: with `turn` and a seed it decides the answer.
        messages: what stands before the answer.
        prompt: the same as ids, by the template.
    """

    place: int
    turn: int
    key: str
    messages: Sequence[Message]
    prompt: list[int]


def seed_of(question: Question, seed: int) -> int:
    """Return the seed of an answer's sampling, by what is asked and a run's seed: 63 bits."""
    words = f"{seed} {question.key} {question.turn}"
    return int.from_bytes(hashlib.sha256(words.encode()).digest()[:8], "little") >> 1


@dataclass(frozen=True)
class Answer:
    """What was answered to a question.

    Attributes:
        question: the one it answers.
        ids: all tokens, the one that ended it included.
        text: the same without special tokens and without spaces around it.
        ended: whether it came to an end; else it was cut at a limit.
        looped: whether it repeats itself without end.
    """

    question: Question
    ids: list[int]
    text: str
    ended: bool
    looped: bool = False


class Author(Protocol):
    """Who writes answers.

    Attributes:
        longest: most tokens of a prompt that is answered; None for any.
        tokens_made: where set, called with the number of tokens that were written since its last call.
    """

    longest: int | None
    tokens_made: Callable[[int], None] | None

    def write(self, take: Callable[[], Question | None]) -> Iterator[Answer]:
        """Yield answers, in any order.

        Args:
            take: returns the next question, or None while there is none: a further one may be there once an answer has
                been yielded. It ends when `take` returns None and no answer is on the way.
        """
        ...
