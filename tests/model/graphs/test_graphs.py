"""Steps captured once and replayed give the ids and trees of steps that run; what cannot be replayed is run.

A tape stands in for CUDA graphs: `tape.TapeBackend` keeps their rules on a CPU.
"""

import copy
import gc
import logging

import peft
import pytest
import torch
from architectures import base_model, prompts
from drafted import generation
from pairs import ea_model
from references import ends_at, generate_ids
from synthetic_pairs import DEPTH, synthetic_pair, synthetic_prompt
from tape import TapeBackend

from eagle.model.decoding import decode
from eagle.model.drafter import Drafter
from eagle.model.graphs.device_step import StepBuffers
from eagle.model.graphs.pool import GraphPool
from eagle.model.graphs.static_cache import StaticKVCache

NEW, BUCKET = 18, 48
SAMPLING = {"temperature": 0.8, "top_k": 20, "top_p": 0.9}
MODES = {"greedy": ((), {}), "sampled": ((3,), SAMPLING)}


def on_tape(model, bucket=BUCKET) -> TapeBackend:
    backend = TapeBackend()
    model.graphs = GraphPool(backend, bucket)
    return backend


def check_ids(model, ids, mask, mode="greedy", new=NEW, drafts=True):
    seed, settings = MODES[mode]
    want = generate_ids(model.base_model, ids, mask, new, *seed, **settings)
    torch.manual_seed(3)
    call = model.eagenerate if drafts else model.naivegenerate
    assert torch.equal(call(ids, max_new_tokens=new, attention_mask=mask, **settings), want)


@pytest.mark.parametrize(
    ("name", "kind", "batch", "mode", "tree"),
    [
        ("llama", "eagle", 1, "sampled", {}),
        ("llama", "eagle3", 3, "sampled", {}),
        ("llama", "eagle", 3, "greedy", {"tree": "static"}),
        ("mistral", "eagle3", 3, "greedy", {}),
        ("qwen2", "eagle", 1, "sampled", {}),
        ("gemma2", "eagle3", 1, "greedy", {}),
        ("gpt_oss", "eagle", 3, "sampled", {}),
        ("mixtral", "eagle3", 1, "sampled", {}),
        ("gpt_neox", "eagle", 3, "greedy", {}),
        ("gpt2", "eagle3", 3, "sampled", {"total_token": 4}),
    ],
)
def test_replayed_steps_give_the_ids_of_generate(tmp_path, name, kind, batch, mode, tree):
    model = ea_model(tmp_path, name, kind, **tree)
    backend = on_tape(model, 96 if tree.get("tree") else BUCKET)
    ids, mask = prompts(model.base_model, batch)
    with ends_at(model.base_model, None):
        check_ids(model, ids, mask, mode)
    assert backend.captures == 1 and backend.replays >= model.stats.steps >= NEW // 2


@pytest.mark.parametrize(("name", "batch", "mode"), [("llama", 1, "sampled"), ("gemma2", 3, "greedy")])
def test_replayed_plain_steps_give_the_ids_of_generate(tmp_path, name, batch, mode):
    model = ea_model(tmp_path, name)
    backend = on_tape(model)
    ids, mask = prompts(model.base_model, batch)
    with ends_at(model.base_model, None):
        check_ids(model, ids, mask, mode, drafts=False)
    assert backend.captures == 1 and backend.replays == NEW - 1


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
@pytest.mark.parametrize(("noise", "batch", "mode"), [(0.0, 3, "greedy"), (0.05, 3, "greedy"), (0.05, 1, "sampled")])
def test_accepted_paths_move_keys_and_features_on_the_device(tmp_path, kind, noise, batch, mode):
    """Rows accept different numbers of tokens, and drafted trees and acceptance stay those of the exact view."""
    model = synthetic_pair(tmp_path, kind, noise, total_token=14, top_k=4)
    ids = synthetic_prompt(batch)
    _, settings = MODES[mode]
    arguments = {"new": 40, "do_sample": bool(settings), **settings}
    backend, runs = TapeBackend(), []
    for graphs in (None, GraphPool(backend, 128)):
        torch.manual_seed(3)
        running = generation(model, ids, graphs=graphs, **arguments)
        runs.append((list(decode(running)), running))
    (exact, run), (replayed, other) = runs
    assert run.rows.new == other.rows.new and backend.replays > 0
    assert run.stats.accepted_per_step[: len(ids)] == other.stats.accepted_per_step[: len(ids)]
    assert other.stats.accepted_per_depth == run.stats.accepted_per_depth
    assert max(other.stats.accepted_per_step) >= 2
    for a, b in zip(exact[1:-2], replayed[1:-2], strict=True):
        rows = [index for index, row in enumerate(a.tree_rows) if a.tokens[row]]
        same = [b.tree_rows.index(a.tree_rows[index]) for index in rows]
        torch.testing.assert_close(a.tree.scores_BN[rows], b.tree.scores_BN[same], rtol=1e-3, atol=1e-3)
        assert torch.equal(a.tree.tokens_BN[rows], b.tree.tokens_BN[same])


