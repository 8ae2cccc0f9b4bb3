"""A call that begins with what an earlier one left behind: same ids, same trees, less work."""

import copy
import pickle
import threading

import pytest
import torch
from architectures import LONGROPE_SWITCH, base_model, prompts
from drafted import check_every_step, generation
from pairs import ea_model
from references import ends_at, generate_ids
from scripted import answering

from eagle import Prefix
from eagle.model.call.output import steps
from eagle.model.decoding import decode

pytestmark = pytest.mark.contract
KINDS = ("eagle", "eagle3")
S = 12


def first_call(model, ids, new=10, **arguments):
    return model.generate(ids, max_new_tokens=new, do_sample=False, reuse_prefix=True, **arguments)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shared", [0, 1, 2, S - 1, S, "the whole answer", "inside the answer", "longer"])
@pytest.mark.parametrize("chunk", [None, 3])
def test_trees_and_ids_equal_a_fresh_call_s(tmp_path, kind, shared, chunk):
    model = ea_model(tmp_path, "llama", kind)
    ids = prompts(model.base_model, 1, S)[0]
    said = first_call(model, ids)
    stored = said.shape[1] - 1  # the last emitted token is never in the cache
    assert len(model.prefix) == stored
    fresh = prompts(model.base_model, 1, S, seed=9)[0]
    if isinstance(shared, int):
        second = torch.cat([ids[:, :shared], fresh[:, : S - shared]], 1)
    else:
        kept = {"the whole answer": said.shape[1], "inside the answer": S + 4, "longer": 3}[shared]
        second = torch.cat([said[:, :kept], fresh[:, : 40 if shared == "longer" else 5]], 1)
    expected = min(next((i for i, (a, b) in enumerate(zip(said[0], second[0], strict=False)) if a != b), S), stored)
    if not isinstance(shared, int):
        expected = min(kept, stored)
    running = generation(model, second, reuse_prefix=True, prefill_chunk=chunk)
    assert check_every_step(model, running, second, torch.ones_like(second)) >= 3
    kept = max(0, min(expected, second.shape[1]) - 1)
    assert running.stats.prefilled_tokens == second.shape[1] - kept
    assert torch.equal(running.rows.ids(), generate_ids(model.base_model, second, torch.ones_like(second), 14))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", ["eos", "limit"])
@pytest.mark.parametrize("seed", [0, 1, 3])
def test_after_a_stop_inside_an_accepted_path(tmp_path, kind, end, seed):
    """What stays behind is exactly what was emitted but the last token, in the target and in the head."""
    model = ea_model(tmp_path, "llama", kind)
    ids, mask = prompts(model.base_model, 1, S, seed)
    with ends_at(model.base_model, None):
        answer = generate_ids(model.base_model, ids, mask, 40, seed)[0].tolist()
    places = [p for p in range(S + 6, len(answer) - 5) if answer[p] not in answer[S:p]]
    stop = places[0]
    arguments = {"eos_token_id": answer[stop] if end == "eos" else None}
    with answering(model.ea_layer, answer, seed):
        torch.manual_seed(seed)
        new = 30 if end == "eos" else stop - S + 1
        said = model.generate(ids, max_new_tokens=new, do_sample=True, top_k=0, reuse_prefix=True, **arguments)
    assert said[0].tolist() == answer[: stop + 1]
    # More was accepted than was emitted.
    stats = model.stats
    assert 1 + sum(stats.accepted_per_step) + stats.steps > stats.new_tokens or end == "limit"
    assert stats.acceptance_length > 1.3 and len(model.prefix) == stop
    second = torch.cat([said, prompts(model.base_model, 1, 5, seed + 20)[0]], 1)
    running = generation(model, second, reuse_prefix=True)
    assert check_every_step(model, running, second, torch.ones_like(second)) >= 3
    assert running.stats.prefilled_tokens == second.shape[1] - (stop - 1)
    assert torch.equal(running.rows.ids(), generate_ids(model.base_model, second, torch.ones_like(second), 14))


