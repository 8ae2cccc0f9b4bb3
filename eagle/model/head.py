"""Draft heads: EAGLE-1/2 and EAGLE-3 (3.1 included), forward only.

A head knows no cache and no mask: attention is an argument, `attend(layer, q, k, v)`. Decoding passes cache-and-tree
attention, training passes its own, so a head is one piece of code in both. `embed` and the target's output matrix are
called as modules, never read as weights, because offloaded and quantised modules have none to read.

Shapes: B batch, S tokens, D head width, F feature width, W draft vocabulary, H query heads, E head size.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRotaryEmbedding, apply_rotary_pos_emb

from eagle.model.configs import EConfig, tapped_layers

# (layer number, queries [B,H,S,E], keys [B,Hk,S,E], values [B,Hk,S,E]) -> [B,H,S,E]
Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class HeadAttention(nn.Module):
    """Projections and rotary positions around the attention it is given."""

    def __init__(self, config: EConfig, index: int, width: int) -> None:
        super().__init__()
        self.index = index
        self.head_dim = config.head_dim
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        bias = config.qkv_bias or config.attention_bias
        self.q_proj = nn.Linear(width, heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(width, kv_heads * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(width, kv_heads * self.head_dim, bias=bias)
        self.o_proj = nn.Linear(heads * self.head_dim, config.hidden_size, bias=config.attention_bias)
        if config.qk_norm:
            self.q_norm = nn.RMSNorm(self.head_dim, eps=config.rms_norm_eps)
            self.k_norm = nn.RMSNorm(self.head_dim, eps=config.rms_norm_eps)

    def forward(self, x_BSX: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], attend: Attend) -> torch.Tensor:
        """Return attention's output [B, S, D] for inputs [B, S, X] and rotary (cos, sin)."""
        shape = (*x_BSX.shape[:2], -1, self.head_dim)
        q, k, v = (proj(x_BSX).view(shape).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj))
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = apply_rotary_pos_emb(q, k, *rotary)
        return self.o_proj(attend(self.index, q, k, v).transpose(1, 2).flatten(2))


class EagleLayer(nn.Module):
    """A Llama decoder layer whose first instance has no input norm (EAGLE-1/2)."""

    def __init__(self, config: EConfig, index: int) -> None:
        super().__init__()
        if index > 0:
            self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = HeadAttention(config, index, config.hidden_size)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = LlamaMLP(config)

    def forward(
        self, hidden_BSD: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor], attend: Attend
    ) -> torch.Tensor:
        """Return the layer's hidden states [B, S, D]."""
        x_BSD = self.input_layernorm(hidden_BSD) if hasattr(self, "input_layernorm") else hidden_BSD
        hidden_BSD = hidden_BSD + self.self_attn(x_BSD, rotary, attend)
        return hidden_BSD + self.mlp(self.post_attention_layernorm(hidden_BSD))


class Eagle3Layer(nn.Module):
    """The decoder layer of EAGLE-3: attention reads the normed embedding and the normed hidden state side by side."""

    def __init__(self, config: EConfig) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.norm_before_residual = config.norm_before_residual
        self.input_layernorm = nn.RMSNorm(size, eps=eps)
        self.hidden_norm = nn.RMSNorm(size, eps=eps)
        self.self_attn = HeadAttention(config, 0, 2 * size)
        self.post_attention_layernorm = nn.RMSNorm(size, eps=eps)
        self.mlp = LlamaMLP(config)

    def forward(
        self,
        embeds_BSD: torch.Tensor,
        hidden_BSD: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        attend: Attend,
    ) -> torch.Tensor:
        """Return the layer's hidden states [B, S, D], not yet normed."""
        normed_BSD = self.hidden_norm(hidden_BSD)
        residual_BSD = normed_BSD if self.norm_before_residual else hidden_BSD
        both_BSX = torch.cat([self.input_layernorm(embeds_BSD), normed_BSD], dim=-1)
        hidden_BSD = residual_BSD + self.self_attn(both_BSX, rotary, attend)
        return hidden_BSD + self.mlp(self.post_attention_layernorm(hidden_BSD))