@pytest.mark.parametrize("stop", [1, 4, 6, 9])
def test_rows_that_end_inside_an_accepted_path_stay_where_they_are(tmp_path, stop):
    model = synthetic_pair(tmp_path, "eagle3", total_token=14, top_k=4)
    backend, ids = on_tape(model, 128), synthetic_prompt(3)
    mask, model.base_model.generation_config.pad_token_id = torch.ones_like(ids), 0
    free = generate_ids(model.base_model, ids, mask, 30)
    with ends_at(model.base_model, [int(free[0, ids.shape[1] + stop]), int(free[1, ids.shape[1] + 2 * stop])]):
        check_ids(model, ids, mask, new=30)
    assert backend.replays > 0 and max(model.stats.accepted_per_step) >= 4


def test_rows_that_have_ended_no_longer_advance_on_the_device(tmp_path):
    model = ea_model(tmp_path)
    ids, mask = prompts(model.base_model, 3)
    free = generate_ids(model.base_model, ids, mask, NEW)
    with ends_at(model.base_model, [int(free[0, ids.shape[1] + 2])]):
        running = generation(model, ids, mask, new=NEW, graphs=GraphPool(TapeBackend(), BUCKET))
        lengths, finished = [], []
        for step in decode(running):
            finished.append(step.finished[0])
            if running.replayed is not None:
                lengths.append(running.replayed.buffers.cache.lengths_B.tolist()[0])
    after = lengths[finished.index("eos") :]
    assert len(after) > 5 and len(set(after)) == 1


@pytest.mark.parametrize("batch", [1, 3])
def test_a_full_bucket_is_exchanged_for_one_of_twice_its_size(tmp_path, caplog, batch):
    model = synthetic_pair(tmp_path, "eagle", total_token=14, top_k=4)
    backend, ids = on_tape(model, 64), synthetic_prompt(batch)
    for _ in range(2):  # the second call begins in the small buffers again, its graph still there
        check_ids(model, ids, torch.ones_like(ids), new=60)
        assert model.stats.acceptance_length > DEPTH - 0.5  # the head's cache has moved along
        assert backend.captures == 2
    sizes = [record.args[0] for record in caplog.records if record.msg.startswith("captured")]
    assert sizes == [64, 128]


def test_calls_share_arenas_and_graphs_and_memory_does_not_grow(tmp_path):
    model = ea_model(tmp_path)
    backend, (ids, mask) = on_tape(model), prompts(model.base_model, 3)
    used = []
    for call in range(5):
        lengths = slice(None, 9 - call)  # other prompts, other pads
        check_ids(model, ids[:, lengths], mask[:, lengths], "sampled" if call % 2 else "greedy", new=8)
        gc.collect()
        tensors = [item for item in gc.get_objects() if type(item) is torch.Tensor]
        used.append(sum(tensor.nbytes for tensor in tensors))
    assert backend.captures == 2  # one per mode
    assert used[4] <= used[2] and used[3] <= used[1]


def test_other_settings_of_the_sampler_are_another_graph(tmp_path):
    model = ea_model(tmp_path)
    backend, (ids, mask) = on_tape(model), prompts(model.base_model, 1)
    for count, settings in ((1, {"top_p": 0.9}), (2, {"top_p": 0.5}), (2, {"top_p": 0.9}), (3, {"top_k": 5})):
        want = generate_ids(model.base_model, ids, mask, 8, 3, temperature=0.7, **settings)
        torch.manual_seed(3)
        assert torch.equal(model.eagenerate(ids, temperature=0.7, max_new_tokens=8, **settings), want)
        assert backend.captures == count


