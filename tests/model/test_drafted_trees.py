"""Drafted trees equal the slow oracle's at every step. Ids stay right when a drafter is broken; trees do not."""

import logging

import pytest
import torch
from architectures import prompts
from drafted import assert_same_tree, check_every_step, drafted, generation
from pairs import ea_model
from tape import TapeBackend

from eagle.model.configs import TreeConfig, tree_config
from eagle.model.decoding import decode
from eagle.model.graphs.pool import GraphPool

NEW = 14


TREES = {
    "small": {"total_token": 10, "depth": 3, "top_k": 3},
    "wide": {"total_token": 24, "depth": 4, "top_k": 5},
    "static": {"tree": "static"},
}


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("replayed", [False, True], ids=["exact", "graphs"])
def test_trees_equal_the_oracle(tmp_path, kind, tree, batch, replayed):
    model = ea_model(tmp_path, "llama", kind, **TREES[tree])
    ids, mask = prompts(model.base_model, batch)
    backend = TapeBackend()
    graphs = GraphPool(backend, model.ea_layer.tree.nodes + 40) if replayed else None
    running = generation(model, ids, mask, graphs=graphs, do_sample=True)
    torch.manual_seed(0)
    assert check_every_step(model, running, ids, mask) >= 5
    assert (backend.replays > 5) == replayed


@pytest.mark.contract
@pytest.mark.parametrize("name", ["gemma2", "gpt_neox", "qwen3_moe"])
@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_trees_equal_the_oracle_on_other_targets(tmp_path, name, kind):
    model = ea_model(tmp_path, name, kind)
    ids, mask = prompts(model.base_model, 1)
    assert check_every_step(model, generation(model, ids), ids, mask) >= 3


