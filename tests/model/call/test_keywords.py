"""Every keyword of `generate` works as there or is refused in words; the table in docs/generate.md is made here.

`make docs` rewrites the table from what the calls did.
"""

import inspect
import os
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from architectures import VOCABULARY, prompts
from pairs import ea_model
from places import ROOT
from same_call import MAKE, both, made, small_base
from streams import Log, tokenizer
from transformers import (
    CompileConfig,
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    MaxTimeCriteria,
    StoppingCriteriaList,
    TopKLogitsWarper,
    WatermarkingConfig,
)
from transformers.generation.configuration_utils import ContinuousBatchingConfig

DOC = ROOT / "docs" / "generate.md"
SAMPLED = {"do_sample": True}
GIVES = {"return_dict_in_generate": True}


def stop_string() -> str:
    return tokenizer().decode([27, 75])  # what the base says second and third


# keyword: the call it is tried in.
CALLS = {
    # of the signature
    "inputs": {},
    "generation_config": {"generation_config": GenerationConfig(do_sample=False, repetition_penalty=1.3)},
    "logits_processor": {"logits_processor": LogitsProcessorList([TopKLogitsWarper(3)]), **SAMPLED},
    "stopping_criteria": {MAKE + "stopping_criteria": lambda: StoppingCriteriaList([MaxTimeCriteria(1e-9)])},
    "prefix_allowed_tokens_fn": {"prefix_allowed_tokens_fn": lambda row, ids: list(range(20, VOCABULARY))},
    "synced_gpus": {"synced_gpus": True},
    "assistant_model": {MAKE + "assistant_model": small_base},
    "streamer": {MAKE + "streamer": Log},
    "negative_prompt_ids": {"guidance_scale": 1.5, "negative_prompt_ids": torch.tensor([[7, 9]])},
    "negative_prompt_attention_mask": {
        "guidance_scale": 1.5,
        "negative_prompt_ids": torch.tensor([[7, 9]]),
        "negative_prompt_attention_mask": torch.tensor([[1, 1]]),
    },
    "custom_generate": {"custom_generate": lambda model, input_ids, **rest: input_ids},
    # the model's inputs
    "input_ids": {},
    "attention_mask": {"attention_mask": torch.ones(1, 9, dtype=torch.int64)},
    "position_ids": {"position_ids": torch.arange(9)[None]},
    "past_key_values": {MAKE + "past_key_values": DynamicCache},
    "cache": {MAKE + "cache": DynamicCache},
    "inputs_embeds": {MAKE + "inputs_embeds": lambda: torch.zeros(1, 9, 32)},
    "tokenizer": {MAKE + "tokenizer": tokenizer, MAKE + "stop_strings": stop_string},
    "assistant_tokenizer": {MAKE + "assistant_tokenizer": tokenizer},
    # of GenerationConfig
    "assistant_confidence_threshold": {"assistant_confidence_threshold": 0.3},
    "assistant_early_exit": {"assistant_early_exit": 1},
    "assistant_ensemble_weight": {"assistant_ensemble_weight": 0.5},
    "assistant_lookbehind": {"assistant_lookbehind": 5},
    "bad_words_ids": {"bad_words_ids": [[27], [75, 50]]},
    "begin_suppress_tokens": {"begin_suppress_tokens": [75]},
    "bos_token_id": {"bos_token_id": 4},
    "cache_config": {"cache_config": {}},
    "cache_implementation": {"cache_implementation": "static"},
    "cache_implementation (quantized, offloaded, paged)": {"cache_implementation": "offloaded"},
    "compile_config": {"compile_config": CompileConfig()},
    "constraints": {"constraints": [object()]},
    "continuous_batching_config": {"continuous_batching_config": ContinuousBatchingConfig()},
    "decoder_start_token_id": {"decoder_start_token_id": 3},
    "disable_compile": {"disable_compile": True},
    "diversity_penalty": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "do_sample": SAMPLED,
    "dola_layers": {"dola_layers": "low"},
    "early_stopping": {"early_stopping": True},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 2.0},
    "eos_token_id": {"eos_token_id": [27, 50]},
    "epsilon_cutoff": {"epsilon_cutoff": 0.01, **SAMPLED},
    "eta_cutoff": {"eta_cutoff": 0.01, **SAMPLED},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (3, 1.5)},
    "force_words_ids": {"force_words_ids": [[5]]},
    "forced_bos_token_id": {"forced_bos_token_id": 5},
    "forced_eos_token_id": {"forced_eos_token_id": 12},
    "guidance_scale": {"guidance_scale": 1.5},
    "is_assistant": {"is_assistant": True},
    "length_penalty": {"length_penalty": 2.0},
    "low_memory": {"low_memory": True},
    "max_cache_len": {"max_cache_len": 99},
    "max_length": {"max_length": 15, "max_new_tokens": None},
    "max_matching_ngram_size": {"max_matching_ngram_size": 2},
    "max_new_tokens": {"max_new_tokens": 5},
    "max_time": {"max_time": 1e-9},
    "min_length": {"min_length": 20, "eos_token_id": [27, 50]},
    "min_new_tokens": {"min_new_tokens": 9, "eos_token_id": [27, 50]},
    "min_p": {"min_p": 0.1, **SAMPLED},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "num_assistant_tokens": {"num_assistant_tokens": 5},
    "num_assistant_tokens_schedule": {"num_assistant_tokens_schedule": "constant"},
    "num_beam_groups": {"num_beams": 4, "num_beam_groups": 2},
    "num_beams": {"num_beams": 3},
    "num_return_sequences": {"num_return_sequences": 2, **SAMPLED},
    "output_attentions": {"output_attentions": True, **GIVES},
    "output_hidden_states": {"output_hidden_states": True, **GIVES},
    "output_logits": {"output_logits": True, **GIVES},
    "output_scores": {"output_scores": True, **GIVES},
    "pad_token_id": {"pad_token_id": 88},
    "penalty_alpha": {"penalty_alpha": 0.6, "top_k": 4},
    "prefill_chunk_size": {"prefill_chunk_size": 4},
    "prompt_lookup_num_tokens": {"prompt_lookup_num_tokens": 3},
    "remove_invalid_values": {"remove_invalid_values": True},
    "renormalize_logits": {"renormalize_logits": True, **SAMPLED},
    "repetition_penalty": {"repetition_penalty": 1.7},
    "return_dict_in_generate": GIVES,
    "sequence_bias": {"sequence_bias": [[[27], -9.0]]},
    "speculation_type": {"speculation_type": "dflash"},
    "stop_strings": {MAKE + "stop_strings": stop_string, MAKE + "tokenizer": tokenizer},
    "suppress_tokens": {"suppress_tokens": [27, 50]},
    "target_lookbehind": {"target_lookbehind": 5},
    "temperature": {"temperature": 0.5, **SAMPLED},
    "token_healing": {"token_healing": True, MAKE + "tokenizer": tokenizer},
    "top_h": {"top_h": 0.5, **SAMPLED},
    "top_k": {"top_k": 3, **SAMPLED},
    "top_p": {"top_p": 0.5, **SAMPLED},
    "transformers_version": {"transformers_version": "5"},
    "typical_p": {"typical_p": 0.5, **SAMPLED},
    "use_cache": {"use_cache": False},
    "use_mtp": {"use_mtp": True},
    "watermarking_config": {"watermarking_config": WatermarkingConfig(bias=4.0)},
}
# Keywords only `EaModel.generate` knows: what `base.generate` is asked instead, or None for the same without them.
OWN = {
    "generator": {MAKE + "generator": lambda: torch.Generator().manual_seed(3), **SAMPLED},
    "prefill_chunk": {"prefill_chunk": 4},
    "reuse_prefix": {"reuse_prefix": True},
}
NOTES = {
    "cache_implementation": "`static`, `dynamic` and the like: eagle's own cache stands in",
    "use_cache": "same ids; eagle's own cache is always used",
    "streamer": "any batch; tokens come in bursts, one per accepted path",
    "return_dict_in_generate": "its cache is None: see `reuse_prefix`",
    "output_logits": "raw even where a processor works in place, unlike there",
    "stop_strings": "the model's own tokenizer, or `tokenizer=`",
    "generator": "of eagle: noise source in place of the global seed",
    "prefill_chunk": "of eagle: prompt tokens per forward, `prefill_chunk_size` elsewhere",
    "reuse_prefix": "of eagle: True or an `eagle.Prefix`; run only what follows the last call's tokens",
    "logits_processor": "stock, user-written and stateful ones",
    "stopping_criteria": "stock and user-written ones, token by token",
}


