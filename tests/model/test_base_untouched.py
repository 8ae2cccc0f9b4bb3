"""Between two steps, after an exception or Ctrl-C, the base model carries nothing of ours."""

import copy
import itertools
import threading

import pytest
import torch
from architectures import VOCABULARY, base_model, prompts
from pairs import ea_model
from references import generate_ids
from scripted import ScriptedDrafter
from transformers import LogitsProcessor

pytestmark = pytest.mark.contract


def hooks(base) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in base.modules())


def fingerprint(base) -> tuple:
    return hooks(base), str(base.config), str(base.generation_config), sorted(vars(base)), base.training


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_two_interleaved_streams_are_each_correct(tmp_path, kind):
    base = base_model("llama")
    before = fingerprint(base)
    model = ea_model(tmp_path, "llama", kind)
    (first, mask_1), (second, mask_2) = prompts(base, 1, 9, 1), prompts(base, 3, 13, 2)
    wanted = [generate_ids(base, first, mask_1, 20), generate_ids(base, second, mask_2, 20)]
    streams = [
        model.ea_generate(first, max_new_tokens=20),
        model.ea_generate(second, max_new_tokens=20, attention_mask=mask_2),
    ]
    last = [None, None]
    for step in itertools.zip_longest(*streams):
        last = [new if new is not None else old for new, old in zip(step, last, strict=True)]
        assert fingerprint(base) == before
    assert all(torch.equal(got, want) for got, want in zip(last, wanted, strict=True))


def test_streamed_ids_grow_to_the_collected_ones(tmp_path):
    base = base_model("llama")
    model = ea_model(tmp_path)
    ids, _ = prompts(base, 1)
    whole = model.eagenerate(ids, max_new_tokens=20)
    for stream in (model.ea_generate(ids, max_new_tokens=20), model.naive_generate(ids, max_new_tokens=20)):
        seen = list(stream)
        assert all(torch.equal(part, whole[:, : part.shape[1]]) for part in seen)
        assert torch.equal(seen[-1], whole) and len(seen) > 3


class Interrupting(LogitsProcessor):
    def __init__(self, error, after):
        self.error, self.calls, self.after = error, 0, after

    def __call__(self, input_ids, scores):
        self.calls += 1
        if self.calls > self.after:
            raise self.error
        return scores


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("boom")])
@pytest.mark.parametrize("place", ["processor", "layer"])
def test_an_exception_in_a_step_leaves_the_base_as_it_was(tmp_path, error, place):
    base = base_model("llama")
    model = ea_model(tmp_path)
    ids, mask = prompts(base, 1)
    before = fingerprint(base)
    extras = {"logits_processor": [Interrupting(error, 3)]} if place == "processor" else {}
    calls = []

    def fail(*args):
        calls.append(1)
        if len(calls) > 3:
            raise error

    handle = base.model.layers[-1].register_forward_pre_hook(fail) if place == "layer" else None
    with pytest.raises(type(error)):
        model.eagenerate(ids, max_new_tokens=20, **extras)
    if handle is not None:
        handle.remove()
    assert fingerprint(base) == before
    assert torch.equal(model.eagenerate(ids, max_new_tokens=20), generate_ids(base, ids, mask, 20))


def test_an_abandoned_stream_leaves_the_base_as_it_was(tmp_path):
    base = base_model("llama")
    before = fingerprint(base)
    stream = ea_model(tmp_path).ea_generate(prompts(base, 1)[0], max_new_tokens=20)
    next(stream), next(stream)
    stream.close()
    assert fingerprint(base) == before


def test_a_forward_in_another_thread_is_not_mistaken_for_ours(tmp_path):
    base = base_model("llama")
    model = ea_model(tmp_path)
    ids, mask = prompts(base, 1)
    want = generate_ids(base, ids, mask, 30)
    shapes, stop = set(), threading.Event()

    def others():
        while not stop.is_set():
            base(input_ids=torch.full((2, 3), 5))
            shapes.add(tuple(model(torch.full((2, 3), 5))[1].shape))

    thread = threading.Thread(target=others)
    thread.start()
    got = [model.eagenerate(ids, max_new_tokens=30) for _ in range(4)]
    stop.set()
    thread.join()
    assert all(torch.equal(ids, want) for ids in got) and shapes == {(2, 3, 96)}


