"""Optimisers, and the learning rate that they take."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from eagle.train.settings import Settings

SHARE = "share"
OUTPUT = "lm_head"


def optimizers(head: nn.Module, settings: Settings) -> list[torch.optim.Optimizer]:
    """Return AdamW, or Muon for the matrices inside the head and AdamW for the rest.

    A group of parameters whose rate is not the run's says which part of it is its own, as `SHARE`.
    """
    trained = [(name, weight) for name, weight in head.named_parameters() if weight.requires_grad]
    if settings.optimizer == "adamw":
        matrices = [(name, weight) for name, weight in trained if weight.ndim == 2]
        others = [(name, weight) for name, weight in trained if weight.ndim != 2]
        groups = [*_groups(matrices, settings, settings.weight_decay), *_groups(others, settings, 0.0)]
        return [torch.optim.AdamW(groups, lr=settings.peak_rate, betas=(0.9, 0.95))]
    inner = [w for name, w in trained if w.ndim == 2 and OUTPUT not in name and "embed_tokens" not in name]
    outer = [(name, w) for name, w in trained if not any(w is other for other in inner)]
    muon = torch.optim.Muon(
        inner, lr=settings.peak_rate, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    if not outer:
        return [muon]
    return [muon, torch.optim.AdamW(_groups(outer, settings, 0.0), lr=settings.peak_rate, betas=(0.9, 0.95))]


def _groups(named: Sequence[tuple[str, nn.Parameter]], settings: Settings, weight_decay: float) -> list[dict[str, Any]]:
    """Return the groups of some parameters: one, or two where the output matrix has a rate of its own."""
    share = 1.0 if settings.lm_head_lr is None else settings.lm_head_lr / settings.peak_rate
    output = [weight for name, weight in named if OUTPUT in name and share != 1.0]
    rest = [weight for _, weight in named if not any(weight is other for other in output)]
    groups: list[dict[str, Any]] = [{"params": rest}, {"params": output, "lr": settings.lm_head_lr, SHARE: share}]
    return [group | {"weight_decay": weight_decay} for group in groups if group["params"]]


def set_rate(optims: Iterable[torch.optim.Optimizer], rate: float) -> None:
    """Give all parameters this learning rate, or their share of it."""
    for optim in optims:
        for group in optim.param_groups:
            group["lr"] = rate * group.get(SHARE, 1.0)