IDLE = "no effect, in `generate` neither"
NOTES |= dict.fromkeys(
    [
        *(name for name in CALLS if name.startswith(("assistant_c", "assistant_en", "assistant_l", "num_assistant"))),
        *("max_matching_ngram_size", "target_lookbehind", "speculation_type", "early_stopping", "length_penalty"),
        *("low_memory", "max_cache_len", "transformers_version", "decoder_start_token_id", "cache_config"),
        *("continuous_batching_config", "compile_config", "disable_compile"),
    ],
    IDLE,
)


def ids_of(output):
    return output if isinstance(output, torch.Tensor) else output.sequences


@cache
def outcome(keyword: str, folder: Path) -> str:
    """Call both with one keyword; return "works" or the words of the refusal."""
    model = ea_model(folder, small_base(), "eagle")
    ids, _ = prompts(model.base_model, 1)
    arguments = {"max_new_tokens": 12, "do_sample": False, **{**CALLS, **OWN}[keyword]}
    try:
        model.generate(ids, **made(arguments))
    except (NotImplementedError, ValueError) as refusal:
        with pytest.raises(type(refusal)):  # before any work: a second call says the same
            model.generate(ids, **made(arguments))
        return str(refusal)
    theirs = {k: v for k, v in arguments.items() if k.removeprefix(MAKE) not in OWN}
    torch.manual_seed(3)
    want = model.base_model.generate(ids, **made(theirs))
    torch.manual_seed(3)
    assert torch.equal(ids_of(model.generate(ids, **made(arguments))), ids_of(want)), keyword
    if keyword not in OWN:
        want, got = both(model, ids, None, **arguments)
        assert torch.equal(ids_of(got), ids_of(want)), keyword
    return "works"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("keywords")


