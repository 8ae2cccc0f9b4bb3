"""Unrolled steps against a dense, obvious reference: all steps side by side in fp64 under one explicit mask.

Shapes: B rows, S entries, N entries of all steps so far, D width; H heads, E head size.
"""

import copy
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from architectures import base_model
from pairs import random_head
from torch.utils._python_dispatch import TorchDispatchMode

from eagle.train.training_time_test import training_time_test
from eagle.train.ttt_attention import behind_sink, causal, chained

WIDTH, STEPS = 32, 5
PACKED = [
    [1, 1, 1, 1, 1, 1, 2, 3, 3, 3, 3, 3, 4, 4, 4, 5, 5, 0],  # segments of 6, 1, 5, 3, 2
    [1] * 18,
    [1] * 9 + [2] * 5 + [0] * 4,
    [0] * 18,
]
LAYOUTS = {
    "one segment": None,
    "pads": [[1] * 18, [1] * 11 + [0] * 7, [1] * 3 + [0] * 15, [0] * 18],
    "packed": PACKED,
    "two in a row": [[1] * 18, [1] * 7 + [2] * 11],
}
HEADS = {
    "eagle3": ("eagle3", {}),
    "one key head": ("eagle3", {"num_key_value_heads": 1}),
    "a key for every query": ("eagle3", {"num_key_value_heads": 4}),
    "odd head size": ("eagle3", {"head_dim": 6, "attention_bias": True}),
    "eagle": ("eagle", {}),
    "two layers": ("eagle", {"num_hidden_layers": 2}),
}


@cache
def head_of(name="eagle3"):
    kind, fields = HEADS[name]
    return random_head(base_model("llama"), kind, **fields)


def layout(name):
    """Return segments [B, S], and positions that restart in every one."""
    if LAYOUTS[name] is None:
        return None, None
    rows = LAYOUTS[name]
    positions = [[row[:t].count(row[t]) for t in range(len(row))] for row in rows]
    return torch.tensor(rows), torch.tensor(positions)


def inputs(rows=4, entries=18, scale=1.0):
    generator = torch.Generator().manual_seed(0)
    return [scale * torch.randn(rows, entries, WIDTH, generator=generator) for _ in range(2)]


def is_real(row, k, t):
    return t >= k and row[t] > 0 and row[t - k] == row[t]


def sees(row, k, t, i, s):
    """Whether entry t of step k attends to entry s of step i; one that is not real attends to itself."""
    if not is_real(row, k, t):
        return (i, s) == (k, t)
    if i == 0:
        return s <= t - k and row[s] == row[t]
    return i <= k and s == t - (k - i)


def dense(head, embeds_BSD, hidden_BSD, steps, segments=None, positions=None):
    """Return output [B, S, D] and real entries [B, S] of every step."""
    rows, entries = embeds_BSD.shape[:2]
    segments = [[1] * entries] * rows if segments is None else segments.tolist()
    positions = torch.arange(entries)[None] if positions is None else positions
    found, hiddens = [], [hidden_BSD]
    for k in range(steps):
        nodes = [(i, s) for i in range(k + 1) for s in range(entries)]
        mask_BNN = torch.tensor([[[sees(row, *one, *other) for other in nodes] for one in nodes] for row in segments])

        def attend(layer, q, k, v, mask_BNN=mask_BNN):
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
            scores = (q @ k.transpose(-1, -2)).to(q.dtype) * q.shape[-1] ** -0.5
            return scores.masked_fill(~mask_BNN[:, None], -torch.inf).softmax(-1).to(v.dtype) @ v

        out_BND = head(embeds_BSD.repeat(1, k + 1, 1), torch.cat(hiddens, 1), positions.repeat(1, k + 1), attend)
        real_BS = torch.tensor([[is_real(row, k, t) for t in range(entries)] for row in segments])
        found.append((out_BND[:, -entries:], real_BS))
        hiddens.append(found[-1][0].roll(1, 1))
    return found


