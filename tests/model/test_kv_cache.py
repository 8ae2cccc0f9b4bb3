"""The cache: writing is not committing, and after a commit the next forward equals an uncached one, on both views."""

from inspect import signature

import pytest
import torch
from architectures import ARCHITECTURES, VOCABULARY, base_model, prompts
from hypothesis import given, settings
from hypothesis import strategies as st
from tree_strategies import parent_lists

from eagle.model.graphs.static_cache import StaticKVCache
from eagle.model.kv_cache import KVCache
from eagle.model.target import TargetModel
from eagle.model.tree import from_parents, root_only

pytestmark = pytest.mark.contract
VIEWS = pytest.mark.parametrize("bucket", [False, True], ids=["exact", "bucket"])


def new_cache(target: TargetModel, capacity: int, pads: list[int], bucket: bool) -> KVCache:
    if bucket:
        return StaticKVCache(target.cached_layers, len(pads), capacity, pads, target.device)
    return target.new_cache(len(pads), capacity, pads)


def path_to(parents: list[int], node: int) -> list[int]:
    path = []
    while node != -1:
        path.insert(0, node)
        node = parents[node]
    return path


@torch.no_grad()
def uncached_logits(base, ids: list[int]) -> torch.Tensor:
    return base(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]


@VIEWS
@settings(max_examples=12, deadline=None)
@given(parents=parent_lists(9), data=st.data())
def test_after_a_commit_the_next_forward_equals_the_uncached_one(bucket, parents, data):
    base = base_model("llama")
    target = TargetModel(base)
    ids, mask = prompts(base, 3)
    tokens = torch.randint(3, VOCABULARY, (3, len(parents)), generator=torch.Generator().manual_seed(len(parents)))
    tree = from_parents(tokens, torch.tensor([parents] * 3), torch.zeros(tokens.shape), len(parents))
    cache = new_cache(target, 64, [0, 2, 4], bucket)
    target.prefill_logits(ids, mask, cache)
    rows = [ids[b, p:].tolist() for b, p in enumerate([0, 2, 4])]
    for _ in range(2):
        nodes = [data.draw(st.integers(0, len(parents) - 1)) for _ in range(3)]
        before = list(cache.lengths)
        logits = target.verify(tree, cache, None).logits_BNV
        assert cache.lengths == before
        paths = [path_to(parents, node) for node in nodes]
        for b, path in enumerate(paths):
            rows[b] += [int(tokens[b, node]) for node in path]
            torch.testing.assert_close(logits[b, nodes[b]], uncached_logits(base, rows[b]), rtol=1e-4, atol=1e-4)
        width = max(map(len, paths))
        padded = torch.tensor([path + list(range(len(path), width)) for path in paths])
        in_place = all(path == list(range(len(path))) for path in paths)
        counts = [len(path) for path in paths]
        if isinstance(cache, StaticKVCache):
            cache.commit(padded, torch.tensor(counts))
            cache.sync_host(counts)
            assert cache.lengths_B.tolist() == cache.lengths
        else:
            cache.commit(padded, counts, in_place)
        assert cache.lengths == [a + len(p) for a, p in zip(before, paths, strict=True)]
    roots = torch.tensor([5, 6, 7])
    logits = target.verify(root_only(roots), cache, None).logits_BNV[:, 0]
    for b in range(3):
        want = uncached_logits(base, [*rows[b], int(roots[b])])
        torch.testing.assert_close(logits[b], want, rtol=1e-4, atol=1e-4)


@VIEWS
def test_rejected_nodes_leave_no_trace(bucket):
    base = base_model("gemma2")
    target = TargetModel(base)
    ids, _ = prompts(base, 1)
    results = []
    for junk in (False, True):
        cache = new_cache(target, 64, [0], bucket)
        target.prefill_logits(ids, None, cache)
        if junk:
            tokens = torch.full((1, 6), 11)
            tree = from_parents(tokens, torch.tensor([[-1, 0, 0, 1, 2, 3]]), torch.zeros(1, 6), 6)
            target.verify(tree, cache, None)
        results.append(target.verify(root_only(torch.tensor([5])), cache, None).logits_BNV)
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


def test_rows_can_leave():
    base = base_model("llama")
    target = TargetModel(base)
    ids, mask = prompts(base, 3)
    cache = target.new_cache(3, 32, [0, 2, 4])
    target.prefill_logits(ids, mask, cache)
    cache.keep_rows([2])
    got = target.verify(root_only(torch.tensor([5])), cache, None).logits_BNV[0, 0]
    torch.testing.assert_close(got, uncached_logits(base, [*ids[2, 4:].tolist(), 5]), rtol=1e-4, atol=1e-4)


