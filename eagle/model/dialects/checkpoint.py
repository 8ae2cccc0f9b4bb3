"""Draft-head checkpoints in: a folder or Hub id becomes a head whose every tensor is accounted for.

Reads the layouts that SafeAILab publishes for EAGLE-1/2 and EAGLE-3 and the variants that share their keys. The kind
is read from the tensors, never guessed from a flag. Nothing from a checkpoint is executed: safetensors, or
`torch.load(weights_only=True)`.
"""

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from eagle.files import whole_file, write_text
from eagle.model.configs import EConfig
from eagle.model.dialects.fields import head_config_from
from eagle.model.dialects.token_maps import write_token_map
from eagle.model.dialects.weights import read_fields, read_weights
from eagle.model.head import DraftHead, Eagle3Head, EagleHead

logger = logging.getLogger(__name__)

# Rows of the embeddings that are compared, and the least mean cosine of copies of one another, rounded or tuned.
SAMPLED, ALIKE = 256, 0.5
# Rotary frequencies are computed, never read; some exporters write them all the same.
TOLERATED = ("rotary_emb.inv_freq",)


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
        FileNotFoundError, ValueError: there is none, or it is damaged.
        NotImplementedError: a layout or a flag of another trainer that would be misread.
    """
    return head_config_from(read_fields(path, hub), path)


def build_head(config: EConfig, state: Mapping[str, torch.Tensor], target: Any) -> DraftHead:
    """Make the head that these tensors describe, of copies of them in their own dtypes.

    Names and shapes are compared before anything is computed or copied.

    Raises:
        ValueError: see `load_head`.
        NotImplementedError: an EAGLE-3 head of several layers.
    """
    state = {name: tensor for name, tensor in state.items() if not name.endswith(TOLERATED)}
    is_eagle3 = is_eagle3_state(state)
    if is_eagle3:
        state = _with_midlayer(state)
    _check_layers(config, state, is_eagle3)
    rotary = _rotary(config)
    head: DraftHead = _eagle3(config, state, target) if is_eagle3 else _eagle(config, state, target)
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
    _check_finite(state)
    if is_eagle3:
        _check_draft_vocabulary(state, target.vocab_size)
    head.rotary_emb = rotary
    # Copies: the caller's tensors, and files that are mapped into memory, may change.
    head.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)
    return head.eval()


def _rotary(config: EConfig) -> LlamaRotaryEmbedding:
    try:
        rotary = LlamaRotaryEmbedding(config)
    except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError) as failure:
        words = f"{config.rope_parameters} cannot be made ({' '.join(str(failure).split())})"
        raise ValueError(f"config.json's rotary embedding {words}") from failure
    if not torch.isfinite(rotary.inv_freq).all():
        raise ValueError(f"config.json's rotary embedding {config.rope_parameters} has no finite frequencies")
    return rotary


def is_eagle3_state(state: Mapping[str, torch.Tensor]) -> bool:
    """Tell the kind of head by its tensors: an EAGLE-3 layer attends over embedding and hidden state side by side.

    Raises:
        ValueError: they are of no head.
    """
    for first, of_eagle3 in (("midlayer.", True), ("layers.0.", False)):
        query = state.get(f"{first}self_attn.q_proj.weight")
        if query is not None:
            return of_eagle3 or _reads_two_states(query, state)
    if any(name.startswith("midlayer.") for name in state):
        return True  # what is missing is named later
    names = sorted(state)
    some = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    if any(name.startswith("model.layers.") for name in names):
        raise ValueError(
            f"these are the tensors of a whole model ({some}), not of a draft head: are base_model_path and "
            "ea_model_path exchanged?"
        )
    raise ValueError(f"no draft head found: neither 'midlayer.' nor 'layers.0.' among the tensors {some}")


def _reads_two_states(query: torch.Tensor, state: Mapping[str, torch.Tensor]) -> bool:
    output = state.get("layers.0.self_attn.o_proj.weight")
    return query.ndim == 2 and output is not None and output.ndim == 2 and query.shape[1] == 2 * output.shape[0]


def _with_midlayer(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return an EAGLE-3 head's tensors under SafeAILab's names; some trainers call its layer `layers.0`."""
    renamed = {}
    for name, tensor in state.items():
        renamed[f"midlayer.{name.removeprefix('layers.0.')}" if name.startswith("layers.0.") else name] = tensor
    if len(renamed) != len(state):
        raise ValueError("the head has both 'midlayer.' and 'layers.0.'")
    return renamed


