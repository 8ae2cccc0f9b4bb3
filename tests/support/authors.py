"""Authors of the tests: answers that depend on what is asked alone, in an order that is their own."""

import hashlib
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

from eagle.data.answers import Answer, Question


def words_of(question: Question, seed: int = 0) -> str:
    """Return what a scripted author answers."""
    digest = hashlib.sha256(f"{seed} {question.key} {question.turn}".encode()).hexdigest()
    return f"{question.messages[-1]['content'][:12]}: {digest[: 4 + int(digest[0], 16)]}"


class ScriptedAuthor:
    """Answers several questions at a time, in any order; counts what it is asked.

    Args:
        tokenizer: of the answers.
        end: the token that ends them.
        slots: questions at a time.
        seconds: that an answer takes.
        seed: of the answers.
        loops: tells the questions whose answers repeat themselves.
    """

    longest: int | None = None

    def __init__(
        self,
        tokenizer: Any,
        end: str = "<|im_end|>",
        *,
        slots: int = 4,
        seconds: float = 0.0,
        seed: int = 0,
        loops: Callable[[Question], bool] = lambda question: False,
    ) -> None:
        self.tokenizer, self.end = tokenizer, tokenizer.convert_tokens_to_ids(end)
        self.slots, self.seconds, self.seed, self.loops = slots, seconds, seed, loops
        self.tokens_made: Callable[[int], None] | None = None
        self.asked: list[Question] = []
        self._order = random.Random(0)

    def write(self, take: Callable[[], Question | None]) -> Iterator[Answer]:
        """Yield an answer after each pause, to any of the questions it holds."""
        held: list[Question] = []
        while True:
            while len(held) < self.slots and (question := take()) is not None:
                held.append(question)
                self.asked.append(question)
            if not held:
                return
            time.sleep(self.seconds)
            yield self.answer(held.pop(self._order.randrange(len(held))))

    def answer(self, question: Question) -> Answer:
        """Return the answer to a question."""
        text = words_of(question, self.seed)
        ids = [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.end]
        return Answer(question, ids, text, True, self.loops(question))


class PlainAuthor:
    """Begins, and answers nothing."""

    longest: int | None = None
    tokens_made: Callable[[int], None] | None = None

    def __init__(self, place: Any) -> None:
        pass
