"""Synthetic pairs of any shape, made in seconds: they cost what a real pair costs and their acceptance is a dial.

The target is a Llama whose layers after the first (EAGLE-1/2) or all of whose layers (EAGLE-3) are residual
pass-throughs: zero `o_proj` and `down_proj` cost as much to multiply as any other. What remains, the head can copy:

- EAGLE-1/2: the head holds layer 0's weights and `fc = [I, 0]`, so it recomputes the target's hidden state from
  tokens alone. Two things would set them apart and are arranged for. A head never sees token 0: every prompt starts
  with a BOS that is never generated and that layer 0 cannot attend to, through one reserved embedding channel (+1 for
  every token, -1 for BOS) that q and k read into the slowest rotary pair, worth a score of about -100. And a head has
  no final norm: the target's is scaled to the mean RMS of layer 0's output, so the head is not over-confident.
- EAGLE-3: the target is a bigram table. The head ignores its features (`fc = 0`), attends to itself (a constant
  channel in q and k scores highest at distance 0) and swaps the embedding in for the hidden state: v carries their
  difference, so the residual cancels. Embeddings live in as many channels as v can carry. `lm_head` rows are the
  target's on the draft vocabulary.

With `noise=0` every best path is accepted; Gaussian noise on the head's weights dials acceptance down.
"""

from dataclasses import dataclass
from typing import TypeVar

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from eagle.model.configs import EConfig
from eagle.model.head import DraftHead, Eagle3Head, EagleHead

BOS = 0
# How much lower BOS scores than a token in layer 0's attention.
BOS_GAIN = 100.0
# Score that every rotary pair adds at distance 0 in the EAGLE-3 head's attention.
SELF_GAIN = 100.0
ROWS_AT_ONCE = 4096

Head = TypeVar("Head", bound=DraftHead)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of a Llama; `vocab_size` counts BOS, which is token 0 and never generated."""

    hidden_size: int = 64
    layers: int = 8
    heads: int = 4
    kv_heads: int = 2
    intermediate_size: int = 128
    vocab_size: int = 256
    max_positions: int = 4096


SHAPES = {
    "tiny": Shape(),
    "46m": Shape(hidden_size=640, heads=10, intermediate_size=1792, vocab_size=8192, max_positions=9216),
    "135m": Shape(
        hidden_size=576, layers=30, heads=9, kv_heads=3, intermediate_size=1536, vocab_size=49152, max_positions=8192
    ),
    "850m": Shape(hidden_size=2048, layers=16, heads=32, kv_heads=8, intermediate_size=5632, vocab_size=4096),
    "7b": Shape(hidden_size=4096, layers=32, heads=32, kv_heads=32, intermediate_size=11008, vocab_size=32000),
    "8b": Shape(hidden_size=4096, layers=32, heads=32, kv_heads=8, intermediate_size=14336, vocab_size=128256),
    "13b": Shape(hidden_size=5120, layers=40, heads=40, kv_heads=40, intermediate_size=13824, vocab_size=32000),
}


def llama_config(shape: Shape) -> LlamaConfig:
    """Return the target's configuration."""
    return LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.max_positions,
        bos_token_id=BOS,
        eos_token_id=None,
        pad_token_id=None,
        attn_implementation="sdpa",
    )


@torch.no_grad()
def synthetic_target(
    shape: Shape,
    kind: str = "eagle",
    *,
    generated: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> LlamaForCausalLM:
    """Make the target of a pair, in its own dtype and where it will run.

    Args:
        shape: its sizes.
        kind: "eagle" (layer 0 computes) or "eagle3" (a bigram table).
        generated: only tokens 1 to `generated` are ever likely; None means all but BOS.
        dtype: floating-point type of the weights.
        device: where the weights are made.
        seed: of the weights.
    """
    generator = torch.Generator().manual_seed(seed)
    model = _empty(shape, dtype, device)
    is_eagle3 = kind == "eagle3"
    size, config = shape.hidden_size, model.config
    channels = config.num_key_value_heads * config.head_dim if is_eagle3 else size
    embeddings_VD = _embeddings(model.model.embed_tokens.weight, channels, generator)
    embeddings_VD[BOS, 0] = 1.0 if is_eagle3 else -1.0
    _fill_layers(model, is_eagle3, generator)
    if not is_eagle3:
        _hide_bos(model)
        probe_1S = torch.arange(min(shape.vocab_size, 257), device=device)[None]
        output_1SD = model.model(probe_1S, output_hidden_states=True).hidden_states[1]
        model.model.norm.weight.fill_(output_1SD[0, 1:].float().pow(2).mean(-1).sqrt().mean())
    head_VD = model.lm_head.weight
    _randomise(head_VD, 4 * channels**-0.5, generator)
    # The constant channel belongs to no token but those that must never win.
    head_VD[:, 0] = 0
    never = [BOS, *range((generated or shape.vocab_size) + 1, shape.vocab_size)]
    head_VD[never] = 0
    head_VD[never, 0] = -50.0
    return model


def _empty(shape: Shape, dtype: torch.dtype, device: torch.device | str) -> LlamaForCausalLM:
    """Return the model with unset matrices and norms of 1; initialising it would take longer than all the rest."""
    config = llama_config(shape)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            model = LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)
    model.to_empty(device=device)
    model.model.rotary_emb = LlamaRotaryEmbedding(config).to(device)
    for weight in model.parameters():
        if weight.ndim == 1:
            weight.fill_(1.0)
    return model


