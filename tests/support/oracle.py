"""A slow, obvious second implementation of EAGLE draft-tree growth, to check the fast one against.

Written from the papers (EAGLE 2401.15077, EAGLE-2 2406.16858, EAGLE-3 2503.01840) and sharing no code with the package.
There is no KV cache and no tree mask: every root-to-node path is a plain causal sequence (true entries, then the path),
run through the head in fp32 from scratch, once for each token added to it.

Shape suffixes: S entries, D hidden width, F target feature width, I MLP width, V vocabulary; N heads,
K key/value heads, H head width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Path = tuple[int, ...]


class OracleHead:
    """Hold one draft head's weights and apply its pieces, one sequence at a time."""

    def __init__(
        self,
        state: dict[str, Tensor],
        config: dict[str, Any],
        embed: Callable[[Tensor], Tensor],
        output_logits: Callable[[Tensor], Tensor],
    ) -> None:
        """Keep the checkpoint in fp32 and tell EAGLE-3 from EAGLE-1/2 by its tensor names."""
        self.state = {name: t.detach().cpu().float() if t.is_floating_point() else t.cpu() for name, t in state.items()}
        self.config = config
        self.embed = embed
        self.output_logits = output_logits
        self.is_eagle3 = any(name.startswith("midlayer.") for name in state)
        self.layer = "midlayer" if self.is_eagle3 else "layers.0"
        assert config["rope_parameters"].get("rope_type", "default") == "default"

    def linear(self, x_SD: Tensor, name: str) -> Tensor:
        """Apply the named projection, with its bias if the checkpoint has one."""
        y_SD = x_SD @ self.state[name + ".weight"].T
        return y_SD + self.state[name + ".bias"] if name + ".bias" in self.state else y_SD

    def rms_norm(self, x_SD: Tensor, name: str) -> Tensor:
        """Apply the named RMS norm over the last dimension."""
        mean_square_S1 = (x_SD * x_SD).mean(-1, keepdim=True)
        return x_SD / torch.sqrt(mean_square_S1 + self.config["rms_norm_eps"]) * self.state[name + ".weight"]

    def embeddings(self, ids: list[int]) -> Tensor:
        """Look token ids up in the head's own table, or in the target's when it has none."""
        ids_S = torch.tensor(ids, dtype=torch.long)
        if "embed_tokens.weight" in self.state:
            return self.state["embed_tokens.weight"][ids_S]
        return self.embed(ids_S).detach().float()

    def true_hidden(self, features_SF: Tensor) -> Tensor:
        """Turn target features into what the entries take: EAGLE-3 reduces three layers to one, EAGLE-1/2 does not."""
        features_SF = features_SF.detach().cpu().float()
        if not self.is_eagle3 or "fc.weight" not in self.state:
            return features_SF
        if self.config.get("norm_before_fc"):
            features_SF = self.rms_norm(features_SF, "input_norm")
        if self.config.get("fc_norm"):
            thirds = features_SF.chunk(3, dim=-1)
            features_SF = torch.cat([self.rms_norm(third, f"fc_norm.{i}") for i, third in enumerate(thirds)], dim=-1)
        return self.linear(features_SF, "fc")

    def rotate(self, x_NH: Tensor, position: int) -> Tensor:
        """Rotate every head of one entry by its position, Llama's half-and-half way."""
        width = self.config["head_dim"]
        theta = self.config["rope_parameters"]["rope_theta"]
        angles = position * torch.tensor([theta ** (-2 * i / width) for i in range(width // 2)])
        first, second = x_NH[:, : width // 2], x_NH[:, width // 2 :]
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def attention(self, x_SD: Tensor, layer: str | None = None, window: int | None = None) -> Tensor:
        """Let each entry attend to itself and the entries before it, so far as it sees, then project the result."""
        heads, kv_heads, width = (self.config[k] for k in ("num_attention_heads", "num_key_value_heads", "head_dim"))
        prefix = f"{layer or self.layer}.self_attn"
        q_SNH = self.linear(x_SD, f"{prefix}.q_proj").view(-1, heads, width)
        k_SKH = self.linear(x_SD, f"{prefix}.k_proj").view(-1, kv_heads, width)
        v_SKH = self.linear(x_SD, f"{prefix}.v_proj").view(-1, kv_heads, width)
        if f"{prefix}.q_norm.weight" in self.state:
            q_SNH, k_SKH = self.rms_norm(q_SNH, f"{prefix}.q_norm"), self.rms_norm(k_SKH, f"{prefix}.k_norm")
        q_SNH = torch.stack([self.rotate(q_NH, position) for position, q_NH in enumerate(q_SNH)])
        k_SKH = torch.stack([self.rotate(k_KH, position) for position, k_KH in enumerate(k_SKH)])
        later_SS = torch.ones(len(x_SD), len(x_SD)).triu(1).bool()
        if window is not None:
            later_SS |= torch.ones(len(x_SD), len(x_SD)).tril(-window).bool()
        outputs = []
        for n in range(heads):
            k = n // (heads // kv_heads)
            scores_SS = q_SNH[:, n] @ k_SKH[:, k].T * width**-0.5
            weights_SS = scores_SS.masked_fill(later_SS, float("-inf")).softmax(-1)
            outputs.append(weights_SS @ v_SKH[:, k])
        return self.linear(torch.cat(outputs, dim=-1), f"{prefix}.o_proj")

    def mlp(self, x_SD: Tensor, layer: str) -> Tensor:
        """Apply the gated feed-forward block."""
        gate_SI = torch.nn.functional.silu(self.linear(x_SD, f"{layer}.mlp.gate_proj"))
        return self.linear(gate_SI * self.linear(x_SD, f"{layer}.mlp.up_proj"), f"{layer}.mlp.down_proj")

    def attended(self, hidden_SD: Tensor, ids: list[int]) -> Tensor:
        """Join hidden states with token embeddings and run the attention half of the layer, residual added."""
        embedding_SD = self.embeddings(ids)
        if not self.is_eagle3:
            x_SD = self.linear(torch.cat([embedding_SD, hidden_SD], dim=-1), "fc")
            return x_SD + self.attention(x_SD, window=self.window(0))
        normed_SD = self.rms_norm(hidden_SD, "midlayer.hidden_norm")
        embedding_SD = self.rms_norm(embedding_SD, "midlayer.input_layernorm")
        residual_SD = normed_SD if self.config.get("norm_before_residual") else hidden_SD
        return residual_SD + self.attention(torch.cat([embedding_SD, normed_SD], dim=-1), window=self.window(0))

    def window(self, layer: int) -> int | None:
        """Give how many entries one of a layer's sees, None for all."""
        return (self.config.get("windows") or [None] * (layer + 1))[layer]

    def layer_output(self, hidden_SD: Tensor, ids: list[int]) -> Tensor:
        """Run a whole causal sequence of (hidden state, token) entries, entry t at position t."""
        h_SD = self.attended(hidden_SD, ids)
        h_SD = h_SD + self.mlp(self.rms_norm(h_SD, f"{self.layer}.post_attention_layernorm"), self.layer)
        for number in range(1, self.config["num_hidden_layers"]):
            layer = f"layers.{number}"
            x_SD = self.rms_norm(h_SD, f"{layer}.input_layernorm")
            h_SD = h_SD + self.attention(x_SD, layer, self.window(number))
            h_SD = h_SD + self.mlp(self.rms_norm(h_SD, f"{layer}.post_attention_layernorm"), layer)
        return h_SD

    def fed_back(self, out_SD: Tensor) -> Tensor:
        """Give what a child's entry takes in place of a true feature."""
        return self.rms_norm(out_SD, "norm") if self.is_eagle3 and self.config.get("norm_output") else out_SD

    def log_probs(self, out_SD: Tensor) -> Tensor:
        """Give log-probabilities over the draft vocabulary."""
        if self.is_eagle3:
            out_SD = self.rms_norm(out_SD, "norm")
        if "lm_head.weight" in self.state:
            logits_SV = self.linear(out_SD, "lm_head")
        else:
            logits_SV = self.output_logits(out_SD).detach().float()
            if "d2t" in self.state:
                logits_SV = logits_SV[:, [self.target_id(draft_id) for draft_id in range(len(self.state["d2t"]))]]
        return logits_SV.log_softmax(-1)

    def target_id(self, draft_id: int) -> int:
        """Map a draft-vocabulary id to the target's."""
        return draft_id + int(self.state["d2t"][draft_id]) if "d2t" in self.state else draft_id


@torch.no_grad()
def ranked_children(head: OracleHead, tokens: list[int], features: Tensor, path: Path) -> list[tuple[int, float]]:
    """List every (target id, log-probability) that may follow a path, likeliest first."""
    assert len(features) == len(tokens) - 1 > 0
    ids = list(tokens[1:])
    hidden_SD = head.true_hidden(features)
    out_SD = head.layer_output(hidden_SD, ids)
    for token in path:
        ids.append(token)
        hidden_SD = torch.cat([hidden_SD, head.fed_back(out_SD[-1:])])
        out_SD = head.layer_output(hidden_SD, ids)
    log_probs = head.log_probs(out_SD[-1:])[0].tolist()
    order = sorted(range(len(log_probs)), key=lambda draft_id: -log_probs[draft_id])
    return [(head.target_id(draft_id), log_probs[draft_id]) for draft_id in order]


def best(candidates: list[tuple[Path, float]], count: int) -> list[tuple[Path, float]]:
    """Keep the best-scored candidates in descending order; on a tie the earlier one wins (sorted is stable)."""
    return sorted(candidates, key=lambda candidate: -candidate[1])[:count]


def oracle_dynamic(
    head: OracleHead, tokens: list[int], features: Tensor, *, total_token: int, depth: int, top_k: int
) -> dict[Path, float]:
    """Grow an EAGLE-2/3 tree: expand the best top_k of each level, then keep the best total_token - 1 of all."""
    frontier = [((token,), lp) for token, lp in ranked_children(head, tokens, features, ())[:top_k]]
    candidates = list(frontier)
    for _ in range(depth):
        level = []
        for path, score in frontier:
            for token, log_prob in ranked_children(head, tokens, features, path)[:top_k]:
                level.append(((*path, token), score + log_prob))
        candidates += level
        frontier = best(level, top_k)
    kept = dict(best(candidates, total_token - 1))
    for path in kept:
        assert len(path) == 1 or path[:-1] in kept, f"{path} is kept without its parent"
    return kept


def oracle_static(
    head: OracleHead, tokens: list[int], features: Tensor, *, paths: list[list[int]]
) -> dict[Path, float]:
    """Grow an EAGLE-1 tree of fixed shape: each listed path names the rank of the child taken at every step."""
    kept = {}
    for ranks in paths:
        path, score = (), 0.0
        for rank in ranks:
            token, log_prob = ranked_children(head, tokens, features, path)[rank]
            path, score = (*path, token), score + log_prob
        kept[path] = score
    return kept
