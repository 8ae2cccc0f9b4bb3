"""Attention of a training-time-test step, in memory linear in the entries.

Number j of step k's entries (entry j + k of the row) attends as a node at depth k does: to the true entries 0 to j,
then to its chain, which is number j of every step after step 0. The chain's few scores are elementwise products. The
past is one causal product by torch's own kernel, in which a single key, the sink, stands for the chain: with L the
logarithm of the chain's summed exponentials, the sink's score is L, so its weight is that of the whole chain.

    keys        sink   true 0   true 1   true 2 ...
    nobody       0
    number 0     L       x
    number 1     L       x        x                   causal, whatever k is
    number 2     L       x        x        x

Queries carry L in channels of their own, in which only the sink's key is not 0; the sink's value is a 1 in a channel
of its own, so that its weight comes out there.

Shapes: B rows, H query heads, K key heads, G = H / K, S entries, E head size, X = E + channels of the sink, P places
of keys from the sink on, C chain.
"""

import torch
import torch.nn.functional as F

KeyValue = tuple[torch.Tensor, torch.Tensor]  # each [B, K, S, E]
LANES, PLACES = 8, 16  # head sizes and counts of keys that these divide are what kernels are fast at
WIDEST = 256  # head size up to which accelerators have kernels that share keys among query heads


def causal(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None, scale: float | None = None
) -> torch.Tensor:
    """Return causal attention [B, H, S, E], without a matrix of scores in memory.

    Args:
        q: [B, H, S, E].
        k: [B, K, S, E].
        v: [B, K, S, E].
        mask: bool [B, 1, S, S] in place of the causal one.
        scale: of the scores; None means E^-1/2.
    """
    groups = q.shape[1] // k.shape[1]
    shared = mask is None and q.element_size() == 2 and q.shape[-1] <= WIDEST
    # Accelerators share keys in some kernels only; elsewhere torch would fall back to one that builds all scores.
    if groups > 1 and q.device.type != "cpu" and not shared:
        k, v, groups = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1), 1
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=groups > 1
    )


def behind_sink(k: torch.Tensor, v: torch.Tensor) -> KeyValue:
    """Return the sink's and the true entries' keys and values [B, K, P, X]; the last entries may be left out."""
    size, entries = k.shape[-1], k.shape[2]
    edges = 0, _extra(size), 1, places(entries) - entries - 1
    channels_X = torch.arange(size + _extra(size), device=k.device)
    is_sink_P1 = (torch.arange(places(entries), device=k.device) == 0)[:, None]
    # L comes in two parts, what its dtype can hold and the rest: rounded to bf16 it would move weights by percents.
    key_PX = is_sink_P1 & (channels_X >= size) & (channels_X < size + 2)
    return F.pad(k, edges) + key_PX, F.pad(v, edges) + (is_sink_P1 & (channels_X == size))


def places(entries: int) -> int:
    """Return how many keys, the sink's with them, the steps after the first attend to: no step needs the last entry."""
    return -(-entries // PLACES) * PLACES


def chained(q: torch.Tensor, past: KeyValue, chain: list[KeyValue], mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return attention [B, H, S, E] of a step after the first.

    Args:
        q: [B, H, S, E], queries of the step's entries, of which it has fewer than step 0.
        past: what `behind_sink` made of step 0.
        chain: keys and values of every step after step 0, this one's last, each with at least S entries.
        mask: bool [B, 1, P, P] in place of the causal one of the picture.
    """
    size, entries, dtype = q.shape[-1], q.shape[2], past[0].dtype
    scale, extra = size**-0.5, _extra(size)
    total_BHS1, chain_BHSE = _chain(q, [(k[:, :, :entries], v[:, :, :entries]) for k, v in chain])
    total_BHS1 = total_BHS1 / scale
    rounded = total_BHS1.detach().to(dtype)
    rest = (total_BHS1 - rounded).to(dtype)  # the whole gradient comes back through this part
    q_BHSX = torch.cat([q.to(dtype), rounded, rest], -1)
    q_BHPX = F.pad(q_BHSX, (0, extra - 2, 1, past[0].shape[2] - entries - 1))
    both_BHSX = causal(q_BHPX, *past, mask, scale)[:, :, 1 : entries + 1]
    past_BHSE, weight_BHS1, _ = both_BHSX.split([size, 1, extra - 1], -1)
    return past_BHSE + weight_BHS1 * chain_BHSE


def _extra(size: int) -> int:
    return 2 + -(size + 2) % LANES


def _chain(q: torch.Tensor, chain: list[KeyValue]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logarithm of the chain's summed exponentials [B, H, S, 1] and its output [B, H, S, E]."""
    heads, dtype = chain[0][0].shape[1], chain[0][1].dtype
    q_BKGSE = q.unflatten(1, (heads, -1))
    scores = [(q_BKGSE * k[:, :, None]).sum(-1, keepdim=True) for k, _ in chain]
    scores_BKGSC = torch.cat(scores, -1) * q.shape[-1] ** -0.5
    weights = scores_BKGSC.softmax(-1).to(dtype).split(1, -1)
    out_BKGSE = weights[0] * chain[0][1][:, :, None]
    for weight, (_, v) in zip(weights[1:], chain[1:], strict=True):
        out_BKGSE = torch.addcmul(out_BKGSE, weight, v[:, :, None])
    return scores_BKGSC.logsumexp(-1, keepdim=True).flatten(1, 2), out_BKGSE.flatten(1, 2)
