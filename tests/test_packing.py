"""`compile=True`: packed linear layers change no id and no drafted tree, and leave the base model as it was."""

import copy
import gc
import threading
import weakref

import pytest
import torch
from architectures import ARCHITECTURES, base_model, prompts
from pairs import ea_model
from references import generate_ids
from scripted import ScriptedDrafter
from test_drafted_trees import check_every_step, generation

from eagle.model.decoding import Generation
from eagle.model.output import collected
from eagle.model.packing import Packed, PackedLinear
from eagle.model.request import prepare

NEW = 14


def seeded(model, ids, mask, **sampling):
    torch.manual_seed(3)
    return model.generate(ids, attention_mask=mask, max_new_tokens=NEW, do_sample=True, top_k=0, **sampling)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("batch", [1, 3])
def test_ids_equal_generate_s_greedy_and_sampled(tmp_path, name, batch):
    model = ea_model(tmp_path, name, compile=True)
    ids, mask = prompts(model.base_model, batch)
    assert torch.equal(
        model.eagenerate(ids, attention_mask=mask, max_new_tokens=NEW), generate_ids(model.base_model, ids, mask, NEW)
    )
    assert torch.equal(seeded(model, ids, mask), generate_ids(model.base_model, ids, mask, NEW, seed=3))


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
@pytest.mark.parametrize("tree", ["dynamic", "static"])
def test_trees_equal_the_oracle(tmp_path, kind, tree):
    model = ea_model(tmp_path, "llama", kind, compile=True, tree=tree)
    ids, mask = prompts(model.base_model, 3)
    assert check_every_step(model, generation(model, ids, mask), ids, mask) >= 5


def test_accepted_tokens_are_committed_with_packed_weights(tmp_path):
    model = ea_model(tmp_path, "llama", compile=True)
    ids, mask = prompts(model.base_model, 1)
    want = generate_ids(model.base_model, ids, mask, 30)
    drafter = ScriptedDrafter(want, model.vocab_size, ids.shape[1])
    request = prepare(
        model.base_model, model.target, {"input_ids": ids, "max_new_tokens": 30, "do_sample": False}, None
    )
    running = Generation(model.target, drafter, request, model._taps)
    assert torch.equal(collected(running), want) and running.stats.acceptance_length >= 3


def test_packed_products_are_really_used(tmp_path, monkeypatch):
    model = ea_model(tmp_path, "llama", compile=True)
    calls = []
    own = PackedLinear.__call__
    monkeypatch.setattr(PackedLinear, "__call__", lambda self, x: calls.append(self.module) or own(self, x))
    ids, _ = prompts(model.base_model, 1)
    model.eagenerate(ids, max_new_tokens=NEW)
    linears = {
        m for root in (model.base_model, model.ea_layer.head) for m in root.modules() if type(m) is torch.nn.Linear
    }
    assert set(calls) == linears


def test_between_steps_the_base_is_as_it_was(tmp_path):
    model = ea_model(tmp_path, "llama", compile=True)
    ids, _ = prompts(model.base_model, 1)
    stream = model.ea_generate(ids, max_new_tokens=NEW)
    for _ in range(3):
        next(stream)
        assert not any("forward" in module.__dict__ for module in model.modules())


def test_changed_weights_are_seen_by_the_next_call(tmp_path):
    base = copy.deepcopy(base_model("llama"))
    model = ea_model(tmp_path, base, compile=True)
    ids, mask = prompts(base, 1)
    before = model.eagenerate(ids, max_new_tokens=NEW)
    with torch.no_grad():
        for layer in base.model.layers:
            layer.mlp.down_proj.weight.data.mul_(-1)  # invisible to version counters
    after = model.eagenerate(ids, max_new_tokens=NEW)
    assert torch.equal(after, generate_ids(base, ids, mask, NEW)) and not torch.equal(before, after)
    base.to(torch.float64)
    with torch.no_grad():
        base.to(torch.float32)
    assert torch.equal(model.eagenerate(ids, max_new_tokens=NEW), after)


