"""Answers to benchmark questions as FastChat keeps them: one method, its own answers in the chat, several choices.

A record has the reference's fields, and more: the ids that `new_tokens` counts, what every forward gave
(`accept_lengths`, as Spec-Bench reads it), what every draft had accepted, and how it was made.
"""

import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from eagle.chat import Message, RowError, choose_template
from eagle.data.samples import prompt_ids
from eagle.evaluation.plain_decoder import PlainDecoder
from eagle.evaluation.questions import BenchQuestion
from eagle.model.ea_model import EaModel
from eagle.model.support.loading import load_base, load_tokenizer

WARM_UP = 16  # tokens


@dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """What decides an answer.

    Attributes:
        base_model_path: the base model.
        ea_model_path: its head; None decodes plainly.
        use_eagle3: the kind of head that is expected; None takes either.
        tree: "dynamic", or a list of root-to-node paths.
        total_token, depth, top_k: of dynamic trees.
        temperature: 0 is greedy.
        max_new_token: per turn.
        num_choices: answers to every question; each begins with its number as seed.
        template: one of FastChat's; None takes the tokenizer's own.
        system_message: before the first turn; None for what the template says.
        is_llama3: `<|eot_id|>` ends an answer too.
        one_turn: only first turns are asked.
        dtype: of the base.
        num_gpus_per_model: GPUs that a model is spread over, of those that its process sees.
        load_in_8bit, load_in_4bit: quantise it with bitsandbytes.
        max_gpu_memory: per device, as "40GiB"; None for all there is.
    """

    base_model_path: str
    ea_model_path: str | None
    use_eagle3: bool | None = None
    tree: str | list[list[int]] = "dynamic"
    total_token: int = 60
    depth: int = 5
    top_k: int = 10
    temperature: float = 0.0
    max_new_token: int = 1024
    num_choices: int = 1
    template: str | None = None
    system_message: str | None = None
    is_llama3: bool = False
    one_turn: bool = False
    dtype: str = "float16"
    num_gpus_per_model: int = 1
    load_in_8bit: bool = False
    load_in_4bit: bool = False
    max_gpu_memory: str | None = None

    def loading(self) -> dict[str, Any]:
        """Return the keywords of the base model's `from_pretrained`."""
        options: dict[str, Any] = {"dtype": self.dtype}
        if torch.cuda.is_available():
            options["device_map"] = "auto"
            gpus = range(self.num_gpus_per_model)
            if self.max_gpu_memory is not None:
                options["max_memory"] = dict.fromkeys(gpus, self.max_gpu_memory)
            elif len(gpus) < torch.cuda.device_count():
                options["max_memory"] = {gpu: torch.cuda.mem_get_info(gpu)[0] for gpu in gpus}  # none of the others
        if self.load_in_8bit or self.load_in_4bit:
            bits = {"load_in_8bit": self.load_in_8bit, "load_in_4bit": self.load_in_4bit}
            options["quantization_config"] = BitsAndBytesConfig(**bits)
        return options


class TooLongError(ValueError):
    """A question is too long for the base."""


class Answerer:
    """A loaded model that answers questions.

    Raises:
        ValueError: the tokenizer has no template, or it refuses the system message; or see `EaModel`.
    """

    def __init__(self, settings: AnswerSettings) -> None:
        self.settings = settings
        self.tokenizer = load_tokenizer(settings.base_model_path)
        template = choose_template(self.tokenizer, settings.template)
        if template is None:
            raise ValueError(f"{settings.base_model_path}: the tokenizer has no chat template: choose a --template")
        self.template = template
        template.render([*self._opening(), {"role": "user", "content": "Hello"}], asks=True)
        # What takes minutes comes last.
        self.model: EaModel | PlainDecoder
        if settings.ea_model_path is None:
            self.model = PlainDecoder(load_base(settings.base_model_path, settings.loading()))
            self._generate = self.model.naivegenerate
        else:
            self.model = EaModel.from_pretrained(
                settings.use_eagle3,
                settings.base_model_path,
                settings.ea_model_path,
                settings.total_token,
                settings.depth,
                settings.top_k,
                tree=settings.tree,
                **settings.loading(),
            )
            self._generate = self.model.eagenerate

    def warm_up(self, questions: Sequence[BenchQuestion]) -> None:
        """Answer a few tokens, unmeasured, of the first question that is short enough."""
        for question in questions:
            with suppress(TooLongError):
                self._turn([*self._opening(), {"role": "user", "content": question.turns[0]}], WARM_UP)
                return

    def answer(self, question: BenchQuestion, model_id: str) -> dict[str, Any]:
        """Return the record of a question.

        Raises:
            TooLongError: the base has too few positions for one of its turns.
            ValueError: the template refuses it.
        """
        try:
            choices = [self._choice(question, index) for index in range(self.settings.num_choices)]
        except RowError as refusal:
            raise ValueError(f"question {question.id}: {refusal}") from refusal
        return {
            "question_id": question.id,
            "category": question.category,
            "asked": question.key,
            "answer_id": uuid.uuid4().hex,
            "model_id": model_id,
            "choices": choices,
            "tstamp": time.time(),
            "made": asdict(self.settings),
        }

    def _opening(self) -> list[Message]:
        message = self.settings.system_message
        return [] if message is None else [{"role": "system", "content": message}]

    def _choice(self, question: BenchQuestion, index: int) -> dict[str, Any]:
        torch.manual_seed(index)
        messages = self._opening()
        choice: dict[str, Any] = {"index": index, "turns": [], "idxs": [], "new_tokens": [], "wall_time": []}
        choice |= {"accept_lengths": [], "accepted": [], "ids": []}
        for text in question.turns[:1] if self.settings.one_turn else question.turns:
            messages.append({"role": "user", "content": text})
            ids, seconds = self._turn(messages, self.settings.max_new_token)
            stats = self.model.stats
            said = self.tokenizer.decode(ids, skip_special_tokens=True, spaces_between_special_tokens=False).strip()
            forwards = stats.steps if self.settings.ea_model_path is not None else len(ids)
            choice["turns"].append(said)
            choice["idxs"].append(max(0, forwards - 1))
            choice["new_tokens"].append(len(ids))
            choice["wall_time"].append(seconds)
            choice["accept_lengths"] += stats.tokens_per_step
            choice["accepted"] += stats.accepted_per_step
            choice["ids"].append(ids)
            messages.append({"role": "assistant", "content": said})
        return choice

    def _turn(self, messages: Sequence[Message], new: int) -> tuple[list[int], float]:
        target = self.model.target
        ids_BS = torch.tensor([prompt_ids(self.tokenizer, self.template, messages)], device=target.device)
        width, room = ids_BS.shape[1], target.last_position
        if room is not None and width + new > room:
            raise TooLongError(f"{width} prompt tokens and {new} new ones are more than the base's {room} positions")
        limits = {"max_new_tokens": new, "max_length": width + new, "is_llama3": self.settings.is_llama3}
        started = time.perf_counter()
        out = self._generate(ids_BS, temperature=self.settings.temperature, tokenizer=self.tokenizer, **limits)
        ids = out[0, width:].tolist()  # waits for the device
        return ids, time.perf_counter() - started