def taught(head, tensors, states):
    """Return the real outputs of every step, and gradients of a sum of them with random weights."""
    outs = [out_BSD[real_BS] for out_BSD, real_BS in states]
    weights = torch.randn(sum(map(len, outs)), WIDTH, generator=torch.Generator().manual_seed(1))
    parts = head.layers if head.kind == "EAGLE-1/2" else head.midlayer
    return outs, torch.autograd.grad((torch.cat(outs) * weights).sum(), [*tensors, *parts.parameters()])


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("segments", LAYOUTS)
@pytest.mark.parametrize("name", HEADS)
def test_every_step_and_its_gradients_equal_the_dense_reference(name, segments, checkpoint):
    head = copy.deepcopy(head_of(name)).double()
    segments_BS, positions_BS = layout(segments)
    rows = 4 if segments_BS is None else len(segments_BS)
    embeds, hidden = (x.double().requires_grad_() for x in inputs(rows))
    wanted = dense(head, embeds, hidden, STEPS, segments_BS, positions_BS)
    outs, gradients = taught(head, [embeds, hidden], wanted)
    states = list(training_time_test(head, embeds, hidden, STEPS, positions_BS, segments_BS, checkpoint))
    assert [real_BS.tolist() for _, real_BS in states] == [real_BS.tolist() for _, real_BS in wanted]
    assert all(out_BSD.shape == hidden.shape for out_BSD, _ in states)
    found_outs, found = taught(head, [embeds, hidden], states)
    torch.testing.assert_close(found_outs, outs, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(found, gradients, rtol=1e-8, atol=1e-10)


def test_entries_that_are_not_real_are_finite_and_teach_nothing():
    head = copy.deepcopy(head_of()).double()
    segments_BS, positions_BS = layout("packed")
    embeds, hidden = (x.double().requires_grad_() for x in inputs())
    states = list(training_time_test(head, embeds, hidden, STEPS, positions_BS, segments_BS))
    assert all(out_BSD.isfinite().all() for out_BSD, _ in states)
    sum(out_BSD[real_BS].sum() for out_BSD, real_BS in states).backward()
    assert embeds.grad.isfinite().all() and hidden.grad.isfinite().all()
    assert not embeds.grad[segments_BS == 0].any() and embeds.grad[segments_BS > 0].any(-1).all()


@pytest.mark.parametrize("checkpoint", [False, True])
def test_rows_shorter_than_the_steps_run_the_head_as_often(checkpoint):
    head, calls = copy.deepcopy(head_of()), []
    head.register_forward_pre_hook(lambda *_: calls.append(1))
    embeds, hidden = inputs(1, entries=2)
    states = list(training_time_test(head, embeds, hidden, STEPS, checkpoint=checkpoint))
    assert [real_BS.tolist() for _, real_BS in states] == [[[True] * 2], [[False, True]], *[[[False] * 2]] * 3]
    assert len(calls) == STEPS and all(out_BSD.shape == hidden.shape for out_BSD, _ in states)
    sum(out_BSD.sum() for out_BSD, _ in states).backward()
    assert len(calls) == (2 * STEPS if checkpoint else STEPS)


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return out


def largest_of(segments_BS, entries=512):
    embeds, hidden = inputs(1, entries)
    with Largest() as largest:
        states = training_time_test(head_of(), embeds, hidden, STEPS, segments_BS=segments_BS)
        sum(out_BSD.square().sum() for out_BSD, _ in states).backward()
    return largest.elements


@pytest.mark.parametrize("pads", [0, 100])
def test_nothing_as_large_as_a_matrix_over_entries_is_ever_made(pads):
    assert largest_of(torch.tensor([[1] * (512 - pads) + [0] * pads])) < 512 * 512 // 4


def test_packed_rows_take_one_mask_for_all_heads():
    assert largest_of(torch.tensor([[1] * 200 + [2] * 312])) <= 528 * 528


@pytest.mark.parametrize("segments", LAYOUTS)
def test_keys_are_never_repeated_for_the_queries_that_share_them(segments, monkeypatch):
    segments_BS, positions_BS = layout(segments)
    monkeypatch.setattr(torch.Tensor, "repeat_interleave", lambda *_: pytest.fail("keys are repeated"))
    embeds, hidden = inputs(4 if segments_BS is None else len(segments_BS))
    assert len(list(training_time_test(head_of(), embeds, hidden, STEPS, positions_BS, segments_BS))) == STEPS


def test_a_checkpoint_keeps_nothing_of_a_step_but_what_later_ones_read():
    def kept(checkpoint):
        embeds, hidden = inputs()
        elements = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: elements.append(x.numel()) or x, lambda x: x):
            list(training_time_test(head_of(), embeds, hidden, STEPS, checkpoint=checkpoint))
        return sum(elements)

    assert kept(True) < kept(False) / 10


