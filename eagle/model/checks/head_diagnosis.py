"""What a head is, and with which layers and flags it was trained: tried on text that its target writes.

A head that reads the layers next to its own, or whose configuration has a wrong flag, loads and drafts, only worse. So
what could be meant otherwise is tried one after another: the layers one up and one down and the default ones, the norm
flags that no tensor shows, the rotary base. What finds the target's own tokens likeliest, beyond chance, is what it was
trained with: likelihood, expected over the target's distribution, tells ways apart that shares of right tokens cannot.

Shapes: S tokens, F feature width.
"""

import shlex
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from eagle.model.checks.chains import chains_of, draftable
from eagle.model.checks.diagnosis import Check
from eagle.model.checks.openings import SampleText
from eagle.model.configs import EConfig, overridden, tapped_layers
from eagle.model.dialects.checkpoint import HeadDescription
from eagle.model.drafter import Drafter
from eagle.model.head import DraftHead, Eagle3Head
from eagle.model.target import Taps, TargetModel

DEPTH = 4
# A difference in log-likelihood per draft that is no chance, in standard errors, and one that matters.
ERRORS, LEAST = 4.0, 0.05
# Flags that change no tensor.
UNSEEN = ("norm_output", "norm_before_residual")


@dataclass(frozen=True)
class Trial:
    """A way to load a head, and how it drafts.

    Attributes:
        taps: what is read of the target.
        changes: fields of the configuration that differ from its own.
        per_depth: share of drafts whose first 1, 2, … tokens are right.
        mean: right tokens of a draft.
        likelihood: expected log-probability of the target's tokens, of every draft.
    """

    taps: Taps
    changes: dict[str, Any]
    per_depth: tuple[float, ...]
    mean: float
    likelihood: tuple[float, ...]

    def __str__(self) -> str:
        """Return what is read and changed, and the shares."""
        read = "last hidden state" if self.taps == "last" else f"layers {list(self.taps or ())}"
        changed = "".join(f", {name}={_json(value)}" for name, value in self.changes.items())
        shares = " ".join(f"{100 * share:3.0f} %" for share in self.per_depth)
        return f"{read + changed:64}{shares}   {self.mean:4.2f}   {_mean(self.likelihood):7.3f}"


@dataclass(frozen=True)
class HeadReport:
    """What a head is, and how it was trained.

    Attributes:
        checks: what it is, and whether it is loaded as it was trained.
        trials: all that was tried, as loaded first.
        remedy: commands that load it right, "" where it is.
    """

    checks: tuple[Check, ...]
    trials: tuple[Trial, ...]
    remedy: str = ""

    @property
    def passed(self) -> bool:
        """Whether it is loaded as it was trained."""
        return all(check.passed for check in self.checks)

    def __str__(self) -> str:
        """Return the checks, the table of what was tried, and the remedy."""
        lines = [f"{'pass' if check.passed else 'FAIL'}  {check.name}: {check.detail}" for check in self.checks]
        depths = " ".join(f"{f'at {depth}':>5}" for depth in range(1, DEPTH + 1))
        table = [f"      {trial}" for trial in self.trials]
        head = [f"      {'share of drafts that are right so far':64}{depths}   mean   log p"]
        return "\n".join([*lines, *head, *table, *([self.remedy] if self.remedy else [])])


