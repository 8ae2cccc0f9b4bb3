"""The training losses of draft heads, as weighted sums over entries, a chunk of logits at a time.

Sums, not means: the weights hold what a step is divided by, which is counted over all processes and micro-batches.

Shapes: R entries that count, r of them at once, K unrolled steps, D width, V target vocabulary, W draft vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

FEATURE_WEIGHT, TOKEN_WEIGHT = 1.0, 0.1
STEP_DECAY = 0.8
CHUNK = 256  # entries whose logits are held at once

Project = Callable[[torch.Tensor], torch.Tensor]  # hidden states [..., D] -> logits [..., W]
Wanted = Callable[[slice], torch.Tensor]  # which entries -> the target's probabilities [r, W], fp32


def smooth_l1(hidden_RD: torch.Tensor, feature_RD: torch.Tensor, weight_R: torch.Tensor) -> torch.Tensor:
    """Return the smooth L1 distance to the true features, mean over the width, weighted sum over entries."""
    distance_RD = F.smooth_l1_loss(hidden_RD.float(), feature_RD.float(), reduction="none")
    return (distance_RD.mean(-1) * weight_R).sum()


def cross_entropy(
    hidden_KRD: torch.Tensor,
    project: Project,
    parameters: Sequence[torch.Tensor],
    wanted: Wanted,
    weight_KR: torch.Tensor,
    target_tokens_R: torch.Tensor,
    sharded: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weighted sum of soft cross-entropies, in nats, and where the likeliest token is the answer [K, R].

    Logits live for a chunk of entries at a time: with a vocabulary of 128,000 those of a batch would be most of the
    memory. Their gradient, the difference of two softmaxes, is known as soon as they are, so it goes on at once into
    those of states and parameters, and nothing is computed again.

    Args:
        hidden_KRD: the head's states.
        project: makes logits of them.
        parameters: of `project`, those that are trained.
        wanted: gives the target's probabilities for some of the entries.
        weight_KR: fp32, what every entry counts.
        target_tokens_R: the target's token, as an id of the draft vocabulary; -1 where it cannot be drafted.
        sharded: weights lie in parts that only a module's own forward and backward gather: logits are then made again
            for the gradient.
    """
    if sharded:
        return _checkpointed(hidden_KRD, project, wanted, weight_KR, target_tokens_R)
    arguments = hidden_KRD, weight_KR, project, wanted, target_tokens_R, *parameters
    loss, right_KR = _CrossEntropy.apply(*arguments)  # type: ignore[no-untyped-call]
    return loss, right_KR


def _chunks(entries: int) -> Iterator[slice]:
    # At least one: without entries gradients are zeros, for which other processes wait.
    return (slice(begin, begin + CHUNK) for begin in range(0, max(1, entries), CHUNK))


def _right(logits_KrW: torch.Tensor, target_tokens_r: torch.Tensor) -> torch.Tensor:
    """Return where no token is likelier than the answer."""
    indices_KrI = target_tokens_r.clamp(min=0).expand(len(logits_KrW), -1)[..., None]
    best = logits_KrW.gather(-1, indices_KrI)[..., 0] >= logits_KrW.amax(-1)
    return best & (target_tokens_r >= 0)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_KRD: torch.Tensor,
        weight_KR: torch.Tensor,
        project: Project,
        wanted: Wanted,
        target_tokens_R: torch.Tensor,
        *parameters: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        loss = hidden_KRD.new_zeros((), dtype=torch.float32)
        # Weights are small where a step has many entries; in half precision their products with logits' gradients
        # would vanish, so the largest is 1 until all are summed.
        ctx.scale = weight_KR.max().clamp(min=torch.finfo(torch.float32).tiny) if weight_KR.numel() else loss + 1
        grads = [torch.zeros_like(hidden_KRD), *(torch.zeros_like(p) for p in parameters)]
        right = []
        for rows in _chunks(hidden_KRD.shape[1]):
            weight_Kr1, wanted_rW = weight_KR[:, rows, None], wanted(rows)
            with torch.enable_grad():
                hidden_KrD = hidden_KRD[:, rows].detach().requires_grad_()
                logits_KrW = project(hidden_KrD)
            likely_KrW = logits_KrW.detach().log_softmax(-1, dtype=torch.float32)
            right.append(_right(likely_KrW, target_tokens_R[rows]))
            loss -= ((wanted_rW * likely_KrW).sum(-1, keepdim=True) * weight_Kr1).sum()
            towards_KrW = likely_KrW.exp_().sub_(wanted_rW).mul_(weight_Kr1 / ctx.scale).to(logits_KrW.dtype)
            own, *others = torch.autograd.grad(logits_KrW, [hidden_KrD, *parameters], towards_KrW)
            grads[0][:, rows] = own
            for total, part in zip(grads[1:], others, strict=True):
                total += part
        ctx.save_for_backward(*grads)
        right_KR = torch.cat(right, 1)
        ctx.mark_non_differentiable(right_KR)
        return loss, right_KR

    @staticmethod
    def backward(ctx: Any, loss_grad: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
        own, *others = ((grad.float() * (loss_grad * ctx.scale)).to(grad.dtype) for grad in ctx.saved_tensors)
        return own, None, None, None, None, *others


def _checkpointed(
    hidden_KRD: torch.Tensor, project: Project, wanted: Wanted, weight_KR: torch.Tensor, target_tokens_R: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the same in one piece: all processes that gather weights must do so equally often, whatever R is."""

    def whole(hidden_KRD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            wanted_RW = wanted(slice(None))
        logits_KRW = project(hidden_KRD)
        nats_KR = -(wanted_RW * logits_KRW.log_softmax(-1, dtype=torch.float32)).sum(-1)
        # Last, so that making logits again for the gradient stops before it.
        return (nats_KR * weight_KR).sum(), _right(logits_KRW.detach(), target_tokens_R)

    loss, right_KR = checkpoint(whole, hidden_KRD, use_reentrant=False, preserve_rng_state=False)
    return loss, right_KR