def test_bf16_is_as_exact_as_the_dense_reference_in_bf16():
    embeds, hidden = inputs(2, 40, scale=2.0)
    exact = dense(copy.deepcopy(head_of()).double(), embeds.double(), hidden.double(), STEPS)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = dense(head_of(), embeds, hidden, STEPS)
        found = list(training_time_test(head_of(), embeds, hidden, STEPS))
    for step in range(STEPS):
        out, dense_out, exact_out = (states[step][0][:, step:] for states in (found, coarse, exact))
        assert (out - exact_out).norm() <= 1.2 * (dense_out - exact_out).norm() < 0.2 * exact_out.norm()


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 8e-3), (torch.float16, 1e-3), (torch.float32, 1e-5)])
def test_a_chain_with_large_scores_weighs_what_it_should(dtype, tolerance):
    """Scores around 50 either side: rounded to bf16, the sink's would be off by an eighth."""
    generator = torch.Generator().manual_seed(0)
    q, k0, v0, k1, v1 = (torch.randn(1, h, 64, 16, generator=generator).to(dtype) for h in (4, 2, 2, 2, 2))
    common = torch.ones(16).to(dtype) * 3.5
    q, k0, k1 = (F.normalize(x.float(), dim=-1).to(dtype) + common for x in (q, k0, k1))
    past = behind_sink(k0, v0)
    exact = torch.promote_types(dtype, torch.float32)
    found = chained(q[:, :, 1:].to(exact), past, [(k1[:, :, 1:].to(exact), v1[:, :, 1:])])
    assert found.dtype == dtype
    keys, values = (x.double().repeat_interleave(2, 1) for x in (k0, v0))
    own, own_value = (x[:, :, 1:].double().repeat_interleave(2, 1) for x in (k1, v1))
    past_scores = (q[:, :, 1:].double() @ keys[:, :, :-1].transpose(-1, -2)) / 4
    past_scores = past_scores.masked_fill(torch.ones(63, 63).triu(1).bool(), -torch.inf)
    scores = torch.cat([past_scores, (q[:, :, 1:].double() * own).sum(-1, keepdim=True) / 4], -1)
    assert scores.max() > 45
    weights = scores.softmax(-1)
    wanted = weights[..., :-1] @ values[:, :, :-1] + weights[..., -1:] * own_value
    assert (found.double() - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.mark.parametrize("masked", [False, True])
def test_the_first_step_s_attention_is_causal_with_shared_keys(masked):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 6, 8, generator=generator) for heads in (4, 2, 2))
    mask = torch.ones(2, 1, 6, 6).tril().bool() if masked else None
    scores = q @ k.repeat_interleave(2, 1).transpose(-1, -2) * 8**-0.5
    weights = scores.masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf).softmax(-1)
    torch.testing.assert_close(causal(q, k, v, mask), weights @ v.repeat_interleave(2, 1))
