"""An EAGLE-1/2 head with a token map drafts from it alone: other trees, by the oracle's word, and the same text."""

import copy
import logging

import pytest
import torch
from architectures import VOCABULARY, base_model, prompts
from drafted import check_every_step, generation
from pairs import ea_model
from references import ends_at, generate_ids
from refusals import assert_refused_in_words
from synthetic_pairs import synthetic_pair, synthetic_prompt
from tape import TapeBackend
from torch import nn

from eagle.evaluation.synthetic import Shape, synthetic_eagle_head, synthetic_target
from eagle.model import draft_vocabulary
from eagle.model.decoding import decode
from eagle.model.dialects.checkpoint import save_head
from eagle.model.dialects.token_maps import write_token_map
from eagle.model.ea_model import EaModel
from eagle.model.graphs.pool import GraphPool

NEW = 40
HALF = list(range(1, VOCABULARY, 2))
MODES = {"greedy": ((), {}), "sampled": ((3,), {"temperature": 0.8, "top_k": 20, "top_p": 0.9})}
TREES = {
    "small": {"total_token": 10, "depth": 3, "top_k": 3},
    "auto": {"total_token": -1, "depth": 3, "top_k": 3},
    "static": {"tree": "static"},
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def check_ids(model, ids, mask, mode, new=NEW):
    seed, settings = MODES[mode]
    want = generate_ids(model.base_model, ids, mask, new, *seed, **settings)
    torch.manual_seed(3)
    assert torch.equal(model.eagenerate(ids, max_new_tokens=new, attention_mask=mask, **settings), want)
    return want


@pytest.mark.parametrize("tokens", [[3, 40], HALF, range(VOCABULARY), [88]], ids=["two", "half", "all", "one"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_ids_equal_generate_whatever_the_map(tmp_path, tokens, batch, mode):
    model = ea_model(tmp_path, "llama", "eagle", token_map=tokens)
    ids, mask = prompts(model.base_model, batch)
    check_ids(model, ids, mask, mode)
    assert model.ea_layer.head.draft_size == len(tokens)


@pytest.mark.parametrize("name", ["gemma2", "gpt_neox", "phi3"])
def test_ids_equal_generate_on_other_targets(tmp_path, name):
    model = ea_model(tmp_path, name, "eagle", token_map=HALF)
    ids, mask = prompts(model.base_model, 3)
    check_ids(model, ids, mask, "sampled")


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("batch", [1, 3])
def test_ids_equal_generate_where_much_is_accepted_and_some_tokens_are_missing(tmp_path, tree, mode, batch):
    model = synthetic_pair(tmp_path, "eagle", **TREES[tree], token_map=range(1, 130))
    ids = synthetic_prompt(batch)
    want = check_ids(model, ids, torch.ones_like(ids), mode)
    assert (want[:, ids.shape[1] :] >= 130).any() and max(model.stats.accepted_per_step) >= 2


@pytest.mark.parametrize("is_known", [True, False], ids=["eos in the map", "eos outside"])
@pytest.mark.parametrize("stop", [1, 4, 6])
@pytest.mark.parametrize("replayed", [False, True], ids=["exact", "graphs"])
def test_nothing_follows_an_eos_inside_an_accepted_path(tmp_path, is_known, stop, replayed):
    model = synthetic_pair(tmp_path, "eagle", total_token=14, top_k=4)
    ids = synthetic_prompt(3)
    mask, model.base_model.generation_config.pad_token_id = torch.ones_like(ids), 0
    free = generate_ids(model.base_model, ids, mask, 30)
    eos = int(free[0, ids.shape[1] + stop])
    tokens = [token for token in range(1, 160) if is_known or token != eos]
    model = EaModel(None, model.base_model, "none", str(tmp_path), total_token=14, top_k=4, depth=5, token_map=tokens)
    if replayed:
        model.graphs = GraphPool(TapeBackend(), 128)
    with ends_at(model.base_model, [eos]):
        check_ids(model, ids, mask, "greedy", 30)
    assert max(model.stats.accepted_per_step) >= 4


@pytest.mark.parametrize("tree", ["small", "static"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("replayed", [False, True], ids=["exact", "graphs"])
def test_trees_equal_the_oracle_and_hold_no_other_token(tmp_path, tree, batch, replayed):
    model = ea_model(tmp_path, "llama", "eagle", **TREES[tree], token_map=HALF)
    ids, mask = prompts(model.base_model, batch)
    backend = TapeBackend()
    graphs = GraphPool(backend, model.ea_layer.tree.nodes + 40) if replayed else None
    torch.manual_seed(0)
    assert check_every_step(model, generation(model, ids, mask, graphs=graphs, do_sample=True), ids, mask) >= 5
    assert (backend.replays > 5) == replayed
    trees = [step.tree for step in decode(generation(model, ids, mask)) if step.tree is not None]
    assert {int(token) for tree in trees for token in tree.tokens_BN[:, 1:].flatten()} <= set(HALF)


@pytest.mark.parametrize("name", ["llama", "gemma2"])
@pytest.mark.parametrize("has_bias", [True, False])
def test_draft_logits_are_the_target_s_rows_bias_and_transform_included(tmp_path, name, has_bias):
    base = copy.deepcopy(base_model(name))
    if has_bias:
        base.lm_head.bias = nn.Parameter(torch.randn(VOCABULARY))
    model = ea_model(tmp_path, base, "eagle", token_map=HALF)
    hidden = torch.randn(2, 5, model.hidden_size) * 8
    wanted = model.target.output_logits(hidden)[..., HALF]
    torch.testing.assert_close(model.ea_layer.head.logits(hidden), wanted)
    if name == "gemma2":  # its soft-cap bends the logits
        assert (model.base_model.lm_head(hidden)[..., HALF] - wanted).abs().max() > 0.1
    assert has_bias == (model.ea_layer.head.lm_head.bias is not None)


@pytest.mark.parametrize("field", ["logit_scale", "logits_scaling", "final_logit_softcapping"])
def test_every_transform_of_a_target_reaches_the_draft_logits(tmp_path, field):
    base = copy.deepcopy(base_model("llama"))
    setattr(base.config, field, 0.5)
    model = ea_model(tmp_path, base, "eagle", token_map=HALF)
    hidden = torch.randn(2, 5, model.hidden_size)
    wanted = model.target.output_logits(hidden)[..., HALF]
    torch.testing.assert_close(model.ea_layer.head.logits(hidden), wanted)
    assert not torch.allclose(base.lm_head(hidden)[..., HALF], wanted)


def test_a_packed_model_packs_the_rows_too(tmp_path):
    base = copy.deepcopy(base_model("llama"))
    model = ea_model(tmp_path, base, "eagle", token_map=HALF, compile=True)
    assert model.ea_layer.head.lm_head in model.ea_layer.packed._linears
    ids, mask = prompts(base, 1)
    check_ids(model, ids, mask, "greedy")


def test_a_model_is_moved_and_copied_with_its_map(tmp_path):
    model = copy.deepcopy(ea_model(tmp_path, copy.deepcopy(base_model("llama")), "eagle", token_map=HALF)).double()
    assert model.ea_layer.head.lm_head.weight.dtype == torch.float64 and model.ea_layer.head.d2t.dtype == torch.int64
    ids, mask = prompts(model.base_model, 1)
    check_ids(model, ids, mask, "greedy")
    assert not any("lm_head" in name or "d2t" in name for name in model.ea_layer.state_dict())


def test_maps_that_do_not_fit_are_refused_in_words(tmp_path):
    def loaded(kind, tokens, **options):
        return lambda: ea_model(tmp_path, "llama", kind, token_map=tokens, **options)

    assert_refused_in_words(loaded("eagle", [3, VOCABULARY]), f"token {VOCABULARY}, outside the target's 89 tokens")
    assert_refused_in_words(loaded("eagle3", [3, 4]), "token_map is for EAGLE-1/2 heads", "EAGLE-3 head")
    assert_refused_in_words(loaded("eagle", [3, 4], tree="static"), r"rank \d, the head drafts only 2 tokens")
    assert ea_model(tmp_path, "llama", "eagle3", token_map=False).use_eagle3
    ea_model(tmp_path, "llama", "eagle")
    write_token_map(tmp_path / "eagle", torch.tensor([500]))
    head = str(tmp_path / "eagle")
    assert_refused_in_words(lambda: EaModel(None, base_model("llama"), "none", head), "token 500, outside")


class Odd(nn.Linear):
    """An output matrix with a forward of its own, as quantised ones and adapters have."""

    def forward(self, x):
        return super().forward(x)


def test_a_matrix_that_cannot_be_cut_is_refused_if_asked_and_else_used_whole(tmp_path, caplog):
    caplog.set_level(logging.INFO, "eagle")
    base = copy.deepcopy(base_model("llama"))
    base.lm_head.__class__ = Odd
    assert_refused_in_words(lambda: ea_model(tmp_path, base, "eagle", token_map=HALF), "Odd, cannot be cut")
    write_token_map(tmp_path / "eagle", torch.tensor(HALF))
    model = EaModel(None, base, "none", str(tmp_path / "eagle"), total_token=10, depth=3, top_k=3)
    assert model.ea_layer.head.draft_size == VOCABULARY and "Odd, cannot be cut" in caplog.text
    ids, mask = prompts(base, 1)
    check_ids(model, ids, mask, "greedy")


@pytest.mark.parametrize(("seconds", "is_used"), [([1.0, 0.7], True), ([1.0, 0.9], False), ([1.0, 1.1], False)])
def test_a_head_s_own_map_is_used_where_it_was_faster_and_timed_once(tmp_path, monkeypatch, seconds, is_used):
    ea_model(tmp_path, "llama", "eagle")
    write_token_map(tmp_path / "eagle", torch.tensor(HALF))
    calls = []
    monkeypatch.setattr(draft_vocabulary, "_timed", lambda *args: calls.append(args) or seconds)
    for _ in range(2):
        model = EaModel(None, base_model("llama"), "none", str(tmp_path / "eagle"))
        assert model.ea_layer.head.draft_size == (len(HALF) if is_used else VOCABULARY)
    assert len(calls) == 1
    kept = next((tmp_path / "cache").rglob("*.json"))
    for nonsense in ("[1.0]", "[0, 1]", '["a", "b"]', "{"):
        kept.write_text(nonsense)
        EaModel(None, base_model("llama"), "none", str(tmp_path / "eagle"))
    assert len(calls) == 5


def test_a_map_that_is_asked_for_or_turned_off_is_not_timed(tmp_path, monkeypatch):
    ea_model(tmp_path, "llama", "eagle")
    write_token_map(tmp_path / "eagle", torch.tensor(HALF))
    monkeypatch.setattr(draft_vocabulary, "_timed", lambda *args: pytest.fail("timed"))
    for token_map, size in ((False, VOCABULARY), ([7, 8, 9], 3), (tmp_path / "eagle" / "token_map.pt", len(HALF))):
        model = EaModel(None, base_model("llama"), "none", str(tmp_path / "eagle"), token_map=token_map)
        assert model.ea_layer.head.draft_size == size


def test_a_small_part_of_a_large_vocabulary_is_found_faster(tmp_path):
    target = synthetic_target(Shape(vocab_size=30_000), "eagle", generated=64)
    save_head(synthetic_eagle_head(target), tmp_path)
    write_token_map(tmp_path, torch.arange(1, 65))
    model = EaModel(None, target, "none", str(tmp_path))
    assert model.ea_layer.head.draft_size == 64
    model.eagenerate(synthetic_prompt(), max_new_tokens=30)
    assert model.stats.acceptance_length > 3
