"""A target and a head that fits it, checked, loaded and ready to draft: what stands before there is an `EaModel`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal

import torch

from eagle.model.adaptive.adaptation import Adaptation
from eagle.model.adaptive.profile import Recorder
from eagle.model.checks.diagnosis import checked_target
from eagle.model.configs import TreeConfig, overridden
from eagle.model.dialects.checkpoint import HeadDescription, build_head, check_embeddings, describe, readable, share
from eagle.model.dialects.token_maps import head_tokens
from eagle.model.dialects.weights import HUB_KEYWORDS, read_weights
from eagle.model.draft_vocabulary import choose_draft_vocabulary
from eagle.model.drafter import Drafter
from eagle.model.head import DraftHead, Eagle3Head, EagleHead
from eagle.model.kinds import shown
from eagle.model.support.gradients import without_gradients
from eagle.model.support.prepack import PrepackedLinears, packed
from eagle.model.target import Taps, TargetModel


@dataclass(frozen=True)
class Pair:
    """A target and the drafter of its head.

    Attributes:
        target: the base model.
        drafter: grows trees.
        taps: which features the drafter reads.
        described: what the head's `config.json` says.
    """

    target: TargetModel
    drafter: Drafter
    taps: Taps
    described: HeadDescription

    @property
    def is_eagle3(self) -> bool:
        """Whether the head is of EAGLE-3."""
        return isinstance(self.drafter.head, Eagle3Head)

    def packed(self) -> tuple[PrepackedLinears, ...]:
        """Pack the linear layers of both for this processor."""
        self.target.packed, self.drafter.packed = packed(self.target.model), packed(self.drafter.head)
        return self.target.packed, self.drafter.packed

    def adaptation(self, recorder: Recorder | None) -> Adaptation:
        """Return what chooses trees, its costs for one row measured now rather than in the first call."""
        adaptation = Adaptation(self.target, self.drafter, self.taps, recorder)
        with without_gradients():
            adaptation.chooser(1)
        return adaptation


def load_pair(
    base_model: Any,
    ea_model_path: str | PathLike[str],
    trees: TreeConfig,
    *,
    use_eagle3: bool | None = None,
    capture_layers: Sequence[int] | None = None,
    state: Mapping[str, torch.Tensor] | None = None,
    tokens: torch.Tensor | Literal[False] | None = None,
    hub: Mapping[str, Any],
) -> Pair:
    """Check a base model, load a head for it and join them.

    Args:
        base_model: a loaded causal LM, or a PEFT wrapper of one.
        ea_model_path: folder or Hub id of the head, or its `config.json`.
        trees: how trees grow.
        use_eagle3: the kind of head that is expected; None takes either.
        capture_layers: layers whose inputs an EAGLE-3 head reads, whatever its configuration says.
        state: the head's tensors, where they are loaded already.
        tokens: ids [W] that an EAGLE-1/2 head drafts; None leaves it to what lies with the head, False means all.
        hub: keywords of the head's download.

    Raises:
        ValueError, FileNotFoundError, NotImplementedError: as `EaModel` raises them.
    """
    unknown = sorted(set(hub) - set(HUB_KEYWORDS))
    if unknown:
        raise TypeError(f"unknown arguments {unknown}; beyond the signature: {sorted(HUB_KEYWORDS)}")
    if not isinstance(ea_model_path, str | PathLike):
        raise ValueError(f"ea_model_path={shown(ea_model_path)} must be a folder or a Hub id")
    if state is not None and not isinstance(state, Mapping):
        raise ValueError(f"ea_layer_state_dict={shown(state)} must hold the head's tensors by name")
    target, ea_model_path = checked_target(base_model), str(ea_model_path)
    described = describe(ea_model_path, **hub)
    config = overridden(described.config, capture_layers)
    # The weights are not kept in a variable: the head copies them.
    head = build_head(
        config,
        state if state is not None else read_weights(ea_model_path, **hub),
        target.config,
        dialect=described.dialect,
        embeddings_VD=readable(target.model.get_input_embeddings()),
    )
    taps = head.taps(len(target.layers))
    if capture_layers is not None and taps == "last":
        raise ValueError(
            f"capture_layers={list(capture_layers)}, but {ea_model_path!r} holds an {head.kind} head that reads the "
            "last hidden state"
        )
    _check_kind(head, ea_model_path, use_eagle3, tokens)
    check_embeddings(head, target.model)
    head.to(device=target.device, dtype=target.model.dtype)
    share(head, target.model)
    if isinstance(head, EagleHead) and tokens is not False:
        is_asked = tokens is not None
        ids_W = tokens if is_asked else head_tokens(ea_model_path, **hub)
        if ids_W is not None:
            choose_draft_vocabulary(head, target, ids_W, is_asked=is_asked)
    _check_ranks(head, trees)
    drafter = Drafter(head, trees, target.embed, target.output_logits)
    drafter.eval()
    return Pair(target, drafter, taps, described)


def _check_kind(
    head: DraftHead, path: str, use_eagle3: bool | None, tokens: torch.Tensor | Literal[False] | None
) -> None:
    if use_eagle3 is not None and use_eagle3 == isinstance(head, EagleHead):
        raise ValueError(f"use_eagle3={use_eagle3}, but {path!r} holds an {head.kind} head")
    if isinstance(tokens, torch.Tensor) and not isinstance(head, EagleHead):
        raise ValueError(f"token_map is for EAGLE-1/2 heads; {path!r} holds an {head.kind} head with tokens of its own")


def _check_ranks(head: DraftHead, trees: TreeConfig) -> None:
    widest = max((rank for level in trees.static or () for rank in level.rank), default=0)
    if widest >= head.draft_size:
        raise ValueError(f"tree has a child of rank {widest}, the head drafts only {head.draft_size} tokens")
