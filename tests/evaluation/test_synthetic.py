"""Perfect synthetic heads: every best path is accepted; noise dials acceptance down and changes no id."""

import pytest
import torch
from references import generate_ids
from synthetic_pairs import CHAIN, DEPTH, synthetic_pair, synthetic_prompt

NEW = 57  # one token from the prefill, then eight full steps of depth + 2


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("draft_vocabulary", [None, 100])
def test_a_perfect_head_has_every_best_path_accepted(tmp_path, kind, batch, draft_vocabulary):
    model = synthetic_pair(tmp_path, kind, tree=CHAIN, draft_vocabulary=draft_vocabulary)
    ids = synthetic_prompt(batch)
    out, new, last = model.eagenerate(ids, max_new_tokens=NEW, log=True)
    assert torch.equal(out, generate_ids(model.base_model, ids, torch.ones_like(ids), NEW))
    assert model.stats.accepted_per_step == [DEPTH + 1] * 8 * batch
    assert model.stats.acceptance_length == DEPTH + 2
    assert (new, last) == (NEW, 7)


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_a_dynamic_tree_that_holds_the_best_path_accepts_it(tmp_path, kind):
    model = synthetic_pair(tmp_path, kind, total_token=60, top_k=4)
    model.eagenerate(synthetic_prompt(), max_new_tokens=NEW)
    assert model.stats.acceptance_length > DEPTH + 1


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_noise_lowers_acceptance_and_changes_no_id(tmp_path, kind):
    ids = synthetic_prompt()
    lengths, outputs = [], []
    for noise in (0.0, 0.3, 3.0):
        model = synthetic_pair(tmp_path / str(noise), kind, noise, total_token=12, top_k=3)
        outputs.append(model.eagenerate(ids, max_new_tokens=NEW))
        lengths.append(model.stats.acceptance_length)
    assert lengths[0] > lengths[1] > lengths[2] < 2.5
    assert all(torch.equal(outputs[0], other) for other in outputs)


def test_tree_size_one_seeds_give_the_same_ids(tmp_path):
    ids = synthetic_prompt()
    outputs = []
    for tree in ({"total_token": 4}, {"total_token": 60, "top_k": 4}, {"tree": "static"}):
        model = synthetic_pair(tmp_path, "eagle", **tree)
        torch.manual_seed(9)
        outputs.append(model.eagenerate(ids, temperature=1.0, max_new_tokens=NEW))
    torch.manual_seed(9)
    outputs.append(model.naivegenerate(ids, temperature=1.0, max_new_tokens=NEW))
    assert all(torch.equal(outputs[0], other) for other in outputs)
