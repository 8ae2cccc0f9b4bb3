"""Memory of a call: caches that grow as tokens come, are used again by the next call, and tensors held once."""

import copy
import json
import pickle
import subprocess
import sys
from itertools import zip_longest

import pytest
import torch
from architectures import base_model, prompts
from pairs import ea_model, random_head
from references import ends_at, generate_ids

from eagle.evaluation import memory
from eagle.evaluation.synthetic import SHAPES, synthetic_eagle3_head, synthetic_eagle_head, synthetic_target
from eagle.model import kv_cache
from eagle.model.decoding import decode
from eagle.model.dialects.checkpoint import save_head
from eagle.model.drafter import Drafter
from eagle.model.ea_model import EaModel
from eagle.model.kv_cache import CacheLayer, KVCache

NEW = 40


def begun(model, ids, mask=None, drafter=True, **arguments):
    """Return the generation of a call."""
    arguments = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": NEW, **arguments}
    return model._prepared(model.ea_layer if drafter else None, model.base_model, arguments)


def run(model, ids, mask=None, seed=None, **arguments):
    """Return ids, the trees of all steps and the generation."""
    if seed is not None:
        torch.manual_seed(seed)
        arguments |= {"do_sample": True, "top_k": 0}
    running = begun(model, ids, mask, **arguments)
    trees = [(step.tree.tokens_BN, step.tree.parents_BN) for step in decode(running) if step.tree is not None]
    return running.rows.ids(), trees, running


