"""Greedy and seeded sampled ids equal `transformers.generate`'s in fp32, whatever drafts and however well."""

import itertools

import pytest
import torch
from architectures import ARCHITECTURES, LONGROPE_SWITCH, VOCABULARY, base_model, prompts
from contract import contract
from pairs import ea_model
from references import ends_at, generate_ids, uncached_features
from scripted import ScriptedDrafter
from transformers import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

DRAFTERS = ("random", "scripted")
KINDS = ("eagle", "eagle3")
BATCHES = (1, 3)
MODES = ("greedy", "sampled")
NEW = 40
SAMPLING = {"temperature": 0.8, "top_k": 20, "top_p": 0.9}

ALL = list(itertools.product(ARCHITECTURES, DRAFTERS, KINDS, BATCHES, MODES))
# Every pair of values meets: per architecture four of sixteen cases, shifted from one to the next.
PAIRWISE = {
    (name, *case)
    for shift, name in enumerate(ARCHITECTURES)
    for case in (
        ("scripted", KINDS[shift % 2], 3, MODES[shift // 2 % 2]),
        ("scripted", KINDS[(shift + 1) % 2], 1, MODES[(shift // 2 + 1) % 2]),
        ("random", KINDS[shift % 2], 1, MODES[(shift // 2 + 1) % 2]),
        ("random", KINDS[(shift + 1) % 2], 3, MODES[shift // 2 % 2]),
    )
}
CASES = [pytest.param(*case, marks=contract(case[0]) if case in PAIRWISE else pytest.mark.nightly) for case in ALL]


def run(model, ids, mask, mode, new=NEW):
    extras = {} if mode == "greedy" else SAMPLING
    torch.manual_seed(3)
    return model.eagenerate(ids, max_new_tokens=new, attention_mask=mask, **extras)


@pytest.mark.parametrize(("name", "drafter", "kind", "batch", "mode"), CASES)
def test_ids_equal_generate(tmp_path, name, drafter, kind, batch, mode):
    base = base_model(name)
    ids, mask = prompts(base, batch)
    to_the_end = name == "gpt2"  # to its last learned position
    new, eos = (64 - ids.shape[1], None) if to_the_end else (NEW, base.generation_config.eos_token_id)
    with ends_at(base, eos):
        expected = generate_ids(base, ids, mask, new, *(() if mode == "greedy" else (3,)), **SAMPLING)
        model = ea_model(tmp_path, name, kind)
        if drafter == "scripted":
            model.ea_layer = ScriptedDrafter(expected, VOCABULARY, ids.shape[1], () if to_the_end else (eos,))
        assert torch.equal(run(model, ids, mask, mode, new), expected)
    if drafter == "scripted" and not (name == "phi3" and batch > 1):  # there it decodes plainly, see below
        assert model.stats.acceptance_length >= 2
        assert model.ea_layer.noncontiguous > 0


@pytest.mark.parametrize("name", [pytest.param(name, marks=contract(name)) for name in ARCHITECTURES])
@pytest.mark.parametrize("kind", KINDS)
def test_features_handed_to_the_head_equal_an_uncached_forward(tmp_path, name, kind):
    base = base_model(name)
    ids, mask = prompts(base, 3)
    with ends_at(base, None):
        new = min(20, LONGROPE_SWITCH - ids.shape[1] - 1)
        expected = generate_ids(base, ids, mask, new)
        model = ea_model(tmp_path, name, kind)
        model.ea_layer = ScriptedDrafter(expected, VOCABULARY, ids.shape[1], eos=())
        assert torch.equal(run(model, ids, mask, "greedy", new), expected)
    (state,) = model.ea_layer.states
    assert model.stats.acceptance_length >= 2
    for row, pads in enumerate((mask == 0).sum(-1).tolist()):
        seen = torch.stack(state.features[row])[pads:]
        wanted = uncached_features(base, expected[row, pads:], model._taps)[: len(seen)]
        assert len(wanted) >= expected.shape[1] - pads - 1
        torch.testing.assert_close(seen[: len(wanted)], wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.contract
@pytest.mark.parametrize("prompt", [9, LONGROPE_SWITCH - 1, LONGROPE_SWITCH, LONGROPE_SWITCH + 1, LONGROPE_SWITCH + 9])
@pytest.mark.parametrize("mode", MODES)
def test_longrope_switch_is_crossed_as_generate_does(tmp_path, prompt, mode):
    base = base_model("phi3")
    ids, mask = prompts(base, 1, prompt)
    expected = generate_ids(base, ids, mask, NEW, *(() if mode == "greedy" else (3,)), **SAMPLING)
    model = ea_model(tmp_path, "phi3")
    model.ea_layer = ScriptedDrafter(expected, VOCABULARY, ids.shape[1])
    assert torch.equal(run(model, ids, mask, mode), expected)
    assert model.stats.acceptance_length >= 2


@pytest.mark.contract
@pytest.mark.parametrize("stop", range(1, 7))
@pytest.mark.parametrize("mode", MODES)
def test_rows_that_end_early_do_not_move_a_batch_s_longrope_switch(tmp_path, stop, mode):
    base = base_model("phi3")
    ids, mask = prompts(base, 3, 24)
    seed = () if mode == "greedy" else (3,)
    with ends_at(base, None):
        free = generate_ids(base, ids, mask, 24, *seed, **SAMPLING)
    with ends_at(base, [int(free[0, ids.shape[1] + stop]), int(free[1, ids.shape[1] + stop])]):
        expected = generate_ids(base, ids, mask, 24, *seed, **SAMPLING)
        assert torch.equal(run(ea_model(tmp_path, "phi3"), ids, mask, mode, 24), expected)


def test_pads_are_inferred_as_generate_infers_them(tmp_path):
    base = base_model("llama")
    ids, _ = prompts(base, 3)
    expected = base.generate(ids, max_new_tokens=20, do_sample=False)
    assert torch.equal(ea_model(tmp_path).eagenerate(ids, max_new_tokens=20), expected)


def test_left_pads_take_no_positions(tmp_path):
    base = base_model("gpt2")
    ids, mask = torch.cat([torch.zeros(1, 30, dtype=torch.int64), prompts(base, 1, 30)[0]], 1), torch.ones(1, 60)
    mask[:, :30] = 0
    out = ea_model(tmp_path, "gpt2").eagenerate(ids, max_new_tokens=20, attention_mask=mask)
    assert torch.equal(out, generate_ids(base, ids, mask.long(), 20))


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_ids_of_any_integer_type_are_taken(tmp_path, dtype):
    base = base_model("llama")
    ids, mask = prompts(base, 1)
    model, want = ea_model(tmp_path), generate_ids(base, ids, mask, 9)
    assert torch.equal(model.eagenerate(ids.to(dtype), max_new_tokens=9), want)
    assert torch.equal(model.eagenerate(ids.numpy().astype("uint16"), max_new_tokens=9), want)


def test_known_processors_work_in_a_batch(tmp_path):
    base = base_model("llama")
    ids, mask = prompts(base, 3)
    chosen = [RepetitionPenaltyLogitsProcessor(1.3), NoRepeatNGramLogitsProcessor(2)]
    want = base.generate(ids, attention_mask=mask, max_new_tokens=25, do_sample=False, logits_processor=[*chosen])
    model = ea_model(tmp_path)
    model.ea_layer = ScriptedDrafter(want, VOCABULARY, ids.shape[1])
    out = model.eagenerate(ids, max_new_tokens=25, attention_mask=mask, logits_processor=chosen)
    assert torch.equal(out, want) and model.stats.acceptance_length > 1.5


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("stop", [1, 2, 7, 8, 9, 10, 11, 12])
def test_nothing_follows_an_eos_inside_an_accepted_path(tmp_path, batch, stop):
    base = base_model("llama")
    ids, mask = prompts(base, batch)
    with ends_at(base, None):
        free = generate_ids(base, ids, mask, NEW)
    eos = [int(free[0, ids.shape[1] + stop]), 88]
    with ends_at(base, eos):
        expected = generate_ids(base, ids, mask, NEW)
        model = ea_model(tmp_path, base)
        # The drafter's answers go on behind the end, so the end lies inside an accepted path.
        model.ea_layer = ScriptedDrafter(free, VOCABULARY, ids.shape[1], eos, seed=stop)
        assert torch.equal(run(model, ids, mask, "greedy"), expected)


@pytest.mark.parametrize("new", [1, 2, 3, 4, 5, 6, 11, 12, 13])
def test_max_new_tokens_is_exact_inside_an_accepted_path(tmp_path, new):
    base = base_model("qwen3")
    ids, mask = prompts(base, 3)
    answers = generate_ids(base, ids, mask, NEW)
    model = ea_model(tmp_path, "qwen3")
    model.ea_layer = ScriptedDrafter(answers, VOCABULARY, ids.shape[1], seed=new)
    assert torch.equal(run(model, ids, mask, "greedy", new), answers[:, : ids.shape[1] + new])


@pytest.mark.parametrize("tree", [{"total_token": 4}, {"total_token": 30, "depth": 5, "top_k": 5}, {"tree": "static"}])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(
    "sampling", [{"temperature": 1.0}, {"temperature": 0.7, "top_k": 5}, {"temperature": 1.3, "top_p": 0.8}]
)
def test_seeded_samples_equal_generate_whatever_the_tree(tmp_path, tree, batch, sampling):
    base = base_model("llama")
    ids, mask = prompts(base, batch)
    expected = generate_ids(base, ids, mask, NEW, 11, **sampling)
    model = ea_model(tmp_path, "llama", "eagle", **tree)
    torch.manual_seed(11)
    assert torch.equal(model.eagenerate(ids, max_new_tokens=NEW, attention_mask=mask, **sampling), expected)


def test_plain_decoding_equals_generate(tmp_path):
    base = base_model("gemma2")
    ids, mask = prompts(base, 3)
    model = ea_model(tmp_path, "gemma2")
    assert torch.equal(
        model.naivegenerate(ids, max_new_tokens=NEW, attention_mask=mask), generate_ids(base, ids, mask, NEW)
    )


def test_two_calls_draw_the_noise_that_two_calls_of_generate_draw(tmp_path):
    base = base_model("llama")
    ids, mask = prompts(base, 1)
    torch.manual_seed(5)
    expected = [base.generate(ids, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=13) for _ in range(3)]
    model = ea_model(tmp_path)
    torch.manual_seed(5)
    for want in expected:
        model.ea_layer = ScriptedDrafter(want, VOCABULARY, ids.shape[1])
        assert torch.equal(model.eagenerate(ids, temperature=1.0, max_new_tokens=13), want)
