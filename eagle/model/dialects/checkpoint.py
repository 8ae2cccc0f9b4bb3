"""Draft-head checkpoints in: a folder or Hub id becomes a head whose every tensor is accounted for.

The dialect is read from the configuration, the kind of head from the tensors. Nothing from a checkpoint is executed:
safetensors, or `torch.load(weights_only=True)`.
"""

import json
import logging
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from eagle.files import whole_file, write_text
from eagle.model.configs import EConfig
from eagle.model.dialects.fields import head_config_from
from eagle.model.dialects.keys import PREFIXES, Dialect
from eagle.model.dialects.known import dialect_of
from eagle.model.dialects.safeailab import SAFEAILAB
from eagle.model.dialects.token_maps import write_token_map
from eagle.model.dialects.vocabulary import ALIKE, check_maps, fit_maps, fit_vocabulary, similarity
from eagle.model.dialects.weights import DOWNLOAD, read_fields, read_weights
from eagle.model.head import DraftHead, Eagle3Head, EagleHead

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeadDescription:
    """What a head's `config.json` says.

    Attributes:
        config: the head's configuration.
        dialect: how its tensors are called.
        version: of what wrote it, "" where it does not say.
    """

    config: EConfig
    dialect: Dialect
    version: str


def describe(path: str, **hub: Any) -> HeadDescription:
    """Read a head's `config.json`.

    Raises:
        FileNotFoundError, ValueError: there is none, or it is damaged.
        NotImplementedError: a layout or a flag of another trainer that would be misread.
    """
    fields = read_fields(path, hub)
    dialect = dialect_of(fields, path)
    return HeadDescription(head_config_from(fields, path), dialect, str(fields.get(dialect.version) or ""))


def read_config(path: str, **hub: Any) -> EConfig:
    """Return the configuration that a head's `config.json` describes; raises what `describe` does."""
    return describe(path, **hub).config


def load_head(path: str, target: Any, **hub: Any) -> DraftHead:
    """Load a head from a folder or the Hub and check it against its target.

    Args:
        path: folder or repository with `config.json` and its tensors.
        target: the target's text configuration.
        hub: revision, token, cache_dir, … for `huggingface_hub`.

    Raises:
        FileNotFoundError: configuration or weights are missing.
        ValueError: keys missing or unexpected, tensors empty, or sizes that do not fit the target.
    """
    described = describe(path, **hub)
    head = build_head(described.config, read_weights(path, **hub), target, dialect=described.dialect)
    return head.to(torch.get_default_dtype())


def build_head(
    config: EConfig,
    state: Mapping[str, torch.Tensor],
    target: Any,
    *,
    dialect: Dialect = SAFEAILAB,
    embeddings_VD: torch.Tensor | None = None,
) -> DraftHead:
    """Make the head that these tensors describe, of copies of them in their own dtypes.

    Names and shapes are compared before anything is computed or copied.

    Args:
        config: the head's configuration, which stays as it is.
        state: its tensors under the dialect's names.
        target: the target's text configuration.
        dialect: how the tensors are called.
        embeddings_VD: the target's, which tell a vocabulary that is padded differently from another one.

    Raises:
        ValueError: see `load_head`.
    """
    config, state = deepcopy(config), _without_prefix(dict(state))
    is_eagle3 = is_eagle3_state(state)
    state = _renamed(dialect, state, "midlayer" if is_eagle3 else "layers.0")
    _check_layers(config, state)
    rotary = _rotary(config)
    make = _eagle3 if is_eagle3 else _eagle
    head: DraftHead = make(config, state, target, embeddings_VD)
    _check_names(head, state)
    _check_finite(state)
    if is_eagle3:
        check_maps(state, target.vocab_size)
    head.rotary_emb = rotary
    # Copies: the caller's tensors, and files that are mapped into memory, may change.
    head.load_state_dict({name: tensor.clone() for name, tensor in state.items()}, assign=True)
    return head.eval()


