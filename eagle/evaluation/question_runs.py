"""A question asked of every method, turn by turn: what each said, in which time, with which acceptance.

Every method gets the very same prompts: those of later turns hold what the first method, `generate`, said before. So
times are paired, and one near-tie in half precision does not make all that follows incomparable.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from eagle.chat import Message, Template
from eagle.data.samples import prompt_ids
from eagle.evaluation.methods import Method, emitted
from eagle.evaluation.near_ties import IdDifference, first_difference
from eagle.evaluation.prompts import Prompt, text_prompt
from eagle.evaluation.questions import BenchQuestion
from eagle.model.stats import GenerationStats


@dataclass(frozen=True)
class MethodRun:
    """What one method did on one prompt.

    Attributes:
        ids: new tokens, up to the end of the answer.
        seconds: prefill included, one per round.
        accepted: drafted tokens accepted by every step; None where nobody counts.
        drafted: nodes drafted in all.
        decode_seconds: of the steps, in the median round.
        stage_seconds: of their stages.
        difference: from the first method; None where the ids are equal, or need not be.
    """

    ids: list[int]
    seconds: list[float]
    accepted: list[int] | None = None
    drafted: int = 0
    decode_seconds: float = 0.0
    stage_seconds: dict[str, float] = field(default_factory=dict)
    difference: IdDifference | None = None


@dataclass(frozen=True)
class QuestionRecord:
    """One question at one temperature.

    Attributes:
        questions: name of its set.
        temperature: 0 is greedy.
        question_id, category: the question's.
        asked: its key, which follows from what it asks.
        prompt_tokens: of every turn; of a question that is too long for the base, those of the turn that is.
        turns: what every method did, by its name; none where the question is too long.
    """

    questions: str
    temperature: float
    question_id: int | str
    category: str
    asked: str
    prompt_tokens: list[int]
    turns: list[dict[str, MethodRun]]

    @property
    def is_too_long(self) -> bool:
        """Whether the base has too few positions for it."""
        return not self.turns

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON knows it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> "QuestionRecord":
        """Return what `to_dict` was made of."""
        return cls(**{**found, "turns": [{name: _run(run) for name, run in turn.items()} for turn in found["turns"]]})


def _run(found: dict[str, Any]) -> MethodRun:
    difference = found["difference"]
    return MethodRun(**{**found, "difference": IdDifference(**difference) if difference is not None else None})


@dataclass(frozen=True, kw_only=True)
class Interviewer:
    """Asks questions.

    Attributes:
        base: the base model.
        tokenizer: its own.
        template: renders conversations; None continues first turns as plain text.
        room: positions of the base; None knows no limit.
        new: most new tokens per turn.
        rounds: how often every prompt is run.
        seed: of torch's generators before every run.
    """

    base: Any
    tokenizer: Any
    template: Template | None
    room: int | None
    new: int
    rounds: int = 1
    seed: int = 0

    def ask(self, name: str, question: BenchQuestion, temperature: float, methods: Sequence[Method]) -> QuestionRecord:
        """Ask all turns of a question, or none where one is too long for the base."""
        messages: list[Message] = []
        about = (name, temperature, question.id, question.category, question.key)
        record = QuestionRecord(*about, [], [])
        for text in question.turns if self.template is not None else question.turns[:1]:
            messages.append({"role": "user", "content": text})
            ids_BS = self._prompt(messages)
            record.prompt_tokens.append(ids_BS.shape[1])
            if self.room is not None and ids_BS.shape[1] + self.new > self.room:
                return QuestionRecord(*about, [ids_BS.shape[1]], [])
            record.turns.append(self._turn(ids_BS, temperature, methods))
            said = next(iter(record.turns[-1].values())).ids
            messages.append({"role": "assistant", "content": self.tokenizer.decode(said, skip_special_tokens=True)})
        return record

    def warm_up(self, question: BenchQuestion, methods: Sequence[Method], tokens: int = 16) -> None:
        """Run every method once, unmeasured."""
        ids_BS = self._prompt([{"role": "user", "content": question.turns[0]}])
        if self.room is not None:
            ids_BS = ids_BS[:, : self.room - tokens]
        for method in methods:
            method.run(Prompt(ids_BS, torch.ones_like(ids_BS)), tokens)

    def _prompt(self, messages: Sequence[Message]) -> torch.Tensor:
        if self.template is None:
            return text_prompt(self.tokenizer, messages[0]["content"]).to(self.base.device)
        return torch.tensor([prompt_ids(self.tokenizer, self.template, messages)], device=self.base.device)

    def _turn(self, ids_BS: torch.Tensor, temperature: float, methods: Sequence[Method]) -> dict[str, MethodRun]:
        prompt = Prompt(ids_BS, torch.ones_like(ids_BS))
        rounds: dict[str, list[tuple[float, GenerationStats | None]]] = {method.name: [] for method in methods}
        said: dict[str, list[int]] = {}
        for _ in range(self.rounds):
            for method in methods:
                torch.manual_seed(self.seed)
                started = time.perf_counter()
                out = method.run(prompt, self.new)
                out[0, -1].item()
                rounds[method.name].append((time.perf_counter() - started, method.stats()))
                new = out[0, prompt.width :].tolist()
                said.setdefault(method.name, new[: emitted(new, method.ends)])
        wanted = said[methods[0].name]
        return {
            method.name: _measured(
                said[method.name],
                rounds[method.name],
                self._difference(ids_BS, wanted, said[method.name], temperature)
                if method.is_seeded or not temperature
                else None,
            )
            for method in methods
        }

    def _difference(
        self, ids_BS: torch.Tensor, wanted: list[int], got: list[int], temperature: float
    ) -> IdDifference | None:
        return first_difference(self.base, ids_BS, wanted, got, temperature=temperature, seed=self.seed)


def _measured(
    ids: list[int], rounds: Sequence[tuple[float, GenerationStats | None]], difference: IdDifference | None
) -> MethodRun:
    _, stats = sorted(rounds, key=lambda one: one[0])[(len(rounds) - 1) // 2]
    seconds = [one[0] for one in rounds]
    if stats is None:
        return MethodRun(ids, seconds, difference=difference)
    return MethodRun(
        ids,
        seconds,
        list(stats.accepted_per_step),
        stats.drafted,
        stats.decode_seconds,
        dict(stats.stage_seconds),
        difference,
    )