class DraftHead(nn.Module):
    """What both kinds share: configuration, rotary positions, own embeddings where the checkpoint has them."""

    kind: str
    d2t: torch.Tensor  # offsets [W] of the draft vocabulary, where it is a part of the target's

    def __init__(self, config: EConfig, own_embeddings: bool = False) -> None:
        super().__init__()
        self.config = config
        self.rotary_emb = LlamaRotaryEmbedding(config)
        if own_embeddings:
            self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "DraftHead":
        # Rotary frequencies rounded to bf16 are off by a radian after a thousand positions: they stay in fp32.
        exact = self.rotary_emb.inv_freq
        super()._apply(fn, recurse)
        self.rotary_emb.inv_freq = exact.to(self.rotary_emb.inv_freq.device)
        self.rotary_emb.original_inv_freq = self.rotary_emb.inv_freq.clone()
        return self

    @property
    def device(self) -> torch.device:
        """Where the head's weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The head's floating-point type."""
        return next(self.parameters()).dtype

    @property
    def draft_size(self) -> int:
        """How many tokens the head can draft: the size of its draft vocabulary."""
        return len(self.d2t) if hasattr(self, "d2t") else int(self.config.vocab_size)

    @property
    def layers_count(self) -> int:
        """Decoder layers of the head, usually one."""
        return int(self.config.num_hidden_layers)

    def taps(self, target_layers: int) -> tuple[int, ...] | str:
        """Return what is read of a target of so many layers; "last" is its last hidden state."""
        return "last"

    def fuse(self, features_BSF: torch.Tensor) -> torch.Tensor:
        """Turn target features into hidden states [B, S, D]."""
        raise NotImplementedError

    def forward(
        self, embeds_BSD: torch.Tensor, hidden_BSD: torch.Tensor, position_ids_BS: torch.Tensor, attend: Attend
    ) -> torch.Tensor:
        """Return the hidden states [B, S, D] that draft the next token and feed the next draft step.

        Args:
            embeds_BSD: embeddings of the tokens one position ahead of `hidden_BSD`.
            hidden_BSD: fused target features, or this function's own output for drafted nodes.
            position_ids_BS: positions of the hidden states.
            attend: attention over this and earlier entries.
        """
        raise NotImplementedError

    def logits(self, hidden_BSD: torch.Tensor) -> torch.Tensor | None:
        """Return draft logits [B, S, W], or None where the target's output transform of `normed` gives them."""
        raise NotImplementedError

    def normed(self, hidden_BSD: torch.Tensor) -> torch.Tensor:
        """Return what the output matrix reads of `forward`'s hidden states."""
        return hidden_BSD

    def target_ids(self, draft_ids: torch.Tensor) -> torch.Tensor:
        """Add the offsets `d2t` where the draft vocabulary is a part of the target's."""
        return draft_ids + self.d2t.take(draft_ids) if hasattr(self, "d2t") else draft_ids


