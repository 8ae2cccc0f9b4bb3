"""What a call asks for: arguments checked at the public edge and turned into a `Request`, before any work starts.

Knows the reference's argument conventions (0 switches a filter off, `max_length` caps prompt plus new tokens) and the
base model's end-of-sequence ids; knows nothing of drafting.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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
from eagle.model.sampling import GREEDY_BELOW, Noise, Sampler, warpers
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
    mask_BS = _check_mask(call.extras.get("attention_mask"), ids_BS)
    limit = _check_limits(call, ids_BS.shape[1], target)
    criteria = StoppingCriteriaList(call.extras.get("stopping_criteria") or [])
    if criteria and len(ids_BS) > 1:
        raise ValueError(
            f"stopping_criteria see all rows in lock-step, which a batch of {len(ids_BS)} is not: use batch 1"
        )
    if stop_strings := call.extras.get("stop_strings"):
        criteria.append(StopStringCriteria(tokenizer(), stop_strings))
    processors = LogitsProcessorList(call.extras.get("logits_processor") or [])
    processors.extend(warpers(call.temperature, call.top_k, call.top_p))
    noise = None
    if call.temperature > GREEDY_BELOW:
        noise = Noise(len(ids_BS), target.vocabulary, target.device, call.extras.get("generator"))
    eos, pad = _ends(target)
    if call.is_llama3:
        eos |= {tokenizer().convert_tokens_to_ids("<|eot_id|>")}
    return Request(ids_BS, mask_BS, limit, eos, pad, Sampler(processors, noise), criteria, bucket)


def _ends(target: TargetModel) -> tuple[frozenset[int], int]:
    """Return the ids that end a row and the id that pads it, as `generate` finds them."""
    config = target.model.generation_config
    eos = config.eos_token_id
    ends: list[int] = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
    pad = config.pad_token_id
    if pad is None:
        pad = ends[0] if ends else 0
    return frozenset(ends), int(pad)


def _check_ids(input_ids: Any, target: TargetModel) -> torch.Tensor:
    ids_BS = torch.as_tensor(input_ids)
    if ids_BS.ndim != 2 or ids_BS.numel() == 0:
        raise ValueError(
            f"input_ids must have shape [batch, prompt] with at least one token, got {tuple(ids_BS.shape)}"
        )
    if ids_BS.is_floating_point() or ids_BS.dtype == torch.bool:
        raise ValueError(f"input_ids must be whole numbers, got dtype {ids_BS.dtype}")
    known = target.model.get_input_embeddings().num_embeddings
    low, high = int(ids_BS.min()), int(ids_BS.max())
    if low < 0 or high >= known:
        raise ValueError(f"input_ids hold token {low if low < 0 else high}; the model knows 0 to {known - 1}")
    return ids_BS.to(target.device, torch.int64)


def _check_mask(attention_mask: torch.Tensor | None, ids_BS: torch.Tensor) -> torch.Tensor | None:
    if attention_mask is None:
        return None
    mask_BS = torch.as_tensor(attention_mask).to(ids_BS.device)
    if mask_BS.shape != ids_BS.shape:
        raise ValueError(f"attention_mask has shape {tuple(mask_BS.shape)}, input_ids {tuple(ids_BS.shape)}")
    mask_BS = mask_BS.long()
    if not bool(((mask_BS == 0) | (mask_BS == 1)).all()):
        raise ValueError("attention_mask must hold only 0 (pad) and 1 (token)")
    if bool((mask_BS[:, 1:] < mask_BS[:, :-1]).any()):
        raise ValueError("attention_mask marks pads after tokens; pad on the left: tokenizer.padding_side = 'left'")
    if not bool(mask_BS[:, -1].all()):
        raise ValueError("attention_mask marks a row without any token")
    return None if bool(mask_BS.all()) else mask_BS


def _check_limits(call: Call, prompt: int, target: TargetModel) -> int:
    """Return the most tokens a row may have, prompt included."""
    if call.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={call.max_new_tokens} must be at least 1")
    if prompt >= call.max_length:
        raise ValueError(
            f"the prompt has {prompt} tokens, max_length={call.max_length} leaves no room: raise max_length"
        )
    limit = min(prompt + call.max_new_tokens, call.max_length)
    positions = target.last_position
    if positions is not None and limit > positions:
        room = f"use max_new_tokens={positions - prompt} or less" if prompt < positions else "shorten the prompt"
        raise ValueError(f"prompt and new tokens make {limit} tokens, the model has {positions} positions: {room}")
    return limit
