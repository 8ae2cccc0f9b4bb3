"""`EaModel.generate` gives the ids of `base.generate` for every processor, criterion and output it can be asked for."""

import pytest
import torch
from architectures import VOCABULARY, base_model, prompts
from pairs import ea_model
from references import generate_ids
from same_call import EOS, MAKE, NEW, OMITTED, both, small_base
from scripted import ScriptedDrafter
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    SynthIDTextWatermarkingConfig,
    TopKLogitsWarper,
    WatermarkingConfig,
)
from transformers.generation import GenerateDecoderOnlyOutput
from watchers import Counting, SumCriterion, Together

pytestmark = pytest.mark.contract


class SureCriterion(StoppingCriteria):
    """Ends a row when its last token was a sure one: it reads the scores."""

    def __call__(self, input_ids, scores, **kwargs):
        return scores[-1].softmax(-1).max(-1).values > 0.6


def no_even_after_odd(batch_id, input_ids):
    return [t for t in range(VOCABULARY) if t % 2 or int(input_ids[-1]) % 2 == 0 or batch_id == 1]


PROCESSORS = {
    "the model's own settings": {},
    "temperature": {"temperature": 0.6},
    "top_k": {"top_k": 7},
    "top_p": {"top_p": 0.7},
    "top_h": {"top_h": 0.5},
    "min_p": {"min_p": 0.05},
    "typical_p": {"typical_p": 0.8},
    "epsilon_cutoff": {"epsilon_cutoff": 3e-3},
    "eta_cutoff": {"eta_cutoff": 3e-3},
    "all warpers": {"temperature": 1.3, "top_k": 30, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.9},
    "repetition_penalty": {"repetition_penalty": 1.6},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.5},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 2},
    "bad_words_ids": {"bad_words_ids": [[5], [6, 7], [40], [41, 8]]},
    "min_length": {"min_length": 20},
    "min_new_tokens": {"min_new_tokens": 12},
    "max_length": {"max_new_tokens": None, "max_length": 17},
    "forced_bos_token_id": {"forced_bos_token_id": 9},
    "forced_eos_token_id": {"forced_eos_token_id": 11},
    "suppress_tokens": {"suppress_tokens": [3, 4, 5, 12, 60, 65]},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(40))},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (4, 1.4)},
    "sequence_bias": {"sequence_bias": [[[5], 4.0], [[6, 7], 9.0]]},
    "guidance_scale": {"guidance_scale": 1.6},
    "renormalize_logits": {"renormalize_logits": True},
    "remove_invalid_values": {"remove_invalid_values": True},
    "prefix_allowed_tokens_fn": {"prefix_allowed_tokens_fn": no_even_after_odd},
    "watermark": {"watermarking_config": WatermarkingConfig(bias=3.0)},
    "SynthID": {"watermarking_config": SynthIDTextWatermarkingConfig(keys=[1, 2, 3], ngram_len=3)},
    "a stateful processor": {MAKE + "logits_processor": lambda: LogitsProcessorList([Counting()])},
    "a processor over all rows": {MAKE + "logits_processor": lambda: LogitsProcessorList([Together()])},
    "a stock one of the caller's": {"logits_processor": LogitsProcessorList([RepetitionPenaltyLogitsProcessor(1.4)])},
    "one that replaces generate's": {"logits_processor": LogitsProcessorList([TopKLogitsWarper(3)])},
}
CRITERIA = {
    "max_time": {"max_time": 1e-9},
    "written by the caller": {MAKE + "stopping_criteria": lambda: StoppingCriteriaList([SumCriterion()])},
    "without an EOS": {
        "eos_token_id": None,
        MAKE + "stopping_criteria": lambda: StoppingCriteriaList([SumCriterion()]),
    },
    "reading scores": {
        "return_dict_in_generate": True,
        "output_scores": True,
        MAKE + "stopping_criteria": lambda: StoppingCriteriaList([SureCriterion()]),
    },
    "no end but the limit": {"eos_token_id": None},
    "an empty list of ends": {"eos_token_id": []},
}


@pytest.fixture
def model(tmp_path):
    return ea_model(tmp_path, small_base(), "eagle")


def ids_of(output):
    return output if isinstance(output, torch.Tensor) else output.sequences


def check(model, batch, mode, keywords, seed=0):
    ids, mask = prompts(model.base_model, batch, seed=seed)
    want, got = both(model, ids, mask, do_sample=mode == "sampled", **keywords)
    assert torch.equal(ids_of(got), ids_of(want))
    return want, got


@pytest.mark.parametrize("case", PROCESSORS)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("mode", ["greedy", "sampled"])
def test_every_processor_gives_generate_s_ids(model, case, batch, mode):
    want, _ = check(model, batch, mode, PROCESSORS[case])
    if batch == 1 and want.shape[1] > prompts(model.base_model, 1)[0].shape[1] + 8:
        assert model.stats.acceptance_length > 1.3


@pytest.mark.parametrize("case", CRITERIA)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("mode", ["greedy", "sampled"])
def test_every_criterion_stops_where_generate_stops(model, case, batch, mode):
    check(model, batch, mode, CRITERIA[case])


