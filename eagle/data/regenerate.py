"""Answers that the target writes itself: every assistant turn of a conversation anew, given the answers before it.

A head trained on them learns the distribution that it will draft for. What is written depends on the settings and on
the place of the conversations alone, never on when a run was interrupted.

Shapes: B prompts of a batch, S tokens of the longest.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from eagle.chat import Message, RowError, Template, from_the_user
from eagle.data.answers import Answer, Question
from eagle.data.samples import Sample, conversation_samples, prompt_ids
from eagle.model.ea_model import EaModel
from eagle.model.support.loading import load_base
from eagle.model.support.properties import last_position, token_ids

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class Regeneration:
    """How answers are written anew.

    Attributes:
        ea_model_path: a head of the target, with which the same answers take less time.
        temperature: 0 is greedy; otherwise the target's distribution at that temperature, without any filter.
        max_new_tokens: most tokens of an answer.
        batch_size: answers that are written side by side.
        seed: of sampling.
        dtype: of the target; "auto" is the one it was saved in.
        shard_rows: rows of a shard.
        drop_loops: leave out answers that repeat themselves without end; a conversation ends before one.
        processes: that answer, each with a copy of the target.
        endpoint: URL of a server that answers instead.
        model: what that server calls the target.
        concurrency: questions that it is asked at once.

    Raises:
        ValueError: a value out of range.
    """

    ea_model_path: str | None = None
    temperature: float = 0.0
    max_new_tokens: int = 512
    batch_size: int = 8
    seed: int = 0
    dtype: str = "auto"
    shard_rows: int = 256
    drop_loops: bool = False
    processes: int = 1
    endpoint: str | None = None
    model: str | None = None
    concurrency: int = 32

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"temperature={self.temperature} must be 0 (greedy) or more")
        for name, least in (
            ("max_new_tokens", 1),
            ("batch_size", 1),
            ("seed", 0),
            ("shard_rows", 1),
            ("processes", 1),
            ("concurrency", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        if (self.endpoint is None) != (self.model is None):
            raise ValueError("--endpoint URL and --model NAME go together")
        if self.endpoint is not None and (self.ea_model_path is not None or self.processes > 1 or self.dtype != "auto"):
            raise ValueError(
                "--endpoint: the server writes the answers, without --ea-model-path, --processes and --dtype"
            )
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r} must be one of {', '.join(DTYPES)}")

    @property
    def identity(self) -> dict[str, Any]:
        """What decides which answers are written: not the head, and without sampling not the batches."""
        always: dict[str, Any] = {"temperature": self.temperature, "max_new_tokens": self.max_new_tokens}
        always |= {"dtype": self.dtype} if self.endpoint is None else {"model": self.model}
        sampled = {"seed": self.seed, "batch_size": self.batch_size}
        return always | (sampled if self.temperature else {})


class Dialogue:
    """A conversation on the way to new answers.

    Attributes:
        messages: the conversation, the target's words in the place of the answers given so far.
        samples: what the target saw and said: one sample as long as each prompt goes on from the last answer, one more
            wherever the template or the tokenizer writes what was said in other tokens.
        reason: why it has ended; None while an answer is wanted.
        prompt: ids that ask for it.
    """

    def __init__(self, messages: Sequence[Message]) -> None:
        self.messages = list(_with_places(from_the_user(messages)))
        self.samples: list[Sample] = []
        self.reason: str | None = None
        self.prompt: list[int] = []
        self._place = -1
        self._go_on()
        if self.reason is not None:
            self.reason = "no user turn"

    @property
    def asked(self) -> list[Message]:
        """The messages that the next answer is given to."""
        return self.messages[: self._place]

    def said(self) -> list[Sample]:
        """Return the samples.

        Raises:
            RowError: there is none, and why.
        """
        if not self.samples:
            raise RowError(str(self.reason))
        return self.samples

    def _go_on(self) -> None:
        later = (i for i, message in enumerate(self.messages) if i > self._place and message["role"] == "assistant")
        self._place = next(later, len(self.messages))
        self.reason = "every answer is given" if self._place == len(self.messages) else None

    def ask(self, tokenizer: Any, template: Template) -> None:
        """Set the prompt of the next answer; end where the template refuses the messages before it."""
        try:
            self.prompt = prompt_ids(tokenizer, template, self.messages[: self._place])
        except RowError as refusal:
            self.reason = str(refusal)

    def add_answer(self, answer: list[int], text: str, ended: bool) -> None:
        """Take an answer: its ids, the token that ended it included, and its text without that.

        One that says nothing is dropped, and is the last; so is one that did not come to an end, but kept.
        """
        if not text:
            self.reason = "the target's answer is empty"
            return
        self._keep(answer)
        self.messages[self._place] = {"role": "assistant", "content": text}
        self._go_on()
        self.reason = self.reason if ended else "the answer is not finished"

    def _keep(self, answer: list[int]) -> None:
        ids = np.asarray([*self.prompt, *answer], dtype=np.int32)
        mask = np.arange(len(ids)) >= len(self.prompt)
        if self.samples and np.array_equal(self.samples[-1].ids, self.prompt[: len(self.samples[-1])]):
            earlier = self.samples.pop()
            mask[: len(earlier)] = earlier.mask
        self.samples.append(Sample(ids, mask))


class AnswerGenerator:
    """The target as the author of answers.

    Args:
        target: its folder or Hub id.
        regeneration: how it answers.
        tokenizer, template: of the conversations.
        max_length: prompts of so many tokens or more are not answered.

    Raises:
        ValueError: nothing ends an answer, or the head does not fit.
        FileNotFoundError: target or head is not there.
    """

    def __init__(
        self,
        target: str,
        regeneration: Regeneration,
        tokenizer: Any,
        template: Template,
        max_length: int | None,
        device: str | None = None,
    ) -> None:
        self.regeneration, self.tokenizer = regeneration, tokenizer
        self.tokens_made: Callable[[int], None] | None = None
        options: dict[str, Any] = {"dtype": regeneration.dtype}
        if device is not None:
            options["device_map"] = {"": device}
        elif torch.cuda.is_available():
            options["device_map"] = "auto"
        head = regeneration.ea_model_path
        self.model: Any = (
            load_base(target, options) if head is None else EaModel.from_pretrained(None, target, head, **options)
        )
        base = self.model if head is None else self.model.base_model
        self.ends = ends_of(base.generation_config, tokenizer, template)
        if not self.ends:
            raise ValueError(f"{target} names no end-of-sequence id and the template ends turns without one")
        # The distribution is the target's own: its generation defaults, often filters and penalties, do not count.
        self.model.generation_config = GenerationConfig()
        positions = last_position(base)
        limits = [positions - regeneration.max_new_tokens] if positions else []
        self.longest = min([*limits, *([max_length - 1] if max_length else [])], default=None)
        if limits and limits[0] < 1:
            raise ValueError(
                f"max_new_tokens={regeneration.max_new_tokens} must be below the target's {positions} positions"
            )

    @property
    def config(self) -> GenerationConfig:
        """What `generate` is told."""
        sampling: dict[str, Any] = {"do_sample": False}
        if self.regeneration.temperature:
            sampling = {"do_sample": True, "temperature": self.regeneration.temperature, "top_k": 0, "top_p": 1.0}
        return GenerationConfig(
            max_new_tokens=self.regeneration.max_new_tokens,
            eos_token_id=self.ends,
            pad_token_id=self.ends[0],
            **sampling,
        )

    def write(self, take: Callable[[], Question | None]) -> Iterator[Answer]:
        """Yield answers, several questions at a time; see `eagle.data.answers.Author`."""
        while batch := list(islice(iter(take, None), self.regeneration.batch_size)):
            yield from self._answers(batch)

    def _answers(self, batch: Sequence[Question]) -> Iterator[Answer]:
        ids_BS, mask_BS = _left_padded([question.prompt for question in batch], self.ends[0], self.model.device)
        first = batch[0]
        seed = [self.regeneration.seed, int(first.key, 16), first.turn]
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            torch.manual_seed(int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]))
            out = self.model.generate(ids_BS, attention_mask=mask_BS, generation_config=self.config)
        answers = out[:, ids_BS.shape[1] :].tolist()
        for question, ids in zip(batch, answers, strict=True):
            end = next((place for place, token in enumerate(ids) if token in self.ends), None)
            said = ids[:end]
            # Without the spaces around it, as FastChat hands an answer on: templates write their own.
            text = self.tokenizer.decode(said, skip_special_tokens=True).strip()
            yield Answer(question, said if end is None else ids[: end + 1], text, end is not None)


def _with_places(messages: Sequence[Message]) -> Iterator[Message]:
    """Give every question a place for its answer."""
    for message, following in zip(messages, [*messages[1:], None], strict=False):
        yield message
        if message["role"] == "user" and (following is None or following["role"] == "user"):
            yield {"role": "assistant", "content": ""}


def ends_of(defaults: GenerationConfig, tokenizer: Any, template: Template) -> list[int]:
    """Return the ids that end an answer: the model's own, and the added token that ends the template's turns."""
    ends = token_ids(defaults.eos_token_id)
    try:
        messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
        sample = conversation_samples(tokenizer, template, messages)[-1]
    except RowError:
        return ends
    last = int(sample.ids[sample.mask][-1])
    return ends if last in ends or last not in tokenizer.get_added_vocab().values() else [*ends, last]


def _left_padded(prompts: Sequence[list[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask [B, S]."""
    longest = max(map(len, prompts))
    ids_BS = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask_BS = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids_BS.to(device), mask_BS.to(device)
