"""The training losses and their gradients against a second implementation: `slow_recipes`, written from the papers.

The library trains in fp32, as users do; the second implementation computes the same weights in fp64. Rounding moves a
gradient here by up to 2e-6 of its parameter's largest: the tolerance is five times that.
"""

import copy
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from architectures import VOCABULARY, base_model
from pairs import random_head
from slow_recipes import STEP_DECAY, draft_vocabulary, eagle3_total, mean, slow_eagle3_losses, slow_eagle_losses
from torch import nn

from eagle.model.configs import tapped_layers
from eagle.model.head import DraftHead
from eagle.model.target import TargetModel
from eagle.train.features import Lesson, lesson
from eagle.train.losses import drafted_targets, eagle3_loss, eagle_loss
from eagle.train.recipe import eagle3_recipe, eagle_recipe, frequent_tokens, new_head
from eagle.train.unroll import unroll

TOLERANCE = 1e-5
ENTRIES = 9
KEEP = [True, False, True, True, True, False, True, True, True]
LAYOUTS = {
    "grouped": {},
    "one key head": {"num_key_value_heads": 1},
    "multi-head": {"num_key_value_heads": 4},
    "wide heads": {"head_dim": 12},
    "biases": {"attention_bias": True},
    "fast rotation": {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}},
}
FLAGS = ("norm_before_fc", "fc_norm", "norm_before_residual", "norm_output")


@cache
def target() -> TargetModel:
    return TargetModel(base_model("llama"))


@cache
def exact_base() -> Any:
    return copy.deepcopy(base_model("llama")).double()


def sequences(rows: int, entries: int = ENTRIES) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (rows, entries + 1), generator=torch.Generator().manual_seed(1))


def answers(ids_BT: torch.Tensor) -> torch.Tensor:
    """What the target says after every token but the first."""
    return exact_base()(input_ids=ids_BT, use_cache=False).logits[:, 1:].argmax(-1)


def head_of(kind: str, **fields: Any) -> DraftHead:
    return random_head(target().model, kind, **fields)


def let_draft(head: DraftHead, tokens: list[int]) -> DraftHead:
    """Give the head another draft vocabulary of the same size."""
    chosen = torch.tensor(sorted(tokens))
    head.d2t.copy_(chosen - torch.arange(len(chosen)))
    head.t2d.zero_()[chosen] = True
    return head


def own_embeddings(head: DraftHead) -> DraftHead:
    head.embed_tokens = nn.Embedding(VOCABULARY, head.config.hidden_size)
    return head


def taught_to(head: DraftHead, ids_BT: torch.Tensor) -> Lesson:
    return lesson(target(), ids_BT, tapped_layers(head.config, len(target().layers)))


def gradients(head: DraftHead, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    loss.backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.double() for n, p in head.named_parameters()}


def assert_same(head: DraftHead, loss: torch.Tensor, exact: DraftHead, exact_loss: torch.Tensor) -> None:
    """Compare losses and the gradients of every parameter, each on its own scale."""
    assert exact_loss.dtype == torch.float64
    assert loss.item() == pytest.approx(exact_loss.item(), rel=TOLERANCE)
    found, wanted = gradients(head, loss), gradients(exact, exact_loss)
    for name, gradient in wanted.items():
        assert gradient.any(), name
        assert (found[name] - gradient).abs().max() <= TOLERANCE * gradient.abs().max(), name


def assert_eagle_same(head: DraftHead, ids_BT: torch.Tensor) -> None:
    taught = lesson(target(), ids_BT, "last")
    loss = eagle_recipe(head, target(), torch.Generator().manual_seed(7))(taught).loss
    exact = copy.deepcopy(head).double()
    noise_BSF = (torch.rand(taught.features_BSF.shape, generator=torch.Generator().manual_seed(7)) * 2 - 1) * 0.1
    rows = [slow_eagle_losses(exact, exact_base(), *row) for row in zip(ids_BT, noise_BSF, strict=True)]
    assert_same(head, loss, exact, mean([loss for row in rows for loss in row]))


def slow_eagle3(head: DraftHead, ids_BT: torch.Tensor, steps: int) -> list[list[torch.Tensor]]:
    rows = [slow_eagle3_losses(head, exact_base(), ids_T, steps) for ids_T in ids_BT]
    return [[loss for row in rows for loss in row[k]] for k in range(steps)]