def test_a_criterion_is_shown_every_prefix_once_and_nothing_more(model):
    criteria = [SumCriterion(), SumCriterion()]
    ids, mask = prompts(model.base_model, 2, seed=1)
    calls = iter(criteria)
    both(model, ids, mask, **{MAKE + "stopping_criteria": lambda: StoppingCriteriaList([next(calls)])})
    assert criteria[0].seen == criteria[1].seen and len(criteria[0].seen) > 1


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("mode", ["greedy", "sampled"])
def test_scores_and_logits_are_generate_s_for_ended_rows_too(model, batch, mode):
    outputs = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    want, got = check(model, batch, mode, outputs)
    assert isinstance(got, GenerateDecoderOnlyOutput)
    if batch > 1:
        ends = [(row[9:] == 0).any() for row in want.sequences]
        assert any(ends) and not all(ends), "some rows must end before others"
    for name in ("scores", "logits"):
        assert len(getattr(got, name)) == len(getattr(want, name)) == want.sequences.shape[1] - 9
        for ours, theirs in zip(getattr(got, name), getattr(want, name), strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)
    assert model.base_model.compute_transition_scores(got.sequences, got.scores).isfinite().any()


def test_rows_that_ended_do_not_hold_back_the_others(model):
    ids, mask = prompts(model.base_model, 3)
    steps = []
    for ends in ([12, 65], [12, 27, 65, 75, 58]):  # no row or one ends early; two end with their first tokens
        both(model, ids, mask, do_sample=False, eos_token_id=ends, output_scores=True, return_dict_in_generate=True)
        steps.append(model.stats)
    assert steps[1].acceptance_length > steps[0].acceptance_length > 1.2


def test_scores_are_kept_only_where_they_are_asked_for(model):
    _, got = check(model, 1, "greedy", {"return_dict_in_generate": True})
    assert got.scores is None and got.logits is None


@pytest.mark.parametrize(("batch", "number"), [(1, 4), (2, 3)])
def test_several_sequences_per_prompt(model, batch, number):
    want, _ = check(model, batch, "sampled", {"num_return_sequences": number})
    assert len(want) == batch * number and len({tuple(row) for row in want.tolist()}) > batch


def test_a_generator_stands_for_the_global_seed(model):
    ids, mask = prompts(model.base_model, 1)
    want, _ = both(model, ids, mask, seed=8, do_sample=True)
    state = torch.get_rng_state()
    got = model.generate(
        ids, max_new_tokens=NEW, do_sample=True, attention_mask=mask, generator=torch.Generator().manual_seed(8)
    )
    assert torch.equal(got, want) and torch.equal(state, torch.get_rng_state())


def test_settings_come_from_the_call_then_the_config_then_the_model(model):
    ids, mask = prompts(model.base_model, 1)
    config = GenerationConfig(do_sample=True, temperature=0.3, max_new_tokens=9, eos_token_id=5)
    want, got = both(model, ids, mask, generation_config=config, max_new_tokens=12, top_k=5)
    assert torch.equal(got, want) and got.shape[1] > 18
    before = model.base_model.generation_config
    model.base_model.generation_config = GenerationConfig(max_new_tokens=7, pad_token_id=0)
    try:
        want, got = both(model, ids, mask, max_new_tokens=OMITTED)
        assert torch.equal(got, want) and got.shape[1] == ids.shape[1] + 7
    finally:
        model.base_model.generation_config = before


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("extras", [{}, {"output_scores": True, "return_dict_in_generate": True}])
def test_inside_inference_mode(model, batch, extras):
    """Tensors made in there cannot be written outside, where steps run."""
    ids, mask = prompts(model.base_model, batch)
    with torch.inference_mode():
        want, got = both(model, ids, mask, do_sample=True, **extras)
        assert torch.equal(ids_of(got), ids_of(want))


@pytest.mark.parametrize("name", ["eos_token_id", "pad_token_id"])
def test_special_tokens_may_be_tensors(model, name):
    ids = prompts(model.base_model, 1)[0]
    value = torch.tensor([12, 65]) if name == "eos_token_id" else torch.tensor(88)
    want, got = both(model, ids, None, **{name: value})
    assert torch.equal(got, want)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("method", ["generate", "eagenerate"])
def test_where_nothing_can_be_sampled_it_raises_as_generate_does(model, batch, method):
    ids, mask = prompts(model.base_model, batch)
    arguments = {"attention_mask": mask, "suppress_tokens": list(range(VOCABULARY)), "max_new_tokens": 4}
    with pytest.raises(RuntimeError):
        model.base_model.generate(ids, do_sample=True, **arguments)
    with pytest.raises(RuntimeError, match="nothing to sample from"):
        if method == "generate":
            model.generate(ids, do_sample=True, **arguments)
        else:
            model.eagenerate(ids, temperature=1.0, **arguments)
    assert model.generate(ids[:1], max_new_tokens=3).shape[1] > ids.shape[1]


