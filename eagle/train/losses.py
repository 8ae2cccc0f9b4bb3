"""The training losses of draft heads, as weighted sums over entries, a chunk of logits at a time.

Sums, not means: the weights hold what a step is divided by, which is counted over all processes and micro-batches.

Shapes: R entries that count, r of them at once, K unrolled steps, D width, V target vocabulary, W draft vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

CHUNK = 256  # entries whose logits are held at once
LOGITS = 1 << 26  # logits that an accelerator holds at once, where those are more: it would wait for launches

Project = Callable[[torch.Tensor], torch.Tensor]  # hidden states [..., D] -> logits [..., W]
Wanted = Callable[[slice], torch.Tensor]  # which entries -> the target's probabilities [r, W], fp32


def smooth_l1(hidden_KRD: torch.Tensor, feature_RD: torch.Tensor, weight_KR: torch.Tensor) -> torch.Tensor:
    """Return the smooth L1 distance to the true features, mean over the width, weighted sum over entries and steps."""
    feature_KRD = feature_RD.float().expand_as(hidden_KRD)
    distance_KRD = F.smooth_l1_loss(hidden_KRD.float(), feature_KRD, reduction="none")
    return (distance_KRD.mean(-1) * weight_KR).sum()


def token_loss(
    hidden_KRD: torch.Tensor,
    project: Project,
    parameters: Sequence[torch.Tensor],
    wanted: Wanted,
    weight_KR: torch.Tensor,
    target_tokens_R: torch.Tensor,
    sharded: bool = False,
    *,
    tv_weight: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weighted sum of token losses and where the likeliest token is the answer [K, R].

    A token loss is the soft cross-entropy in nats, with `tv_weight` mixed with the total variation between the two
    distributions, 1 - sum min(p, q): how often the target rejects a token drawn from the head.

    Logits live for a chunk of entries at a time: with a vocabulary of 128,000 those of a batch would be most of the
    memory. Their gradient is known as soon as they are, so it goes on at once into those of states and parameters, and
    nothing is computed again.

    Args:
        hidden_KRD: the head's states.
        project: makes logits of them.
        parameters: of `project`, those that are trained.
        wanted: gives the target's probabilities for some of the entries.
        weight_KR: fp32, what every entry counts.
        target_tokens_R: the target's token, as an id of the draft vocabulary; -1 where it cannot be drafted.
        sharded: weights lie in parts that only a module's own forward and backward gather: logits are then made again
            for the gradient.
        tv_weight: share of the total variation, from 0 to 1.
    """
    if sharded:
        return _checkpointed(hidden_KRD, project, wanted, weight_KR, target_tokens_R, tv_weight)
    arguments = hidden_KRD, weight_KR, project, wanted, target_tokens_R, tv_weight, *parameters
    loss, right_KR = _TokenLoss.apply(*arguments)  # type: ignore[no-untyped-call]
    return loss, right_KR