def diagnose_head(
    target: TargetModel,
    drafter: Drafter,
    described: HeadDescription,
    texts: Sequence[SampleText],
    paths: tuple[str, str],
) -> HeadReport:
    """Say what a loaded head is, try what else its file could mean, and name what it was trained with.

    Args:
        target: its base model.
        drafter: the head as it is loaded.
        described: what its `config.json` says.
        texts: what it is tried on.
        paths: of base and head, for the commands.
    """
    laboratory = _Laboratory(target, drafter, texts)
    loaded = laboratory.tried(drafter.head.taps(len(target.layers)), {})
    best = loaded
    for ways in (laboratory.other_taps, laboratory.other_flags, laboratory.other_bases, laboratory.other_taps):
        for taps, changes in ways(best):
            trial = laboratory.tried(taps, changes)
            best = trial if _is_better(trial, best) else best
    is_right = best is loaded
    first = f"{100 * best.per_depth[0]:.0f} % of first tokens are right, {best.mean:.2f} of {DEPTH} per draft"
    if is_right:
        detail = f"as loaded: {first}; nothing else that was tried does better"
    else:
        was = f"as loaded {100 * loaded.per_depth[0]:.0f} %, {loaded.mean:.2f}"
        detail = f"{str(best)[:64].strip()}: {first} ({was})"
    checks = (
        Check("head", True, _what(drafter.head, described, len(target.layers))),
        Check("trained with", is_right, detail),
    )
    return HeadReport(checks, tuple(laboratory.trials), "" if is_right else _remedy(best, loaded, paths))


