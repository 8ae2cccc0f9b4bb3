"""`compile=True`: packed linear layers change no id and no drafted tree, and leave the base model as it was."""

import copy
import gc
import random
import threading
import weakref

import pytest
import torch
from architectures import ARCHITECTURES, base_model, prompts
from drafted import check_every_step, generation
from pairs import ea_model
from references import generate_ids
from scripted import ScriptedDrafter

from eagle.model.call.output import collected
from eagle.model.call.prepare import prepare
from eagle.model.decoding import Generation
from eagle.model.support import prepack, products
from eagle.model.support.prepack import PackedLinear, PrepackedLinears
from eagle.model.support.products import ALWAYS, NEVER, ROWS, faster_packed, place

NEW = 14


@pytest.fixture(autouse=True)
def packed_is_always_faster(tmp_path, monkeypatch):
    """Pack every layer: what this processor would say of layers of 32 numbers is another test's affair."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(prepack, "faster_packed", lambda *_: ALWAYS)


def say(monkeypatch, *verdicts):
    """Let these be the verdicts on every shape; returns the shapes that were asked about."""
    asked = []
    faster = (*verdicts, *[False] * (len(ROWS) - len(verdicts)))
    monkeypatch.setattr(
        prepack, "faster_packed", lambda stock, packed, inputs, dtype: asked.append((inputs, dtype)) or faster
    )
    return asked


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
    packed, seen, x = PrepackedLinears(torch.nn.Sequential(linear)), [], torch.ones(1, 8)
    with torch.no_grad():
        want = linear(x)
        zero.weight.zero_()
        other = PackedLinear(zero)
        other.pack()
        packed._linears[linear]._packed = other._packed  # who multiplies with it is found out
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
        PrepackedLinears(torch.nn.LayerNorm(4))
    with pytest.raises(ValueError, match=r"packs float32.*float64"):
        PrepackedLinears(torch.nn.Linear(4, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match="on a CPU; these are on \\['meta'\\]"):
        PrepackedLinears(torch.nn.Linear(4, 4, device="meta"))


def test_models_on_one_base_share_what_is_packed_of_it_and_leave_nothing_behind(tmp_path):
    base = copy.deepcopy(base_model("llama"))
    first, second = (ea_model(tmp_path / name, base, compile=True) for name in "ab")
    assert first.target.packed is second.target.packed and first.ea_layer.packed is not second.ea_layer.packed
    gone = weakref.ref(first.target.packed)
    del first, second, base
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 8, 12, 60, 127, 128, 5000])
def test_a_verdict_holds_for_the_rows_around_it(rows):
    assert place(ROWS[place(rows)]) == place(rows)
    nearest = [abs(rows.bit_length() - each.bit_length()) for each in ROWS]
    assert nearest[place(rows)] == min(nearest)


def test_packed_products_are_used_for_the_rows_at_which_they_are_faster(monkeypatch):
    say(monkeypatch, False, True, True)  # 2 to 7 rows
    linear, used = torch.nn.Linear(8, 5), []
    packed = PrepackedLinears(torch.nn.Sequential(linear))
    own = PackedLinear.product
    monkeypatch.setattr(PackedLinear, "product", lambda self, x: used.append(x.numel() // 8) or own(self, x))
    with torch.no_grad(), packed.active():
        for shape in [(1, 1), (1, 2), (1, 7), (7, 1), (1, 8), (2, 4), (3, 1)]:
            x = torch.randn(*shape, 8)
            assert torch.allclose(linear(x), torch.nn.functional.linear(x, linear.weight, linear.bias), atol=1e-6)
    assert used == [2, 7, 7, 3]


@pytest.mark.parametrize("verdicts", [NEVER, (True,), (*[False] * 7, True)])
def test_a_layer_that_packing_makes_slower_stays_as_it_is_and_costs_nothing(tmp_path, monkeypatch, verdicts):
    say(monkeypatch, *verdicts)
    model = ea_model(tmp_path, copy.deepcopy(base_model("llama")), compile=True)
    monkeypatch.setattr(PackedLinear, "__call__", lambda *_: pytest.fail("it stands in for the module's forward"))
    ids, mask = prompts(model.base_model, 1)
    assert torch.equal(model.eagenerate(ids, max_new_tokens=NEW), generate_ids(model.base_model, ids, mask, NEW))
    linears = [*model.target.packed._linears.values(), *model.ea_layer.packed._linears.values()]
    assert linears and not any(linear.is_packed for linear in linears)


def test_a_shape_is_timed_once_and_the_verdict_kept_on_disk(tmp_path, monkeypatch):
    asked = say(monkeypatch, True, True)
    model = ea_model(tmp_path, copy.deepcopy(base_model("llama")), compile=True)
    shapes = {linear.shape for part in (model.target, model.ea_layer) for linear in part.packed._linears.values()}
    assert len(asked) == len(shapes) >= 4
    again = ea_model(tmp_path, copy.deepcopy(base_model("llama")), compile=True)
    assert len(asked) == len(shapes) and again.target.packed.settings == model.target.packed.settings
    files = list((tmp_path / "cache" / "eagle" / "products").iterdir())
    assert len(files) == len(shapes)
    for file in files:
        file.write_text("nothing")
    ea_model(tmp_path, copy.deepcopy(base_model("llama")), compile=True)
    assert len(asked) == 2 * len(shapes)


def test_a_dtype_it_changes_to_is_timed_by_itself(tmp_path, monkeypatch):
    asked = say(monkeypatch, True, True)
    packed = PrepackedLinears(linear := torch.nn.Linear(8, 5))
    linear.to(torch.bfloat16)
    packed.refresh()
    assert asked == [(8, torch.float32), (8, torch.bfloat16)] and packed._linears[linear].is_packed


class Clock:
    """Time that only products take."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(products.time, "perf_counter", lambda: self.now)

    def product(self, seconds):
        """Return a product that takes so long for x rows."""

        def product(x):
            self.now += seconds(len(x))

        return product


def test_the_faster_way_is_found_for_each_number_of_rows(monkeypatch):
    clock = Clock(monkeypatch)
    stock = clock.product(lambda rows: 1e-5 * rows)
    packed = clock.product(lambda rows: 1e-4 + 2e-6 * rows)
    verdicts = faster_packed([stock], [packed], 4, torch.float32)
    assert verdicts == tuple(1e-4 + 2e-6 * rows < 0.95e-5 * rows for rows in ROWS) and len(set(verdicts)) == 2
    assert faster_packed([stock], [stock], 4, torch.float32) == NEVER


def test_what_else_the_machine_does_decides_nothing(monkeypatch):
    clock, chance = Clock(monkeypatch), random.Random(5)
    quick, slow = (clock.product(lambda rows, own=own: own + 1e-3 * (chance.random() < 0.6)) for own in (1e-5, 2e-5))
    for _ in range(5):
        assert faster_packed([quick], [slow], 4, torch.float32) == NEVER
        assert faster_packed([slow], [quick], 4, torch.float32) == ALWAYS


@pytest.mark.parametrize("seconds", [1e-6, 1e-3, 0.5, 10.0])
def test_timing_ends_soon_however_slow_the_layer(monkeypatch, seconds):
    clock = Clock(monkeypatch)
    faster_packed([clock.product(lambda rows: seconds * rows)], [clock.product(lambda rows: seconds)], 4, torch.float32)
    longest = max(products.SECONDS, 0) + 8 * seconds * (ROWS[-1] + 1)
    assert clock.now <= (longest if seconds < 1e-2 else 8 * seconds * (ROWS[0] + 1))