def _exact(logits: torch.Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _losses_and_slopes(
    likely_KrW: torch.Tensor, wanted_rW: torch.Tensor, tv_weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token losses [K, r, 1] and their derivatives by the logits [K, r, W] in the place of `likely_KrW`.

    With q the softmax of logits z, dq_i / dz_j = q_i ([i = j] - q_j). So that of the cross-entropy is q - p. Of
    1 - sum min(p, q), where q_i counts as long as it is below p_i, it is q_j (A - [q_j < p_j]), A the sum of such q_i.
    """
    losses_Kr1 = -(wanted_rW * likely_KrW).sum(-1, keepdim=True)
    drafted_KrW = likely_KrW.exp_()
    if not tv_weight:
        return losses_Kr1, drafted_KrW.sub_(wanted_rW)
    below_KrW = drafted_KrW < wanted_rW
    overlap_Kr1 = torch.minimum(drafted_KrW, wanted_rW).sum(-1, keepdim=True)
    slopes_KrW = drafted_KrW * ((drafted_KrW * below_KrW).sum(-1, keepdim=True) - below_KrW.to(drafted_KrW.dtype))
    losses_Kr1 = (1 - tv_weight) * losses_Kr1 + tv_weight * (1 - overlap_Kr1)
    return losses_Kr1, drafted_KrW.sub_(wanted_rW).mul_(1 - tv_weight).add_(slopes_KrW, alpha=tv_weight)


def _next_chunk(logits_KrW: torch.Tensor) -> int:
    """Return how many entries follow these."""
    steps, _, width = logits_KrW.shape
    return CHUNK if logits_KrW.device.type == "cpu" else max(CHUNK, LOGITS // (steps * width))


def _right(logits_KrW: torch.Tensor, target_tokens_r: torch.Tensor) -> torch.Tensor:
    """Return where no token is likelier than the answer."""
    indices_KrI = target_tokens_r.clamp(min=0).expand(len(logits_KrW), -1)[..., None]
    best = logits_KrW.gather(-1, indices_KrI)[..., 0] >= logits_KrW.amax(-1)
    return best & (target_tokens_r >= 0)


class _TokenLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_KRD: torch.Tensor,
        weight_KR: torch.Tensor,
        project: Project,
        wanted: Wanted,
        target_tokens_R: torch.Tensor,
        tv_weight: float,
        *parameters: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        loss = hidden_KRD.new_zeros((), dtype=_exact(hidden_KRD))
        # Weights are small where a step has many entries; in half precision their products with logits' gradients
        # would vanish, so the largest is 1 until all are summed.
        ctx.scale = weight_KR.max().clamp(min=torch.finfo(torch.float32).tiny) if weight_KR.numel() else loss + 1
        grads = [torch.zeros_like(hidden_KRD), *(torch.zeros_like(p) for p in parameters)]
        right, begin, size = [], 0, CHUNK
        # At least one chunk: without entries gradients are zeros, for which other processes wait.
        while begin < max(1, hidden_KRD.shape[1]):
            rows = slice(begin, begin + size)
            weight_Kr1, wanted_rW = weight_KR[:, rows, None], wanted(rows)
            with torch.enable_grad():
                hidden_KrD = hidden_KRD[:, rows].detach().requires_grad_()
                logits_KrW = project(hidden_KrD)
            likely_KrW = logits_KrW.detach().log_softmax(-1, dtype=_exact(logits_KrW))
            right.append(_right(likely_KrW, target_tokens_R[rows]))
            losses_Kr1, slopes_KrW = _losses_and_slopes(likely_KrW, wanted_rW, tv_weight)
            loss += (losses_Kr1 * weight_Kr1).sum()
            towards_KrW = slopes_KrW.mul_(weight_Kr1 / ctx.scale).to(logits_KrW.dtype)
            own, *others = torch.autograd.grad(logits_KrW, [hidden_KrD, *parameters], towards_KrW)
            grads[0][:, rows] = own
            for total, part in zip(grads[1:], others, strict=True):
                total += part
            begin, size = rows.stop, _next_chunk(logits_KrW)
        ctx.save_for_backward(*grads)
        right_KR = torch.cat(right, 1)
        ctx.mark_non_differentiable(right_KR)
        return loss, right_KR

    @staticmethod
    def backward(ctx: Any, loss_grad: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
        factor = loss_grad * ctx.scale
        own, *others = ((grad.to(_exact(grad)) * factor).to(grad.dtype) for grad in ctx.saved_tensors)
        return own, None, None, None, None, None, *others


def _checkpointed(
    hidden_KRD: torch.Tensor,
    project: Project,
    wanted: Wanted,
    weight_KR: torch.Tensor,
    target_tokens_R: torch.Tensor,
    tv_weight: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the same in one piece: all processes that gather weights must do so equally often, whatever R is."""

    def whole(hidden_KRD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            wanted_RW = wanted(slice(None))
        logits_KRW = project(hidden_KRD)
        likely_KRW = logits_KRW.log_softmax(-1, dtype=_exact(logits_KRW))
        losses_KR = -(wanted_RW * likely_KRW).sum(-1)
        if tv_weight:
            overlap_KR = torch.minimum(likely_KRW.exp(), wanted_RW).sum(-1)
            losses_KR = (1 - tv_weight) * losses_KR + tv_weight * (1 - overlap_KR)
        # Last, so that making logits again for the gradient stops before it.
        return (losses_KR * weight_KR).sum(), _right(logits_KRW.detach(), target_tokens_R)

    loss, right_KR = checkpoint(whole, hidden_KRD, use_reentrant=False, preserve_rng_state=False)
    return loss, right_KR
