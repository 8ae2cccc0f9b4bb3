"""The training losses of EAGLE-1/2 and EAGLE-3 once more, slow and obvious, from the papers alone.

One sequence at a time, in the precision of the head, with Python loops over steps, entries, heads and what a head
sees: no mask, no batch, no attention kernel. Of `eagle` it reads a head's parameters and `tapped_layers`, nothing else.

Entry t pairs what the target knows at position t with token t + 1, and is to predict what the target says at t + 1.
Both functions return the losses of the entries that count, one scalar each for every step, so that a batch is their
concatenation.

Shapes: T tokens, S = T - 1 entries, D head width, F feature width, X width of attention's input, V target vocabulary,
W draft vocabulary, E head size.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from eagle.model.configs import tapped_layers
from eagle.model.head import Eagle3Head, EagleHead, HeadAttention

STEP_DECAY = 0.8
TOKEN_WEIGHT = 0.1


@dataclass(frozen=True)
class Seen:
    """What later entries attend to: the key and the value [E] of every key-value head."""

    keys: list[torch.Tensor]
    values: list[torch.Tensor]


def slow_eagle_losses(
    head: EagleHead,
    base: Any,
    ids_T: torch.Tensor,
    noise_SF: torch.Tensor | None = None,
    keep_S: torch.Tensor | None = None,
    steps: int = 1,
    feature_weight: float = 1.0,
    tv_weight: float = 0.0,
) -> list[list[torch.Tensor]]:
    """Return, for every step, the losses that count (arXiv 2401.15077 section 3.2, in one step).

    With more steps it is the training-time test of `slow_eagle3_losses`, for this head.

    Args:
        head: a head of one layer.
        base: a Llama model.
        ids_T: one sequence without pads.
        noise_SF: added to the features the head reads, never to those it is to predict.
        keep_S: False for entries that may not count; None keeps all.
        steps: how many steps K.
        feature_weight: of the distance to the true features.
        tv_weight: see `token_loss`.
    """
    output = observe(base, ids_T)
    features_TF = output.hidden_states[-1][0]
    embeds = embeddings(head, base, ids_T)
    size = len(ids_T) - 1

    (layer,) = head.layers
    hidden = {t: features_TF[t] if noise_SF is None else features_TF[t] + noise_SF[t] for t in range(size)}
    seen: list[dict[int, Seen]] = []
    losses: list[list[torch.Tensor]] = []
    for k in range(steps):
        seen.append({})
        states = {}
        losses.append([])
        for t in range(k, size):
            input_D = linear(head.fc, torch.cat([embeds[t + 1], hidden[t]]))
            queries, seen[k][t] = projections(head, layer.self_attn, input_D, t)
            attended_D = attention(layer.self_attn, queries, visible(seen, k, t))
            states[t] = mlp_block(layer, input_D + attended_D)
            if keep_S is None or keep_S[t]:
                loss = token_loss(base.lm_head.weight @ states[t], output.logits[0, t + 1], tv_weight)
                distance = smooth_l1(states[t], features_TF[t + 1])
                losses[k].append(feature_weight * distance + TOKEN_WEIGHT * loss)
        hidden = {t + 1: state_D for t, state_D in states.items()}
    return losses


def visible(seen: list[dict[int, Seen]], k: int, t: int) -> list[Seen]:
    """Return what entry t sees in step k: true entries up to t - k, then its own chain up to itself."""
    return [seen[0][s] for s in range(t - k + 1)] + [seen[j][t - k + j] for j in range(1, k + 1)]


def slow_eagle3_losses(
    head: Eagle3Head,
    base: Any,
    ids_T: torch.Tensor,
    steps: int,
    keep_S: torch.Tensor | None = None,
    noise_SF: torch.Tensor | None = None,
    feature_weight: float = 0.0,
    tv_weight: float = 0.0,
) -> list[list[torch.Tensor]]:
    """Return, for every step of training-time test, the losses that count (arXiv 2503.01840 section 3.2).

    Entry t of step 0 reads the target's features at t. In step k it reads the head's own state from entry t - 1 of
    step k - 1, and attends as it would after k - 1 drafted tokens. With k = 3 and t = 5 (columns are positions):

        step 0   x x x . . .      features are known up to t - k
        step 1         x          then its own chain, one entry per step,
        step 2           x
        step 3             x      up to itself

    Args:
        head: the head to train.
        base: a Llama model.
        ids_T: one sequence without pads.
        steps: how many steps K.
        keep_S: False for entries that may not count; None keeps all.
        noise_SF: added to the features.
        feature_weight: of the distance between states and the target's last hidden states, which the paper left out.
        tv_weight: see `token_loss`.
    """
    output = observe(base, ids_T)
    taps = tapped_layers(head.config, base.config.num_hidden_layers)
    embeds = embeddings(head, base, ids_T)
    drafts = draft_vocabulary(head)
    layer = head.midlayer
    size = len(ids_T) - 1

    read = {t: torch.cat([output.hidden_states[tap][0, t] for tap in taps]) for t in range(size)}
    if noise_SF is not None:
        read = {t: features + noise_SF[t] for t, features in read.items()}
    hidden = {t: fused(head, list(features.chunk(len(taps)))) for t, features in read.items()}
    seen: list[dict[int, Seen]] = []
    losses: list[list[torch.Tensor]] = []
    for k in range(steps):
        seen.append({})
        states = {}
        losses.append([])
        for t in range(k, size):
            normed_D = rms_norm(layer.hidden_norm, hidden[t])
            residual_D = normed_D if head.config.norm_before_residual else hidden[t]
            both_X = torch.cat([rms_norm(layer.input_layernorm, embeds[t + 1]), normed_D])
            queries, seen[k][t] = projections(head, layer.self_attn, both_X, t)
            state_D = mlp_block(layer, residual_D + attention(layer.self_attn, queries, visible(seen, k, t)))
            normed_state_D = rms_norm(head.norm, state_D)
            states[t] = normed_state_D if head.config.norm_output else state_D

            target_logits_V = output.logits[0, t + 1]
            if int(target_logits_V.argmax()) in drafts and (keep_S is None or keep_S[t]):
                logits_W = linear(head.lm_head, normed_state_D)
                loss = token_loss(logits_W, target_logits_V[drafts], tv_weight)
                if feature_weight:
                    loss = loss + feature_weight * smooth_l1(states[t], output.hidden_states[-1][0, t + 1])
                losses[k].append(loss)
        hidden = {t + 1: state_D for t, state_D in states.items()}
    return losses


def mean(losses: list[torch.Tensor]) -> torch.Tensor:
    """Return the mean of the losses that count, 0 where none does."""
    return torch.stack(losses).mean() if losses else torch.zeros((), dtype=torch.float64)


def total(losses: list[list[torch.Tensor]], decay: float = STEP_DECAY) -> torch.Tensor:
    """Return the sum over the steps, each weighed less than the one before."""
    return sum((decay**k * mean(step) for k, step in enumerate(losses)), torch.zeros((), dtype=torch.float64))


@torch.no_grad()
def observe(base: Any, ids_T: torch.Tensor) -> Any:
    """Run the target over one sequence; `hidden_states[i]` enters layer i, the last one left the final norm."""
    return base(input_ids=ids_T[None], output_hidden_states=True, use_cache=False)


def embeddings(head: EagleHead | Eagle3Head, base: Any, ids_T: torch.Tensor) -> list[torch.Tensor]:
    """Return the embedding [D] of every token, the head's own where it has one."""
    table = head.embed_tokens.weight if hasattr(head, "embed_tokens") else base.model.embed_tokens.weight.detach()
    return [table[int(token)] for token in ids_T]


