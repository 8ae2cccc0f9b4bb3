"""The head that a run trains: a new one shaped after its target, or one trained further."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedConfig

from eagle.model.configs import EAGLE3_FLAGS, EConfig, tapped_layers
from eagle.model.dialects.checkpoint import head_config_from, load_head
from eagle.model.head import DraftHead, Eagle3Head, EagleHead
from eagle.model.target import Taps
from eagle.train.configure import head_config
from eagle.train.settings import Settings

CHOICES = (*EAGLE3_FLAGS, "tap_layers")


def config_of(settings: Settings, target: PreTrainedConfig) -> EConfig:
    """Return the configuration of a new head: of `configpath`, or derived from the target's, with the flags given.

    Raises:
        FileNotFoundError: `configpath` does not exist.
        ValueError: it does not fit the target.
    """
    if settings.configpath is None:
        config = head_config(settings.kind, target)
        # Heads draft a tenth more with it: examples/tiny_pair/README.md.
        config.norm_before_residual = settings.kind == "eagle3" and settings.norm_before_residual is not False
    else:
        path = Path(settings.configpath)
        if not path.is_file():
            raise FileNotFoundError(f"configpath {path} does not exist")
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as broken:
            raise ValueError(f"configpath {path} is no JSON ({broken})") from broken
        config = head_config_from(document, str(path))
    chosen = {name: getattr(settings, name) for name in CHOICES if getattr(settings, name)}
    if settings.draft_vocab_size is not None:
        chosen["draft_vocab_size"] = settings.draft_vocab_size
    for name, value in chosen.items():
        setattr(config, name, value)
    width = config.target_hidden_size or config.hidden_size
    for name, mine, theirs in (("width", width, target.hidden_size), ("tokens", config.vocab_size, target.vocab_size)):
        if mine != theirs:
            raise ValueError(f"the head's config.json is for a target of {name} {mine}, this one has {theirs}")
    if (config.draft_vocab_size or 0) > config.vocab_size:
        raise ValueError(f"draft_vocab_size={config.draft_vocab_size} exceeds the target's {config.vocab_size} tokens")
    return config


def taps_of(kind: str, config: EConfig, target: PreTrainedConfig) -> Taps:
    """Return what a head of this kind and configuration reads of its target."""
    return "last" if kind == "eagle" else tapped_layers(config, target.num_hidden_layers)


def new_head(
    kind: str,
    config: EConfig,
    draft_tokens_W: torch.Tensor | None = None,
    output_VD: torch.Tensor | None = None,
) -> DraftHead:
    """Make an untrained head.

    Args:
        kind: "eagle" or "eagle3".
        config: its shape.
        draft_tokens_W: target ids that an EAGLE-3 head with a draft vocabulary drafts, ascending.
        output_VD: the target's output matrix, which an EAGLE-3 head's begins with where the widths agree.
    """
    narrow = config.target_hidden_size not in (None, config.hidden_size)
    head: DraftHead = EagleHead(config) if kind == "eagle" else Eagle3Head(config, own_embeddings=narrow)
    for name, weight in head.named_parameters():
        if weight.ndim == 2 and not name.startswith("fc"):
            nn.init.normal_(weight, std=config.initializer_range)
    if isinstance(head, Eagle3Head):
        rows = torch.arange(config.vocab_size) if draft_tokens_W is None else draft_tokens_W
        if output_VD is not None and output_VD.shape[1] == config.hidden_size:
            head.lm_head.weight.data.copy_(output_VD[rows.to(output_VD.device)])
        if hasattr(head, "d2t"):
            head.d2t.copy_(rows - torch.arange(len(rows)))
            head.t2d[rows] = True
    return head


def _check_trainable(head: DraftHead, path: str) -> None:
    if any(head.config.windows or ()):
        raise ValueError(f"{path} holds a head with sliding windows, which can be used, not trained further")
    if isinstance(head, Eagle3Head) and not (hasattr(head, "fc") and hasattr(head, "lm_head")):
        raise ValueError(f"{path} holds an EAGLE-3 head without fc or lm_head, which can be used, not trained further")


def first_head(
    settings: Settings,
    target: PreTrainedConfig,
    draft_tokens: Callable[[int], torch.Tensor],
    output_VD: torch.Tensor | None,
) -> DraftHead:
    """Return the head that a run begins with, in fp32.

    Args:
        settings: the run.
        target: the target's text configuration.
        draft_tokens: chooses so many tokens to be drafted, ascending ids [W].
        output_VD: see `new_head`.

    Raises:
        ValueError: a head of the other kind to go on from, or one that does not fit the target.
    """
    if settings.ea_model_path is not None:
        head = load_head(settings.ea_model_path, target).float()
        _check_trainable(head, settings.ea_model_path)
        if isinstance(head, EagleHead) != (settings.kind == "eagle"):
            raise ValueError(f"{settings.ea_model_path} holds an {head.kind} head, kind={settings.kind!r}")
        if settings.draft_vocab_size not in (None, head.draft_size):
            raise ValueError(
                f"draft_vocab_size={settings.draft_vocab_size}, but {settings.ea_model_path} drafts {head.draft_size} "
                "tokens, which stay the same ones"
            )
        return head.train()
    config = config_of(settings, target)
    chosen = None
    if settings.kind == "eagle3" and config.draft_vocab_size not in (None, config.vocab_size):
        chosen = draft_tokens(config.draft_vocab_size)
    torch.manual_seed(settings.seed)
    return new_head(settings.kind, config, chosen, output_VD)