@pytest.mark.parametrize(
    "fields",
    [
        {"norm_before_residual": True},
        {"norm_before_fc": True},
        {"fc_norm": True},
        {"norm_output": True},
        {"head_dim": 16},
        {"qkv_bias": True},
        {"qk_norm": True},
        {"windows": [5]},
        {"windows": [2]},
        {"num_hidden_layers": 2},
        {"num_hidden_layers": 3, "windows": [None, 4, None], "qk_norm": True},
        {"use_aux_hidden_state": False},
        {"own_output": False, "draft_vocab_size": None},
        {"own_output": False, "draft_vocab_size": None, "norm_output": True},
        {"tap_layers": [6]},
        {"tap_layers": [0, 2, 4, 6]},
        {"draft_vocab_size": None},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_head_variants_equal_the_oracle(tmp_path, fields):
    model = ea_model(tmp_path, "llama", "eagle3", head_fields=fields)
    ids, mask = prompts(model.base_model, 1)
    assert check_every_step(model, generation(model, ids), ids, mask) >= 3


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_a_prompt_read_in_chunks_drafts_the_same_trees(tmp_path, kind):
    model = ea_model(tmp_path, "llama", kind)
    ids, mask = prompts(model.base_model, 3, 23)
    assert check_every_step(model, generation(model, ids, mask, prefill_chunk=5), ids, mask) >= 5


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_interleaved_streams_draft_their_own_trees(tmp_path, kind):
    model = ea_model(tmp_path, "llama", kind)
    (ids_a, mask_a), (ids_b, _) = (prompts(model.base_model, 1, length, seed) for length, seed in ((9, 1), (14, 2)))
    alone = [[s.tree for s in decode(generation(model, ids))] for ids in (ids_a, ids_b)]
    first, second = decode(generation(model, ids_a)), decode(generation(model, ids_b))
    mixed: list[list] = [[], []]
    for a, b in zip(first, second, strict=False):
        mixed[0].append(a.tree)
        mixed[1].append(b.tree)
    for want, got in zip(alone, mixed, strict=True):
        for x, y in list(zip(want, got, strict=False))[1:]:
            assert torch.equal(x.tokens_BN, y.tokens_BN) and torch.equal(x.parents_BN, y.parents_BN)
    assert check_every_step(model, generation(model, ids_a), ids_a, mask_a) >= 3


def trees_of(model, batch):
    """Return the trees of all steps of a call whose rows are drafted for to the end."""
    ids, mask = prompts(model.base_model, batch)
    torch.manual_seed(0)
    steps = decode(generation(model, ids, mask, do_sample=True))
    return [step.tree for step in steps if step.tree is not None]


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
    ("nodes", "asked"),
    [
        (6, {"depth": 20, "top_k": 1}),
        (2, {"depth": 5, "top_k": 9}),
        (6, {"depth": 20, "top_k": 5}),
        (9, {"depth": 7, "top_k": 40}),
        (7, {"top_k": 500}),
    ],
)
def test_clipped_trees_equal_those_that_were_asked(tmp_path, monkeypatch, kind, batch, nodes, asked):
    model = ea_model(tmp_path, "llama", kind, total_token=nodes, **asked)
    drafter = model.ea_layer
    assert drafter.top_k <= nodes - 1 and drafter.depth <= nodes - 2 and drafter.tree.nodes == nodes
    clipped = trees_of(model, batch)
    monkeypatch.setattr(TreeConfig, "fitted", lambda tree, most: tree)
    drafter.tree = drafter._asked
    assert (drafter.top_k, drafter.depth) == (asked["top_k"], asked.get("depth", 3))
    whole = trees_of(model, batch)
    assert len(clipped) == len(whole) > 3
    for one, other in zip(clipped, whole, strict=True):
        assert torch.equal(one.tokens_BN, other.tokens_BN) and torch.equal(one.parents_BN, other.parents_BN)
        assert torch.allclose(one.scores_BN, other.scores_BN, atol=1e-5)


def test_what_is_clipped_is_said_once_and_comes_back_with_more_nodes(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="eagle"):
        model = ea_model(tmp_path, "llama", "eagle3", total_token=10, depth=10**4, top_k=500)
    (said,) = [record.message for record in caplog.records if "clipped" in record.message]
    assert said == "clipped depth=10000 to 8, top_k=500 to 9: the tree can hold no more"
    model.ea_layer.total_tokens = 29
    assert (model.ea_layer.depth, model.ea_layer.top_k, model.ea_layer.total_tokens) == (28, 29, 29)
    model.ea_layer.depth, model.ea_layer.top_k = 0, 3
    assert model.ea_layer.total_tokens == 3  # no more is filled
    model.ea_layer.tree = tree_config(10, 10**4, 500, 1.0, "static")
    assert model.ea_layer.tree.nodes == 26


@pytest.mark.parametrize("seed", range(3))
def test_a_threshold_keeps_exactly_the_nodes_above_it(tmp_path, seed):
    model = ea_model(tmp_path, "llama", "eagle", **TREES["wide"])
    ids, _ = prompts(model.base_model, 1, seed=seed)

    def first_tree():
        steps = decode(generation(model, ids))
        next(steps)
        return next(steps).tree

    full = first_tree()
    model.ea_layer.threshold = float(full.scores_BN[0].median().exp())
    floor = torch.tensor(model.ea_layer.threshold).log()
    assert_same_tree(drafted(first_tree(), 0), {p: s for p, s in drafted(full, 0).items() if s >= floor})
    model.ea_layer.threshold = 1e-30
    assert first_tree().size == full.size
    model.ea_layer.threshold = 0.999
    assert first_tree().size == 1


def test_a_threshold_holds_for_every_row_of_a_batch(tmp_path):
    model = ea_model(tmp_path, "llama", "eagle", **TREES["wide"])
    ids, mask = prompts(model.base_model, 3)
    first = next(step.tree for step in decode(generation(model, ids, mask)) if step.tree is not None)
    model.ea_layer.threshold = float(first.scores_BN[:, 1:].median().exp())
    floor, dropped = torch.tensor(model.ea_layer.threshold).log(), 0
    for step in decode(generation(model, ids, mask)):
        if step.tree is not None:
            reachable = step.tree.parents_BN >= 0
            assert bool((step.tree.scores_BN[reachable] >= floor).all())
            dropped += int((~reachable[:, 1:]).sum())
    assert dropped > 0


def test_a_perfect_prefix_gives_the_fresh_call_s_tree(tmp_path):
    """Commit rewrites the head's entries from true features: a tree after many steps equals a fresh call's first."""
    model = ea_model(tmp_path, "llama", "eagle3")
    ids, _ = prompts(model.base_model, 1)
    running = generation(model, ids)
    steps = decode(running)
    next(steps)
    for _ in range(6):
        known = torch.cat([ids[0], torch.tensor(running.rows.new[0])])
        late = next(steps).tree
    fresh = decode(generation(model, known[None, :-1]))
    next(fresh)
    assert_same_tree(drafted(late, 0), drafted(next(fresh).tree, 0))


@pytest.mark.parametrize(
    "tree", [{"total_token": 31, "depth": 3, "top_k": 3}, {"tree": "static"}], ids=["whole", "static"]
)
@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize("replayed", [False, True], ids=["exact", "graphs"])
def test_a_window_counts_the_positions_of_drafted_nodes_and_not_their_slots(tmp_path, tree, window, replayed):
    model = ea_model(tmp_path, "llama", "eagle3", head_fields={"windows": [window]}, **tree)
    ids, mask = prompts(model.base_model, 2)
    graphs = GraphPool(TapeBackend(), model.ea_layer.tree.nodes + 40) if replayed else None
    assert check_every_step(model, generation(model, ids, mask, graphs=graphs), ids, mask) >= 3