def assert_same(one, other):
    assert torch.equal(one[0], other[0])
    for ours, theirs in zip_longest(one[1], other[1]):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def buffers(cache):
    return [(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in cache.layers]


@pytest.fixture
def grown(monkeypatch):
    """Count how often layers grow."""
    grown = []

    def counted(layer, slots, grow=CacheLayer.grow):
        assert layer.slots < slots
        grown.append((layer.slots, slots))
        grow(layer, slots)

    monkeypatch.setattr(CacheLayer, "grow", counted)
    return grown


@pytest.fixture(scope="module")
def accepting(tmp_path_factory):
    """Pairs by kind whose rows accept some drafts and not others, each as many as it likes."""
    models = {}
    for kind, head in (("eagle", synthetic_eagle_head), ("eagle3", synthetic_eagle3_head)):
        folder = tmp_path_factory.mktemp(kind)
        base = synthetic_target(SHAPES["tiny"], kind)
        save_head(head(base, noise=0.2), folder)
        models[kind] = EaModel(None, base, "none", str(folder), 10, 3, 3)
    return models


def long_prompts(rows, length, seed=0):
    """Return prompts of the synthetic vocabulary, later rows padded by 3, 6, …."""
    ids = torch.randint(1, 256, (rows, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    for row in range(rows):
        mask[row, : 3 * row] = 0
        ids[row, : 3 * row + 1] = 0
    return ids, mask


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("seed", [None, 5])
def test_growth_changes_neither_ids_nor_trees(accepting, monkeypatch, grown, kind, rows, seed):
    model = accepting[kind]
    model.free()
    ids, mask = long_prompts(rows, 12)
    want = run(model, ids, mask, seed)
    assert not grown  # 40 new tokens fit the first block
    assert model.stats.acceptance_length > 1.1
    model.free()
    monkeypatch.setattr(kv_cache, "BLOCK", 2)
    got = run(model, ids, mask, seed)
    assert_same(got, want)
    running = got[2]
    for cache, extra in ((running.stream.cache, model.ea_layer.tree.nodes), (running.stream.draft_state.cache, 9)):
        steps = sorted({sizes for sizes in grown if sizes[1] <= cache.capacity})
        assert len(steps) >= 3, steps
        assert cache.capacity == 12 + NEW + extra
        assert all(layer.slots <= cache.capacity and layer.keys.shape[2] == layer.slots for layer in cache.layers)
    blocks = [after - before for before, after in grown[: len(running.stream.cache.layers)]]
    assert set(blocks) == {4}  # the second block is twice the first


def test_a_high_limit_costs_nothing_until_it_is_reached(tmp_path):
    base = base_model("llama")
    model = ea_model(tmp_path, base)
    ids = prompts(base, 1, 12)[0]
    asked = 10**6
    model.target.last_position = None
    running = begun(model, ids, max_new_tokens=asked)
    steps = decode(running)
    for _ in range(3):
        next(steps)
    room = 12 + kv_cache.BLOCK
    assert running.stream.cache.capacity == 12 + asked + model.ea_layer.tree.nodes
    assert {layer.slots for layer in running.stream.cache.layers} == {room + model.ea_layer.tree.nodes}
    assert {layer.slots for layer in running.stream.draft_state.cache.layers} == {room + model.ea_layer.tree.scratch}
    steps.close()


def test_blocks_double_and_stop_at_the_limit():
    cache = KVCache(1, 1, 5000)
    cache.begin(100, 4900)
    assert cache.allocated == 100 + 256 + 100
    sizes = [cache.room(cache.allocated + 1) for _ in range(5)]
    assert sizes == [456 + 512, 456 + 512 + 1024, 456 + 512 + 1024 + 2048, 5000, 5001]
    assert cache.room(7) == 5001


@pytest.mark.parametrize("offset", [0, 3])
def test_growth_keeps_committed_and_undecided_entries(offset):
    torch.manual_seed(0)
    cache, whole = KVCache(2, 2, 64), KVCache(2, 2, 64)
    cache.allocated = 8
    cache._block = 2
    states = [torch.randn(2, 1, n, 4) for n in (6, 3, 5)]
    for one in (cache, whole):
        for layer in range(2):
            one.update(states[0], -states[0], layer)
        one.advance([6, 4])
        for layer in range(2):
            one.update(states[1], -states[1], layer)
        one.offset = offset
        seen = [one.update(states[2], -states[2], layer) for layer in range(2)]
    assert cache.layers[0].slots < whole.layers[0].slots
    for layer in range(2):
        assert torch.equal(cache.layers[layer].keys[:, :, :11], whole.layers[layer].keys[:, :, :11])
    assert torch.equal(seen[1][1], -seen[1][0])


def test_an_ended_row_at_its_limit_leaves_room_for_what_others_have_yet_to_show(tmp_path):
    """Entries that waited while nothing was drafted are as many as the row that emitted most has."""
    model = ea_model(tmp_path)
    drafter, width = model.ea_layer, 3 * model.config.hidden_size
    state = drafter.start(2, 60, [0, 0])
    drafter.observe(state, torch.ones(2, 50, width), torch.ones(2, 50, dtype=torch.int64), [50, 5])
    drafter.draft(state, torch.tensor([1, 1]))
    for _ in range(50):
        drafter.observe(state, torch.ones(2, 1, width), torch.ones(2, 1, dtype=torch.int64), [0, 1])
    drafter.draft(state, torch.tensor([1, 1]))
    assert state.cache.lengths == [50, 55]


IN_STEP = {"output_scores": True, "return_dict_in_generate": True}  # rows end together: none leaves its buffers


@pytest.fixture
def endless():
    with ends_at(base_model("llama"), None):
        yield


def poison(pool):
    for cache in pool.kept:
        for layer in cache.layers:
            layer.keys.fill_(torch.nan)
            layer.values.fill_(torch.nan)


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
@pytest.mark.parametrize("rows", [1, 3])
def test_the_next_call_uses_the_buffers_of_the_last_whatever_they_hold(accepting, kind, rows):
    model = accepting[kind]
    model.free()
    *_, first = run(model, *long_prompts(rows, 15), **IN_STEP)
    had = {name: buffers(cache) for name, cache in first.stream.caches.items()}
    poison(model.pool)
    ids, mask = long_prompts(rows, 12, seed=4)
    running = begun(model, ids, mask)
    steps = decode(running)
    trees = [step.tree for step in (next(steps), next(steps))]
    assert {name: buffers(cache) for name, cache in running.stream.caches.items()} == had
    was_ragged = False
    for step in steps:
        trees.append(step.tree)
        was_ragged |= not running.stream.cache.is_uniform and len(running.stream.running) == rows
    trees = [tree for tree in trees if tree is not None]
    model.free()
    want = run(model, ids, mask)
    assert_same((running.rows.ids(), [(tree.tokens_BN, tree.parents_BN) for tree in trees]), want)
    assert rows == 1 or was_ragged
    assert torch.equal(running.rows.ids(), generate_ids(model.base_model, ids, mask, NEW))


def test_what_does_not_fit_is_allocated_anew(tmp_path, endless):
    model = ea_model(tmp_path)
    base = copy.deepcopy(model.base_model)
    model = EaModel(None, base, "none", str(tmp_path / "eagle3"), 10, 3, 3)
    short, long = prompts(base, 1, 12)[0], prompts(base, 1, 90)[0]
    *_, first = run(model, short)
    had = buffers(first.stream.cache)
    *_, running = run(model, long)
    assert buffers(running.stream.cache) != had and running.stream.cache.layers[0].slots == 90 + NEW + 10
    *_, running = run(model, *prompts(base, 3, 12))
    assert running.stream.cache.layers[0].keys.shape[0] == 3 and running.stream.cache.layers[0].slots == 12 + NEW + 10
    *_, running = run(model, short)
    model.to(torch.bfloat16)
    *_, running = run(model, short)
    assert (
        running.stream.cache.layers[0].keys.dtype
        == running.stream.draft_state.cache.layers[0].keys.dtype
        == torch.bfloat16
    )
    want = copy.deepcopy(model)
    assert len(want.pool) == len(pickle.loads(pickle.dumps(model.pool))) == 0
    assert torch.equal(run(model, short)[0], run(want, short)[0])


def test_plain_decoding_leaves_the_head_s_cache_alone(tmp_path):
    model = ea_model(tmp_path)
    ids = prompts(model.base_model, 1, 12)[0]
    model.eagenerate(ids, max_new_tokens=8)
    head, target = (buffers(model.pool._kept[name]) for name in ("head", "target"))
    model.naivegenerate(ids, max_new_tokens=8)
    assert buffers(model.pool._kept["head"]) == head and buffers(model.pool._kept["target"]) == target


def test_two_live_streams_never_share(tmp_path, endless):
    model = ea_model(tmp_path)
    model.eagenerate(prompts(model.base_model, 1, 12)[0], max_new_tokens=NEW)
    both = [prompts(model.base_model, 1, 12, seed)[0] for seed in (1, 2)]
    running = [begun(model, ids) for ids in both]
    for pair in zip_longest(*map(decode, running)):
        assert any(pair)
        kept = model.pool.kept
        caches = [c for one in running if not one.is_done for c in one.stream.caches.values()] + kept
        places = [place for cache in caches for layer in buffers_of(cache) for place in layer]
        assert len(set(places)) == len(places)
    for one, ids in zip(running, both, strict=True):
        assert torch.equal(one.rows.ids(), generate_ids(model.base_model, ids, torch.ones_like(ids), NEW))
    assert len(model.pool) == 2


def buffers_of(cache):
    return [(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in cache.layers if layer.is_initialized]


def test_abandoned_and_failed_calls_return_nothing(tmp_path, monkeypatch, endless):
    model = ea_model(tmp_path)
    ids = prompts(model.base_model, 1, 12)[0]
    stream = model.ea_generate(ids, max_new_tokens=NEW)
    next(stream), next(stream)
    assert len(model.pool) == 0
    stream.close()
    assert len(model.pool) == 0
    model.eagenerate(ids, max_new_tokens=NEW)
    assert len(model.pool) == 2
    with monkeypatch.context() as patched:
        patched.setattr(Drafter, "draft", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model.eagenerate(ids, max_new_tokens=NEW)
    assert len(model.pool) == 0
    assert torch.equal(
        model.eagenerate(ids, max_new_tokens=NEW), generate_ids(model.base_model, ids, torch.ones_like(ids), NEW)
    )


def test_a_prefix_keeps_the_caches_instead_of_the_pool(tmp_path, endless):
    model = ea_model(tmp_path)
    ids = prompts(model.base_model, 1, 12)[0]
    model.eagenerate(ids, max_new_tokens=8)
    said = model.eagenerate(ids, max_new_tokens=8, reuse_prefix=True)
    assert len(model.pool) == 0 and len(model.prefix) == 19
    kept = buffers(model.prefix._left.cache)
    model.eagenerate(ids, max_new_tokens=8)
    assert buffers(model.pool._kept["target"]) != kept
    grown = model.eagenerate(said, max_new_tokens=30, reuse_prefix=True)
    assert torch.equal(grown, generate_ids(model.base_model, said, torch.ones_like(said), 30))
    assert len(model.pool) == 2
    model.free()
    assert len(model.pool) == len(model.prefix) == 0


@pytest.fixture
def whole_head(tmp_path):
    """A pair whose head brings the target's embeddings and output matrix along."""
    base = copy.deepcopy(base_model("llama"))
    head = random_head(base, "eagle3", draft_vocab_size=base.config.vocab_size)
    head.embed_tokens = torch.nn.Embedding.from_pretrained(base.get_input_embeddings().weight.clone())
    head.lm_head.weight.data.copy_(base.lm_head.weight)
    save_head(head, tmp_path)
    return base, tmp_path


def test_a_head_holds_no_copy_of_the_target_s_tensors(whole_head):
    base, folder = whole_head
    model = EaModel(None, base, "none", str(folder), 10, 3, 3)
    head = model.ea_layer.head
    assert head.embed_tokens.weight.data_ptr() == base.get_input_embeddings().weight.data_ptr()
    assert head.lm_head.weight.data_ptr() == base.lm_head.weight.data_ptr()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    other = {name: tensor + 1 for name, tensor in head.state_dict().items() if name not in ("d2t", "t2d")}
    head.load_state_dict(other)
    head.to(torch.bfloat16)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())
    assert torch.equal(head.lm_head.weight, (before["lm_head.weight"] + 1).bfloat16())


def test_a_head_keeps_what_is_not_quite_the_target_s(whole_head):
    base, folder = whole_head
    with torch.no_grad():
        base.lm_head.weight[7, 7] += 1
    head = EaModel(None, base, "none", str(folder), 10, 3, 3).ea_layer.head
    assert head.embed_tokens.weight.data_ptr() == base.get_input_embeddings().weight.data_ptr()
    assert head.lm_head.weight.data_ptr() != base.lm_head.weight.data_ptr()
    assert float((head.lm_head.weight - base.lm_head.weight).detach().abs().max()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_a_call_holds_no_more_than_the_sum_of_its_parts(tmp_path, kind):
    """Weights, head, both caches, the tree's logits and one chunk's activations: a process of its own is measured."""
    options = ["--synthetic", "46m", "--kind", kind, "--prompt-length", "1500", "--new-tokens", "24"]
    options += ["--device", "cpu"]  # on a GPU torch's allocator rounds up and its libraries keep buffers
    command = [sys.executable, "-m", "eagle.evaluation.memory", *options, "--json", str(tmp_path / "memory.json")]
    subprocess.run(command, check=True, capture_output=True)
    document = json.loads((tmp_path / "memory.json").read_text())
    assert 100e6 < document["terms"]["weights"] < 200e6
    assert document["sum"] == sum(document["terms"].values())
    assert 0.8 < document["ratio"] <= 1.05


def test_memory_of_a_gpu_is_what_is_allocated_there_beyond_what_was_before(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: {"cuda": 30}[device.type])
    monkeypatch.setattr(memory, "call", lambda *_: ({"weights": 100}, 130))
    assert memory.measure(memory.COMMAND.arguments(["--synthetic", "tiny"])).ratio == 1.0
