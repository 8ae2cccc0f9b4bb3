"""How a target answers: how long, how random, when it has come to an end, and when it only repeats itself.

What is decided here depends on a question and on these rules alone, never on who else is asked.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eagle.data.answers import Answer, Question

PERIOD = 48  # longest part whose repetition counts as a loop, in tokens
REPEATED = 96  # tokens that must repeat before an answer counts as a loop, in at least
TIMES = 6  # rounds


@dataclass(frozen=True, kw_only=True)
class AnswerRules:
    """What decides an answer besides the target.

    Attributes:
        tokenizer: the target's.
        ends: ids that end an answer.
        temperatures: of the answers: 0 is greedy, else the target's distribution at that temperature without any
            filter. Of several every conversation takes one, by its content.
        max_new_tokens: most tokens of an answer.
        most: tokens of prompt and answer together; None for any number.
        seed: of sampling, and of which temperature is taken.
    """

    tokenizer: Any
    ends: Sequence[int]
    temperatures: Sequence[float]
    max_new_tokens: int
    most: int | None
    seed: int

    @property
    def longest(self) -> int | None:
        """Tokens of the longest prompt that leaves room for an answer."""
        return None if self.most is None else self.most - 1

    def room(self, question: Question) -> int:
        """Return how many tokens the answer may have."""
        left = self.max_new_tokens if self.most is None else self.most - len(question.prompt)
        return min(self.max_new_tokens, left)

    def temperature(self, question: Question) -> float:
        """Return the temperature of a conversation: all its answers have one."""
        if len(self.temperatures) == 1:
            return self.temperatures[0]
        return self.temperatures[_number(f"temperature {self.seed} {question.conversation}") % len(self.temperatures)]

    def noise_seed(self, question: Question) -> int:
        """Return the seed with which the answer to a question is sampled."""
        return _number(f"answer {self.seed} {question.turn} {question.key}") % (1 << 63)

    def answer(self, question: Question, ids: Sequence[int], looped: bool | None = None) -> Answer:
        """Return what was said, up to the first token that ends an answer.

        Args:
            looped: whether it was cut because it repeats itself; None to look.
        """
        end = next((place for place, token in enumerate(ids) if token in self.ends), None)
        said = list(ids[:end])
        if looped is None:
            looped = end is None and loops(said)
        # Without the spaces around it, as FastChat hands an answer on: templates write their own.
        text = self.tokenizer.decode(said, skip_special_tokens=True).strip()
        kept = said if end is None else list(ids[: end + 1])
        return Answer(question, kept, text, ended=end is not None, looped=looped)


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def loops(ids: Sequence[int]) -> bool:
    """Tell whether ids end in a part of at most `PERIOD` tokens, over and over, for `REPEATED` tokens and `TIMES`."""
    for period in range(1, min(PERIOD, len(ids) // TIMES) + 1):
        tail = max(REPEATED, TIMES * period)
        if len(ids) >= tail and ids[-tail:-period] == ids[-tail + period :]:
            return True
    return False
