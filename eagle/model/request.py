"""What a call asks for: `generate`'s arguments checked, and prepared by transformers itself, before any work starts.

`base.generate(custom_generate=…)` merges the configurations, expands rows, infers masks and builds processors and
criteria exactly as it does for itself; what it would then loop over comes back as a `Request`. Knows nothing of
drafting.

Shapes: B prompts, R rows (B times `num_return_sequences`), S prompt tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    MaxTimeCriteria,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.generation.configuration_utils import GenerationMode

from eagle.model.prefix import Prefix
from eagle.model.rows import Request
from eagle.model.sampling import Noise, Sampler
from eagle.model.target import PREFILL_CHUNK, TargetModel

# Arguments of a call that transformers' preparation cannot carry or does not know.
OWN = ("streamer", "tokenizer", "generator", "reuse_prefix", "prefill_chunk")
REFUSED = {
    "assistant_model": "the draft head is the assistant",
    "assistant_tokenizer": "the draft head is the assistant",
    "custom_generate": "it would replace the decoding that eagle does",
    "synced_gpus": "a model sharded by FSDP or ZeRO-3 is not supported",
    "inputs_embeds": "the draft head reads token ids; pass input_ids",
    "past_key_values": "eagle keeps caches of its own; pass reuse_prefix=True to continue a conversation",
    "position_ids": "positions follow from attention_mask",
    "output_attentions": "a forward over a tree has no attentions of single tokens",
    "output_hidden_states": "a forward over a tree has no hidden states of single tokens",
    "token_healing": "heal the prompt first: base_model.heal_tokens(input_ids, tokenizer)",
}
MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
# Cache kinds that give the same ids as the plain one; eagle's own cache stands in for them.
CACHES = (None, "dynamic", "dynamic_full", "static", "hybrid", "sliding_window", "hybrid_chunked")
# What preparation adds to the model's inputs by itself.
PREPARED = {"attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep", "cache_position"}
# Criteria that judge every row by itself.
ROW_BY_ROW = (MaxTimeCriteria, StopStringCriteria)


@dataclass(frozen=True)
class Prepared:
    """What `generate` hands to its decoding loop.

    Attributes:
        base: the model.
        ids_RS: prompt ids, rows expanded.
        processors, criteria: in the order it applies them.
        config: merged from call, `generation_config` and the model's defaults.
        inputs: what it would hand to the model.
    """

    base: Any
    ids_RS: torch.Tensor
    processors: LogitsProcessorList
    criteria: StoppingCriteriaList
    config: GenerationConfig
    inputs: dict[str, Any]


def prepare(
    base: Any, target: TargetModel, arguments: dict[str, Any], tokenizer: Callable[[], PreTrainedTokenizerBase]
) -> Request:
    """Check everything about a call and return what the decoding loop needs.

    Args:
        base: the model whose `generate` prepares.
        target: the same model, to decode with.
        arguments: of `generate`, by name; None counts as not given.
        tokenizer: gives the tokenizer where stop strings need one.

    Raises:
        ValueError: naming the argument, its value and the allowed range.
        NotImplementedError: something `generate` can do and eagle cannot, and why.
    """
    given = {name: value for name, value in arguments.items() if value is not None and name not in OWN}
    _refuse(given, base)
    ids = _check_inputs(given, target)
    _check_mask(given, ids, target, base)
    strings = _default(given, base, "stop_strings") if "stop_strings" not in arguments else given.get("stop_strings")
    # Preparation knows no tokenizer: the criterion is added below.
    keywords = {**given, "stop_strings": None} if _default(given, base, "stop_strings") else given
    prepared: Prepared = base.generate(**keywords, custom_generate=_catch)
    if strings:
        own = arguments.get("tokenizer")
        prepared.criteria.append(StopStringCriteria(own if own is not None else tokenizer(), strings))
    return _request(prepared, target, arguments)


def _catch(
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **inputs: Any,
) -> Prepared:
    """Stand in for the decoding loop of `generate`."""
    return Prepared(model, input_ids, logits_processor, stopping_criteria, generation_config, inputs)


def _default(given: dict[str, Any], base: Any, name: str) -> Any:
    """Return a setting as `generate` would find it: call, then `generation_config`, then the model's default."""
    if name in given:
        return given[name]
    own = getattr(given.get("generation_config"), name, None)
    return own if own is not None else getattr(base.generation_config, name, None)


def _refuse(given: dict[str, Any], base: Any) -> None:
    for name, reason in REFUSED.items():
        if _default(given, base, name) not in (None, False):
            raise NotImplementedError(f"{name} is not supported: {reason}")
    cache = _default(given, base, "cache_implementation")
    if cache not in CACHES:
        raise NotImplementedError(f"cache_implementation={cache!r} is not supported, use one of {CACHES}")