def test_a_cache_goes_on_where_another_stands_and_keeps_nothing_of_its_own():
    """Through three caches and back, NaN of an earlier call in their buffers, every forward equals the uncached one."""
    base = base_model("llama")
    target = TargetModel(base)
    ids, mask = prompts(base, 2)
    cache = target.new_cache(2, 9, [0, 2])
    target.prefill_logits(ids, mask, cache)
    rows, roots = [ids[0].tolist(), ids[1, 2:].tolist()], torch.tensor([5, 6])
    for other in (
        new_cache(target, 16, [0] * 2, True),
        new_cache(target, 32, [0] * 2, True),
        target.new_cache(2, 24, [7, 7]),
    ):
        target.prefill_logits(ids + 1, None, other)
        for layer in other.layers:
            layer.keys.fill_(torch.nan)
            layer.values.fill_(torch.nan)
        other.copy_from(cache)
        logits = target.verify(root_only(roots), other, None).logits_BNV[:, 0]
        for b, row in enumerate(rows):
            row.append(int(roots[b]))
            torch.testing.assert_close(logits[b], uncached_logits(base, row), rtol=1e-4, atol=1e-4)
        other.advance([1, 1])
        cache = other


def test_a_poisoned_free_slot_would_show_so_buffers_start_as_zeros():
    cache = KVCache(1, 1, 8)
    states = torch.ones(1, 2, 3, 4)
    cache.update(states, states, 0)
    assert torch.equal(cache.layers[0].keys[:, :, 3:], torch.zeros(1, 2, 5, 4))


def test_contract_cache_keys_and_values_may_differ_in_width():
    cache = KVCache(1, 2, 8)
    keys, values = cache.update(torch.ones(2, 1, 3, 4), torch.ones(2, 1, 3, 6), 0)
    assert keys.shape == (2, 1, 3, 4) and values.shape == (2, 1, 3, 6)


def test_contract_cache_reports_lengths_to_transformers():
    asked = torch.arange(2) if "cache_position" in signature(KVCache.get_mask_sizes).parameters else 2
    cache = KVCache(2, 1, 8)
    cache.update(torch.ones(1, 1, 3, 4), torch.ones(1, 1, 3, 4), 0)
    assert cache.get_seq_length() == 0 and cache.get_mask_sizes(asked, 0) == (2, 0)
    cache.advance([3])
    assert cache.get_seq_length() == 3 and cache.get_mask_sizes(asked, 0) == (5, 0)
    assert getattr(cache, "get_max_length" if hasattr(cache, "get_max_length") else "get_max_cache_shape")() == 8


@pytest.mark.parametrize("name", ARCHITECTURES)
@VIEWS
def test_contract_masks_a_star_of_siblings_equals_single_forwards(name, bucket):
    base = base_model(name)
    target = TargetModel(base)
    ids, _ = prompts(base, 1, 12)
    cache = new_cache(target, 40, [0], bucket)
    target.prefill_logits(ids, None, cache)
    tokens = torch.tensor([[5, 17, 33, 60, 18]])
    tree = from_parents(tokens, torch.tensor([[-1, 0, 0, 1, 2]]), torch.zeros(1, 5), 3)
    logits = target.verify(tree, cache, None).logits_BNV[0]
    prompt = ids[0].tolist()
    for node, path in enumerate([[5], [5, 17], [5, 33], [5, 17, 60], [5, 33, 18]]):
        torch.testing.assert_close(logits[node], uncached_logits(base, prompt + path), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["mistral", "qwen2", "gemma2", "gpt_oss"])
@VIEWS
def test_windows_shorter_than_a_branch_are_measured_in_positions(name, bucket):
    """Every level has a sibling, so slots run ahead of positions and the window (7) ends inside the tree."""
    base = base_model(name)
    target = TargetModel(base)
    ids, _ = prompts(base, 1, 6)
    parents = [-1] + [max(0, 2 * (level - 1)) for level in range(1, 11) for _ in range(2)]
    tokens = torch.randint(3, VOCABULARY, (1, len(parents)), generator=torch.Generator().manual_seed(1))
    tree = from_parents(tokens, torch.tensor([parents]), torch.zeros(tokens.shape), 11)
    cache = new_cache(target, 40, [0], bucket)
    target.prefill_logits(ids, None, cache)
    logits = target.verify(tree, cache, None).logits_BNV[0]
    for node in (13, 18, len(parents) - 1):
        path = [int(tokens[0, n]) for n in path_to(parents, node)]
        assert len(path) > 7
        torch.testing.assert_close(logits[node], uncached_logits(base, ids[0].tolist() + path), rtol=1e-3, atol=1e-3)