def _check_layers(config: EConfig, state: Mapping[str, torch.Tensor], is_eagle3: bool) -> None:
    found = {int(match[1]) for name in state if (match := re.match(r"layers\.(\d+)\.", name))}
    count = len(found) + is_eagle3
    if is_eagle3 and found:
        raise NotImplementedError(f"an EAGLE-3 head of {count} layers is not supported, only of one")
    if config.num_hidden_layers != count:
        raise ValueError(
            f"draft head does not fit its config.json: num_hidden_layers={config.num_hidden_layers}, the file has "
            f"{count}"
        )


def check_embeddings(head: DraftHead, target: Any) -> None:
    """Say so where a head's own embeddings have nothing to do with its target's, of which trainers take a copy."""
    mine, theirs = getattr(head, "embed_tokens", None), getattr(target.get_input_embeddings(), "weight", None)
    if mine is None or not isinstance(theirs, torch.Tensor) or theirs.is_meta or not theirs.is_floating_point():
        return
    if mine.weight.shape != theirs.shape:
        return
    rows = torch.arange(0, len(theirs), max(1, len(theirs) // SAMPLED))
    own_RD, target_RD = (weight.detach()[rows.to(weight.device)].float().cpu() for weight in (mine.weight, theirs))
    similarity = float(torch.nn.functional.cosine_similarity(own_RD, target_RD).mean())
    if similarity < ALIKE:
        logger.warning(
            "the head's embed_tokens are not like the target's (mean cosine %.2f): they belong to another target, or "
            "were never trained; few drafts will be accepted",
            similarity,
        )


def share(head: DraftHead, target: Any) -> None:
    """Let a head on its target's device use the target's own tensors where its embeddings or output matrix are equal.

    Only the storage is shared: moving the head, or giving it another dtype, leaves the target alone, and so does
    loading other weights into it.
    """
    modules = {"embed_tokens": target.get_input_embeddings(), "lm_head": target.get_output_embeddings()}
    for name, module in modules.items():
        mine, theirs = getattr(head, name, None), getattr(module, "weight", None)
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
    meaning = f"{config.taps_count} x the target's hidden size {width}"
    _check_width("fc.weight", state, config.taps_count * width, meaning)
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
    if state[name].ndim != 2 or state[name].shape[1] != width:
        raise ValueError(
            f"{name} reads {'x'.join(map(str, state[name].shape[1:]))} inputs, expected {width} ({meaning})"
        )


def _check_finite(state: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"tensor {name!r} holds NaN or infinity: the checkpoint is damaged")
        if (tensor.ndim == 2 or "norm" in name) and not tensor.any():
            raise ValueError(f"tensor {name!r} is all zero: the checkpoint is damaged or was never trained")


def _check_draft_vocabulary(state: Mapping[str, torch.Tensor], vocabulary: int) -> None:
    if "d2t" not in state:
        return
    offsets_W, known_V = state["d2t"], state["t2d"]
    ids_W = torch.arange(len(offsets_W)) + offsets_W
    if len(ids_W.unique()) < len(ids_W):
        raise ValueError("d2t gives several draft tokens the same id of the target")
    if not offsets_W.any() and not bool(known_V[: len(offsets_W)].all()):
        raise ValueError("d2t is all zero although t2d selects other tokens: the draft vocabulary was never saved")
    if int(ids_W.min()) < 0 or int(ids_W.max()) >= vocabulary:
        raise ValueError(f"d2t points to token {int(ids_W.max())}, outside the target's {vocabulary} tokens")
    chosen_V = torch.zeros(vocabulary, dtype=torch.bool)
    chosen_V[ids_W] = True
    if not torch.equal(chosen_V, known_V.bool()):
        raise ValueError("d2t and t2d disagree about which tokens the head drafts")


def save_head(head: DraftHead, folder: str | Path) -> None:
    """Write a head in the layout SafeAILab publishes: `config.json` and `model.safetensors`.

    The draft vocabulary of an EAGLE-1/2 head, where it has one, goes into `token_map.pt`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    fields = {name: value for name, value in head.config.to_diff_dict().items() if name != "transformers_version"}
    fields |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": str(head.dtype).split(".")[1]}
    write_text(folder / "config.json", json.dumps(fields, indent=2, sort_keys=True) + "\n")
    with whole_file(folder / "model.safetensors") as unfinished:
        save_file({name: tensor.contiguous() for name, tensor in head.state_dict().items()}, unfinished)
    if isinstance(head, EagleHead) and hasattr(head, "d2t"):
        write_token_map(folder, head.target_ids(torch.arange(head.draft_size, device=head.device)).cpu())
