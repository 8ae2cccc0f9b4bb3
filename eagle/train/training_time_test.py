"""Training-time test: a head's steps in training, with the attention that each step has in decoding.

Step 0 reads true features. In step k, entry t reads the head's own output of step k - 1 at entry t - 1, as a node at
depth k does, and attends to what that node would: true entries up to t - k, then one entry of every earlier step (its
ancestors), then itself. Step k has nothing to do before entry k, so its tensors start there.

Shapes: B rows, S entries, D width; H, K, E as in `ttt_attention`.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch.utils import checkpoint as recomputing

from eagle.model.head import DraftHead
from eagle.train.ttt_attention import KeyValue, behind_sink, causal, chained, places

Layers = dict[int, KeyValue]  # by number of the layer
Masks = tuple[torch.Tensor | None, torch.Tensor | None]  # of step 0, of those after it


def training_time_test(
    head: DraftHead,
    embeds_BSD: torch.Tensor,
    hidden_BSD: torch.Tensor,
    steps: int,
    positions_BS: torch.Tensor | None = None,
    segments_BS: torch.Tensor | None = None,
    checkpoint: bool = False,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the head's output [B, S, D] at every step and which of its entries [B, S] are real; the rest mean nothing.

    An entry of step k is real if it is no pad and at least k entries precede it in its segment, for its chain.

    Args:
        head: the head; every layer attends to keys of its own.
        embeds_BSD: embeddings of token t + 1 at entry t.
        hidden_BSD: fused true features at t.
        steps: how many steps; 1 is EAGLE-1's training, 7 EAGLE-3's training-time test.
        positions_BS: int64, every entry's rotary position; None means 0, 1, … in every row.
        segments_BS: int64, 0 for pads, which lie on the right, and 1, 2, … for the segments of a row, best on the
            host: an entry sees its own segment alone. None means one segment per row.
        checkpoint: of a step keep only what later ones read, and compute the rest again for the backward pass.
    """
    (rows, entries), device = embeds_BSD.shape[:2], embeds_BSD.device
    if positions_BS is None:
        positions_BS = torch.arange(entries, device=device)[None]
    if segments_BS is None:
        segments_BS = torch.ones(rows, entries, dtype=torch.int64)
    # Every step runs the head, whatever the rows: processes that share its weights must run it equally often.
    if (short := steps - entries) > 0:
        embeds_BSD, hidden_BSD = (F.pad(x, (0, 0, 0, short)) for x in (embeds_BSD, hidden_BSD))
        positions_BS, segments_BS = (F.pad(x, (0, short)) for x in (positions_BS, segments_BS))
    packed = bool((segments_BS > 1).any())
    segments_BS = segments_BS.to(device)
    masks = _masks(segments_BS) if packed else (None, None)
    past: Layers = {}
    earlier: list[Layers] = []
    for step in range(steps):
        # A tuple: what a step saw must not have grown when it is computed again.
        inputs = head, embeds_BSD[:, step:], hidden_BSD, positions_BS[:, step:], masks, past, tuple(earlier)
        if checkpoint:
            hidden_BSD, own = recomputing.checkpoint(_step, *inputs, use_reentrant=False, preserve_rng_state=False)
        else:
            hidden_BSD, own = _step(*inputs)
        earlier.append(own)
        if step == 0 and steps > 1:
            past = {layer: behind_sink(k.to(v.dtype), v) for layer, (k, v) in own.items()}
        yield F.pad(hidden_BSD, (0, 0, step, 0))[:, :entries], _real(segments_BS, step)[:, :entries]
        hidden_BSD = hidden_BSD[:, :-1]


def _step(
    head: DraftHead,
    embeds_BSD: torch.Tensor,
    hidden_BSD: torch.Tensor,
    positions_BS: torch.Tensor,
    masks: Masks,
    past: Layers,
    earlier: Sequence[Layers],
) -> tuple[torch.Tensor, Layers]:
    """Return the head's output and every layer's keys and values; changes nothing, so that it can be run again."""
    own: Layers = {}

    first, later = masks

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        # Scores of a chain are exact to fp32. Rotation returns that under autocast; kernels want one dtype.
        exact = torch.promote_types(v.dtype, torch.float32)
        q, k = q.to(exact), k.to(exact)
        own[layer] = k, v
        if not earlier:
            return causal(q.to(v.dtype), k.to(v.dtype), v, first)
        return chained(q, past[layer], [*(step[layer] for step in earlier[1:]), own[layer]], later)

    return head(embeds_BSD, hidden_BSD, positions_BS, attend), own


def _masks(segments_BS: torch.Tensor) -> Masks:
    """Let every entry see the earlier ones of its segment and itself; after step 0 they stand behind the sink."""
    entries = segments_BS.shape[1]
    same_B1SS = (segments_BS[:, None, :, None] == segments_BS[:, None, None]).tril()
    behind_BP = F.pad(segments_BS, (1, places(entries) - entries - 1))
    seen_B1PP = (behind_BP[:, None, :, None] == behind_BP[:, None, None]).tril()
    seen_B1PP[..., 0] = True
    return same_B1SS, seen_B1PP


def _real(segments_BS: torch.Tensor, step: int) -> torch.Tensor:
    """Return where an entry and the one `step` before it, where its chain begins, are of one segment."""
    begins_BS = segments_BS[:, : segments_BS.shape[1] - step]
    return F.pad((segments_BS[:, step:] == begins_BS) & (begins_BS > 0), (step, 0))
