"""Prompt ids, masks and lengths, checked at the public edge before any work starts.

Shapes: B prompts, R rows, S prompt tokens.
"""

from typing import Any

import torch

from eagle.model.target import TargetModel


def check_ids(input_ids: Any, target: TargetModel) -> torch.Tensor:
    """Return prompt ids [B, S] on the target, int64, from a tensor or nested lists.

    Raises:
        ValueError: no rows of one length, no token, no whole numbers, or ids the model does not know.
    """
    try:
        ids_BS = torch.as_tensor(input_ids)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        hint = " (of a tokenizer's result, pass `.input_ids`)" if hasattr(input_ids, "keys") else ""
        name = type(input_ids).__name__
        raise ValueError(f"input_ids must be a tensor or rows of one length, got {name}{hint}: {error}") from error
    if ids_BS.ndim != 2 or ids_BS.numel() == 0:
        raise ValueError(
            f"input_ids must have shape [batch, prompt] with at least one token, got {tuple(ids_BS.shape)}"
        )
    if ids_BS.is_floating_point() or ids_BS.is_complex() or ids_BS.dtype == torch.bool:
        raise ValueError(f"input_ids must be whole numbers, got dtype {ids_BS.dtype}")
    ids_BS = ids_BS.to(target.device, torch.int64)
    known = target.known_tokens
    low, high = int(ids_BS.min()), int(ids_BS.max())
    if low < 0 or high >= known:
        raise ValueError(f"input_ids hold token {low if low < 0 else high}; the model knows 0 to {known - 1}")
    return ids_BS


def check_mask(attention_mask: Any, ids_BS: torch.Tensor) -> torch.Tensor:
    """Return a mask [B, S] of 1 for tokens and 0 for left pads, on the ids' device, int64.

    Raises:
        ValueError: another shape, other values, pads after tokens, a row without tokens.
    """
    try:
        mask_BS = torch.as_tensor(attention_mask).to(ids_BS.device)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        name = type(attention_mask).__name__
        raise ValueError(f"attention_mask must be a tensor or rows of 0 and 1, got {name}: {error}") from error
    if mask_BS.shape != ids_BS.shape:
        raise ValueError(f"attention_mask has shape {tuple(mask_BS.shape)}, input_ids {tuple(ids_BS.shape)}")
    if not bool(((mask_BS == 0) | (mask_BS == 1)).all()):
        raise ValueError("attention_mask must hold only 0 (pad) and 1 (token)")
    mask_BS = mask_BS.long()
    if bool((mask_BS[:, 1:] < mask_BS[:, :-1]).any()):
        raise ValueError(
            f"pads stand after tokens, first at {_hole(mask_BS)}; pad on the left (tokenizer.padding_side = 'left'), "
            "or pass attention_mask where the pad id is meant as a token"
        )
    if not bool(mask_BS[:, -1].all()):
        raise ValueError("attention_mask marks a row without any token")
    return mask_BS


def _hole(mask_BS: torch.Tensor) -> str:
    row, place = (mask_BS[:, 1:] < mask_BS[:, :-1]).nonzero()[0].tolist()
    return f"row {row}, place {place + 1}"


def check_positions(limit: int, ids_RS: torch.Tensor, mask_RS: torch.Tensor | None, target: TargetModel) -> None:
    """Refuse a call whose longest row could reach beyond the target's positions.

    Raises:
        ValueError: the message names the remedy.
    """
    positions, prompt = target.last_position, ids_RS.shape[1]
    pads = 0 if mask_RS is None else int((mask_RS == 0).sum(-1).min())
    if positions is None or limit - pads <= positions:
        return
    room = positions - prompt + pads
    remedy = f"use max_new_tokens={room} or less" if room > 0 else "shorten the prompt"
    raise ValueError(f"prompt and new tokens make {limit - pads} tokens, the model has {positions} positions: {remedy}")