def _check_names(head: DraftHead, state: Mapping[str, torch.Tensor]) -> None:
    expected = head.state_dict()
    missing, unexpected = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    if missing or unexpected:
        raise ValueError(
            f"draft head does not fit its config.json: missing {missing}, unexpected {unexpected}: take both files "
            "from one place"
        )
    wrong = [
        f"{name}: file {tuple(state[name].shape)}, expected {tuple(parameter.shape)}"
        for name, parameter in expected.items()
        if state[name].shape != parameter.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(
            f"draft head does not fit its config.json or its target: {'; '.join(wrong[:3])}{more}: take both files "
            "from one place, and the head's own target"
        )


def _rotary(config: EConfig) -> LlamaRotaryEmbedding:
    try:
        rotary = LlamaRotaryEmbedding(config)
    except (KeyError, TypeError, ValueError, ArithmeticError, RuntimeError) as failure:
        words = f"{config.rope_parameters} cannot be made ({' '.join(str(failure).split())})"
        raise ValueError(f"config.json's rotary embedding {words}") from failure
    if not torch.isfinite(rotary.inv_freq).all():
        raise ValueError(f"config.json's rotary embedding {config.rope_parameters} has no finite frequencies")
    return rotary


def _without_prefix(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a head's tensors without what a wrapper has put before all of their names."""
    while state:
        prefix = next((each for each in PREFIXES if all(name.startswith(each) for name in state)), None)
        inner = {name.removeprefix(prefix): tensor for name, tensor in state.items()} if prefix else {}
        if not any(name.startswith(("fc.", "midlayer.", *PREFIXES)) for name in inner):
            return state
        state = inner
    return state


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


def _renamed(dialect: Dialect, state: dict[str, torch.Tensor], first: str) -> dict[str, torch.Tensor]:
    """Return a head's tensors under the names that they have here, without those that are not used."""
    names = dialect.names(state, first)
    unused = sorted(name for name, ours in names.items() if not ours)
    if unused:
        reasons = {line[0].why for name in unused if (line := dialect.find(name)) is not None}
        logger.info("tensors %s of the head are not used: %s", unused, "; ".join(sorted(reasons)))
    return {ours: state[name] for name, ours in names.items() if ours}


def _check_layers(config: EConfig, state: Mapping[str, torch.Tensor]) -> None:
    found = {0} | {int(match[1]) for name in state if (match := re.match(r"layers\.(\d+)\.", name))}
    count = len(found)
    if config.num_hidden_layers != count:
        raise ValueError(
            f"draft head does not fit its config.json: num_hidden_layers={config.num_hidden_layers}, the file has "
            f"{count}: take both files from one place"
        )
    if max(found) >= count:
        raise ValueError(f"draft head has layers {sorted(found)}, some are missing: {DOWNLOAD}")


def readable(module: Any) -> torch.Tensor | None:
    """Return the weight of a target's embeddings or output matrix, None where it is quantised, offloaded or absent."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.is_meta or not weight.is_floating_point():
        return None
    return weight.detach()


def check_embeddings(head: DraftHead, target: Any) -> None:
    """Say so where a head's own embeddings have nothing to do with its target's, of which trainers take a copy."""
    mine, theirs_VD = getattr(head, "embed_tokens", None), readable(target.get_input_embeddings())
    if mine is None or theirs_VD is None or mine.weight.shape != theirs_VD.shape:
        return
    alike = similarity(mine.weight, theirs_VD)
    if alike < ALIKE:
        logger.warning(
            "the head's embed_tokens are not like the target's (mean cosine %.2f): they belong to another target, or "
            "were never trained; few drafts will be accepted",
            alike,
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


def _eagle(
    config: EConfig, state: dict[str, torch.Tensor], target: Any, embeddings_VD: torch.Tensor | None
) -> EagleHead:
    width = target.hidden_size
    _check_width("fc.weight", state, 2 * width, f"2 x the target's hidden size {width}")
    if not config.bias and "fc.bias" in state and not state["fc.bias"].any():
        del state["fc.bias"]  # SGLang's layout has one always; zeros are none
    has_bias = "fc.bias" in state
    if has_bias != config.bias:
        logger.warning("config.json says bias=%s, the weights say %s: the weights win", config.bias, has_bias)
        config.bias = has_bias
    fit_vocabulary(config, state, target.vocab_size, embeddings_VD)
    with torch.device("meta"):  # the checkpoint has all tensors
        return EagleHead(config, own_embeddings="embed_tokens.weight" in state)


def _eagle3(
    config: EConfig, state: dict[str, torch.Tensor], target: Any, embeddings_VD: torch.Tensor | None
) -> Eagle3Head:
    width = config.target_hidden_size or config.hidden_size
    if width != target.hidden_size:
        raise ValueError(
            f"the head was made for a target of hidden size {width}, this one has {target.hidden_size}: use its own "
            "target"
        )
    own_embeddings = "embed_tokens.weight" in state
    if config.hidden_size != target.hidden_size and not own_embeddings:
        raise ValueError(
            f"hidden_size={config.hidden_size} differs from the target's {target.hidden_size}, so the head needs "
            f"its own embed_tokens.weight, which the checkpoint lacks: save the head with it"
        )
    if config.use_aux_hidden_state:
        meaning = f"{config.taps_count} x the target's hidden size {width}"
        _check_width("fc.weight", state, config.taps_count * width, meaning)
    elif config.hidden_size != width or config.norm_before_fc or config.fc_norm:
        raise ValueError(
            f"use_aux_hidden_state=false means a head without fc, which reads the target's last hidden state as it is: "
            f"it cannot have hidden_size={config.hidden_size} for a target of {width}, norm_before_fc or fc_norm"
        )
    fit_vocabulary(config, state, target.vocab_size, embeddings_VD)
    fit_maps(config, state)
    own_output = "lm_head.weight" in state
    if not own_output and (config.draft_vocab_size or config.vocab_size) != config.vocab_size:
        raise ValueError(
            f"the head lacks lm_head.weight for its draft vocabulary of {config.draft_vocab_size} tokens: save it with "
            "its output matrix"
        )
    if not own_output and config.hidden_size != target.hidden_size:
        raise ValueError(
            f"the head lacks lm_head.weight, and the target's does not fit its hidden_size={config.hidden_size}: save "
            "it with its output matrix"
        )
    with torch.device("meta"):
        return Eagle3Head(config, own_embeddings, own_output)


def _check_width(name: str, state: Mapping[str, torch.Tensor], width: int, meaning: str) -> None:
    if name not in state:
        raise ValueError(f"draft head does not fit its config.json: missing {name!r}: {DOWNLOAD}")
    if state[name].ndim != 2 or state[name].shape[1] != width:
        raise ValueError(
            f"{name} reads {'x'.join(map(str, state[name].shape[1:]))} inputs, expected {width} ({meaning}): use the "
            "head's own target, and as many layers as it reads"
        )


def _check_finite(state: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"tensor {name!r} holds NaN or infinity: the checkpoint is damaged: {DOWNLOAD}")
        if (tensor.ndim == 2 or "norm" in name) and not tensor.any():
            raise ValueError(
                f"tensor {name!r} is all zero: the checkpoint is damaged or was never trained: {DOWNLOAD}, or leave it "
                "out where the target's is meant"
            )


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
