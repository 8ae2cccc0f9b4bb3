"""Training batches: each feature paired with the token after it, and with what the target predicts next.

Entry t of a row pairs the feature at position t with token t + 1 and is to predict what the target says after that
token. It counts where token t + 2, which the target's word is about, is in the loss and in the same text.

Shapes: B rows, T tokens of a row, S = T - 1 entries, R entries that count, D hidden width, F feature width,
V vocabulary, K stored logits.
"""

from dataclasses import dataclass

import torch

from eagle.data.batches import Batch


@dataclass(frozen=True)
class Entries:
    """The entries of a batch, before any model has seen it.

    Attributes:
        tokens_BS: int64, the token of every entry, one ahead of its feature.
        positions_BS: int64, the feature's place in its own text.
        segments_BS: int64, on the host: the feature's text, 0 for pads.
        rows_R: int64, entries that count, as places in the flattened [B, S].
        seeds_B: one per row: its noise, whichever process and micro-batch it lands in.
    """

    tokens_BS: torch.Tensor
    positions_BS: torch.Tensor
    segments_BS: torch.Tensor
    rows_R: torch.Tensor
    seeds_B: list[int]


@dataclass(frozen=True)
class Top:
    """The target's likeliest tokens at every counted entry: ids [R, K] and logits [R, K]."""

    ids_RK: torch.Tensor
    logits_RK: torch.Tensor


@dataclass(frozen=True)
class TrainBatch:
    """A batch with what the target has to say about it.

    Attributes:
        entries: who is paired with whom.
        features_BSF: the true features.
        target_hidden_RD: the target's last hidden states one position ahead of the feature: EAGLE-1/2's next feature,
            and what the target's logits are made of. None where `top` holds those instead.
        top: stored logits, or None.
        target_tokens_R: the target's likeliest token after each entry's own.
    """

    entries: Entries
    features_BSF: torch.Tensor
    target_hidden_RD: torch.Tensor | None
    top: Top | None
    target_tokens_R: torch.Tensor


def entries(batch: Batch, seeds_B: list[int], device: torch.device) -> Entries:
    """Pair the tokens of a batch; see the module."""
    segments_BT = batch.segments_BS
    counts_BS = torch.zeros_like(batch.mask_BS[:, 1:])
    counts_BS[:, :-1] = batch.mask_BS[:, 2:] & (segments_BT[:, 2:] == segments_BT[:, :-2])
    rows_R = counts_BS.flatten().nonzero()[:, 0]
    tokens_BS, positions_BS = sent(batch.ids_BS[:, 1:], device), sent(batch.positions_BS[:, :-1], device)
    return Entries(tokens_BS, positions_BS, segments_BT[:, :-1], sent(rows_R, device), seeds_B)


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor of the host on a device, without waiting for what that still has to do."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type == "cuda")


def ahead(values_BTX: torch.Tensor, rows_R: torch.Tensor) -> torch.Tensor:
    """Return what is at t + 1 for every counted entry: [R, X] of [B, T, X]."""
    # Entry t of row b lies at b (T - 1) + t among entries, its successor at b T + t + 1 among tokens.
    tokens_R = rows_R + rows_R // (values_BTX.shape[1] - 1) + 1
    return values_BTX.flatten(0, 1).index_select(0, tokens_R)