def _request(prepared: Prepared, target: TargetModel, arguments: dict[str, Any]) -> Request:
    """Turn what `generate` prepared into what our loop needs."""
    config = prepared.config
    mode = config.get_generation_mode()
    if mode not in MODES:
        raise NotImplementedError(f"{mode.value} is not supported: eagle decodes greedily or samples")
    foreign = sorted(name for name in set(prepared.inputs) - PREPARED if prepared.inputs[name] is not None)
    if foreign:
        raise NotImplementedError(f"{foreign} are not supported: eagle hands a model nothing but tokens")
    ids_RS, mask_RS = prepared.ids_RS, prepared.inputs.get("attention_mask")
    sampler = _sampler(prepared, target, arguments.get("generator"))
    limit, eos, criteria = _ends(prepared.criteria)
    limit = max(limit, ids_RS.shape[1] + 1)  # criteria are asked after a token, never before the first
    _check_positions(limit, ids_RS, mask_RS, target)
    chunk = _first(arguments.get("prefill_chunk"), config.prefill_chunk_size, PREFILL_CHUNK)
    if not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"prefill_chunk={chunk!r} must be a whole number, 1 or more")
    keeps_scores, keeps_logits = (
        bool(config.return_dict_in_generate and wanted) for wanted in (config.output_scores, config.output_logits)
    )
    together = [c for c in criteria if type(c) not in ROW_BY_ROW]
    watchers = arguments.get("streamer") is not None or keeps_scores or keeps_logits or together
    pads_ended = any(hasattr(c, "eos_token_id") for c in prepared.criteria) or not criteria
    in_step = len(ids_RS) > 1 and bool(watchers or not pads_ended or not sampler.is_row_by_row)
    pad = config._pad_token_tensor
    return Request(
        ids_RS,
        mask_RS,
        limit,
        eos,
        int(pad) if pad is not None else 0,
        sampler,
        criteria,
        pads_ended=pads_ended,
        in_step=in_step,
        keeps_scores=keeps_scores,
        keeps_logits=keeps_logits,
        prefill_chunk=chunk,
        returns_dict=bool(config.return_dict_in_generate),
        streamer=arguments.get("streamer"),
    )


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)


def _sampler(prepared: Prepared, target: TargetModel, generator: torch.Generator | None) -> Sampler:
    if generator is not None and generator.device.type != target.device.type:
        raise ValueError(f"generator is on {generator.device}, the model on {target.device}: they must agree")
    if not prepared.config.do_sample:
        return Sampler(prepared.processors, None)
    noise = Noise(len(prepared.ids_RS), target.vocabulary, target.device, generator)
    return Sampler(prepared.processors, noise)


def _ends(criteria: StoppingCriteriaList) -> tuple[int, frozenset[int], StoppingCriteriaList]:
    """Return the most tokens of a row, the ids that end it, and the criteria that are neither."""
    limits = [c.max_length for c in criteria if type(c) is MaxLengthCriteria]
    ends = [c.eos_token_id for c in criteria if type(c) is EosTokenCriteria]
    eos = frozenset(int(token) for tensor in ends for token in tensor)
    return (
        min(limits),
        eos,
        StoppingCriteriaList(c for c in criteria if type(c) not in (MaxLengthCriteria, EosTokenCriteria)),
    )


def reusable(arguments: dict[str, Any], request: Request, own: Prefix) -> Prefix | None:
    """Return the prefix a call may start from: None, the model's own (True), or the caller's.

    Raises:
        ValueError: neither, or more than one row, or pads.
    """
    wanted = arguments.get("reuse_prefix")
    if wanted is None or wanted is False:
        return None
    if wanted is not True and not isinstance(wanted, Prefix):
        raise ValueError(f"reuse_prefix={wanted!r} must be True, False or an eagle.Prefix")
    if len(request.ids_RS) > 1 or request.attention_mask_RS is not None:
        raise ValueError(f"reuse_prefix continues one unpadded row, the call has {len(request.ids_RS)} or pads")
    return own if wanted is True else wanted


def _check_inputs(given: dict[str, Any], target: TargetModel) -> torch.Tensor | None:
    """Check prompt ids and move them to the target; None where `generate` is to begin with its BOS."""
    if "inputs" in given and "input_ids" in given:
        raise ValueError("inputs and input_ids name the same thing: pass one of them")
    name = "inputs" if "inputs" in given else "input_ids"
    if name not in given:
        return None
    given[name] = check_ids(given[name], target)
    return given[name]


def check_ids(input_ids: Any, target: TargetModel) -> torch.Tensor:
    """Return prompt ids [B, S] on the target, int64, from a tensor or nested lists.

    Raises:
        ValueError: no rows of one length, no token, no whole numbers, or ids the model does not know.
    """
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
    known = target.known_tokens
    low, high = int(ids_BS.min()), int(ids_BS.max())
    if low < 0 or high >= known:
        raise ValueError(f"input_ids hold token {low if low < 0 else high}; the model knows 0 to {known - 1}")
    return ids_BS


def _check_mask(given: dict[str, Any], ids_BS: torch.Tensor | None, target: TargetModel, base: Any) -> None:
    """Check the mask, or the one that `generate` will infer from pad ids, and move it to the target."""
    mask = given.get("attention_mask")
    if ids_BS is None:
        return
    if mask is None:
        pad, ends = _default(given, base, "pad_token_id"), _default(given, base, "eos_token_id")
        eos = ends if isinstance(ends, list | tuple) else [ends]
        if pad is None or pad in eos or not bool((ids_BS == pad).any()):
            return
        mask = ids_BS != pad
    mask_BS = torch.as_tensor(mask).to(ids_BS.device)
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
    if "attention_mask" in given:
        given["attention_mask"] = mask_BS


def _check_positions(limit: int, ids_RS: torch.Tensor, mask_RS: torch.Tensor | None, target: TargetModel) -> None:
    positions, prompt = target.last_position, ids_RS.shape[1]
    pads = 0 if mask_RS is None else int((mask_RS == 0).sum(-1).min())
    if positions is None or limit - pads <= positions:
        return
    room = positions - prompt + pads
    remedy = f"use max_new_tokens={room} or less" if room > 0 else "shorten the prompt"
    raise ValueError(f"prompt and new tokens make {limit - pads} tokens, the model has {positions} positions: {remedy}")
