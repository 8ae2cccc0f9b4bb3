"""The training losses and their gradients against a second implementation: `slow_recipes`, written from the papers.

The library trains in fp32, as users do; the second implementation computes the same weights in fp64. Rounding moves a
gradient here by up to 2e-6 of its parameter's largest: the tolerance is five times that.
"""

import copy
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from architectures import VOCABULARY, base_model
from pairs import random_head
from slow_recipes import draft_vocabulary, slow_eagle3_losses, slow_eagle_losses, total
from teaching import loss_of, recipe_for, texts, train_batch_of
from torch import nn

from eagle.model.head import DraftHead
from eagle.model.target import TargetModel
from eagle.train.configure import head_config
from eagle.train.draft_vocabulary import frequent_tokens
from eagle.train.heads import new_head
from eagle.train.recipe import EAGLE, EAGLE3, Objective

TOLERANCE = 1e-5
ENTRIES = 9
# Tokens in the loss: entry t counts where token t + 2 does, so the last entry never.
MASK = [True, True, True, False, True, True, True, False, True, True]
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
    """What the target says after every token but the first and the last."""
    return exact_base()(input_ids=ids_BT, use_cache=False).logits[:, 1:-1].argmax(-1)


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


def counted(ids_T: torch.Tensor, mask_T: torch.Tensor | None = None) -> torch.Tensor:
    """Return which entries [S] count: those whose next answer is in the loss."""
    mask_T = torch.ones(len(ids_T), dtype=torch.bool) if mask_T is None else mask_T
    return torch.cat([mask_T[2:], torch.tensor([False])])


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


def fast_loss(
    head: DraftHead, ids_BT: torch.Tensor, mask_BT: Any = None, steps: int = 1, objective: Objective | None = None
) -> Any:
    recipe = recipe_for(head, target(), texts(ids_BT, mask_BT), len(ids_BT), steps, objective=objective)
    return loss_of(recipe, train_batch_of(recipe, [[row] for row in range(len(ids_BT))], seed=7))


def masks_of(ids_BT: torch.Tensor, mask_BT: torch.Tensor | None) -> list[Any]:
    return [None] * len(ids_BT) if mask_BT is None else list(mask_BT)


def noise(row: int, entries: int, width: int, size: float) -> torch.Tensor:
    """Return the noise [S, F] of a row of `fast_loss`."""
    return (torch.rand(entries, width, generator=torch.Generator().manual_seed(7 + row)) * 2 - 1) * size


def assert_eagle_same(head: DraftHead, ids_BT: torch.Tensor, mask_BT: Any = None, objective: Objective = EAGLE) -> None:
    loss = fast_loss(head, ids_BT, mask_BT, objective=objective)
    exact = copy.deepcopy(head).double()
    losses: list[list[torch.Tensor]] = [[] for _ in range(objective.steps)]
    for row, (ids_T, mask_T) in enumerate(zip(ids_BT, masks_of(ids_BT, mask_BT), strict=True)):
        noise_SF = noise(row, len(ids_T) - 1, head.config.hidden_size, objective.noise)
        weights = objective.steps, objective.feature_weight, objective.tv_weight
        found = slow_eagle_losses(exact, exact_base(), ids_T, noise_SF, counted(ids_T, mask_T), *weights)
        losses = [step + more for step, more in zip(losses, found, strict=True)]
    assert_same(head, loss, exact, total(losses, objective.decay))


def slow_eagle3(
    head: DraftHead, ids_BT: torch.Tensor, steps: int, mask_BT: torch.Tensor | None = None
) -> list[list[torch.Tensor]]:
    rows = [
        slow_eagle3_losses(head, exact_base(), ids_T, steps, counted(ids_T, mask_T))
        for ids_T, mask_T in zip(ids_BT, masks_of(ids_BT, mask_BT), strict=True)
    ]
    return [[loss for row in rows for loss in row[k]] for k in range(steps)]


def assert_eagle3_same(head: DraftHead, ids_BT: torch.Tensor, steps: int, mask_BT: torch.Tensor | None = None) -> None:
    loss = fast_loss(head, ids_BT, mask_BT, steps)
    exact = copy.deepcopy(head).double()
    assert_same(head, loss, exact, total(slow_eagle3(exact, ids_BT, steps, mask_BT)))


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
    assert 0 < min(counts) < max(counts) < ENTRIES - 1, "a mean of two means would pass"
    assert_eagle3_same(head, ids_BT, 4)


def test_eagle3_loss_of_a_new_head_that_drafts_frequent_tokens():
    ids_BT = sequences(2)
    drafts_W = frequent_tokens(np.bincount(answers(ids_BT).flatten().numpy(), minlength=VOCABULARY), 5)
    config = head_config("eagle3", target().config)
    config.draft_vocab_size, config.tap_layers = 5, [2, 3, 4]
    head = new_head("eagle3", config, drafts_W, target().model.lm_head.weight)
    assert draft_vocabulary(head) == drafts_W.tolist()
    assert_eagle3_same(head, ids_BT, 3)


def test_frequent_tokens_are_seen_at_least_as_often_as_the_rest():
    ids = np.random.default_rng(0).integers(0, 40, 150)
    counts = {token: int((ids == token).sum()) for token in range(VOCABULARY)}
    chosen = frequent_tokens(np.bincount(ids, minlength=VOCABULARY), 20).tolist()
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
    loss = fast_loss(head, ids_BT, steps=7)
    assert loss.item() == 0
    assert not any(gradient.any() for gradient in gradients(head, loss).values())


def test_eagle3_loss_of_more_steps_than_entries():
    assert_eagle3_same(head_of("eagle3"), sequences(1, entries=4), 6)


def test_eagle_loss_of_tokens_in_the_mask():
    assert_eagle_same(head_of("eagle"), sequences(1), torch.tensor([MASK]))


def test_eagle3_loss_of_tokens_in_the_mask():
    assert_eagle3_same(head_of("eagle3"), sequences(1), 4, torch.tensor([MASK]))


CHANGES = {
    "training-time test": {"steps": 3},
    "training-time test without a feature loss": {"steps": 3, "feature_weight": 0.0, "decay": 1.0},
    "no noise": {"noise": 0.0},
    "total variation": {"tv_weight": 0.9, "feature_weight": 0.3},
}


@pytest.mark.parametrize("changes", CHANGES)
def test_eagle_loss_of_other_objectives(changes):
    assert_eagle_same(head_of("eagle"), sequences(2), objective=replace(EAGLE, **CHANGES[changes]))


@pytest.mark.parametrize(
    "changes",
    [{"decay": 0.5}, {"noise": 0.2}, {"feature_weight": 2.0}, {"tv_weight": 0.9}, {"tv_weight": 1.0}],
    ids=str,
)
@pytest.mark.parametrize("flag", ["", "norm_output"])
def test_eagle3_loss_of_other_objectives(changes, flag):
    objective = replace(EAGLE3, steps=3, **changes)
    head, (ids_T,) = head_of("eagle3", **{flag: True} if flag else {}), sequences(1)
    loss = fast_loss(head, ids_T[None], objective=objective)
    exact = copy.deepcopy(head).double()
    noise_SF = noise(0, ENTRIES, 3 * head.config.hidden_size, objective.noise)
    weights = objective.feature_weight, objective.tv_weight
    losses = slow_eagle3_losses(exact, exact_base(), ids_T, 3, counted(ids_T), noise_SF, *weights)
    assert_same(head, loss, exact, total(losses, objective.decay))