def test_models_can_be_copied_and_keep_the_base_s_mode(tmp_path):
    base = base_model("llama")
    base.train()
    try:
        model = ea_model(tmp_path)
        assert base.training and not model.ea_layer.training
    finally:
        base.eval()
    ids, _ = prompts(base, 1)
    twin = copy.deepcopy(model)
    assert torch.equal(twin.eagenerate(ids, max_new_tokens=9), model.eagenerate(ids, max_new_tokens=9))


def test_a_stream_begun_in_inference_mode_goes_on_outside_it(tmp_path):
    base = base_model("llama")
    ids, mask = prompts(base, 1)
    stream = ea_model(tmp_path).ea_generate(ids, max_new_tokens=15)
    with torch.inference_mode():
        next(stream)
    assert torch.equal(list(stream)[-1], generate_ids(base, ids, mask, 15))


def test_a_running_stream_keeps_its_tree(tmp_path):
    base = base_model("llama")
    ids, mask = prompts(base, 1)
    model = ea_model(tmp_path)
    stream = model.ea_generate(ids, max_new_tokens=15)
    next(stream)
    model.ea_layer.total_tokens, model.ea_layer.depth = 40, 6
    assert torch.equal(list(stream)[-1], generate_ids(base, ids, mask, 15))


def test_gradients_stay_on_in_the_caller_between_steps(tmp_path):
    base = base_model("llama")
    for _ in ea_model(tmp_path).ea_generate(prompts(base, 1)[0], max_new_tokens=5):
        assert torch.is_grad_enabled()


def test_two_models_on_one_base_and_two_threads_are_correct(tmp_path):
    base = base_model("llama")
    models = [ea_model(tmp_path, "llama", "eagle"), ea_model(tmp_path, "llama", "eagle3")]
    work = [prompts(base, 1, 9, seed) for seed in (1, 2)]
    wanted = [generate_ids(base, ids, mask, 30) for ids, mask in work]
    got = [None, None]

    def run(index):
        got[index] = models[index].eagenerate(work[index][0], max_new_tokens=30)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_forward_returns_outputs_and_features(tmp_path):
    base = base_model("llama")
    ids, _ = prompts(base, 1)
    for kind, width in (("eagle", 32), ("eagle3", 96)):
        model = ea_model(tmp_path, "llama", kind)
        outputs, hidden = model(ids)
        assert hidden.shape == (1, ids.shape[1], width)
        outputs, logits, hidden_again = model(ids, output_orig=True)
        assert torch.equal(logits, outputs.logits) and torch.equal(hidden, hidden_again)


def test_contract_taps_are_gone_after_one_forward_and_see_every_layer(tmp_path):
    base = base_model("llama")
    model = ea_model(tmp_path)
    base(input_ids=prompts(base, 1)[0], output_hidden_states=True)  # transformers leaves hooks of its own from then on
    before = hooks(base)
    with model.target.tapped((2, 3, 4)) as caught:
        base(input_ids=prompts(base, 1)[0])
        assert sorted(caught) == [2, 3, 4] and hooks(base) == before + 3
    assert hooks(base) == before


def test_a_tap_that_does_not_fire_is_noticed(tmp_path):
    model = ea_model(tmp_path)
    with pytest.raises(RuntimeError, match="2 of 3 feature taps"):
        model.target.joined({2: torch.zeros(1), 3: torch.zeros(1)}, (2, 3, 4))


def test_scripted_drafts_restart_after_a_finished_call(tmp_path):
    base = base_model("llama")
    ids, mask = prompts(base, 1)
    want = generate_ids(base, ids, mask, 20)
    model = ea_model(tmp_path)
    model.ea_layer = ScriptedDrafter(want, VOCABULARY, ids.shape[1])
    assert all(torch.equal(model.eagenerate(ids, max_new_tokens=20), want) for _ in range(2))
