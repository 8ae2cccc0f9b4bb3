"""Conversations on the way to new answers: what is asked next, and what the target saw and said so far."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from eagle.chat import Message, RowError, Template, from_the_user
from eagle.data.answers import Answer, Question
from eagle.data.samples import Sample, prompt_ids


class Dialogue:
    """A conversation whose every question of the user's is answered anew, turn by turn.

    Args:
        place: the number of its row among all rows.
        messages: the conversation; answers that it has are replaced, those that are missing are asked for.

    Attributes:
        place: as given.
        messages: the conversation, the target's words in the place of the answers given so far.
        samples: what the target saw and said: one sample as long as each prompt goes on from the last answer, one more
            wherever the template or the tokenizer writes what was said in other tokens.
        reason: why it has ended; None while an answer is wanted.
        answered: answers that were given.
    """

    def __init__(self, place: int, messages: Sequence[Message]) -> None:
        self.place = place
        self.messages = _with_answers(from_the_user(messages))
        self.samples: list[Sample] = []
        self.reason: str | None = None
        self.answered = 0
        self.conversation = _key([m for m in self.messages if m["role"] != "assistant"])
        self._wanted = [i for i, message in enumerate(self.messages) if message["role"] == "assistant"]
        if not self._wanted:
            self.reason = "no question of a user's"

    @property
    def open_turns(self) -> int:
        """Answers that may still come."""
        return 0 if self.reason else len(self._wanted) - self.answered

    def said(self) -> list[Sample]:
        """Return the samples.

        Raises:
            RowError: there is none, and why.
        """
        if not self.samples:
            raise RowError(str(self.reason))
        return self.samples

    def question(self, tokenizer: Any, template: Template, longest: int | None) -> Question | None:
        """Return what is asked next; None where it has ended.

        Args:
            tokenizer, template: of the target.
            longest: most tokens of a prompt that is answered; a longer one ends it, as one does that the template
                refuses.
        """
        if self.reason is not None:
            return None
        before = self.messages[: self._wanted[self.answered]]
        try:
            prompt = prompt_ids(tokenizer, template, before)
        except RowError as refusal:
            self.reason = str(refusal)
            return None
        if longest is not None and len(prompt) > longest:
            self.reason = f"a question after {longest} tokens leaves no room for an answer"
            return None
        key = _key([self.conversation, before])
        return Question(self.place, self.answered, self.conversation, key, before, prompt)

    def add(self, answer: Answer) -> None:
        """Take the answer to the last question.

        One that says nothing is dropped, and is the last; so is one that did not come to an end, but kept.
        """
        if not answer.text:
            self.reason = "the target's answer is empty"
            return
        self._keep(answer)
        self.messages[self._wanted[self.answered]] = {"role": "assistant", "content": answer.text}
        self.answered += 1
        if not answer.ended:
            self.reason = "the answer is not finished"
        elif self.answered == len(self._wanted):
            self.reason = "every answer is given"

    def _keep(self, answer: Answer) -> None:
        prompt = answer.question.prompt
        ids = np.asarray([*prompt, *answer.ids], dtype=np.int32)
        mask = np.arange(len(ids)) >= len(prompt)
        if self.samples and np.array_equal(self.samples[-1].ids, prompt[: len(self.samples[-1])]):
            earlier = self.samples.pop()
            mask[: len(earlier)] = earlier.mask
        self.samples.append(Sample(ids, mask))


def _with_answers(messages: Sequence[Message]) -> list[Message]:
    """Give every question of a user's an answer to be written, and leave out what follows the last one."""
    made: list[Message] = []
    for number, message in enumerate(messages):
        made.append(message)
        later = messages[number + 1]["role"] if number + 1 < len(messages) else None
        if message["role"] == "user" and later in ("user", None):
            made.append({"role": "assistant", "content": ""})
    end = max((place for place, message in enumerate(made, start=1) if message["role"] == "assistant"), default=0)
    return made[:end]


def _key(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode(errors="replace")).hexdigest()[:24]