def assert_eagle3_same(head: DraftHead, ids_BT: torch.Tensor, steps: int) -> None:
    loss = eagle3_recipe(head, target(), steps)(taught_to(head, ids_BT)).loss
    exact = copy.deepcopy(head).double()
    assert_same(head, loss, exact, eagle3_total(slow_eagle3(exact, ids_BT, steps)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_eagle_loss_and_gradients(layout):
    assert_eagle_same(head_of("eagle", **LAYOUTS[layout]), sequences(1))


def test_eagle_loss_of_a_head_whose_fc_has_no_bias():
    assert_eagle_same(head_of("eagle", bias=False), sequences(1))


def test_eagle_loss_of_a_batch_is_one_mean():
    assert_eagle_same(head_of("eagle"), sequences(2))


def test_eagle_loss_reads_the_embeddings_of_the_head():
    assert_eagle_same(own_embeddings(head_of("eagle")), sequences(1))


@pytest.mark.parametrize("steps", [1, 2, 4, 7])
def test_eagle3_loss_and_gradients(steps):
    assert_eagle3_same(head_of("eagle3"), sequences(1), steps)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_eagle3_loss_of_other_layouts(layout):
    assert_eagle3_same(head_of("eagle3", **LAYOUTS[layout]), sequences(1), 3)


@pytest.mark.parametrize("flags", [*([flag] for flag in FLAGS), FLAGS], ids="+".join)
def test_eagle3_loss_with_other_norms(flags):
    assert_eagle3_same(head_of("eagle3", **dict.fromkeys(flags, True)), sequences(1), 4)


def test_eagle3_loss_over_the_whole_vocabulary():
    assert_eagle3_same(head_of("eagle3", draft_vocab_size=VOCABULARY), sequences(1), 3)


def test_eagle3_loss_reads_the_embeddings_of_the_head():
    assert_eagle3_same(own_embeddings(head_of("eagle3")), sequences(1), 3)


def test_eagle3_loss_of_a_batch_is_one_mean():
    ids_BT, head = sequences(2), head_of("eagle3")
    drafts = torch.tensor(draft_vocabulary(head))
    counts = torch.isin(answers(ids_BT), drafts).sum(-1).tolist()
    assert 0 < min(counts) < max(counts) < ENTRIES, "a mean of two means would pass"
    assert_eagle3_same(head, ids_BT, 4)


def test_eagle3_loss_of_a_new_head_that_drafts_frequent_tokens():
    ids_BT = sequences(2)
    drafts_W = frequent_tokens(answers(ids_BT).flatten().numpy(), VOCABULARY, 5)
    head = new_head("eagle3", target(), drafts_W)
    assert draft_vocabulary(head) == drafts_W.tolist()
    assert_eagle3_same(head, ids_BT, 3)


def test_frequent_tokens_are_seen_at_least_as_often_as_the_rest():
    ids = np.random.default_rng(0).integers(0, 40, 150)
    counts = {token: int((ids == token).sum()) for token in range(VOCABULARY)}
    chosen = frequent_tokens(ids, VOCABULARY, 20).tolist()
    assert len(set(chosen)) == 20
    assert sorted(counts[token] for token in chosen) == sorted(counts.values())[-20:]


def test_eagle3_loss_where_late_steps_count_nothing():
    ids_BT, head = sequences(1), head_of("eagle3")
    row = answers(ids_BT)[0].tolist()
    others = sorted(set(range(VOCABULARY)) - set(row))
    let_draft(head, [row[1], *others[: head.draft_size - 1]])
    counted = [len(step) for step in slow_eagle3(copy.deepcopy(head).double(), ids_BT, 4)]
    assert counted == [2, 2, 1, 0]
    assert_eagle3_same(head, ids_BT, 4)


def test_eagle3_loss_is_zero_where_the_head_can_draft_no_answer():
    ids_BT = sequences(2)
    others = sorted(set(range(VOCABULARY)) - set(answers(ids_BT).flatten().tolist()))
    head = head_of("eagle3")
    let_draft(head, others[: head.draft_size])
    assert not any(slow_eagle3(copy.deepcopy(head).double(), ids_BT, 7))
    loss = eagle3_recipe(head, target(), 7)(taught_to(head, ids_BT)).loss
    assert loss.item() == 0
    assert not any(gradient.any() for gradient in gradients(head, loss).values())


def test_eagle3_loss_of_more_steps_than_entries():
    assert_eagle3_same(head_of("eagle3"), sequences(1, entries=4), 6)


def test_eagle_loss_of_kept_entries():
    ids_BT, head, keep_BS = sequences(1), head_of("eagle"), torch.tensor([KEEP])
    taught = lesson(target(), ids_BT, "last")
    [(hidden_BSD, _)] = unroll(head, target().embed(taught.tokens_BS), taught.features_BSF, 1)
    logits_BSV = target().output_logits(hidden_BSD)
    loss = eagle_loss(hidden_BSD, taught.next_features_BSF, logits_BSV, taught.target_logits_BSV, keep_BS)
    exact = copy.deepcopy(head).double()
    assert_same(head, loss, exact, mean(slow_eagle_losses(exact, exact_base(), ids_BT[0], keep_S=keep_BS[0])))


def test_eagle3_loss_of_kept_entries():
    ids_BT, head, keep_BS = sequences(1), head_of("eagle3"), torch.tensor([KEEP])
    taught = taught_to(head, ids_BT)
    wanted_BSW, inside_BS = drafted_targets(taught.target_logits_BSV, torch.tensor(draft_vocabulary(head)))
    states = unroll(head, target().embed(taught.tokens_BS), head.fuse(taught.features_BSF), 4)
    loss = sum(
        STEP_DECAY**k * eagle3_loss(head.logits(state_BSD), wanted_BSW, keep_BS & inside_BS & real_S)
        for k, (state_BSD, real_S) in enumerate(states)
    )
    exact = copy.deepcopy(head).double()
    slow = eagle3_total(slow_eagle3_losses(exact, exact_base(), ids_BT[0], 4, keep_BS[0]))
    assert_same(head, loss, exact, slow)
