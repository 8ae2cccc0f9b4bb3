"""Properties of draft trees, ties included."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import is_tree
from tree_strategies import parent_lists

from eagle.model.choices import mc_sim_7b_63
from eagle.model.configs import TreeConfig, tree_config
from eagle.model.tree import Candidates, best, from_parents, root_only, select, static_levels
from eagle.model.verify import accept_greedy, accept_greedy_on_host, accept_sampled


def walk(parents: list[int], node: int) -> set[int]:
    seen = set()
    while node != -1:
        seen.add(node)
        node = parents[node]
    return seen


@settings(max_examples=100, deadline=None)
@given(parent_lists())
def test_mask_is_the_parent_s_mask_and_the_node_itself(parents):
    parents_BN = torch.tensor([parents])
    tree = from_parents(torch.zeros_like(parents_BN), parents_BN, torch.zeros(parents_BN.shape), len(parents))
    assert is_tree(tree)
    for node in range(len(parents)):
        ancestors = walk(parents, node)
        assert set(tree.mask_BNN[0, node].nonzero()[:, 0].tolist()) == ancestors
        assert int(tree.depths_BN[0, node]) == len(ancestors) - 1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([0.0, -0.5, -1.0, -2.0]), min_size=1, max_size=30), st.integers(1, 30))
def test_best_keeps_the_lower_index_among_ties(scores, count):
    _, index = best(torch.tensor([scores]), count)
    assert index[0].tolist() == sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count]


@st.composite
def candidate_sets(draw):
    """Children with probability one tie with their parent."""
    parents, scores = [], []
    for node in range(draw(st.integers(1, 40))):
        parent = draw(st.integers(-1, node - 1))
        parents.append(parent)
        scores.append((scores[parent] if parent >= 0 else 0.0) + draw(st.sampled_from([0.0, 0.0, -0.25, -1.0])))
    return parents, scores


@settings(max_examples=200, deadline=None)
@given(candidate_sets(), st.integers(1, 40))
def test_a_kept_node_s_parent_is_kept(candidates, drafted):
    parents, scores = candidates
    tokens = torch.arange(100, 100 + len(parents))[None]
    known = Candidates(tokens, torch.tensor([parents]), torch.tensor([scores]))
    tree = select(torch.tensor([7]), known, drafted, len(parents) + 1)
    assert is_tree(tree) and tree.size == 1 + min(drafted, len(parents))
    kept = set(tree.tokens_BN[0, 1:].tolist())
    wanted = sorted(range(len(parents)), key=lambda i: (-scores[i], i))[:drafted]
    assert kept == {100 + i for i in wanted}
    for node in range(1, tree.size):
        candidate = int(tree.tokens_BN[0, node]) - 100
        parent = int(tree.tokens_BN[0, int(tree.parents_BN[0, node])])
        assert parent == (7 if parents[candidate] == -1 else 100 + parents[candidate])


def test_limited_cuts_off_deeper_nodes_and_keeps_the_shape():
    parents = torch.tensor([[-1, 0, 1, 2, 0]])
    tree = from_parents(torch.arange(5)[None], parents, torch.zeros(1, 5), 4).limited([1])
    assert tree.parents_BN.tolist() == [[-1, 0, -1, -1, 0]]
    assert tree.depths_BN.tolist() == [[0, 1, 1, 1, 1]]


def test_root_only_is_a_tree_of_one_node():
    tree = root_only(torch.tensor([3, 4]))
    assert tree.size == 1 and tree.levels == 1 and is_tree(tree, 0) and is_tree(tree, 1)


def test_the_published_static_tree_has_its_25_nodes_and_5_levels():
    assert len(mc_sim_7b_63) == 25 and [2, 1] in mc_sim_7b_63 and [0, 0, 0, 0, 1] in mc_sim_7b_63
    levels = static_levels(mc_sim_7b_63)
    assert [len(level.rank) for level in levels] == [4, 8, 8, 3, 2]


def test_tree_sizes_follow_the_definition():
    assert TreeConfig(total_token=60, depth=7, top_k=10).nodes == 60
    assert TreeConfig(total_token=60, depth=1, top_k=3).nodes == 1 + 3 + 9
    assert tree_config(60, 7, 10, 1.0, "static").nodes == 26
    assert TreeConfig(total_token=60, depth=5, top_k=10).levels == 7


@pytest.mark.parametrize("paths", [[], [[]], [[0], [0, -1]], [[0, 0]], [[0], [0, 0, 0]]])
def test_paths_that_make_no_tree_are_refused(paths):
    with pytest.raises(ValueError, match="path"):
        static_levels(paths)


@settings(max_examples=200, deadline=None)
@given(parents=parent_lists(10), data=st.data())
def test_walks_at_once_equal_the_walk_level_by_level(parents, data):
    """Greedy picks, siblings with different tokens, limits that cut a tree: all walks accept the same."""
    size, vocabulary = len(parents), 12
    draw = data.draw(st.permutations(range(vocabulary)))
    tokens = torch.tensor([[draw[n % vocabulary] for n in range(size)]] * 2)
    picks = torch.tensor(data.draw(st.lists(st.integers(0, vocabulary - 1), min_size=2 * size, max_size=2 * size)))
    agreed = data.draw(st.integers(0, size - 1))
    picks = picks.view(2, size)
    while agreed > 0:  # one path the target agrees with
        picks[0, parents[agreed]] = tokens[0, agreed]
        agreed = parents[agreed]
    depth = [0] * size
    for node in range(1, size):
        depth[node] = depth[parents[node]] + 1
    tree = from_parents(tokens, torch.tensor([parents] * 2), torch.zeros(tokens.shape), max(depth) + 1)
    tree = tree.limited([data.draw(st.integers(0, 3)), 9])
    logits = torch.nn.functional.one_hot(picks, vocabulary).float()
    slow = accept_sampled(tree, logits, lambda logits_BV, level: logits_BV.argmax(-1))
    for fast in (accept_greedy(tree, picks), accept_greedy_on_host(tree, picks)):
        assert fast.n_accepted_B.tolist() == slow.n_accepted_B.tolist()
        for row, count in enumerate(slow.n_accepted_B.tolist()):
            assert fast.path_BA[row].tolist() == slow.path_BA[row].tolist()
            assert fast.tokens_BA[row, : count + 1].tolist() == slow.tokens_BA[row, : count + 1].tolist()
        assert fast.next_token_B.tolist() == slow.next_token_B.tolist()
