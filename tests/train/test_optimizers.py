"""How weights move: the learning rate of every step, which optimiser moves what, clipped gradients."""

from itertools import chain

import pytest
import torch
from architectures import base_model
from pairs import random_head
from teaching import losses_of, school
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from eagle.train import loop
from eagle.train.optimizers import optimizers
from eagle.train.run import run_of
from eagle.train.schedule import Schedule
from eagle.train.settings import Settings


def rates(steps: int, schedule: str, warmup: int = 0) -> list[float]:
    """Return the learning rates of a run as parts of the peak, and the one after its end."""
    chosen = Settings(lr=0.1, lr_scheduler=schedule, warmup_steps=warmup)
    return [Schedule(chosen, steps).rate(step) / 0.1 for step in range(steps + 1)]


def head() -> nn.Module:
    """A head with all there is: embeddings of its own, matrices, biases, norms."""
    model = random_head(base_model("llama"), "eagle3", attention_bias=True)
    model.embed_tokens = nn.Embedding(89, 32)
    return model


def test_the_learning_rate_falls_from_its_peak_to_two_percent_of_it():
    assert rates(4, "constant") == [1] * 5
    assert rates(4, "linear") == pytest.approx([1, 0.755, 0.51, 0.265, 0.02])
    assert rates(4, "cosine") == pytest.approx([1, 0.51 + 0.49 * 0.5**0.5, 0.51, 0.51 - 0.49 * 0.5**0.5, 0.02])


def test_the_learning_rate_is_a_part_of_its_peak_from_the_first_step_and_all_of_it_after_the_warm_up():
    assert rates(6, "constant", warmup=4) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_step_is_taken_at_the_rate_of_its_place_and_metrics_say_so(tmp_path, monkeypatch, optimizer):
    run = Settings(**school(tmp_path), max_steps=4, warmup_steps=2, log_every=1, optimizer=optimizer, kind="eagle3")
    one_step, taken = loop.one_step, []

    def watched(run, step, rate):
        done = one_step(run, step, rate)
        taken.append({group["lr"] for optim in run.optims for group in optim.param_groups})
        return done

    monkeypatch.setattr(loop, "one_step", watched)
    run_of(run)
    rates = [Schedule(run, 4).rate(step) for step in range(4)]
    assert taken == [{rate} for rate in rates] and losses_of(run.cpdir, "learning_rate") == rates


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_output_matrix_keeps_its_part_of_every_rate_when_it_has_one_of_its_own(tmp_path, monkeypatch, optimizer):
    rates = {"lr": 0.01, "lm_head_lr": 0.03, "max_steps": 4, "warmup_steps": 2, "save_every": 2}
    run = Settings(**school(tmp_path), **rates, optimizer=optimizer, kind="eagle3")
    one_step, taken = loop.one_step, []

    def watched(run, step, rate):
        if len(taken) == 3:
            taken.append(None)
            raise KeyboardInterrupt
        done = one_step(run, step, rate)
        names = {id(weight): name for name, weight in run.recipe.head.named_parameters()}
        groups = [group for optim in run.optims for group in optim.param_groups]
        taken.append({names[id(weight)]: group["lr"] / rate for group in groups for weight in group["params"]})
        return done

    monkeypatch.setattr(loop, "one_step", watched)
    with pytest.raises(KeyboardInterrupt):
        run_of(run)
    run_of(run)  # goes on after step 2
    steps = [found for found in taken if found is not None]
    assert len(steps) == 5
    for found in steps:
        assert found.pop("lm_head.weight") == pytest.approx(3)
        assert set(found.values()) == {1.0} and len(found) > 8


def test_muon_moves_the_matrices_inside_a_head_and_adamw_all_else():
    model = head()
    muon, adamw = optimizers(model, Settings(optimizer="muon"))
    weights = {id(weight): name for name, weight in model.named_parameters()}
    inner, outer = (
        {weights[id(weight)] for group in optim.param_groups for weight in group["params"]} for optim in (muon, adamw)
    )
    assert inner | outer == set(weights.values()) and not inner & outer
    assert {"fc.weight", "midlayer.self_attn.q_proj.weight", "midlayer.mlp.down_proj.weight"} <= inner
    assert {"lm_head.weight", "embed_tokens.weight", "norm.weight", "midlayer.self_attn.q_proj.bias"} <= outer


def test_a_step_of_muon_is_of_adamw_s_size_whatever_the_matrix_s_shape():
    model = nn.Linear(512, 32, bias=False)
    before = model.weight.detach().clone()
    (muon,) = optimizers(model, Settings(optimizer="muon", lr=0.01))
    model.weight.grad = torch.randn(model.weight.shape, generator=torch.Generator().manual_seed(0))
    muon.step()
    assert float((model.weight - before).square().mean().sqrt()) == pytest.approx(0.2 * 0.01, rel=0.2)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_weight_decay_is_of_matrices_alone(optimizer):
    model = head()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    for optim in optimizers(model, Settings(optimizer=optimizer, lr=0.1, weight_decay=0.5)):
        optim.step()
    for name, weight in model.named_parameters():
        matrix = weight.ndim == 2 and (optimizer == "adamw" or name not in ("lm_head.weight", "embed_tokens.weight"))
        torch.testing.assert_close(weight.detach(), before[name] * (0.95 if matrix else 1), msg=name)


def test_gradients_of_a_whole_step_are_clipped_to_the_norm_that_was_asked_for(tmp_path, monkeypatch):
    norms = []

    def measure(optim, *_):
        weights = chain.from_iterable(group["params"] for group in optim.param_groups)
        norms.append(float(nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])))

    hook = register_optimizer_step_pre_hook(measure)
    try:
        run_of(Settings(**school(tmp_path), max_steps=3, bs=2, gradient_accumulation_steps=2, max_grad_norm=0.01))
    finally:
        hook.remove()
    assert norms == pytest.approx([0.01] * 3, rel=1e-3)
