"""A head's steps in training, with the attention that each step has in decoding.

Step 0 reads true features. In step k, entry t reads the head's own output of step k - 1 at entry t - 1, as a node at
depth k does, and attends to what that node would: true entries up to t - k, then one entry of every earlier step (its
ancestors), then itself. Scores for the past are one causal product and those for the chain k elementwise ones, so no
mask over all steps is ever built.

Shapes: B rows, H query heads, S entries, E head size, D width.
"""

from collections.abc import Iterator

import torch

from eagle.model.head import Attend, DraftHead


class StepAttention:
    """Keys and values of the steps so far; `attend` is what a head is given."""

    def __init__(self) -> None:
        self._keys: list[torch.Tensor] = []
        self._values: list[torch.Tensor] = []

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Attend as a node at depth `len(steps so far)` does; one layer only."""
        assert layer == 0
        groups = q.shape[1] // k.shape[1]
        self._keys.append(k.repeat_interleave(groups, 1))
        self._values.append(v.repeat_interleave(groups, 1))
        depth, entries, scale = len(self._keys) - 1, q.shape[2], q.shape[-1] ** -0.5
        past_BHSS = q @ self._keys[0].transpose(-1, -2) * scale
        steps = torch.arange(entries, device=q.device)
        hidden_SS = steps > steps[:, None] - depth
        past_BHSS = past_BHSS.float().masked_fill(hidden_SS, torch.finfo(torch.float32).min)
        # Ancestor of step i sits depth - i entries earlier; `roll` wraps, but entries before `depth` are not used.
        chain = [((q * self._keys[i].roll(depth - i, 2)).sum(-1, keepdim=True) * scale) for i in range(1, depth + 1)]
        weights = torch.cat([past_BHSS, *(score.float() for score in chain)], -1).softmax(-1).to(v.dtype)
        out = weights[..., :entries] @ self._values[0]
        for i in range(1, depth + 1):
            out = out + weights[..., entries + i - 1, None] * self._values[i].roll(depth - i, 2)
        return out


def unroll(
    head: DraftHead, embeds_BSD: torch.Tensor, hidden_BSD: torch.Tensor, steps: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the head's output [B, S, D] at every step and which entries [S] are real.

    Args:
        head: a head with one layer.
        embeds_BSD: embeddings of token t + 1 at entry t.
        hidden_BSD: fused true features at t.
        steps: how many steps; 1 is EAGLE-1's training, 7 EAGLE-3's training-time test.
    """
    attention = StepAttention()
    attend: Attend = attention.attend
    positions = torch.arange(embeds_BSD.shape[1], device=embeds_BSD.device)
    for step in range(steps):
        hidden_BSD = head(embeds_BSD, hidden_BSD, positions[None], attend)
        yield hidden_BSD, positions >= step
        hidden_BSD = hidden_BSD.roll(1, 1)