def _fill_layers(model: LlamaForCausalLM, is_eagle3: bool, generator: torch.Generator) -> None:
    """Fill layer 0 at random; the others are copies of it, and pass-throughs but for a computing layer 0."""
    first, *others = model.model.layers
    for weight in first.parameters():
        if weight.ndim == 2:
            _randomise(weight, weight.shape[1] ** -0.5, generator)
    for layer in others:
        layer.load_state_dict(first.state_dict())
    for layer in model.model.layers if is_eagle3 else others:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()


def _randomise(weight: torch.Tensor, scale: float, generator: torch.Generator) -> None:
    """Fill a matrix with Gaussian numbers, a block of rows at a time: a whole one in fp32 may not fit beside it."""
    for rows in weight.split(ROWS_AT_ONCE):
        rows.copy_(torch.randn(rows.shape, generator=generator) * scale)


def _embeddings(weight_VD: torch.Tensor, channels: int, generator: torch.Generator) -> torch.Tensor:
    """Fill rows of unit RMS that use the first `channels`, channel 0 being 1 for every token."""
    weight_VD.zero_()
    for rows_RD in weight_VD.split(ROWS_AT_ONCE):
        drawn_RC = torch.randn(len(rows_RD), channels - 1, generator=generator)
        drawn_RC *= ((weight_VD.shape[1] - 1) / drawn_RC.pow(2).sum(-1, keepdim=True)).sqrt()
        rows_RD[:, 1:channels] = drawn_RC.to(rows_RD)
        rows_RD[:, 0] = 1.0
    return weight_VD


def _hide_bos(model: LlamaForCausalLM) -> None:
    """Make layer 0 read channel 0 into the slowest rotary pair and into nothing else."""
    config, layer = model.config, model.model.layers[0]
    half = config.head_dim // 2
    for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj):
        rows_HED = projection.weight.view(-1, config.head_dim, config.hidden_size)
        rows_HED[..., 0] = 0
        # The slowest pair is the last of each half. Its score is +GAIN/2 for tokens and -GAIN/2 for BOS.
        rows_HED[:, [half - 1, 2 * half - 1]] = 0
        rows_HED[:, half - 1, 0] = (BOS_GAIN / 2 * config.head_dim**0.5) ** 0.5
    for name in ("self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"):
        layer.get_submodule(name).weight[:, 0] = 0
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        layer.get_submodule(name).weight[0] = 0


@torch.no_grad()
def synthetic_eagle_head(target: LlamaForCausalLM, *, noise: float = 0.0, seed: int = 1) -> EagleHead:
    """Make the EAGLE-1/2 head of an "eagle" target; `noise` is relative to each matrix's RMS."""
    config = _head_config(target, bias=False)
    head = EagleHead(config).to(target.dtype)
    head.fc.weight.zero_()
    head.fc.weight[:, : config.hidden_size] = torch.eye(config.hidden_size)
    # The head has no input norm; on embeddings of unit RMS the target's changes nothing.
    state = target.model.layers[0].state_dict()
    state.pop("input_layernorm.weight")
    head.layers[0].load_state_dict(state)
    return _noisy(head, noise, seed)


@torch.no_grad()
def synthetic_eagle3_head(
    target: LlamaForCausalLM, *, draft_vocabulary: int | None = None, noise: float = 0.0, seed: int = 1
) -> Eagle3Head:
    """Make the EAGLE-3 head of an "eagle3" target; it drafts tokens 1 to `draft_vocabulary`, or all."""
    config = _head_config(target, draft_vocab_size=draft_vocabulary or target.config.vocab_size)
    head = Eagle3Head(config).to(target.dtype)
    size, head_dim, groups = config.hidden_size, config.head_dim, config.num_key_value_heads
    for weight in head.parameters():
        if weight.ndim == 1:
            weight.fill_(1.0)
        else:
            # A trace of a value: loaders rightly refuse matrices that are all zero.
            weight.zero_()[0, 0] = 1e-7
    attention = head.midlayer.self_attn
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight.view(-1, head_dim, 2 * size)[:, : head_dim // 2, 0] = (SELF_GAIN * head_dim**0.5) ** 0.5
    carried = torch.eye(groups * head_dim)
    attention.v_proj.weight[:, : groups * head_dim] = carried
    attention.v_proj.weight[:, size : size + groups * head_dim] = -carried
    # Of every group of query heads the first brings its v back to the channels it came from.
    per_group = config.num_attention_heads // groups
    o_DGPE = attention.o_proj.weight.view(size, groups, per_group, head_dim)
    o_DGPE[: groups * head_dim, :, 0] = carried.view(-1, groups, head_dim).to(o_DGPE.dtype)
    if draft_vocabulary is None:
        head.lm_head.weight.copy_(target.lm_head.weight)
    else:
        head.lm_head.weight.copy_(target.lm_head.weight[1 : draft_vocabulary + 1])
        head.d2t.fill_(1)
        head.t2d[1 : draft_vocabulary + 1] = True
    return _noisy(head, noise, seed)


def _noisy(head: Head, noise: float, seed: int) -> Head:
    generator = torch.Generator().manual_seed(seed)
    for weight in head.parameters():
        if weight.ndim == 2 and noise:
            rms = weight.float().pow(2).mean().sqrt().item()
            weight.add_(torch.randn(weight.shape, generator=generator).to(weight.dtype), alpha=noise * rms)
    return head.eval()


def _head_config(target: LlamaForCausalLM, **fields: object) -> EConfig:
    config = target.config.to_dict()
    for name in ("architectures", "model_type", "transformers_version", "dtype"):
        config.pop(name, None)
    return EConfig(**{**config, "num_hidden_layers": 1, **fields})
