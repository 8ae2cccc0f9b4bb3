"""Draft-head checkpoints in: a folder or Hub id becomes a head whose every tensor is accounted for.

Reads the layouts that SafeAILab publishes for EAGLE-1/2 and EAGLE-3 and the variants that share their keys. The kind
is read from the tensors, never guessed from a flag. Nothing from a checkpoint is executed: safetensors, or
`torch.load(weights_only=True)`.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from eagle.files import is_local, whole_file, write_text
from eagle.model.configs import EConfig
from eagle.model.head import DraftHead, Eagle3Head, EagleHead

logger = logging.getLogger(__name__)

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
# Rotary frequencies are computed, never read; some exporters write them all the same.
TOLERATED = ("rotary_emb.inv_freq",)
HUB_KEYWORDS = ("revision", "token", "cache_dir", "local_files_only", "force_download")


def load_head(path: str, target: Any, **hub: Any) -> DraftHead:
    """Load a head from a folder or the Hub and check it against its target.

    Args:
        path: folder or repository with `config.json` and `model.safetensors` or `pytorch_model.bin`.
        target: the target's text configuration.
        hub: revision, token, cache_dir, … for `huggingface_hub`.

    Raises:
        FileNotFoundError: configuration or weights are missing.
        ValueError: keys missing or unexpected, tensors empty, or sizes that do not fit the target.
    """
    config, state = read_config(path, **hub), read_weights(path, **hub)
    return build_head(config, state, target).to(torch.get_default_dtype())


def read_config(path: str, **hub: Any) -> EConfig:
    """Read a head's `config.json`.

    Raises:
        NotImplementedError: a layout or a flag of another trainer that would be misread.
    """
    return head_config_from(json.loads(_find(path, ("config.json",), hub).read_text()), path)


def head_config_from(fields: dict[str, Any], path: str) -> EConfig:
    """Return the configuration that a head's `config.json` at `path` describes; errors as in `read_config`."""
    fields = dict(fields)
    if "speculators_model_type" in fields:
        raise NotImplementedError(f"{path}: the speculators layout is not read; convert the head to SafeAILab's")
    if "LlamaForCausalLMEagle3" in (fields.get("architectures") or ()) and not fields.pop("norm_output", True):
        raise NotImplementedError(f"{path}: norm_output=false (no norm before lm_head) is not supported")
    outputs = (fields.pop("eagle_config", None) or {}).get("eagle_aux_hidden_state_layer_ids")
    if outputs is not None:
        # These name layers whose *output* is read, the same tensor as the next layer's input.
        fields.setdefault("tap_layers", [layer + 1 for layer in outputs])
    for name in ("architectures", "auto_map", "model_type", "transformers_version"):
        fields.pop(name, None)
    for name in ("rope_scaling", "rope_parameters"):
        rope = fields.get(name) or {}
        if "mrope" in (rope.get("type"), rope.get("rope_type")):
            # Three rows of positions, all equal for text: the default embedding.
            fields[name] = {**rope, "type": "default", "rope_type": "default"}
    return EConfig(**fields)


def read_weights(path: str, **hub: Any) -> dict[str, torch.Tensor]:
    """Read a head's tensors by name."""
    file = _find(path, WEIGHT_FILES, hub)
    if file.suffix == ".safetensors":
        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]


def build_head(config: EConfig, state: Mapping[str, torch.Tensor], target: Any) -> DraftHead:
    """Make the head that these tensors describe, of copies of them in their own dtypes.

    Raises:
        ValueError: see `load_head`.
    """
    state = {name: tensor for name, tensor in state.items() if not name.endswith(TOLERATED)}
    _check_finite(state)
    is_eagle3 = "midlayer.self_attn.q_proj.weight" in state
    if not is_eagle3 and "layers.0.self_attn.q_proj.weight" not in state:
        raise ValueError(f"no draft head found: neither 'midlayer.' nor 'layers.0.' among the tensors {sorted(state)}")
    head: DraftHead = _eagle3(config, state, target) if is_eagle3 else _eagle(config, state, target)
    head.rotary_emb = LlamaRotaryEmbedding(config)
    expected = set(head.state_dict())
    missing, unexpected = sorted(expected - set(state)), sorted(set(state) - expected)
    if missing or unexpected:
        raise ValueError(f"draft head does not fit its config.json: missing {missing}, unexpected {unexpected}")
    wrong = [
        f"{name}: file {tuple(state[name].shape)}, expected {tuple(parameter.shape)}"
        for name, parameter in head.state_dict().items()
        if state[name].shape != parameter.shape
    ]
    if wrong:
        raise ValueError(f"draft head does not fit its config.json or its target: {'; '.join(wrong)}")
    # Copies: the caller's tensors, and files that are mapped into memory, may change.
    head.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)
    if is_eagle3:
        _check_draft_vocabulary(state, target.vocab_size)
    return head.eval()


def share(head: DraftHead, target: Any) -> None:
    """Let a head on its target's device use the target's own tensors where its embeddings or output matrix are equal.

    Only the storage is shared: moving the head, or giving it another dtype, leaves the target alone, and so does
    loading other weights into it.
    """
    doors = {"embed_tokens": target.get_input_embeddings(), "lm_head": target.get_output_embeddings()}
    for name, door in doors.items():
        mine, theirs = getattr(head, name, None), getattr(door, "weight", None)
        if mine is None or not isinstance(theirs, torch.Tensor) or theirs.is_meta:
            continue
        kinds = [(type(weight.data), weight.shape, weight.dtype, weight.device) for weight in (mine.weight, theirs)]
        if kinds[0] == kinds[1] and torch.equal(mine.weight, theirs):
            mine.weight = nn.Parameter(theirs.detach(), requires_grad=mine.weight.requires_grad)
            mine.register_load_state_dict_pre_hook(_let_go)


