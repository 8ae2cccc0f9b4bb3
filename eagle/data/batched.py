"""Answers by `generate`, in padded batches: with a draft head, and for targets whose rows cannot differ in length."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from transformers import GenerationConfig

from eagle.data.answer_rules import AnswerRules
from eagle.data.answers import Answer, Question
from eagle.data.continuous import left_padded

SIZE = 8


class BatchAuthor:
    """A model whose `generate` writes answers: the target, or the target with a head.

    Answers that are sampled are written one at a time, so that noise belongs to its question.

    Args:
        model: with `generate`, on one device.
        rules: how it answers.
        size: answers side by side.

    Attributes:
        longest, tokens_made: see `eagle.data.answers.Author`.
    """

    def __init__(self, model: Any, rules: AnswerRules, size: int | None = None) -> None:
        self.model, self.rules, self.size = model, rules, size or SIZE
        # The distribution is the target's own: its generation defaults, often filters and penalties, do not count.
        model.generation_config = GenerationConfig()
        self.longest = rules.longest
        self.tokens_made: Callable[[int], None] | None = None

    def write(self, take: Callable[[], Question | None]) -> Iterator[Answer]:
        """Yield answers batch by batch; see `eagle.data.answers.Author`."""
        while asked := list(islice(iter(take, None), self.size)):
            greedy = [question for question in asked if not self.rules.temperature(question)]
            if greedy:
                yield from self._answers(greedy)
            for question in asked:
                if self.rules.temperature(question):
                    yield from self._answers([question])

    def _answers(self, questions: list[Question]) -> Iterator[Answer]:
        """Answer questions of one temperature, to the longest room of all."""
        rooms = [self.rules.room(question) for question in questions]
        ids_BS, mask_BS = left_padded([q.prompt for q in questions], self.rules.ends[0], self.model.device)
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            torch.manual_seed(self.rules.noise_seed(questions[0]))
            config = self._config(self.rules.temperature(questions[0]), max(rooms))
            out = self.model.generate(ids_BS, attention_mask=mask_BS, generation_config=config)
        answers = [
            self.rules.answer(question, ids[:room])
            for question, ids, room in zip(questions, out[:, ids_BS.shape[1] :].tolist(), rooms, strict=True)
        ]
        if self.tokens_made is not None:
            self.tokens_made(sum(len(answer.ids) for answer in answers))
        yield from answers

    def _config(self, temperature: float, room: int) -> GenerationConfig:
        sampling: dict[str, Any] = {"do_sample": False}
        if temperature:
            sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        ends = list(self.rules.ends)
        return GenerationConfig(max_new_tokens=room, eos_token_id=ends, pad_token_id=ends[0], **sampling)
