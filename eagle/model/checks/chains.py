"""What a head drafts along a text, as chains from every position at once.

The text is the target's own continuation, so a drafted token is accepted if it is the text's. Entry t of the head pairs
the target's feature at t with token t + 1; step j drafts from its own state, given the text's tokens so far, and sees
the true entries up to t and the j that the chain has added.

    entry        true 0  true 1  true 2   chain 1   chain 2
    t=0, step 2     x                      own       own
    t=1, step 2     x       x              own       own

Shapes: S tokens, N entries, D head width, H heads, E head size, W draft vocabulary.
"""

from dataclasses import dataclass

import torch

from eagle.model.drafter import Drafter
from eagle.model.head import Attend, DraftHead

KeyValue = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Chains:
    """One chain from each of N entries.

    Attributes:
        accepted_N: how many of its tokens are right, before the first that is not.
        likelihood_N: expected log-probability of the target's next token, summed over the chain; tokens that the head
            cannot draft are left out.
    """

    accepted_N: torch.Tensor
    likelihood_N: torch.Tensor


@torch.no_grad()
def chains_of(
    drafter: Drafter, features_1SF: torch.Tensor, ids_1S: torch.Tensor, wanted_SW: torch.Tensor, depth: int
) -> Chains:
    """Draft `depth` tokens from every entry that so many follow.

    Args:
        drafter: the head and its target's embeddings and output.
        features_1SF: the target's features of the text.
        ids_1S: the text.
        wanted_SW: the target's probabilities of what follows each token, of those that the head can draft.
        depth: tokens of a chain.
    """
    head = drafter.head
    hidden_1ND = head.fuse(features_1SF[:, :-1].to(next(head.parameters())))
    ids_1S = ids_1S.to(hidden_1ND.device)
    entries_N = torch.arange(hidden_1ND.shape[1], device=hidden_1ND.device)
    counted = len(entries_N) - depth
    drafted_W = draftable(head)
    chain: list[list[KeyValue]] = [[] for _ in range(head.layers_count)]
    is_right_N = torch.ones(counted, dtype=torch.bool, device=hidden_1ND.device)
    accepted_N, likelihood_N = torch.zeros_like(is_right_N, dtype=torch.int64), torch.zeros(counted)
    for step in range(depth):
        # Beyond the text's end the last token stands in: chains that reach so far are not counted.
        tokens_1N = ids_1S[:, (entries_N + 1 + step).clamp(max=ids_1S.shape[1] - 1)]
        attend = chain_attention(head, chain, entries_N, step)
        hidden_1ND = head(drafter.embeddings(tokens_1N).to(hidden_1ND), hidden_1ND, (entries_N + step)[None], attend)
        logp_NW = drafter.logits(hidden_1ND)[0, :counted].float().log_softmax(-1)
        text_N = ids_1S[0, step + 2 : step + 2 + counted]
        is_right_N &= drafted_W[logp_NW.argmax(-1)] == text_N
        accepted_N += is_right_N
        likelihood_N += (wanted_SW[step + 1 : step + 1 + counted].to(logp_NW) * logp_NW).sum(-1).cpu()
    return Chains(accepted_N.cpu(), likelihood_N)


def draftable(head: DraftHead) -> torch.Tensor:
    """Return the target's ids [W] of the tokens that a head can draft."""
    return head.target_ids(torch.arange(head.draft_size, device=head.device))


def chain_attention(head: DraftHead, chain: list[list[KeyValue]], entries_N: torch.Tensor, step: int) -> Attend:
    windows = head.config.windows or [None] * head.layers_count

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        groups = q.shape[1] // k.shape[1]
        chain[layer].append((k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)))
        (true_k, true_v), *added = chain[layer]
        back_NN = entries_N[:, None] + step - entries_N
        is_seen_NN = entries_N <= entries_N[:, None]
        window = windows[layer]
        if window is not None:
            is_seen_NN &= back_NN < window
            added = added[max(0, step - window) :]  # number 1 of the chain is the first
        scores = [(q @ true_k.transpose(2, 3)).float().masked_fill(~is_seen_NN, float("-inf"))]
        scores += [(q * key).sum(-1, keepdim=True).float() for key, _ in added]
        weights = (torch.cat(scores, -1) * q.shape[-1] ** -0.5).softmax(-1).to(q.dtype)
        mixed = weights[..., : len(entries_N)] @ true_v
        for place, (_, value) in enumerate(added):
            mixed = mixed + weights[..., len(entries_N) + place, None] * value
        return mixed

    return attend
