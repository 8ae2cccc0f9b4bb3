"""Settings and objects that `generate` takes, judged by kind before transformers sees them.

transformers compares and multiplies what it is given, and fails somewhere inside where that is text, or takes `True`
for 1. Here everything of another kind is refused by name; ranges are left to transformers, which knows them.
"""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from transformers import GenerationConfig

from eagle.model.kinds import are_whole, is_number, is_whole, shown

# A length of 3.5 is met by 4 tokens, in `generate` too.
LENGTHS = ("max_length", "max_new_tokens", "min_length", "min_new_tokens")
WHOLE = (
    "decoder_start_token_id",
    "encoder_no_repeat_ngram_size",
    "forced_bos_token_id",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "prefill_chunk_size",
    "prompt_lookup_num_tokens",
    "top_k",
)
NUMBERS = (
    "diversity_penalty",
    "epsilon_cutoff",
    "eta_cutoff",
    "guidance_scale",
    "length_penalty",
    "max_time",
    "min_p",
    "penalty_alpha",
    "temperature",
    "top_h",
    "top_p",
    "typical_p",
)
PENALTIES = ("encoder_repetition_penalty", "repetition_penalty")
SWITCHES = (
    "do_sample",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "remove_invalid_values",
    "renormalize_logits",
    "return_dict_in_generate",
    "synced_gpus",
    "token_healing",
    "use_cache",
)
# Ids of special tokens: one or several.
IDS = ("bos_token_id", "eos_token_id", "forced_eos_token_id", "pad_token_id")
LISTS = ("begin_suppress_tokens", "suppress_tokens")
TENSORS = ("negative_prompt_attention_mask", "negative_prompt_ids")
# What `generate` goes through one by one and calls.
CALLABLES = ("logits_processor", "stopping_criteria")


def check_kinds(arguments: Mapping[str, Any], setting: Callable[[str], Any]) -> None:
    """Refuse what is of another kind than `generate` means.

    Args:
        arguments: of the call, by name.
        setting: gives a setting by name as `generate` finds it: of the call, a configuration, or the model's default.

    Raises:
        ValueError: naming the argument, its value and what it may be.
    """
    config = arguments.get("generation_config")
    _require(config is None or isinstance(config, GenerationConfig), "generation_config", config, "a GenerationConfig")
    for names, is_right, meant in (
        (LENGTHS, _is_length, "a whole number"),
        (WHOLE, _is_whole, "a whole number"),
        (NUMBERS, _is_number, "a number"),
        (PENALTIES, _is_penalty, "a number above 0"),
        (SWITCHES, _is_switch, "True or False"),
        (IDS, _are_ids, "a token id or a list of token ids"),
        (LISTS, _are_ids, "a list of token ids"),
        (("stop_strings",), _are_strings, "a text or a list of texts"),
    ):
        for name in names:
            value = setting(name)
            _require(value is None or is_right(value), name, value, meant)
    for name in CALLABLES:
        value = arguments.get(name)
        _require(
            value is None or _are_callable(value), name, value, "a list, of what can be called with ids and scores"
        )
    for name in TENSORS:
        value = arguments.get(name)
        _require(value is None or _is_matrix(value), name, value, "a tensor [batch, tokens] of whole numbers")
    chooses, streamer = arguments.get("prefix_allowed_tokens_fn"), arguments.get("streamer")
    _require(chooses is None or callable(chooses), "prefix_allowed_tokens_fn", chooses, "a function of row and ids")
    streams = streamer is None or all(callable(getattr(streamer, name, None)) for name in ("put", "end"))
    _require(streams, "streamer", streamer, "an object with put() and end()")
    tokenizer = arguments.get("tokenizer")
    reads = tokenizer is None or callable(getattr(tokenizer, "get_vocab", None))
    _require(reads, "tokenizer", tokenizer, "a tokenizer")


def _require(is_right: bool, name: str, value: Any, meant: str) -> None:
    if not is_right:
        hint = f": pass [{name}]" if name in CALLABLES and callable(value) else ""
        raise ValueError(f"{name}={shown(value)} must be {meant}{hint}")


def _plain(value: Any) -> Any:
    """Return what a tensor or an array holds as Python's own numbers, everything else as it is."""
    return value.tolist() if isinstance(value, torch.Tensor) or hasattr(value, "dtype") else value


def _is_length(value: Any) -> bool:
    return is_number(_plain(value)) and math.isfinite(_plain(value))


def _is_whole(value: Any) -> bool:
    return is_whole(_plain(value))


def _is_number(value: Any) -> bool:
    return is_number(_plain(value))


def _is_penalty(value: Any) -> bool:
    return _is_number(value) and _plain(value) > 0


def _is_switch(value: Any) -> bool:
    return isinstance(_plain(value), bool | int) and _plain(value) in (0, 1)


def _are_ids(value: Any) -> bool:
    return is_whole(_plain(value)) or are_whole(_plain(value))


def _are_strings(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, Collection) and all(isinstance(text, str) for text in value))


def _are_callable(value: Any) -> bool:
    return isinstance(value, Collection) and not isinstance(value, Mapping | str) and all(map(callable, value))


def _is_matrix(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim == 2 and not value.is_floating_point()