def draft_vocabulary(head: Eagle3Head) -> list[int]:
    """Return the target's id of every token the head can draft."""
    offsets = head.d2t.tolist() if hasattr(head, "d2t") else [0] * head.lm_head.weight.shape[0]
    return [row + offset for row, offset in enumerate(offsets)]


def fused(head: Eagle3Head, features: list[torch.Tensor]) -> torch.Tensor:
    """Return the hidden state [D] that `fc` makes of three features."""
    if head.config.norm_before_fc:
        features = list(rms_norm(head.input_norm, torch.cat(features)).chunk(3))
    if head.config.fc_norm:
        features = [rms_norm(norm, feature) for norm, feature in zip(head.fc_norm, features, strict=True)]
    return linear(head.fc, torch.cat(features))


def linear(module: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """Return W x, plus b where there is one."""
    y = module.weight @ x
    return y if module.bias is None else y + module.bias


def rms_norm(module: nn.RMSNorm, x: torch.Tensor) -> torch.Tensor:
    """Return x over its root mean square, times the gain."""
    return x / torch.sqrt((x * x).mean() + module.eps) * module.weight


def rotated(x_E: torch.Tensor, position: int, theta: float) -> torch.Tensor:
    """Turn every pair (i, i + E/2) by position * theta**(-2i/E)."""
    half = len(x_E) // 2
    first, second = [], []
    for i in range(half):
        angle = position * theta ** (-2 * i / len(x_E))
        first.append(x_E[i] * math.cos(angle) - x_E[i + half] * math.sin(angle))
        second.append(x_E[i + half] * math.cos(angle) + x_E[i] * math.sin(angle))
    return torch.stack(first + second)


def projections(
    head: EagleHead | Eagle3Head, layer: HeadAttention, x: torch.Tensor, position: int
) -> tuple[list[torch.Tensor], Seen]:
    """Return the query [E] of every head, and what this entry shows to others."""
    theta, size = head.config.rope_parameters["rope_theta"], head.config.head_dim
    queries, keys, values = (linear(w, x).split(size) for w in (layer.q_proj, layer.k_proj, layer.v_proj))
    turned = [rotated(key, position, theta) for key in keys]
    return [rotated(query, position, theta) for query in queries], Seen(turned, list(values))


def attention(layer: HeadAttention, queries: list[torch.Tensor], seen: list[Seen]) -> torch.Tensor:
    """Return what every head makes of the entries it sees, through the output matrix; neighbours share a key."""
    outputs = []
    for number, query in enumerate(queries):
        shared = number * len(seen[0].keys) // len(queries)
        scores = torch.stack([query @ entry.keys[shared] for entry in seen]) / math.sqrt(len(query))
        weights = torch.exp(scores) / torch.exp(scores).sum()
        outputs.append(sum(weight * entry.values[shared] for weight, entry in zip(weights, seen, strict=True)))
    return linear(layer.o_proj, torch.cat(outputs))


def mlp_block(layer: nn.Module, x_D: torch.Tensor) -> torch.Tensor:
    """Return x plus the gated perceptron of normed x."""
    normed_D = rms_norm(layer.post_attention_layernorm, x_D)
    gate = linear(layer.mlp.gate_proj, normed_D)
    return x_D + linear(layer.mlp.down_proj, gate * torch.sigmoid(gate) * linear(layer.mlp.up_proj, normed_D))


def smooth_l1(x_F: torch.Tensor, y_F: torch.Tensor) -> torch.Tensor:
    """Return the mean over the width of d^2/2 below 1 and |d| - 1/2 from there on."""
    distances = (x_F - y_F).abs()
    return sum(d * d / 2 if d < 1 else d - 0.5 for d in distances) / len(distances)


def token_loss(logits: torch.Tensor, target_logits: torch.Tensor, tv_weight: float) -> torch.Tensor:
    """Return the soft cross-entropy mixed with half the L1 distance between the two distributions."""
    entropy = soft_cross_entropy(logits, target_logits)
    distance = (torch.softmax(target_logits, -1) - torch.softmax(logits, -1)).abs().sum() / 2
    return (1 - tv_weight) * entropy + tv_weight * distance if tv_weight else entropy


def soft_cross_entropy(logits: torch.Tensor, target_logits: torch.Tensor) -> torch.Tensor:
    """Return -sum p log q over the softmaxes of the target's logits and of the head's."""
    return -(torch.softmax(target_logits, -1) * torch.log_softmax(logits, -1)).sum()
