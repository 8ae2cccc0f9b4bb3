"""Optimisers, and the learning rate that they take."""

from collections.abc import Iterable

import torch
from torch import nn

from eagle.train.settings import Settings


def optimizers(head: nn.Module, settings: Settings) -> list[torch.optim.Optimizer]:
    """Return AdamW, or Muon for the matrices inside the head and AdamW for the rest."""
    trained = [(name, weight) for name, weight in head.named_parameters() if weight.requires_grad]
    inner = [w for name, w in trained if w.ndim == 2 and "lm_head" not in name and "embed_tokens" not in name]
    decayed = {"params": [w for _, w in trained if w.ndim == 2], "weight_decay": settings.weight_decay}
    others = {"params": [w for _, w in trained if w.ndim != 2], "weight_decay": 0.0}
    if settings.optimizer == "adamw":
        return [torch.optim.AdamW([decayed, others], lr=settings.peak_rate, betas=(0.9, 0.95))]
    outer = [w for _, w in trained if not any(w is other for other in inner)]
    muon = torch.optim.Muon(
        inner, lr=settings.peak_rate, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    if not outer:
        return [muon]
    return [muon, torch.optim.AdamW(outer, lr=settings.peak_rate, betas=(0.9, 0.95), weight_decay=0.0)]


def set_rate(optims: Iterable[torch.optim.Optimizer], rate: float) -> None:
    """Give all parameters this learning rate."""
    for optim in optims:
        for group in optim.param_groups:
            group["lr"] = rate
