"""Answers that the target writes itself: every answer of a conversation anew, given the ones before it.

A head trained on them learns the distribution that it will draft for.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from eagle.chat import RowError, Template
from eagle.data.answer_rules import AnswerRules
from eagle.data.answers import Author
from eagle.data.batched import BatchAuthor
from eagle.data.continuous import ContinuousAuthor
from eagle.data.samples import conversation_samples
from eagle.model.ea_model import EaModel
from eagle.model.support.loading import load_base
from eagle.model.support.properties import last_position, token_ids
from eagle.model.target import TargetModel

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class Regeneration:
    """How answers are written anew.

    Attributes:
        ea_model_path: a head of the target. It drafts where that is faster, which is measured; answers are the same.
        temperatures: 0 is greedy, else the target's distribution at that temperature without any filter; of several
            every conversation takes one.
        max_new_tokens: most tokens of an answer.
        batch_size: answers that are written side by side; None for what the device does well.
        seed: of sampling.
        dtype: of the target; "auto" is the one it was saved in.
        drop_loops: leave out answers that repeat themselves without end; a conversation ends before one.
        shard_rows: rows of a shard.
        processes: that answer, each with a copy of the target.
        endpoint: URL of a server that answers instead.
        model: what that server calls the target.
        concurrency: questions that it is asked at once.

    Raises:
        ValueError: a value out of range.
    """

    ea_model_path: str | None = None
    temperatures: Sequence[float] = (0.0,)
    max_new_tokens: int = 512
    batch_size: int | None = None
    seed: int = 0
    dtype: str = "auto"
    drop_loops: bool = False
    shard_rows: int = 256
    processes: int = 1
    endpoint: str | None = None
    model: str | None = None
    concurrency: int = 32

    def __post_init__(self) -> None:
        if not self.temperatures:
            raise ValueError("temperatures is empty")
        for temperature in self.temperatures:
            if not 0 <= temperature < float("inf"):
                raise ValueError(f"temperature={temperature} must be 0 (greedy) or more, and finite")
        counts = ("max_new_tokens", "batch_size", "shard_rows", "processes", "concurrency")
        for name, least in (*((name, 1) for name in counts), ("seed", 0)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r} must be one of {', '.join(DTYPES)}")
        if (self.endpoint is None) != (self.model is None):
            raise ValueError("--endpoint URL and --model NAME go together")
        here = self.ea_model_path is not None or self.processes > 1 or self.batch_size is not None
        if self.endpoint is not None and (here or self.dtype != "auto"):
            raise ValueError(
                "--endpoint: the server writes the answers, without --ea-model-path, --batch-size, --processes, --dtype"
            )

    @property
    def identity(self) -> dict[str, Any]:
        """What decides which answers are written; neither the head nor the batches, nor where a server is."""
        kept: dict[str, Any] = {"temperatures": list(self.temperatures), "max_new_tokens": self.max_new_tokens}
        kept |= {"dtype": self.dtype} if self.endpoint is None else {"model": self.model}
        return kept | ({"seed": self.seed} if any(self.temperatures) else {})


def load_author(
    target: str,
    regeneration: Regeneration,
    tokenizer: Any,
    template: Template,
    max_length: int | None,
    device: str | None = None,
) -> Author:
    """Load the target as the author of answers.

    Args:
        target: its folder or Hub id.
        regeneration: how it answers.
        tokenizer, template: of the conversations.
        max_length: tokens of prompt and answer; nothing beyond them is written.
        device: where it runs; by default a GPU where there is one.

    Raises:
        ValueError: nothing ends an answer, the answers leave no room for a prompt, or the head does not fit.
        FileNotFoundError: target or head is not there.
    """
    options: dict[str, Any] = {"dtype": regeneration.dtype}
    if device is not None or torch.cuda.is_available():
        options["device_map"] = "auto" if device is None else {"": device}
    head = regeneration.ea_model_path
    model: Any = load_base(target, options) if head is None else _with_head(target, head, options)
    base = model if head is None else model.base_model
    ends = ends_of(base.generation_config, tokenizer, template)
    if not ends:
        raise ValueError(f"{target} names no end-of-sequence id and the template ends turns without one")
    limits = [limit for limit in (max_length, last_position(base)) if limit]
    rules = AnswerRules(
        tokenizer=tokenizer,
        ends=ends,
        temperatures=tuple(regeneration.temperatures),
        max_new_tokens=regeneration.max_new_tokens,
        most=min(limits, default=None),
        seed=regeneration.seed,
    )
    if head is None:
        try:
            return ContinuousAuthor(TargetModel(base), rules, regeneration.batch_size)
        except NotImplementedError:
            pass  # rows of their own lengths, which not every target takes
    return BatchAuthor(model, rules, regeneration.batch_size)


def _with_head(target: str, head: str, options: dict[str, Any]) -> EaModel:
    return EaModel.from_pretrained(None, target, head, total_token=-1, **options)


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