def test_exchanged_weights_get_graphs_of_their_own(tmp_path):
    model = ea_model(tmp_path, copy.deepcopy(base_model("llama")))
    backend, (ids, mask) = on_tape(model), prompts(model.base_model, 1)
    check_ids(model, ids, mask, new=8)
    before = model.base_model.lm_head.weight
    model.base_model.lm_head.weight = torch.nn.Parameter(before.flip(0))
    check_ids(model, ids, mask, new=8)
    model.base_model.lm_head.weight = before
    check_ids(model, ids, mask, new=8)
    assert backend.captures == 2


def test_switched_adapters_get_graphs_of_their_own(tmp_path):
    wrapped = peft.get_peft_model(
        copy.deepcopy(base_model("llama")),
        peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    ).eval()
    model = ea_model(tmp_path, wrapped)
    backend, (ids, mask) = on_tape(model), prompts(model.base_model, 1)
    check_ids(model, ids, mask, new=8)
    with wrapped.disable_adapter():
        check_ids(model, ids, mask, new=8)
    check_ids(model, ids, mask, new=8)
    assert backend.captures == 2


def test_a_failed_move_gives_the_arena_back(tmp_path, monkeypatch):
    model = ea_model(tmp_path)
    backend, (ids, mask) = on_tape(model), prompts(model.base_model, 1)
    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="out of memory"):
        patched.setattr(StepBuffers, "load", raising("out of memory"))
        model.eagenerate(ids, max_new_tokens=8)
    check_ids(model, ids, mask, new=8)
    assert backend.captures == 1


def raising(message):
    def call(*args):
        raise RuntimeError(message)

    return call


def test_a_second_stream_runs_beside_the_first_without_graphs(tmp_path):
    model = ea_model(tmp_path)
    backend, base = on_tape(model), model.base_model
    inputs = [prompts(base, batch, length, seed) for batch, length, seed in ((1, 9, 1), (1, 14, 2))]
    want = [generate_ids(base, ids, mask, 12) for ids, mask in inputs]
    streams = [model.ea_generate(ids, max_new_tokens=12, attention_mask=mask) for ids, mask in inputs]
    last = [None, None]
    for pair in zip(*streams, strict=False):
        last = list(pair)
    last = [list(stream)[-1:] or [end] for stream, end in zip(streams, last, strict=True)]
    assert all(torch.equal(got[0], ids) for got, ids in zip(last, want, strict=True))
    assert backend.captures == 1
    check_ids(model, *inputs[1], new=12)
    assert backend.captures == 1


def test_an_abandoned_stream_gives_its_arena_back(tmp_path):
    model = ea_model(tmp_path)
    backend, (ids, mask) = on_tape(model), prompts(model.base_model, 1)
    stream = model.ea_generate(ids, max_new_tokens=12)
    for _ in range(4):
        next(stream)
    stream.close()
    check_ids(model, ids, mask, new=12)
    assert backend.captures == 1


def test_a_prefix_is_taken_up_and_left_behind(tmp_path):
    model = synthetic_pair(tmp_path, "eagle3", total_token=14, top_k=4)
    backend, ids = on_tape(model, 128), synthetic_prompt()
    for turn in range(3):
        check = generate_ids(model.base_model, ids, torch.ones_like(ids), 20)
        assert torch.equal(model.generate(ids, max_new_tokens=20, do_sample=False, reuse_prefix=True), check)
        assert model.stats.acceptance_length > DEPTH - 0.5
        if turn:
            assert model.stats.prefilled_tokens <= 4
        ids = torch.cat([check, ids[:, 3:5]], 1)
    assert backend.captures == 1


@pytest.mark.parametrize("case", ["watched", "threshold", "longrope"])
def test_calls_that_ask_the_host_run_as_ever(tmp_path, case):
    model = ea_model(tmp_path, "phi3" if case == "longrope" else "llama")
    backend, (ids, mask) = on_tape(model), prompts(model.base_model, 1)
    model.ea_layer.threshold = 0.01 if case == "threshold" else 1.0
    extras = {"repetition_penalty": 1.2} if case == "watched" else {}
    want = model.base_model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False, **extras)
    assert torch.equal(model.generate(ids, max_new_tokens=8, do_sample=False, **extras), want)
    assert backend.captures == 0


def one_refusal(caplog) -> str:
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    return record.getMessage()


READS = {
    "item": lambda tokens: tokens[0, 0].item(),
    "branch": lambda tokens: bool((tokens == 5).any()),
    "nonzero": lambda tokens: tokens.nonzero(),
    "mask": lambda tokens: tokens[tokens > 3],
    "tolist": lambda tokens: tokens.tolist(),
    "made": lambda tokens: tokens + torch.tensor([0]),
}


