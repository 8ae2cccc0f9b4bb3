"""The reference implementation's call convention, turned into the arguments of `generate`.

Its rules: `temperature` up to 1e-5 is greedy, a filter of 0 is off, `max_length` caps prompt plus new tokens, and the
base model's own generation defaults do not count, but for its end-of-sequence and pad ids.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from transformers import GenerationConfig, PreTrainedTokenizerBase

from eagle.model.kinds import number, switch, whole
from eagle.model.support.properties import token_ids

T = TypeVar("T")
GREEDY_BELOW = 1e-5
OWNED = {"inputs", "generation_config", "do_sample"}  # what the method's own arguments decide


@dataclass(frozen=True, kw_only=True)
class Call:
    """The reference's arguments by name, and those of `generate` beside them."""

    temperature: float
    top_p: float
    top_k: float
    max_new_tokens: int
    max_length: int
    is_llama3: bool
    extras: dict[str, Any]

    def __post_init__(self) -> None:
        clash = sorted(OWNED & set(self.extras))
        if clash:
            raise ValueError(f"{clash} would overrule the arguments of this method: use generate()")
        for name in ("temperature", "top_p", "top_k"):
            number(name, getattr(self, name))
        if not self.temperature >= 0:
            raise ValueError(f"temperature={self.temperature} must be 0 (greedy) or more")
        if not (self.top_k >= 0 and float(self.top_k).is_integer()):
            raise ValueError(f"top_k={self.top_k} must be a whole number, 0 (off) or more")
        if not 0 <= self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must lie in [0, 1]; 0 is off")
        for name in ("max_new_tokens", "max_length"):
            whole(name, getattr(self, name))
        switch("is_llama3", self.is_llama3)
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} must be at least 1")

    def limit(self, prompt: int) -> int:
        """Return the most tokens a row may have, prompt included.

        Raises:
            ValueError: `max_length` leaves no room for a new token.
        """
        if prompt >= self.max_length:
            raise ValueError(
                f"the prompt has {prompt} tokens, max_length={self.max_length} leaves no room: raise max_length"
            )
        return int(min(prompt + self.max_new_tokens, self.max_length))

    def config(
        self, defaults: GenerationConfig, prompt: int, tokenizer: Callable[[], PreTrainedTokenizerBase]
    ) -> GenerationConfig:
        """Return what `generate` would have to be told, with every other setting neutral.

        Args:
            defaults: the base model's; only its special tokens are read.
            prompt: tokens of the prompt.
            tokenizer: asked for `<|eot_id|>` under `is_llama3`.
        """
        eos = token_ids(defaults.eos_token_id)
        if self.is_llama3:
            eos += _eot(tokenizer())
        sampling: dict[str, Any] = {}
        if self.temperature > GREEDY_BELOW:
            sampling = {"temperature": float(self.temperature), "top_k": int(self.top_k), "top_p": self.top_p or 1.0}
        return GenerationConfig(
            do_sample=bool(sampling),
            max_length=self.limit(prompt),
            bos_token_id=defaults.bos_token_id,
            eos_token_id=eos or None,
            pad_token_id=defaults.pad_token_id,
            **sampling,
        )


def without_defaults(base: Any) -> Any:
    """Return the same model, weights and all shared, with no generation defaults of its own."""
    twin = copy.copy(base)
    twin.generation_config = GenerationConfig()
    return twin


def _eot(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the id of `<|eot_id|>`; none where the tokenizer has no such token, which ends nothing then."""
    token = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    return [] if token is None or token == tokenizer.unk_token_id else [int(token)]


def reference_signature(method: Callable[..., T]) -> Callable[..., T]:
    """Give a method `(self, input_ids, call, log)` the arguments of the reference's generate functions.

    Args of the result:
        input_ids: prompt ids [B, S], rows left-padded to one length.
        temperature: 1e-5 or less is greedy.
        top_p, top_k: sampling filters; 0 is off.
        max_new_tokens: most new tokens per row.
        max_length: most tokens per row, prompt included.
        log: also return counts.
        is_llama3: stop at `<|eot_id|>` too, where the tokenizer has it.
        extras: what `EaModel.generate` takes beside these, keyword-only.
    """

    def called(
        self: Any,
        input_ids: Any,
        temperature: float = 0.0,
        top_p: float = 0.0,
        top_k: float = 0.0,
        max_new_tokens: int = 512,
        max_length: int = 2048,
        log: bool = False,
        is_llama3: bool = False,
        **extras: Any,
    ) -> T:
        switch("log", log)
        call = Call(
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            max_new_tokens=max_new_tokens,
            max_length=max_length,
            is_llama3=is_llama3,
            extras=extras,
        )
        return method(self, input_ids, call, log)

    for name in ("__name__", "__qualname__", "__doc__", "__module__"):
        setattr(called, name, getattr(method, name))
    return called
