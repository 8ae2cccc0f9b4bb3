"""A call's arguments: checked, then prepared by transformers itself, before any work starts.

`base.generate(custom_generate=…)` merges the configurations, expands rows, infers masks and builds processors and
criteria exactly as it does for itself; what it would then loop over comes back as a `Request`. Knows nothing of
drafting.

Shapes: B prompts, R rows (B times `num_return_sequences`), S prompt tokens.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
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
from transformers.utils import TransformersKwargs

from eagle.model.cache_reuse import Prefix
from eagle.model.call.inputs import check_ids, check_mask, check_positions
from eagle.model.call.settings import check_kinds
from eagle.model.request_state import Request
from eagle.model.sampling import Noise, Sampler
from eagle.model.support.properties import CACHE_NAMES, check_mode, token_ids
from eagle.model.target import PREFILL_CHUNK, TargetModel

# Arguments of a call that transformers' preparation cannot carry or does not know.
OWN = ("streamer", "tokenizer", "generator", "reuse_prefix", "prefill_chunk")
REFUSED = {
    "assistant_model": "the draft head is the assistant",
    "assistant_tokenizer": "the draft head is the assistant",
    "custom_generate": "it would replace the decoding that eagle does",
    "synced_gpus": "the shards of FSDP or ZeRO-3 would have to draft in step",
    "is_assistant": "it marks a model that drafts for another",
    "inputs_embeds": "the draft head reads token ids; pass input_ids",
    **dict.fromkeys(CACHE_NAMES, "eagle keeps caches of its own; pass reuse_prefix=True to continue a conversation"),
    "position_ids": "positions follow from attention_mask",
    "output_attentions": "a forward over a tree has no attentions of single tokens",
    "output_hidden_states": "a forward over a tree has no hidden states of single tokens",
    "token_healing": "heal the prompt first: base_model.heal_tokens(input_ids, tokenizer)",
}
MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
# Cache kinds that give the same ids as the plain one; eagle's own cache stands in for them.
CACHES = (None, "dynamic", "dynamic_full", "static", "hybrid", "sliding_window", "hybrid_chunked")
# Inputs of the model that change nothing else than what eagle prepares itself.
INPUTS = {"input_ids", "attention_mask", "use_cache", "logits_to_keep"}
# Criteria that judge every row by itself.
ROW_CRITERIA = (MaxTimeCriteria, StopStringCriteria)


@dataclass(frozen=True)
class PreparedCall:
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
        arguments: of `generate`, by name; None overrides a default, as it does there.
        tokenizer: gives the tokenizer where stop strings need one.

    Raises:
        ValueError: naming the argument, its value and the allowed range.
        NotImplementedError: something `generate` can do and eagle cannot, and why.
    """
    given = {name: value for name, value in arguments.items() if name not in OWN}
    check_mode(target.model)
    check_kinds(arguments, lambda name: _default(given, base, name))
    _refuse(given, base)
    _check_inputs(given, target, base)
    strings = _default(given, base, "stop_strings")
    if strings is not None:
        given["stop_strings"] = None  # preparation knows no tokenizer: the criterion is added below
    prepared = _prepared(base, given)
    if strings is not None:
        own = arguments.get("tokenizer")
        prepared.criteria.append(StopStringCriteria(own if own is not None else tokenizer(), strings))
    return _request(prepared, target, arguments)


def _prepared(base: Any, given: dict[str, Any]) -> PreparedCall:
    """Let `generate` prepare a call; what it refuses is refused here, in its own words."""
    try:
        prepared: PreparedCall = base.generate(**{**given, "custom_generate": _catch})
    except NotImplementedError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as problem:
        more = "" if isinstance(problem, ValueError) else f" ({type(problem).__name__})"
        raise ValueError(f"{type(base).__name__}.generate refuses this call{more}: {problem}") from problem
    return prepared


def _catch(
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **inputs: Any,
) -> PreparedCall:
    """Stand in for the decoding loop of `generate`."""
    return PreparedCall(model, input_ids, logits_processor, stopping_criteria, generation_config, inputs)


def _default(given: dict[str, Any], base: Any, name: str) -> Any:
    """Return a setting as `generate` would find it: call, then `generation_config`, then the model's default."""
    if name in given:
        return given[name]
    own = getattr(given.get("generation_config"), name, None)
    return own if own is not None else getattr(base.generation_config, name, None)


