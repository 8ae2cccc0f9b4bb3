"""What a call asks for: arguments checked at the public edge and turned into a `Request`, before any work starts.

Knows the reference's argument conventions (0 switches a filter off, `max_length` caps prompt plus new tokens) and the
base model's end-of-sequence ids; knows nothing of drafting.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, TypedDict, TypeVar

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)
from typing_extensions import Unpack

from eagle.model.rows import Request
from eagle.model.sampling import GREEDY_BELOW, Noise, Sampler, treats_rows_alike, warpers
from eagle.model.target import TargetModel

T = TypeVar("T")


class Extras(TypedDict, total=False):
    """Keyword-only arguments beyond the reference's signature.

    Keys:
        attention_mask: [B, S], 1 for tokens, 0 for left pads.
        generator: source of sampling noise on the model's device; None is torch's global one.
        logits_processor: applied before the warpers, as in `generate`.
        stopping_criteria: asked after every token; batch 1 only.
        stop_strings: texts that end a row; they need the tokenizer.
    """

    attention_mask: torch.Tensor | None
    generator: torch.Generator | None
    logits_processor: Sequence[LogitsProcessor] | None
    stopping_criteria: Sequence[StoppingCriteria] | None
    stop_strings: str | list[str] | None


@dataclass(frozen=True, kw_only=True)
class Call:
    """The reference's arguments by name, and `Extras`."""

    temperature: float
    top_p: float
    top_k: float
    max_new_tokens: int
    max_length: int
    is_llama3: bool
    extras: Extras = field(default_factory=Extras)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.extras) - set(Extras.__annotations__))
        if unknown:
            raise TypeError(
                f"unknown arguments {unknown}; known beyond the signature: {sorted(Extras.__annotations__)}"
            )


def reference_signature(method: Callable[..., T]) -> Callable[..., T]:
    """Give a method `(self, input_ids, call, log)` the arguments of the reference's generate functions.

    Args of the result:
        input_ids: prompt ids [B, S], rows left-padded to one length.
        temperature: 1e-5 or less is greedy.
        top_p, top_k: sampling filters; 0 is off.
        max_new_tokens: most new tokens per row.
        max_length: most tokens per row, prompt included.
        log: also return counts.
        is_llama3: stop at `<|eot_id|>` too.
        extras: keyword-only arguments beyond the reference's, see `Extras`.
    """

    def called(
        self: Any,
        input_ids: torch.Tensor,
        temperature: float = 0.0,
        top_p: float = 0.0,
        top_k: float = 0.0,
        max_new_tokens: int = 512,
        max_length: int = 2048,
        log: bool = False,
        is_llama3: bool = False,
        **extras: Unpack[Extras],
    ) -> T:
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


def prepare(
    call: Call,
    input_ids: Any,
    target: TargetModel,
    tokenizer: Callable[[], PreTrainedTokenizerBase],
    bucket: bool = False,
) -> Request:
    """Check everything about a call and return what the decoding loop needs.

    Args:
        call: the arguments.
        input_ids: prompt ids [B, S], a tensor or nested lists.
        target: the model the ids are for.
        tokenizer: gives the tokenizer where stop strings or `is_llama3` need it.
        bucket: let attention see whole cache buffers, see `KVCache`.

    Raises:
        ValueError: naming the argument, its value and the allowed range.
    """
    ids_BS = _check_ids(input_ids, target)
    eos, pad = _ends(target)
    mask_BS = _check_mask(call.extras.get("attention_mask"), ids_BS, target, eos)
    limit = _check_limits(call, ids_BS.shape[1], _least_pads(mask_BS), target)
    sampler = _sampler(call, len(ids_BS), target)
    criteria = StoppingCriteriaList(call.extras.get("stopping_criteria") or [])
    if criteria and len(ids_BS) > 1:
        raise ValueError(f"stopping_criteria see all rows in lock-step, a batch of {len(ids_BS)} is not: use batch 1")
    if stop_strings := call.extras.get("stop_strings"):
        criteria.append(StopStringCriteria(tokenizer(), stop_strings))
    if call.is_llama3:
        eos |= {_eot(tokenizer())}
    return Request(ids_BS, mask_BS, limit, eos, pad, sampler, criteria, bucket)