class EagleHead(DraftHead):
    """The head of EAGLE-1 and EAGLE-2 (arXiv 2401.15077 section 3.1); drafts through the target's output matrix.

    With `draft_only` it drafts through some rows of that matrix, which stay the target's: no part of the head's state.
    """

    kind = "EAGLE-1/2"

    def __init__(self, config: EConfig, own_embeddings: bool = False) -> None:
        super().__init__(config, own_embeddings)
        self.fc = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=config.bias)
        self.layers = nn.ModuleList(EagleLayer(config, i) for i in range(config.num_hidden_layers))

    def fuse(self, features_BSF: torch.Tensor) -> torch.Tensor:
        """Return the features: `fc` takes them as they are."""
        return features_BSF

    def forward(
        self, embeds_BSD: torch.Tensor, hidden_BSD: torch.Tensor, position_ids_BS: torch.Tensor, attend: Attend
    ) -> torch.Tensor:
        """Return the predicted next features [B, S, D]; arguments as in `DraftHead.forward`."""
        hidden_BSD = self.fc(torch.cat([embeds_BSD, hidden_BSD], dim=-1))
        rotary = self.rotary_emb(hidden_BSD, position_ids_BS)
        for layer in self.layers:
            hidden_BSD = layer(hidden_BSD, rotary, attend)
        return hidden_BSD

    def draft_only(
        self,
        ids_W: torch.Tensor,
        rows_WD: torch.Tensor,
        bias_W: torch.Tensor | None,
        transform: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        """Make these tokens the draft vocabulary (FR-Spec, arXiv 2502.14856).

        Args:
            ids_W: the target's ids, ascending.
            rows_WD, bias_W: their rows of the target's output matrix, and of its bias where it has one.
            transform: what the target does between its output matrix and its logits.
        """
        self.d2t = nn.Buffer((ids_W - torch.arange(len(ids_W), device=ids_W.device)).to(self.device), persistent=False)
        size, width = rows_WD.shape
        self.lm_head = nn.Linear(width, size, bias=bias_W is not None, device="meta")
        for name, tensor in (("weight", rows_WD), ("bias", bias_W)):
            if tensor is not None:
                delattr(self.lm_head, name)
                self.lm_head.register_buffer(name, tensor.to(self.device, self.dtype), persistent=False)
        self._transform = transform

    def logits(self, hidden_BSD: torch.Tensor) -> torch.Tensor | None:
        """Return draft logits [B, S, W] over the draft vocabulary; None without one: the target's transform is used."""
        return self._transform(self.lm_head(hidden_BSD)) if hasattr(self, "lm_head") else None


class Eagle3Head(DraftHead):
    """The head of EAGLE-3 (arXiv 2503.01840 section 3): fused features, own output matrix, draft vocabulary.

    Layers after the first are those of EAGLE-1/2: they read hidden states alone.

    Args:
        own_output: whether the checkpoint has an output matrix; without one the target's is used.
    """

    kind = "EAGLE-3"

    def __init__(self, config: EConfig, own_embeddings: bool = False, own_output: bool = True) -> None:
        super().__init__(config, own_embeddings)
        size, eps = config.hidden_size, config.rms_norm_eps
        self.target_size = config.target_hidden_size or size
        if config.use_aux_hidden_state:
            self.fc = nn.Linear(config.taps_count * self.target_size, size, bias=False)
        if config.norm_before_fc:
            self.input_norm = nn.RMSNorm(config.taps_count * self.target_size, eps=eps)
        if config.fc_norm:
            self.fc_norm = nn.ModuleList(nn.RMSNorm(self.target_size, eps=eps) for _ in range(config.taps_count))
        self.midlayer = Eagle3Layer(config)
        self.layers = nn.ModuleDict({str(i): EagleLayer(config, i) for i in range(1, config.num_hidden_layers)})
        self.norm = nn.RMSNorm(size, eps=eps)
        if own_output:
            self.lm_head = nn.Linear(size, self.draft_size, bias=False)
        if self.draft_size != config.vocab_size:
            self.d2t = nn.Buffer(torch.zeros(self.draft_size, dtype=torch.int64))
            self.t2d = nn.Buffer(torch.zeros(config.vocab_size, dtype=torch.bool))

    @property
    def draft_size(self) -> int:
        """Rows of the head's output matrix."""
        return int(self.config.draft_vocab_size or self.config.vocab_size)

    def taps(self, target_layers: int) -> tuple[int, ...] | str:
        """Return the layers whose inputs are read; see `tapped_layers`."""
        return tapped_layers(self.config, target_layers) if self.config.use_aux_hidden_state else "last"

    def fuse(self, features_BSF: torch.Tensor) -> torch.Tensor:
        """Return `fc` over the concatenated features, normed first where the configuration says so.

        A head without `fc` takes the features as they are.
        """
        if not self.config.use_aux_hidden_state:
            return features_BSF
        if self.config.norm_before_fc:
            features_BSF = self.input_norm(features_BSF)
        if self.config.fc_norm:
            parts = features_BSF.split(self.target_size, dim=-1)
            features_BSF = torch.cat([norm(part) for norm, part in zip(self.fc_norm, parts, strict=True)], -1)
        return self.fc(features_BSF)

    def forward(
        self, embeds_BSD: torch.Tensor, hidden_BSD: torch.Tensor, position_ids_BS: torch.Tensor, attend: Attend
    ) -> torch.Tensor:
        """Return hidden states [B, S, D] before `norm`, or after it with `norm_output`; see `DraftHead.forward`."""
        rotary = self.rotary_emb(hidden_BSD, position_ids_BS)
        hidden_BSD = self.midlayer(embeds_BSD, hidden_BSD, rotary, attend)
        for layer in self.layers.values():
            hidden_BSD = layer(hidden_BSD, rotary, attend)
        return self.norm(hidden_BSD) if self.config.norm_output else hidden_BSD

    def normed(self, hidden_BSD: torch.Tensor) -> torch.Tensor:
        """Return hidden states [B, S, D] after `norm`."""
        return hidden_BSD if self.config.norm_output else self.norm(hidden_BSD)

    def logits(self, hidden_BSD: torch.Tensor) -> Any:
        """Return draft logits [B, S, W] over the draft vocabulary, None without an output matrix of its own."""
        return self.lm_head(self.normed(hidden_BSD)) if hasattr(self, "lm_head") else None
