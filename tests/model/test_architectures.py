"""Every causal LM of transformers verifies exactly, or is refused by property; none is silently wrong."""

import pytest
import torch
import transformers
from census import ALTERNATING, NAMES, WINDOW, tiny_config, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM
from verdicts import PAGE, Verdict, assert_exact, build, parse, refusal, render

from eagle.model.checks.diagnosis import diagnose
from eagle.model.checks.self_check import TESTED, self_check
from eagle.model.support.properties import check_target
from eagle.model.target import TargetModel
from eagle.model.tree import from_parents

VERSION, KNOWN = parse(PAGE.read_text(encoding="utf-8"))
CASES = [("greedy", 1), ("sampled", 3), ("sampled", 1), ("greedy", 3)]
same_transformers = pytest.mark.skipif(
    transformers.__version__ != VERSION, reason=f"docs/architectures.md is about transformers {VERSION}"
)


def cases():
    """Return every type under one mode and batch, the others left for the night."""
    for index, name in enumerate(NAMES):
        for turn, (mode, batch) in enumerate(CASES):
            yield pytest.param(name, mode, batch, marks=() if turn == index % 4 else pytest.mark.nightly)


@pytest.mark.parametrize(("name", "mode", "batch"), cases())
def test_a_model_type_is_exact_or_refused(tmp_path, name, mode, batch):
    base = build(name)
    outcome = base if isinstance(base, Verdict) else refusal(base) or Verdict("exact")
    if outcome.kind == "exact":
        report = diagnose(base)
        assert report.passed, str(report)
        assert_exact(base, tmp_path, mode, batch)
    if transformers.__version__ == VERSION and KNOWN[name].kind != "not built":
        assert outcome == KNOWN[name], "run `make docs`"


@same_transformers
def test_the_page_lists_every_type_and_enough_are_exact():
    assert set(KNOWN) == set(NAMES)
    assert render(KNOWN) == PAGE.read_text(encoding="utf-8")
    exact = sum(verdict.kind == "exact" for verdict in KNOWN.values())
    assert exact >= 40
    assert f"the {exact} model types that" in (PAGE.parents[1] / "README.md").read_text(encoding="utf-8")
    assert sum(verdict.kind == "not built" for verdict in KNOWN.values()) <= 5
    # What the load-time check skips is what is known to be exact.
    assert {name for name in TESTED if KNOWN[name].kind != "exact"} == set()


@pytest.mark.parametrize(
    ("name", "kind"),
    [("gemma3_text", "sliding_attention"), ("laguna", "sliding_attention"), ("llama4_text", "chunked_attention")],
)
def test_windows_in_the_census_are_shorter_than_its_sequences(name, kind):
    config = tiny_config(name)
    assert {kind, "full_attention"} == set(config.layer_types)
    assert WINDOW in (
        config.sliding_window if kind == "sliding_attention" else None,
        config.to_dict().get("attention_chunk_size"),
    )


@pytest.mark.parametrize(("prompt", "new"), [(20, 40), (43, 12), (44, 12), (45, 12), (280, 40)])
@pytest.mark.parametrize("mode", ["greedy", "sampled"])
@pytest.mark.parametrize("batch", [1, 2])
def test_queries_scaled_by_slot_are_exact_before_and_behind_the_first_step(tmp_path, prompt, new, mode, batch):
    assert tiny_config("llama4_text").floor_scale == 300  # trees up to position 44, the first new scale at slot 299
    model = assert_exact(tiny_model("llama4_text"), tmp_path, mode, batch, prompt=prompt, new=new, least=1)
    assert (model.stats.acceptance_length > 1.5) == (prompt == 20 and batch == 1)


def test_a_tree_too_large_for_scaled_slots_is_refused():
    target = TargetModel(tiny_model("llama4_text"))
    tokens, parents = torch.zeros(1, 300, dtype=torch.int64), torch.zeros(1, 300, dtype=torch.int64)
    parents[0, 0] = -1
    with pytest.raises(ValueError, match="total_token=300 must be at most 256"):
        target.verify(from_parents(tokens, parents, tokens.float(), 2), target.new_cache(1, 310, [0]), None)


def test_features_of_layers_that_share_keys_reach_the_head_for_every_prompt_token():
    base = tiny_model("gemma4_text")
    assert base.config.num_kv_shared_layers == 2 and base.config.layer_types == ALTERNATING
    report = diagnose(base, taps=(1, 2, 3))
    assert report.passed, str(report)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("big_bird", {"is_decoder": True}, "attends to blocks of slots"),
        ("openai-gpt", {}, "takes no cache or past_key_values"),
        ("hrm_text", {}, "no list of 32 decoder layers"),
        ("blt", {}, "no hidden_size"),
    ],
)
def test_a_refusal_names_the_property_it_tested(name, fields, message):
    config = tiny_config(name)
    for field, value in fields.items():
        setattr(config, field, value)
    base = AutoModelForCausalLM.from_config(config)
    with pytest.raises(NotImplementedError, match=message):
        check_target(base)
        TargetModel(base)


@pytest.mark.parametrize("name", ["bert", "rembert"])
def test_a_model_that_looks_ahead_is_refused(name):
    config = tiny_config(name)
    config.is_decoder = False
    with pytest.raises(NotImplementedError, match=r"both directions: later tokens change its logits by \d"):
        self_check(TargetModel(AutoModelForCausalLM.from_config(config).eval()))


def test_a_causal_model_may_leave_is_decoder_false(tmp_path):
    base = tiny_model("gpt_neox")
    assert base.config.is_decoder is False
    assert_exact(base, tmp_path, "greedy", 1)


def test_a_decoder_is_found_where_get_decoder_returns_something_else():
    for name, depth in (("llama4_text", "model"), ("modernbert-decoder", "model"), ("bert", "bert.encoder")):
        base = tiny_model(name)
        assert TargetModel(base).decoder.module is base.get_submodule(depth)


def test_falcon_without_alibi_is_taken():
    config = AutoConfig.for_model("falcon", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=89)
    assert diagnose(AutoModelForCausalLM.from_config(config)).passed