@pytest.mark.contract
@pytest.mark.parametrize("kind", KINDS)
def test_the_fifth_turn_of_a_chat_runs_only_its_own_tokens(tmp_path, kind):
    model = ea_model(tmp_path, "llama", kind)
    ids = prompts(model.base_model, 1, 20)[0]
    for turn in range(5):
        mask = torch.ones_like(ids)
        said = model.eagenerate(ids, max_new_tokens=12, reuse_prefix=True)
        assert torch.equal(said, generate_ids(model.base_model, ids, mask, 12))
        # The last token of the answer was never run, and the head's entry before it pairs with what followed.
        assert model.stats.prefilled_tokens == (20 if turn == 0 else 7 + 2)
        ids = torch.cat([said, prompts(model.base_model, 1, 7, seed=turn)[0]], 1)


def test_nothing_is_reused_unless_asked(tmp_path):
    model = ea_model(tmp_path)
    ids = prompts(model.base_model, 1, S)[0]
    for _ in range(2):
        model.generate(ids, max_new_tokens=5)
        assert model.stats.prefilled_tokens == S and len(model.prefix) == 0


def test_two_chats_keep_their_own(tmp_path):
    model = ea_model(tmp_path)
    chats = [(Prefix(), prompts(model.base_model, 1, S, seed)[0]) for seed in range(2)]
    for _ in range(2):
        for prefix, ids in chats:
            said = model.generate(ids, max_new_tokens=6, do_sample=False, reuse_prefix=prefix)
            assert torch.equal(said, generate_ids(model.base_model, ids, torch.ones_like(ids), 6))
    assert model.stats.prefilled_tokens == 1 and len(model.prefix) == 0
    chats[0][0].clear()
    assert len(chats[0][0]) == 0


def test_an_abandoned_stream_leaves_a_usable_prefix_and_a_failed_one_leaves_none(tmp_path, monkeypatch):
    model = ea_model(tmp_path)
    ids = prompts(model.base_model, 1, S)[0]
    stream = model.ea_generate(ids, max_new_tokens=20, reuse_prefix=True)
    so_far = [next(stream) for _ in range(4)][-1]
    stream.close()
    assert len(model.prefix) == so_far.shape[1] - 1
    assert torch.equal(first_call(model, so_far), generate_ids(model.base_model, so_far, torch.ones_like(so_far), 10))
    stream = model.ea_generate(ids, max_new_tokens=20, reuse_prefix=True)
    next(stream)

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(model.target, "verify", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert len(model.prefix) == 0


def test_a_closed_stream_ends_its_call_whoever_holds_its_steps(tmp_path, monkeypatch):
    held, model = [], ea_model(tmp_path)
    monkeypatch.setattr("eagle.model.ea_model.steps", lambda generation: held.append(steps(generation)) or held[0])
    stream = model.ea_generate(prompts(model.base_model, 1, S)[0], max_new_tokens=20, reuse_prefix=True)
    so_far = [next(stream) for _ in range(3)][-1]
    assert len(model.prefix) == 0
    stream.close()
    assert len(model.prefix) == so_far.shape[1] - 1


def test_plain_decoding_reuses_too_and_another_model_s_prefix_is_never_taken(tmp_path):
    model, other = ea_model(tmp_path), ea_model(tmp_path, "qwen3")
    ids = prompts(model.base_model, 1, S)[0]
    prefix = Prefix()
    model.naivegenerate(ids, max_new_tokens=5, reuse_prefix=prefix)
    model.naivegenerate(ids, max_new_tokens=5, reuse_prefix=prefix)
    assert model.stats.prefilled_tokens == 1
    model.eagenerate(ids, max_new_tokens=5, reuse_prefix=prefix)  # the head has read nothing of it
    assert model.stats.prefilled_tokens == S
    said = other.eagenerate(ids, max_new_tokens=5, reuse_prefix=prefix)
    assert other.stats.prefilled_tokens == S
    assert torch.equal(said, generate_ids(other.base_model, ids, torch.ones_like(ids), 5))


@pytest.mark.contract
def test_keys_of_one_side_of_a_rotary_switch_never_serve_the_other(tmp_path):
    model = ea_model(tmp_path, "phi3")
    ids = prompts(model.base_model, 1, S)[0]
    said = first_call(model, ids, LONGROPE_SWITCH - S - 4)
    longer = torch.cat([said, prompts(model.base_model, 1, 10, seed=3)[0]], 1)
    assert torch.equal(first_call(model, longer), generate_ids(model.base_model, longer, torch.ones_like(longer), 10))
    assert model.stats.prefilled_tokens == longer.shape[1]


@pytest.mark.parametrize("change", ["dtype", "autocast"])
def test_keys_of_another_dtype_are_never_reused(tmp_path, change):
    model = copy.deepcopy(ea_model(tmp_path))
    ids = prompts(model.base_model, 1, S)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=change == "autocast"):
        first_call(model, ids)
    if change == "dtype":
        model.to(torch.float64)
    said = first_call(model, ids)
    assert model.stats.prefilled_tokens == S
    assert torch.equal(said, generate_ids(model.base_model, ids, torch.ones_like(ids), 10))


