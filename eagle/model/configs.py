"""Configurations: `EConfig` of a head, `TreeConfig` of draft trees, and which layers are tapped.

Knows published `config.json` fields; knows no tensors.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from transformers import LlamaConfig, PreTrainedConfig

from eagle.model.choices import mc_sim_7b_63
from eagle.model.kinds import are_whole, number, shown, switch, whole
from eagle.model.tree import StaticLevel, static_levels

# Fields of an EAGLE-3 head that change its arithmetic (EAGLE-3.1), all off in EAGLE-3 itself.
EAGLE3_FLAGS = ("norm_before_fc", "fc_norm", "norm_before_residual", "norm_output")


class EConfig(LlamaConfig):  # type: ignore[misc]
    """Configuration of a draft head: Llama fields of its decoder layer plus what EAGLE adds.

    Without `rope_theta` the rotary base is 10000; the target's is never inherited. `num_hidden_layers` is the head's.

    Attributes:
        draft_vocab_size: rows of the head's own output matrix (EAGLE-3); None means `vocab_size`.
        target_hidden_size: width of the target where it differs from the head's.
        qkv_bias: bias on the q, k and v projections.
        bias: bias on `fc` (EAGLE-1/2); the weights decide where they disagree.
        norm_before_residual: the residual is taken after `hidden_norm` (EAGLE-3).
        norm_before_fc: one RMSNorm over the three concatenated features, `input_norm`.
        fc_norm: one RMSNorm per tapped layer, `fc_norm.0` to `fc_norm.2`.
        norm_output: the hidden state fed to the next draft step is the one after `norm`.
        tap_layers: decoder layers whose *inputs* are the features, any number of them; n of a target of n layers is
            the output of its last layer, before the final norm. None means 2, n//2, n-3.
        use_aux_hidden_state: off in EAGLE-3 heads without `fc`, which read the target's last hidden state instead.
        qk_norm: an RMSNorm of queries and keys, `q_norm` and `k_norm`, before they are rotated.
        windows: per layer how many positions it sees, its own included, None for all; None means all in every layer.
    """

    model_type = "eagle_head"

    draft_vocab_size: int | None = None
    target_hidden_size: int | None = None
    qkv_bias: bool = False
    bias: bool = True
    norm_before_residual: bool = False
    norm_before_fc: bool = False
    fc_norm: bool = False
    norm_output: bool = False
    tap_layers: list[int] | None = None
    use_aux_hidden_state: bool = True
    qk_norm: bool = False
    windows: list[int | None] | None = None

    @property
    def taps_count(self) -> int:
        """How many layers an EAGLE-3 head reads."""
        if not self.use_aux_hidden_state:
            return 1
        return len(self.tap_layers) if self.tap_layers else 3


def tapped_layers(config: EConfig, target_layers: int) -> tuple[int, ...]:
    """Return the decoder layers whose inputs an EAGLE-3 head reads; the number of layers is the last one's output.

    Raises:
        ValueError: the target is too shallow for the default, or the configured layers do not fit it.
    """
    taps = tuple(config.tap_layers or (2, target_layers // 2, target_layers - 3))
    if sorted(set(taps)) != list(taps) or not 0 <= taps[0] <= taps[-1] <= target_layers:
        raise ValueError(
            f"tap_layers={list(taps)} do not name rising layers, from 0 to the last one's output {target_layers}, of a "
            f"target with {target_layers} layers; the default (2, n//2, n-3) needs at least 7: pass capture_layers, or "
            f"set tap_layers in the head's config.json"
        )
    return taps


def overridden(
    config: EConfig, capture_layers: Sequence[int] | None = None, changes: Mapping[str, Any] | None = None
) -> EConfig:
    """Return a head's configuration with what the caller knows better.

    Args:
        config: stays as it is.
        capture_layers: layers whose inputs are read; None leaves them.
        changes: flags of `EAGLE3_FLAGS`, and `rope_theta`.

    Raises:
        ValueError: no layers, or something else than these.
    """
    config = deepcopy(config)
    if capture_layers is not None:
        if not are_whole(capture_layers) or not list(capture_layers):
            raise ValueError(f"capture_layers={shown(capture_layers)} must be a list of layers")
        config.tap_layers = list(capture_layers)
    for name, value in (changes or {}).items():
        if name == "rope_theta":
            if number(name, value) <= 0:
                raise ValueError(f"rope_theta={shown(value)} must be above 0")
            config.rope_parameters = {**config.rope_parameters, name: value}
        elif name in EAGLE3_FLAGS:
            setattr(config, name, switch(name, value))
        else:
            raise ValueError(f"{name}={shown(value)} cannot be set, only {', '.join(EAGLE3_FLAGS)} and rope_theta")
    return config


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the part of a model's configuration that describes its text decoder."""
    return config.get_text_config(decoder=True)


