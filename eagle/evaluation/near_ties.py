"""Where the ids of two ways to decode first differ, and whether rounding explains it.

In half precision a forward over several tokens rounds otherwise than one token at a time. How much this model's logits
move with the shape of a forward is measured on the very text: the noise floor is the largest difference between one
causal forward over all of it and forwards token by token. Two tokens are a near-tie where what decides between them in
the token-by-token run differs by at most twice that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from eagle.model.support.properties import cache_keyword, text_config


@dataclass(frozen=True)
class IdDifference:
    """The first token at which a method leaves what `generate` says.

    Attributes:
        position: new tokens before it.
        wanted, got: the two tokens; None where one of the two had ended.
        wanted_logit, got_logit: theirs in the token-by-token run, after the same tokens.
        gap: what decides between them: the difference of the logits, sampling with the temperature and the noise.
        floor: the noise floor of this text, in the same unit.
    """

    position: int
    wanted: int | None
    got: int | None
    wanted_logit: float | None = None
    got_logit: float | None = None
    gap: float | None = None
    floor: float | None = None

    @property
    def is_near_tie(self) -> bool:
        """Whether rounding explains it."""
        return self.gap is not None and self.floor is not None and abs(self.gap) <= 2 * self.floor


def first_difference(
    base: Any,
    prompt_ids: torch.Tensor,
    wanted: Sequence[int],
    got: Sequence[int],
    *,
    temperature: float = 0.0,
    seed: int = 0,
) -> IdDifference | None:
    """Compare two continuations of a prompt.

    Args:
        base: the model.
        prompt_ids: [1, S].
        wanted, got: new tokens.
        temperature: of sampling; 0 is greedy.
        seed: of torch's generators before either began.

    Returns:
        None where they are equal.
    """
    if list(wanted) == list(got):
        return None
    place = next((i for i, pair in enumerate(zip(wanted, got, strict=False)) if pair[0] != pair[1]), None)
    if place is None:
        shorter = min(len(wanted), len(got))
        ends = [ids[shorter] if len(ids) > shorter else None for ids in (wanted, got)]
        return IdDifference(shorter, *ends)
    logits_V, floor = stepwise_logits(base, prompt_ids, wanted[:place])
    one, other = wanted[place], got[place]
    gap = float(logits_V[one] - logits_V[other])
    if temperature:
        noise_V = _noise(logits_V, place, seed)
        gap = gap / temperature - float(noise_V[one].log() - noise_V[other].log())
        floor /= temperature
    return IdDifference(place, one, other, float(logits_V[one]), float(logits_V[other]), gap, floor)


@torch.no_grad()
def stepwise_logits(base: Any, prompt_ids: torch.Tensor, new: Sequence[int]) -> tuple[torch.Tensor, float]:
    """Run a prompt, then tokens one at a time, as `generate` does.

    Returns:
        logits [V] in fp32 for what follows, and the noise floor over the new tokens and the prompt's last.
    """
    device, width = base.device, prompt_ids.shape[1]
    ids_BS = torch.cat([prompt_ids.to(device), torch.tensor([list(new)], dtype=torch.long, device=device)], 1)
    cache, name = DynamicCache(config=text_config(base.config)), cache_keyword(base)
    rows = [base(ids_BS[:, :width], use_cache=True, **{name: cache}).logits[0, -1].float()]
    for position in range(width, ids_BS.shape[1]):
        rows.append(base(ids_BS[:, position : position + 1], use_cache=True, **{name: cache}).logits[0, -1].float())
    whole_TV = base(ids_BS, use_cache=False).logits[0, width - 1 :].float()
    return rows[-1], float((whole_TV - torch.stack(rows)).abs().max())


def _noise(logits_V: torch.Tensor, place: int, seed: int) -> torch.Tensor:
    """Return the exponential noise [V] that `torch.multinomial` divides by for the token at a place."""
    torch.manual_seed(seed)
    noise_BV = torch.empty_like(logits_V)[None]
    for _ in range(place + 1):
        noise_BV.exponential_()
    return noise_BV[0]