class _Laboratory:
    """One head, one target and texts whose features are read once."""

    def __init__(self, target: TargetModel, drafter: Drafter, texts: Sequence[SampleText]) -> None:
        self.target, self.drafter, self.texts = target, drafter, texts
        self.config: EConfig = drafter.head.config
        self.layers = len(target.layers)
        self.trials: list[Trial] = []
        self._features: dict[Taps, list[torch.Tensor]] = {}
        self._wanted = [self._wanted_of(text.ids_1S) for text in texts]

    def tried(self, taps: Taps, changes: dict[str, Any]) -> Trial:
        """Return what drafting this way gives, from the list where it is there."""
        known = next((trial for trial in self.trials if (trial.taps, trial.changes) == (taps, changes)), None)
        if known is not None:
            return known
        drafter = self._changed(changes)
        counts: list[int] = []
        likelihood: list[float] = []
        for features_1SF, text, wanted_SW in zip(self._read(taps), self.texts, self._wanted, strict=True):
            chains = chains_of(drafter, features_1SF, text.ids_1S, wanted_SW, DEPTH)
            own = slice(max(0, text.given - 2), None)
            counts += chains.accepted_N[own].tolist()
            likelihood += chains.likelihood_N[own].tolist()
        shares = tuple(sum(count >= depth for count in counts) / len(counts) for depth in range(1, DEPTH + 1))
        trial = Trial(taps, changes, shares, _mean(counts), tuple(likelihood))
        self.trials.append(trial)
        return trial

    def other_taps(self, best: Trial) -> list[tuple[Taps, dict[str, Any]]]:
        """Return layers that the same file could mean."""
        taps = best.taps
        if not isinstance(taps, tuple):
            return []
        shifted = [tuple(layer + step for layer in taps) for step in (1, -1)]
        default = [tapped_layers(EConfig(), self.layers)] if len(taps) == 3 and self.layers >= 7 else []
        fitting = [each for each in (*shifted, *default) if each[0] >= 0 and each[-1] <= self.layers and each != taps]
        return [(each, best.changes) for each in dict.fromkeys(fitting)]

    def other_flags(self, best: Trial) -> list[tuple[Taps, dict[str, Any]]]:
        """Return the other values of flags that no tensor shows."""
        if not isinstance(self.drafter.head, Eagle3Head):
            return []
        values = product(*((False, True) for _ in UNSEEN))
        ways = [self._differing(dict(zip(UNSEEN, each, strict=True)), best.changes) for each in values]
        return [(best.taps, changes) for changes in ways if changes != best.changes]

    def other_bases(self, best: Trial) -> list[tuple[Taps, dict[str, Any]]]:
        """Return rotary bases that trainers take where none, or another, is written down."""
        theirs = (getattr(self.target.config, "rope_parameters", None) or {}).get("rope_theta")
        bases = {float(base) for base in (10000.0, theirs) if isinstance(base, int | float)}
        own = float(self.config.rope_parameters["rope_theta"])
        return [(best.taps, {**best.changes, "rope_theta": base}) for base in sorted(bases - {own})]

    def _differing(self, flags: dict[str, bool], changes: dict[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in changes.items() if name not in flags}
        return kept | {name: value for name, value in flags.items() if getattr(self.config, name) != value}

    def _changed(self, changes: dict[str, Any]) -> Drafter:
        head = variant(self.drafter.head, overridden(self.config, None, changes)) if changes else self.drafter.head
        return Drafter(head, self.drafter.tree, self.target.embed, self.target.output_logits)

    def _read(self, taps: Taps) -> list[torch.Tensor]:
        if taps not in self._features:
            self._features[taps] = [self._features_of(text.ids_1S, taps) for text in self.texts]
        return self._features[taps]

    @torch.no_grad()
    def _wanted_of(self, ids_1S: torch.Tensor) -> torch.Tensor:
        logits_SV = self.target.model(input_ids=ids_1S, use_cache=False).logits[0]
        return logits_SV.float().softmax(-1)[:, draftable(self.drafter.head).to(logits_SV.device)]

    @torch.no_grad()
    def _features_of(self, ids_1S: torch.Tensor, taps: Taps) -> torch.Tensor:
        with self.target.tapped(taps) as caught:
            self.target.model(input_ids=ids_1S, use_cache=False)
        return self.target.joined(caught, taps)


def variant(head: DraftHead, config: EConfig) -> DraftHead:
    """Return a head of the same tensors and another configuration; the first one stays as it is."""
    other = copy(head)
    other._modules = dict(head._modules)
    other.config = config
    other.rotary_emb = LlamaRotaryEmbedding(config).to(head.device)
    if isinstance(other, Eagle3Head):
        other.midlayer = copy(other.midlayer)
        other.midlayer.norm_before_residual = config.norm_before_residual
    return other


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _is_better(trial: Trial, best: Trial) -> bool:
    """Tell whether a way makes the target's tokens likelier than another does, by more than chance."""
    gains = torch.tensor(trial.likelihood) - torch.tensor(best.likelihood)
    error = float(gains.std() / len(gains) ** 0.5)
    return float(gains.mean()) > max(LEAST, ERRORS * error)


def _what(head: DraftHead, described: HeadDescription, layers: int) -> str:
    config, taps = head.config, head.taps(layers)
    version = f" {described.version}" if described.version else ""
    named = "transformers" if described.dialect.version == "transformers_version" else described.dialect.name
    flags = [name for name in ("norm_before_fc", "fc_norm", *UNSEEN, "qk_norm", "qkv_bias") if getattr(config, name)]
    read = "last hidden state" if taps == "last" else f"inputs of layers {list(taps)} of {layers}"
    parts = [
        f"{head.kind} in the dialect of {described.dialect.name}" + (f" ({named}{version})" if version else ""),
        f"{config.num_hidden_layers} layer{'s' if config.num_hidden_layers > 1 else ''} of width {config.hidden_size}",
        f"drafts {head.draft_size} of {config.vocab_size} tokens",
        f"reads the {read}",
        f"rotary base {config.rope_parameters['rope_theta']:g}",
        f"flags: {', '.join(flags) or 'none'}",
    ]
    if config.windows:
        parts.append(f"windows {config.windows}")
    return "; ".join(parts)


def _remedy(best: Trial, loaded: Trial, paths: tuple[str, str]) -> str:
    base, head = paths
    moved = isinstance(best.taps, tuple) and best.taps != loaded.taps
    layers = f" --capture-layers {' '.join(map(str, best.taps or ()))}" if moved else ""
    flags = "".join(f" --set {name}={_json(value)}" for name, value in best.changes.items())
    out = f"{head.rstrip('/').split('/')[-1]}-fixed"
    words = [shlex.quote(part) for part in (base, head, out)]
    command = f"eagle convert --base {words[0]} --head {words[1]} --to eagle --out {words[2]}{layers}{flags}"
    lines = [f"write it as it was trained:  {command}"]
    if moved and not best.changes:
        kept = f"base_model_path={base!r}, ea_model_path={head!r}, capture_layers={list(best.taps or ())}"
        lines.append(f"or load it so:               EaModel.from_pretrained({kept})")
    return "\n".join(lines)


def _json(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"