@dataclass(frozen=True, kw_only=True)
class TreeConfig:
    """How a drafter grows its tree.

    Attributes:
        total_token: nodes of the tree, root included; clipped to what `depth` and `top_k` can fill.
        depth: expansions after the first, so at most `depth + 1` drafted levels.
        top_k: children per expanded node and nodes expanded per level.
        threshold: nodes with a cumulative probability below it are dropped; 1.0 means none is.
        static: levels of a fixed EAGLE-1 tree; None grows by confidence (EAGLE-2).
    """

    total_token: int = 60
    depth: int = 7
    top_k: int = 10
    threshold: float = 1.0
    static: tuple[StaticLevel, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("total_token", "depth", "top_k"):
            whole(name, getattr(self, name))
        number("threshold", self.threshold)
        if self.total_token < 2:
            raise ValueError(f"total_token={self.total_token} must be at least 2 (the root and one draft), or -1")
        if self.depth < 0:
            raise ValueError(f"depth={self.depth} must be 0 or more")
        if self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} must be 1 or more")
        if not 0.0 < self.threshold <= 1.0:
            raise ValueError(f"threshold={self.threshold} must lie in (0, 1]; 1.0 drops nothing")

    @property
    def nodes(self) -> int:
        """Nodes of the tree that is really built, root included."""
        if self.static is not None:
            return 1 + sum(len(level.rank) for level in self.static)
        return min(self.total_token, 1 + self.top_k + self.depth * self.top_k**2)

    def fitted(self, most_children: int) -> "TreeConfig":
        """Return what grows the same trees without looking at nodes that no tree of this size can keep.

        A kept node's parent is kept. So a tree of N nodes has at most N - 1 levels below its root, and of one level at
        most the N - 1 best nodes.

        Args:
            most_children: tokens that the head can draft.
        """
        if self.static is not None:
            return self
        narrow = replace(self, top_k=min(self.top_k, self.total_token - 1, most_children))
        return replace(narrow, depth=min(self.depth, narrow.nodes - 2))

    @property
    def levels(self) -> int:
        """Most nodes on one path, root included."""
        return 1 + (len(self.static) if self.static is not None else min(self.depth + 1, self.nodes - 1))

    @property
    def scratch(self) -> int:
        """Slots that drafting needs in the head's cache beyond the accepted tokens."""
        if self.static is not None:
            return max(self.levels, sum(len(level.expand) for level in self.static[1:]))
        return max(self.levels, self.depth * self.top_k)


def tree_config(
    total_token: int,
    depth: int,
    top_k: int,
    threshold: float,
    tree: str | Sequence[Sequence[int]] = "dynamic",
) -> TreeConfig:
    """Build a `TreeConfig` from `EaModel.from_pretrained`'s arguments; `tree` is "dynamic", "static" or paths.

    Where `total_token` is -1 it is the largest tree.
    """
    if (isinstance(tree, str) and tree not in ("dynamic", "static")) or not isinstance(tree, Sequence):
        raise ValueError(f"tree={shown(tree)} must be 'dynamic', 'static' or a list of root-to-node paths")
    total_token = 60 if whole("total_token", total_token) == -1 else total_token
    paths = mc_sim_7b_63 if tree == "static" else tree
    static = None if tree == "dynamic" else static_levels(paths)  # type: ignore[arg-type]
    return TreeConfig(total_token=total_token, depth=depth, top_k=top_k, threshold=threshold, static=static)