def test_one_changed_number_is_seen_by_the_next_call(tmp_path):
    base = copy.deepcopy(base_model("llama"))
    model = ea_model(tmp_path, base, compile=True)
    ids, mask = prompts(base, 1)
    before = model.eagenerate(ids, max_new_tokens=NEW)
    linear = next(one for one in model.target.packed._linears.values() if one.module is base.lm_head)
    with torch.no_grad():
        feature = base.model(ids).last_hidden_state[0, -1]
        column = next(n for n in feature.abs().argsort(descending=True).tolist() if n % 2)
        base.lm_head.weight[7, column] += 1000 * feature[column].sign()
        # Not among the numbers that are sampled.
        assert torch.equal(linear._sampled(), linear._sample)
    after = model.eagenerate(ids, max_new_tokens=NEW)
    assert torch.equal(after, generate_ids(base, ids, mask, NEW)) and not torch.equal(before, after)


def test_a_dtype_that_is_not_packed_runs_unpacked_and_the_next_one_packed_again(tmp_path):
    base = copy.deepcopy(base_model("llama"))
    model = ea_model(tmp_path, base, compile=True)
    ids, mask = prompts(base, 1)
    want = model.eagenerate(ids, max_new_tokens=NEW)
    model.to(torch.float64)
    assert torch.equal(model.eagenerate(ids, max_new_tokens=NEW), generate_ids(base, ids, mask, NEW))
    assert not any(linear.is_packed for linear in model.target.packed._linears.values())
    model.to(torch.float32)
    assert torch.equal(model.eagenerate(ids, max_new_tokens=NEW), want)
    assert all(linear.is_packed for linear in model.target.packed._linears.values())


def test_weights_made_in_inference_mode_are_packed(tmp_path):
    with torch.inference_mode():
        base = copy.deepcopy(base_model("llama"))
        model = ea_model(tmp_path, base, compile=True)
        ids, mask = prompts(base, 1)
        got = model.eagenerate(ids, max_new_tokens=NEW)
    assert torch.equal(got, generate_ids(base, ids, mask, NEW))


def test_another_thread_gets_the_module_s_own_product():
    linear, zero = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
    packed, seen, x = Packed(torch.nn.Sequential(linear)), [], torch.ones(1, 8)
    with torch.no_grad():
        want = linear(x)
        zero.weight.zero_()
        packed._linears[linear]._packed = PackedLinear(zero)._packed  # who multiplies with it is found out
        with packed.active():
            thread = threading.Thread(target=lambda: seen.append(linear(x)))
            thread.start()
            thread.join()
            assert torch.equal(linear(x)[0], linear.bias)
    assert torch.equal(seen[0], want)


def test_a_packed_model_can_be_copied(tmp_path):
    model = ea_model(tmp_path, "llama", compile=True)
    ids, _ = prompts(model.base_model, 1)
    assert torch.equal(
        copy.deepcopy(model).eagenerate(ids, max_new_tokens=NEW), model.eagenerate(ids, max_new_tokens=NEW)
    )


def test_what_cannot_be_packed_is_refused_in_words(tmp_path):
    with pytest.raises(ValueError, match="no plain linear layers"):
        Packed(torch.nn.LayerNorm(4))
    with pytest.raises(ValueError, match=r"packs float32.*float64"):
        Packed(torch.nn.Linear(4, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match="on a CPU; these are on \\['meta'\\]"):
        Packed(torch.nn.Linear(4, 4, device="meta"))


def test_models_on_one_base_share_what_is_packed_of_it_and_leave_nothing_behind(tmp_path):
    base = copy.deepcopy(base_model("llama"))
    first, second = (ea_model(tmp_path / name, base, compile=True) for name in "ab")
    assert first.target.packed is second.target.packed and first.ea_layer.packed is not second.ea_layer.packed
    gone = weakref.ref(first.target.packed)
    del first, second, base
    gc.collect()
    assert gone() is None