def _let_go(module: Any, *_: Any) -> None:
    """Give a module a weight of its own before something is loaded into it."""
    module.weight = nn.Parameter(module.weight.detach().clone(), requires_grad=module.weight.requires_grad)


def _eagle(config: EConfig, state: dict[str, torch.Tensor], target: Any) -> EagleHead:
    width = target.hidden_size
    _check_width("fc.weight", state, 2 * width, f"2 x the target's hidden size {width}")
    has_bias = "fc.bias" in state
    if has_bias != config.bias:
        logger.warning("config.json says bias=%s, the weights say %s: the weights win", config.bias, has_bias)
        config.bias = has_bias
    _check_vocabulary(config, target)
    with torch.device("meta"):  # the checkpoint has all tensors
        return EagleHead(config, own_embeddings="embed_tokens.weight" in state)


def _eagle3(config: EConfig, state: dict[str, torch.Tensor], target: Any) -> Eagle3Head:
    width = config.target_hidden_size or config.hidden_size
    if width != target.hidden_size:
        raise ValueError(f"the head was made for a target of hidden size {width}, this one has {target.hidden_size}")
    _check_width("fc.weight", state, 3 * width, f"3 x the target's hidden size {width}")
    own_embeddings = "embed_tokens.weight" in state
    if config.hidden_size != target.hidden_size and not own_embeddings:
        raise ValueError(
            f"hidden_size={config.hidden_size} differs from the target's {target.hidden_size}, so the head needs "
            f"its own embed_tokens.weight, which the checkpoint lacks"
        )
    _check_vocabulary(config, target)
    if config.draft_vocab_size in (None, config.vocab_size):
        # Some exporters write the identity maps although nothing reads them.
        state.pop("d2t", None)
        state.pop("t2d", None)
    elif "t2d" not in state and "d2t" in state:
        ids_W = torch.arange(len(state["d2t"])) + state["d2t"]
        state["t2d"] = torch.zeros(config.vocab_size, dtype=torch.bool)
        state["t2d"][ids_W.clamp(0, config.vocab_size - 1)] = True
    with torch.device("meta"):
        return Eagle3Head(config, own_embeddings)


def _check_vocabulary(config: EConfig, target: Any) -> None:
    if config.vocab_size != target.vocab_size:
        raise ValueError(
            f"vocabulary mismatch: the head has {config.vocab_size} tokens, the target {target.vocab_size}"
        )
    if (config.draft_vocab_size or 0) > config.vocab_size:
        raise ValueError(f"draft_vocab_size={config.draft_vocab_size} exceeds the target's {config.vocab_size} tokens")


def _check_width(name: str, state: Mapping[str, torch.Tensor], width: int, meaning: str) -> None:
    if name not in state:
        raise ValueError(f"draft head does not fit its config.json: missing {name!r}")
    if state[name].shape[1] != width:
        raise ValueError(f"{name} reads {state[name].shape[1]} inputs, expected {width} ({meaning})")


def _check_finite(state: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"tensor {name!r} holds NaN or infinity: the checkpoint is damaged")
        if tensor.ndim == 2 and not tensor.any() and not name.startswith("embed_tokens"):
            raise ValueError(f"tensor {name!r} is all zero: the checkpoint is damaged or was never trained")


def _check_draft_vocabulary(state: Mapping[str, torch.Tensor], vocabulary: int) -> None:
    if "d2t" not in state:
        return
    offsets_W, known_V = state["d2t"], state["t2d"]
    ids_W = torch.arange(len(offsets_W)) + offsets_W
    if not offsets_W.any() and not bool(known_V[: len(offsets_W)].all()):
        raise ValueError("d2t is all zero although t2d selects other tokens: the draft vocabulary was never saved")
    if int(ids_W.min()) < 0 or int(ids_W.max()) >= vocabulary:
        raise ValueError(f"d2t points to token {int(ids_W.max())}, outside the target's {vocabulary} tokens")
    chosen_V = torch.zeros(vocabulary, dtype=torch.bool)
    chosen_V[ids_W] = True
    if not torch.equal(chosen_V, known_V.bool()):
        raise ValueError("d2t and t2d disagree about which tokens the head drafts")


def _find(path: str, names: tuple[str, ...], hub: dict[str, Any]) -> Path:
    """Return the first of `names` in a folder or a Hub repository."""
    folder = Path(path)
    if folder.is_dir():
        found = next((folder / name for name in names if (folder / name).is_file()), None)
        if found is None:
            raise FileNotFoundError(f"{folder} holds none of {names}")
        return found
    if is_local(path) or "/" not in path:
        raise FileNotFoundError(f"{path!r} is neither a folder nor a Hub repository id")
    for name in names:
        try:
            return Path(hf_hub_download(path, name, **hub))
        except EntryNotFoundError:
            continue
    raise FileNotFoundError(f"Hub repository {path!r} holds none of {names}")


def save_head(head: DraftHead, folder: str | Path) -> None:
    """Write a head in the layout SafeAILab publishes: `config.json` and `model.safetensors`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    fields = {name: value for name, value in head.config.to_diff_dict().items() if name != "transformers_version"}
    fields |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": str(head.dtype).split(".")[1]}
    write_text(folder / "config.json", json.dumps(fields, indent=2, sort_keys=True) + "\n")
    with whole_file(folder / "model.safetensors") as unfinished:
        save_file({name: tensor.contiguous() for name, tensor in head.state_dict().items()}, unfinished)