def _sampler(call: Call, batch: int, target: TargetModel) -> Sampler:
    processors = LogitsProcessorList(call.extras.get("logits_processor") or [])
    unknown = [type(p).__name__ for p in processors if not treats_rows_alike(p)]
    if unknown and batch > 1:
        raise ValueError(f"logits_processor {unknown} may tell rows apart, which a batch of {batch} hides: use batch 1")
    processors.extend(warpers(call.temperature, call.top_k, call.top_p))
    if call.temperature <= GREEDY_BELOW:
        return Sampler(processors, None)
    generator = call.extras.get("generator")
    if generator is not None and generator.device.type != target.device.type:
        raise ValueError(f"generator is on {generator.device}, the model on {target.device}: they must agree")
    return Sampler(processors, Noise(batch, target.vocabulary, target.device, generator))


def _eot(tokenizer: PreTrainedTokenizerBase) -> int:
    token = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    if token is None or token == tokenizer.unk_token_id:
        raise ValueError("is_llama3=True stops at <|eot_id|>, which this tokenizer does not have")
    return int(token)


def _ends(target: TargetModel) -> tuple[frozenset[int], int]:
    """Return the ids that end a row and the id that pads it, as `generate` finds them."""
    config = target.model.generation_config or target.config
    eos = config.eos_token_id
    ends: list[int] = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
    pad = config.pad_token_id
    if pad is None:
        pad = ends[0] if ends else 0
    return frozenset(ends), int(pad)


def _check_ids(input_ids: Any, target: TargetModel) -> torch.Tensor:
    try:
        ids_BS = torch.as_tensor(input_ids)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"input_ids must be a tensor or rows of one length, got {type(input_ids).__name__} "
            f"(of a tokenizer's result, pass `.input_ids`): {error}"
        ) from error
    if ids_BS.ndim != 2 or ids_BS.numel() == 0:
        raise ValueError(
            f"input_ids must have shape [batch, prompt] with at least one token, got {tuple(ids_BS.shape)}"
        )
    if ids_BS.is_floating_point() or ids_BS.dtype == torch.bool:
        raise ValueError(f"input_ids must be whole numbers, got dtype {ids_BS.dtype}")
    ids_BS = ids_BS.to(target.device, torch.int64)
    known = target.model.get_input_embeddings().num_embeddings
    low, high = int(ids_BS.min()), int(ids_BS.max())
    if low < 0 or high >= known:
        raise ValueError(f"input_ids hold token {low if low < 0 else high}; the model knows 0 to {known - 1}")
    return ids_BS


def _check_mask(given: Any, ids_BS: torch.Tensor, target: TargetModel, eos: frozenset[int]) -> torch.Tensor | None:
    """Return the mask, inferred from pad ids as `generate` does where none is given; None where nothing is padded."""
    if given is None:
        pad = getattr(target.model.generation_config, "pad_token_id", None)
        if pad is None or pad in eos or not bool((ids_BS == pad).any()):
            return None
        given = ids_BS != pad
    mask_BS = torch.as_tensor(given).to(ids_BS.device)
    if mask_BS.shape != ids_BS.shape:
        raise ValueError(f"attention_mask has shape {tuple(mask_BS.shape)}, input_ids {tuple(ids_BS.shape)}")
    if not bool(((mask_BS == 0) | (mask_BS == 1)).all()):
        raise ValueError("attention_mask must hold only 0 (pad) and 1 (token)")
    mask_BS = mask_BS.long()
    if bool((mask_BS[:, 1:] < mask_BS[:, :-1]).any()):
        raise ValueError(
            "pads stand after tokens; pad on the left (tokenizer.padding_side = 'left'), or pass attention_mask "
            "where the pad id is meant as a token"
        )
    if not bool(mask_BS[:, -1].all()):
        raise ValueError("attention_mask marks a row without any token")
    return None if bool(mask_BS.all()) else mask_BS


def _least_pads(mask_BS: torch.Tensor | None) -> int:
    return 0 if mask_BS is None else int((mask_BS == 0).sum(-1).min())


def _check_limits(call: Call, prompt: int, pads: int, target: TargetModel) -> int:
    """Return the most tokens a row may have, prompt included."""
    for name in ("max_new_tokens", "max_length"):
        if not isinstance(getattr(call, name), Integral):
            raise ValueError(f"{name}={getattr(call, name)!r} must be a whole number")
    if call.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={call.max_new_tokens} must be at least 1")
    if prompt >= call.max_length:
        raise ValueError(
            f"the prompt has {prompt} tokens, max_length={call.max_length} leaves no room: raise max_length"
        )
    limit = int(min(prompt + call.max_new_tokens, call.max_length))
    positions = target.last_position
    if positions is not None and limit - pads > positions:
        room = positions - prompt + pads
        remedy = f"use max_new_tokens={room} or less" if room > 0 else "shorten the prompt"
        raise ValueError(
            f"prompt and new tokens make {limit - pads} tokens, the model has {positions} positions: {remedy}"
        )
    return limit