@pytest.mark.refusal
@pytest.mark.parametrize("read", READS)
def test_a_step_that_reads_the_device_is_run_as_it_is(tmp_path, caplog, monkeypatch, read):
    model = ea_model(tmp_path)
    backend, (ids, mask) = on_tape(model), prompts(model.base_model, 1)
    draft = Drafter.draft

    def reading(self, state, root):
        tree = draft(self, state, root)
        READS[read](tree.tokens_BN)
        return tree

    monkeypatch.setattr(Drafter, "draft", reading)
    for _ in range(2):
        check_ids(model, ids, mask)
    assert one_refusal(caplog).startswith("decoding without CUDA graphs: ")
    assert backend.captures == 0


@pytest.mark.refusal
def test_a_failed_capture_changes_no_id(tmp_path, caplog):
    class Failing(TapeBackend):
        def capture(self, rehearse, step):
            rehearse()
            raise RuntimeError("operation not permitted\nwhen stream is capturing")

    model = ea_model(tmp_path)
    model.graphs, (ids, mask) = GraphPool(Failing(), BUCKET), prompts(model.base_model, 3)
    for _ in range(2):
        check_ids(model, ids, mask)
    assert one_refusal(caplog) == "decoding without CUDA graphs: operation not permitted"


@pytest.mark.refusal
@pytest.mark.parametrize("lie", ["nothing", "other tokens", "lengths"])
def test_a_replay_that_differs_is_found_out(tmp_path, caplog, lie):
    model = ea_model(tmp_path)

    class Lying(TapeBackend):
        def capture(self, rehearse, step):
            replay = super().capture(rehearse, step)

            def lying():
                if lie != "nothing":
                    replay()
                if lie == "other tokens":
                    step.outcome_BX.add_(1)
                if lie == "lengths":
                    step.buffers.cache.lengths_B.add_(1)

            return lying

    model.graphs, (ids, mask) = GraphPool(Lying(), BUCKET), prompts(model.base_model, 3)
    for _ in range(2):
        check_ids(model, ids, mask)
    assert one_refusal(caplog).endswith("its replay differs from the step itself")


@pytest.mark.refusal
def test_a_number_of_the_host_baked_into_a_graph_is_found_out_at_the_second_step(tmp_path, caplog, monkeypatch):
    model = ea_model(tmp_path)
    backend, (ids, mask) = on_tape(model), prompts(model.base_model, 1)

    def baked(self, device):
        return torch.full((1,), self.lengths[0], device=device)

    monkeypatch.setattr(StaticKVCache, "lengths_on", baked)
    model.graphs.run, steps = counted(model.graphs.run)
    check_ids(model, ids, mask, drafts=False)
    assert one_refusal(caplog).endswith("its replay differs from the step itself")
    assert backend.captures == 1 and backend.replays == 2 < len(steps)


def counted(function):
    calls = []

    def call(*args):
        calls.append(args)
        return function(*args)

    return call, calls


def test_graphs_are_refused_where_there_is_no_cuda_device(tmp_path):
    model = ea_model(tmp_path)
    assert model.graphs is None
    with pytest.raises(ValueError, match=r"cuda_graphs=True .* one CUDA device, it is on \['cpu'\]"):
        ea_model(tmp_path, cuda_graphs=True)


def test_a_tape_keeps_the_rules_of_a_graph():
    """Tensors from before are used where they lie, the numbers of the host are baked in, capturing runs nothing."""
    static, out, number = torch.tensor([1.0, 2.0]), torch.zeros(2), 10

    def step():
        view = out[:1]
        view.copy_((static * number)[:1])
        out[1:].add_(static.sum())

    backend = TapeBackend()
    replay = backend.capture(lambda: None, step)
    assert out.tolist() == [0, 0]
    static.copy_(torch.tensor([3.0, 4.0]))
    number = 1000
    replay()
    replay()
    assert out.tolist() == [30, 14]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("batch", [1, 3])
def test_cuda_graphs_give_the_ids_of_generate(tmp_path, mode, batch):
    base = copy.deepcopy(base_model("llama")).cuda()
    model = ea_model(tmp_path, base, cuda_graphs=True)
    ids, mask = (tensor.cuda() for tensor in prompts(base, batch))
    for drafts in (True, False, True):
        check_ids(model, ids, mask, mode, new=60, drafts=drafts)
    assert model._prepared(model.ea_layer, base, {"input_ids": ids}).replays is not None