@pytest.mark.parametrize("width", [60, 93])
def test_a_processor_may_change_the_width_of_the_scores(model, width):
    class Width(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return torch.nn.functional.pad(scores, (0, width - VOCABULARY), value=-1e9)

    check(model, 1, "sampled", {"logits_processor": LogitsProcessorList([Width()])})


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_new_tokens": 3.0},
        {"max_new_tokens": 3.5},
        {"stopping_criteria": StoppingCriteriaList([lambda ids, scores: ids[:, -1:] % 5 == 0])},
    ],
)
def test_what_generate_puts_up_with(model, arguments):
    ids, mask = prompts(model.base_model, 1)
    want, got = both(model, ids, mask, do_sample=False, **arguments)
    assert torch.equal(got, want)


@pytest.mark.parametrize("mode", ["greedy", "sampled"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_torch_s_default_dtype_changes_no_id(model, mode, dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        for seed in range(3):
            check(model, 3, mode, {"temperature": 1.3, "top_p": 0.9}, seed)
    finally:
        torch.set_default_dtype(before)


class Writing(LogitsProcessor):
    """Writes into the ids it is shown, those of the prompt too, and goes by what stands there."""

    def __init__(self):
        self.seen = []

    def __call__(self, input_ids, scores):
        self.seen.append(input_ids.tolist())
        input_ids[:, -2] = (input_ids[:, -2] * 3 + len(self.seen)) % VOCABULARY
        return scores + (input_ids[:, -3:].sum(-1, keepdim=True) % 7 == torch.arange(scores.shape[-1]) % 7) * 2.0


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("mode", ["greedy", "sampled"])
def test_what_a_processor_writes_into_the_ids_stays_there(model, batch, mode):
    ids, mask = prompts(model.base_model, batch)
    plain = {"max_new_tokens": NEW, "attention_mask": mask, "do_sample": mode == "sampled"}
    theirs, ours = Writing(), Writing()
    torch.manual_seed(3)
    want = model.base_model.generate(ids.clone(), logits_processor=LogitsProcessorList([theirs]), **plain)
    torch.manual_seed(3)
    before = ids.clone()
    got = model.generate(ids, logits_processor=LogitsProcessorList([ours]), **plain)
    assert torch.equal(got, want) and ours.seen == theirs.seen
    assert torch.equal(ids, before) and not torch.equal(want[:, : ids.shape[1]], ids)


def test_what_a_processor_wrote_is_not_taken_for_what_was_run(model):
    ids, _ = prompts(model.base_model, 1)
    arguments = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": -1}
    writing = {"logits_processor": LogitsProcessorList([Writing()])}
    written = model.generate(ids, **writing, reuse_prefix=True, **arguments)
    want = model.base_model.generate(written, **arguments)
    assert torch.equal(model.generate(written, reuse_prefix=True, **arguments), want)
    assert model.stats.prefilled_tokens > written.shape[1] // 2


def test_without_a_prompt_it_begins_with_bos(model):
    torch.manual_seed(0)
    want = model.base_model.generate(max_new_tokens=6)
    torch.manual_seed(0)
    assert torch.equal(model.generate(max_new_tokens=6), want) and int(want[0, 0]) == 1


@pytest.mark.parametrize("name", ["attention_mask", "pad_token_id"])
def test_a_mask_is_taken_or_inferred(model, name):
    ids, mask = prompts(model.base_model, 3)
    if name == "attention_mask":
        ids[mask == 0] = 7  # only the mask tells them from tokens
        want, got = both(model, ids, mask)
    else:
        ids[mask == 0] = 88
        want, got = both(model, ids, None, pad_token_id=88)
    assert torch.equal(got, want)


@pytest.mark.parametrize("method", ["eagenerate", "naivegenerate"])
def test_the_reference_s_methods_take_the_same_extras(model, method):
    """And ignore the model's own sampling defaults, as the reference does."""
    base = model.base_model
    ids, mask = prompts(base, 3)
    extras = {"no_repeat_ngram_size": 2, "bad_words_ids": [[6, 7], [40]], "num_return_sequences": 2}
    neutral = {"repetition_penalty": 1.0, "top_k": 0, "temperature": 0.9, "top_p": 0.8, "do_sample": True}
    torch.manual_seed(4)
    want = base.generate(ids, attention_mask=mask, max_new_tokens=NEW, **neutral, **extras)
    model.ea_layer = ScriptedDrafter(want, VOCABULARY, ids.shape[1], EOS)
    torch.manual_seed(4)
    got = getattr(model, method)(ids, temperature=0.9, top_p=0.8, max_new_tokens=NEW, attention_mask=mask, **extras)
    assert torch.equal(got, want)
    assert base.generation_config.repetition_penalty == 1.1  # the base keeps its own


def test_greedy_ids_with_a_real_head_and_an_eagle3_head(tmp_path):
    for kind in ("eagle", "eagle3"):
        model = ea_model(tmp_path, "llama", kind)
        ids, mask = prompts(base_model("llama"), 3)
        want = generate_ids(model.base_model, ids, mask, NEW)
        assert torch.equal(model.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=False), want)