def test_an_older_call_never_replaces_what_a_newer_one_left(tmp_path):
    model, prefix = ea_model(tmp_path), Prefix()
    ids = prompts(model.base_model, 1, S)[0]
    stream = model.ea_generate(ids, max_new_tokens=9, reuse_prefix=prefix)
    next(stream)
    longer = model.eagenerate(torch.cat([ids, ids], 1), max_new_tokens=9, reuse_prefix=prefix)
    stream.close()
    assert len(prefix) == longer.shape[1] - 1


def test_a_model_is_pickled_without_its_conversations(tmp_path):
    prefix = Prefix()
    model = ea_model(tmp_path)
    model.generate(prompts(model.base_model, 1, S)[0], max_new_tokens=4, reuse_prefix=prefix)
    assert len(prefix) > 0 and len(pickle.loads(pickle.dumps(prefix))) == len(copy.copy(prefix)) == 0


@pytest.mark.parametrize("batch", [2, 1])
def test_batches_and_pads_are_refused(tmp_path, batch):
    model = ea_model(tmp_path)
    ids, mask = prompts(model.base_model, 2)
    with pytest.raises(ValueError, match="one unpadded row"):
        model.generate(ids[-batch:], attention_mask=mask[-batch:], reuse_prefix=True)
    with pytest.raises(ValueError, match=r"reuse_prefix='yes' must be True, False or an eagle\.Prefix"):
        model.generate(ids[:1], reuse_prefix="yes")


@pytest.mark.parametrize("shared_base", [False, True])
def test_threads_are_served_one_step_at_a_time_and_each_is_right(tmp_path, shared_base):
    """Also two `EaModel`s with heads of both kinds on one base."""
    base = base_model("llama")
    models = [ea_model(tmp_path, base, "eagle3")] * 2
    if shared_base:
        models[1] = ea_model(tmp_path, base, "eagle")
    inside, together = [0], [0]
    forward = base.forward

    def watched(*args, **kwargs):
        inside[0] += 1
        together[0] = max(together[0], inside[0])
        try:
            return forward(*args, **kwargs)
        finally:
            inside[0] -= 1

    jobs = [(models[i % 2], prompts(base, 1 + i % 2, S, seed=i), 100 + i) for i in range(4)]
    wanted = [generate_ids(base, ids, mask, 20, seed, temperature=0.9) for _, (ids, mask), seed in jobs]
    got: list = [None] * len(jobs)

    def work(i):
        model, (ids, mask), seed = jobs[i]
        generator = torch.Generator().manual_seed(seed)
        extras = {"attention_mask": mask, "generator": generator}
        got[i] = model.eagenerate(ids, temperature=0.9, max_new_tokens=20, **extras)

    base.forward = watched
    try:
        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        del base.forward
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    assert together[0] == 1


def test_streams_with_one_prefix_at_the_same_time_are_both_right(tmp_path):
    model = ea_model(tmp_path)
    ids = prompts(model.base_model, 1, S)[0]
    want = generate_ids(model.base_model, ids, torch.ones_like(ids), 14)
    first_call(model, ids)
    generations = [generation(model, ids, reuse_prefix=True) for _ in range(2)]
    running = [decode(one) for one in generations]
    for _ in range(20):
        for one in running:
            next(one, None)
    assert all(torch.equal(one.rows.ids(), want) for one in generations)
    assert sorted(one.stats.prefilled_tokens for one in generations) == [1, S]
