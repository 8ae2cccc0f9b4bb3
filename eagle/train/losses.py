"""What a draft head is trained to do, as losses over one unrolled step.

Shapes: B rows, S entries, D width, V target vocabulary, W draft vocabulary.
"""

import torch
import torch.nn.functional as F

FEATURE_WEIGHT, TOKEN_WEIGHT = 1.0, 0.1


def eagle_loss(
    hidden_BSD: torch.Tensor,
    feature_BSD: torch.Tensor,
    logits_BSV: torch.Tensor,
    target_logits_BSV: torch.Tensor,
    keep_BS: torch.Tensor,
) -> torch.Tensor:
    """Return EAGLE-1's loss: smooth L1 on features plus 0.1 times soft cross-entropy (arXiv 2401.15077, section 3.2).

    Args:
        hidden_BSD: the head's output, meant to be the target's next feature.
        feature_BSD: that feature.
        logits_BSV: the target's output transform of `hidden_BSD`.
        target_logits_BSV: the target's own logits there.
        keep_BS: entries that count.
    """
    feature_BS = F.smooth_l1_loss(hidden_BSD.float(), feature_BSD.float(), reduction="none").mean(-1)
    token_BS = soft_cross_entropy(logits_BSV, target_logits_BSV.float().softmax(-1))
    return mean_over(FEATURE_WEIGHT * feature_BS + TOKEN_WEIGHT * token_BS, keep_BS)


def drafted_targets(target_logits_BSV: torch.Tensor, drafted_W: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the target's probabilities over the draft vocabulary [B, S, W] and where its best token is in it [B, S].

    Args:
        target_logits_BSV: the target's logits.
        drafted_W: target ids of the draft vocabulary.
    """
    wanted_BSW = target_logits_BSV[..., drafted_W].float().softmax(-1)
    return wanted_BSW, torch.isin(target_logits_BSV.argmax(-1), drafted_W)


def eagle3_loss(logits_BSW: torch.Tensor, wanted_BSW: torch.Tensor, keep_BS: torch.Tensor) -> torch.Tensor:
    """Return EAGLE-3's loss of one step: soft cross-entropy over the draft vocabulary (arXiv 2503.01840, section 3.2).

    Args:
        logits_BSW: the head's logits.
        wanted_BSW: the target's probabilities, see `drafted_targets`.
        keep_BS: entries that count: real ones whose likeliest token can be drafted.
    """
    return mean_over(soft_cross_entropy(logits_BSW, wanted_BSW), keep_BS)


def soft_cross_entropy(logits_BSW: torch.Tensor, wanted_BSW: torch.Tensor) -> torch.Tensor:
    """Return -Σ wanted · log softmax(logits) per entry, [B, S], in nats."""
    return -(wanted_BSW * logits_BSW.float().log_softmax(-1)).sum(-1)


def mean_over(values_BS: torch.Tensor, keep_BS: torch.Tensor) -> torch.Tensor:
    """Return the mean over kept entries; 0 where none is kept."""
    return (values_BS * keep_BS).sum() / keep_BS.sum().clamp(min=1)