def _refuse(given: dict[str, Any], base: Any) -> None:
    for name, reason in REFUSED.items():
        value = _default(given, base, name)
        if value is not None and value is not False:
            raise NotImplementedError(f"{name} is not supported: {reason}")
    cache = _default(given, base, "cache_implementation")
    if cache not in CACHES:
        raise NotImplementedError(f"cache_implementation={cache!r} is not supported, use one of {CACHES}")
    # Names that nobody knows are left to `generate`, which says so.
    model_inputs = set(signature(base.forward).parameters) | set(TransformersKwargs.__optional_keys__)
    settings = set(vars(GenerationConfig())) | set(signature(base.generate).parameters) | INPUTS
    # It overlooks those that are None.
    known = (
        model_inputs | settings | set(signature(base.prepare_inputs_for_generation).parameters) | {"trust_remote_code"}
    )
    unknown = sorted(name for name, value in given.items() if value is None and name not in known)
    if unknown:
        raise ValueError(f"arguments that are not used by the model: {unknown}")
    foreign = sorted(name for name in model_inputs - settings if given.get(name) is not None)
    if foreign:
        raise NotImplementedError(f"{foreign} are not supported: eagle hands a model nothing but tokens")


def _request(prepared: PreparedCall, target: TargetModel, arguments: dict[str, Any]) -> Request:
    """Turn what `generate` prepared into what our loop needs."""
    config = prepared.config
    mode = config.get_generation_mode()
    if mode not in MODES:
        raise NotImplementedError(f"{mode.value} is not supported: eagle decodes greedily or samples")
    ids_RS, mask_RS = prepared.ids_RS, prepared.inputs.get("attention_mask")
    if mask_RS is not None and bool(mask_RS.all()):
        mask_RS = None  # transformers 5.0 prepares a mask of ones where nothing is padded
    sampler = _sampler(prepared, target, arguments.get("generator"))
    limit, eos, criteria = _ends(prepared.criteria)
    limit = max(math.ceil(limit), ids_RS.shape[1] + 1)  # criteria are asked after a token, never before the first
    check_positions(limit, ids_RS, mask_RS, target)
    keeps_scores, keeps_logits = (
        bool(config.return_dict_in_generate and wanted) for wanted in (config.output_scores, config.output_logits)
    )
    together = [c for c in criteria if type(c) not in ROW_CRITERIA]
    watchers = arguments.get("streamer") is not None or keeps_scores or keeps_logits or together
    pads_ended = any(hasattr(c, "eos_token_id") for c in prepared.criteria) or not criteria
    lockstep = len(ids_RS) > 1 and bool(watchers or not pads_ended or not sampler.is_row_by_row)
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
        lockstep=lockstep,
        keeps_scores=keeps_scores,
        keeps_logits=keeps_logits,
        prefill_chunk=_prefill_chunk(arguments, config),
        returns_dict=bool(config.return_dict_in_generate),
        streamer=arguments.get("streamer"),
    )


def _prefill_chunk(arguments: dict[str, Any], config: GenerationConfig) -> int:
    asked = (arguments.get("prefill_chunk"), config.prefill_chunk_size, PREFILL_CHUNK)
    chunk = next(value for value in asked if value is not None)
    if not isinstance(chunk, int) or isinstance(chunk, bool) or chunk < 1:
        raise ValueError(f"prefill_chunk={chunk!r} must be a whole number, 1 or more")
    return chunk


def _sampler(prepared: PreparedCall, target: TargetModel, generator: torch.Generator | None) -> Sampler:
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ValueError(f"generator={generator!r} must be a torch.Generator")
    if generator is not None and generator.device.type != target.device.type:
        raise ValueError(f"generator is on {generator.device}, the model on {target.device}: they must agree")
    if not prepared.config.do_sample:
        return Sampler(prepared.processors, None)
    noise = Noise(len(prepared.ids_RS), target.device, generator)
    return Sampler(prepared.processors, noise)


def _ends(criteria: StoppingCriteriaList) -> tuple[float, frozenset[int], StoppingCriteriaList]:
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
        has = f"{len(request.ids_RS)} rows" if len(request.ids_RS) > 1 else "pads"
        raise ValueError(f"reuse_prefix continues one unpadded row, the call has {has}")
    return own if wanted is True else wanted


def _check_inputs(given: dict[str, Any], target: TargetModel, base: Any) -> None:
    """Check prompt and mask, given or inferred, and move them to the target; without a prompt it begins with BOS."""
    named = [name for name in ("inputs", "input_ids") if given.get(name) is not None]
    if len(named) > 1:
        raise ValueError("inputs and input_ids name the same thing: pass one of them")
    if not named:
        return
    ids_BS = given[named[0]] = check_ids(given[named[0]], target)
    if given.get("attention_mask") is not None:
        given["attention_mask"] = check_mask(given["attention_mask"], ids_BS)
        return
    # What preparation will infer: pads are what carries the pad id, unless that ends rows too.
    pads, ends = (token_ids(_default(given, base, name)) for name in ("pad_token_id", "eos_token_id"))
    if pads and not set(pads) & set(ends):
        check_mask(~torch.isin(ids_BS, torch.tensor(pads, device=ids_BS.device)), ids_BS)