def test_the_table_knows_every_keyword_there_is():
    known = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    known |= set(inspect.signature(GenerationMixin.generate).parameters) - {"self", "kwargs"}
    assert known <= set(CALLS)


REFUSED = {
    "synced_gpus",
    "assistant_model",
    "assistant_tokenizer",
    "custom_generate",
    "position_ids",
    "past_key_values",
    "cache",
    "inputs_embeds",
    "assistant_early_exit",
    "cache_implementation (quantized, offloaded, paged)",
    "constraints",
    "diversity_penalty",
    "dola_layers",
    "force_words_ids",
    "is_assistant",
    "num_beam_groups",
    "num_beams",
    "output_attentions",
    "output_hidden_states",
    "penalty_alpha",
    "prompt_lookup_num_tokens",
    "token_healing",
    "use_mtp",
}


@pytest.mark.parametrize("keyword", [*CALLS, *OWN])
def test_a_keyword_works_or_is_refused_in_words(keyword, folder):
    said = outcome(keyword, folder)
    assert (said != "works") == (keyword in REFUSED), said
    if said != "works":
        assert "not supported" in said and len(said) > 25


def table(folder: Path) -> str:
    rows = ["| keyword | | |", "|---|---|---|"]
    for keyword in [*CALLS, *OWN]:
        said = outcome(keyword, folder)
        name, _, kind = keyword.partition(" ")
        word = "works" if said == "works" else "refused"
        note = NOTES.get(keyword, "") if said == "works" else said.partition("not supported")[2].lstrip(":, ")
        note = re.sub(r"use one of .*", "use another", note)
        rows.append(f"| `{name}`{' ' + kind if kind else ''} | {word} | {note} |")
    return "\n".join(rows)


def test_the_table_in_the_docs_is_what_the_calls_did(folder):
    text = DOC.read_text()
    before, _, rest = text.partition("<!-- keywords -->\n")
    _, _, after = rest.partition("\n<!-- end -->")
    made_now = f"{before}<!-- keywords -->\n{table(folder)}\n<!-- end -->{after}"
    if os.environ.get("WRITE_DOCS"):
        DOC.write_text(made_now)
    assert DOC.read_text() == made_now, "run `make docs`"
