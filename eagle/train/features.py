"""Features and logits from the target while training runs: no disk, no second copy.

Shapes: B rows, S tokens, F feature width, V vocabulary.
"""

from dataclasses import dataclass

import torch

from eagle.model.target import Taps, TargetModel


@dataclass(frozen=True)
class Lesson:
    """What one batch teaches: entry t pairs feature t with token t + 1 and predicts what the target says after it.

    Attributes:
        tokens_BS: ids of token t + 1.
        features_BSF: true features at t.
        next_features_BSF: true features at t + 1.
        target_logits_BSV: the target's logits at t + 1.
        answers_BS: its likeliest tokens there.
    """

    tokens_BS: torch.Tensor
    features_BSF: torch.Tensor
    next_features_BSF: torch.Tensor
    target_logits_BSV: torch.Tensor
    answers_BS: torch.Tensor


@torch.no_grad()
def lesson(target: TargetModel, ids_BT: torch.Tensor, taps: Taps) -> Lesson:
    """Run the target over ids [B, S + 1] once."""
    with target.tapped(taps) as caught:
        logits_BTV = target.model(input_ids=ids_BT, use_cache=False).logits
    features_BTF = target.joined(caught, taps)
    logits_BSV = logits_BTV[:, 1:]
    return Lesson(ids_BT[:, 1:], features_BTF[:, :-1], features_BTF[:, 1:], logits_BSV, logits_BSV.argmax(-1))
