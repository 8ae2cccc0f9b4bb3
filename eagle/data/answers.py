"""What is asked of whoever writes answers, and what comes back: the words between conversations and authors.

An author is asked by `take` and answers in any order. What it answers depends on a question's `key` and `turn`, and on
its own settings and seed, never on what else it was asked, when, or in which order.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from eagle.chat import Message


@dataclass(frozen=True)
class Question:
    """One answer that is wanted.

    Attributes:
        place: the number of its row among all rows.
        turn: how many answers of the conversation stand before it.
        conversation: key of what its row asks, by content.
        key: the same with the answers before: with `turn` and a seed it decides the answer.
        messages: what stands before the answer.
        prompt: the same as ids, by the template.
    """

    place: int
    turn: int
    conversation: str
    key: str
    messages: Sequence[Message]
    prompt: list[int]


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
