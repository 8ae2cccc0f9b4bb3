"""Features and last hidden states of whole texts, for training heads. No cache, no tree.

Shapes: B rows, S tokens, D hidden width, F feature width.
"""

from dataclasses import dataclass
from typing import Any

import torch

from eagle.model.target import Taps, TargetModel

# Logits of a text from the forward and from its hidden states: the same product, so nearly the same number.
TOLERANCE = 0.05


@dataclass(frozen=True)
class TextFeatures:
    """One forward over texts.

    Attributes:
        features_BSF: what a head reads, in the target's dtype.
        hidden_BSD: output of the final norm, of which `TargetModel.output_logits` makes the target's logits; the
            features themselves where those are the same.
    """

    features_BSF: torch.Tensor
    hidden_BSD: torch.Tensor


@torch.no_grad()
def read_features(
    target: TargetModel,
    ids_BS: torch.Tensor,
    taps: Taps,
    positions_BS: torch.Tensor | None = None,
    segments_BS: torch.Tensor | None = None,
) -> TextFeatures:
    """Run the target over rows of texts once.

    Args:
        target: the target, which is left as it is.
        ids_BS: token ids; pads on the right.
        taps: what the features are.
        positions_BS: each token's place in its own text; None means one text per row.
        segments_BS: 0 for pads, 1, 2, ... for the texts of a row, on the host or the device; a token sees its own text
            alone. None means one text per row.
    """
    arguments: dict[str, Any] = target.without_logits(taps)
    if segments_BS is not None and positions_BS is not None and bool((segments_BS > 1).any()):
        segments_BS, positions_BS = segments_BS.to(ids_BS.device), positions_BS.to(ids_BS.device)
        arguments |= {"position_ids": positions_BS, "attention_mask": _masks(target, positions_BS, segments_BS)}
    with target.tapped(taps) as caught, target.tapped("last") as last:
        target.model(input_ids=ids_BS, use_cache=False, **arguments)
    hidden_BSD = target.joined(last, "last")
    return TextFeatures(hidden_BSD if taps == "last" else target.joined(caught, taps), hidden_BSD)


def _masks(
    target: TargetModel, positions_BS: torch.Tensor, segments_BS: torch.Tensor
) -> torch.Tensor | dict[str, torch.Tensor]:
    places_S = torch.arange(segments_BS.shape[1], device=segments_BS.device)
    mask_BSS = segments_BS[:, :, None] == segments_BS[:, None]
    mask_BSS &= places_S <= places_S[:, None]
    return target.masks(mask_BSS, positions_BS, lambda: positions_BS, segments_BS.shape[1])


@torch.no_grad()
def check_output(target: TargetModel) -> None:
    """Make sure that the target's logits can be computed from its last hidden states.

    Raises:
        NotImplementedError: the model does more between its final norm and its logits than a matrix, a scale and a cap.
    """
    ids_BS = torch.arange(8, device=target.device)[None] % target.known_tokens
    with target.tapped("last") as last:
        logits_BSV = target.model(input_ids=ids_BS, use_cache=False).logits.float()
    found_BSV = target.output_logits(target.joined(last, "last")).float().to(logits_BSV.device)
    gap = (found_BSV - logits_BSV).abs().max() if found_BSV.shape == logits_BSV.shape else torch.tensor(torch.inf)
    if not gap <= TOLERANCE * logits_BSV.std():
        raise NotImplementedError(
            f"{type(target.model).__name__}: its logits differ by {gap:.3g} from what its output matrix makes of its "
            "last hidden states: a head cannot be trained for it"
        )
