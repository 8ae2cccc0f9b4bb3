"""What a dialect is: who writes it, how its `config.json` is known, what it says, and a table of its tensors.

Every tensor of a file is in its dialect's table: under the name it has here, or as one that is not used, with the
reason. Knows no tensors' contents.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

# Of one decoder layer.
PARTS = (
    "input_layernorm.weight",
    "hidden_norm.weight",
    "post_attention_layernorm.weight",
    *(f"self_attn.{name}_proj.{kind}" for name in "qkvo" for kind in ("weight", "bias")),
    *(f"self_attn.{name}_norm.weight" for name in "qk"),
    *(f"mlp.{name}_proj.{kind}" for name in ("gate", "up", "down") for kind in ("weight", "bias")),
)
# Of a head of any kind, under the names that they have here.
COMMON = ("fc.weight", "fc.bias", "embed_tokens.weight")
# Of an EAGLE-3 head.
EAGLE3 = ("norm.weight", "lm_head.weight", "input_norm.weight", "fc_norm.{n}.weight", "d2t", "t2d")
PATTERNS = {"{n}": r"(\d+)", "{part}": f"({'|'.join(map(re.escape, PARTS))})", "{any}": r"((?:.*\.)?)"}
# What trainers put before every name.
PREFIXES = ("module.", "model.", "draft_model.", "eagle_module.", "ea_layer.")


@dataclass(frozen=True)
class Key:
    """One line of a table of tensors.

    Attributes:
        theirs: name in the file; `{n}` is a number, `{part}` one of `PARTS`.
        ours: name in the head, with the same places; `{first}` is the first layer of the head's kind. "" is not used.
        why: why it is not used.
    """

    theirs: str
    ours: str
    why: str = ""

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Matches the names that the line is about."""
        text = re.escape(self.theirs)
        for place, pattern in PATTERNS.items():
            text = text.replace(re.escape(place), pattern)
        return re.compile(text)

    def renamed(self, found: re.Match[str], first: str) -> str:
        """Return the name in the head of what was found in the file."""
        name = self.ours.replace("{first}", first)
        for group in found.groups():
            place = re.search(r"\{\w+\}", name)
            name = name if place is None else name[: place.start()] + group + name[place.end() :]
        return name


def same(*names: str) -> tuple[Key, ...]:
    """Return lines of names that are the same in file and head."""
    return tuple(Key(name, name) for name in names)


# Computed, never read; some exporters write them all the same.
FREQUENCIES = Key("{any}rotary_emb.inv_freq", "", "rotary frequencies are computed")
FIRST = Key("layers.0.{part}", "{first}.{part}")
MIDLAYER = Key("midlayer.{part}", "midlayer.{part}")
FURTHER = Key("layers.{n}.{part}", "layers.{n}.{part}")


def _as_they_are(fields: dict[str, Any], path: str) -> dict[str, Any]:
    return fields


@dataclass(frozen=True)
class Dialect:
    """A layout of head checkpoints.

    Attributes:
        name: what it is called.
        writer: who writes it.
        is_of: tells by the fields of a `config.json` whether it is in this dialect.
        keys: the table of its tensors; the first line that matches counts.
        flat: returns the fields as a flat Llama-like configuration; raises what would be misread.
        version: field that says with which version it was written.
    """

    name: str
    writer: str
    is_of: Callable[[Mapping[str, Any]], bool]
    keys: tuple[Key, ...]
    flat: Callable[[dict[str, Any], str], dict[str, Any]] = field(default=_as_they_are)
    version: str = "transformers_version"

    def find(self, name: str) -> tuple[Key, re.Match[str]] | None:
        """Return a tensor's line of the table and the match, None where there is none."""
        return next(((key, found) for key in self.keys if (found := key.pattern.fullmatch(name))), None)

    def names(self, names: Collection[str], first: str) -> dict[str, str]:
        """Return the name in the head of every tensor of a file, "" for those that are not used.

        Args:
            names: in the file.
            first: what the head calls its first layer.

        Raises:
            ValueError: names that the table lacks, or several for one tensor.
        """
        found = {name: self.find(name) for name in names}
        unknown = sorted(name for name, line in found.items() if line is None)
        if unknown:
            raise ValueError(
                f"draft head does not fit its config.json: unexpected {unknown[:8]}{' …' if len(unknown) > 8 else ''}, "
                f"which heads of {self.writer} do not have: if they are of something else, save the head without them"
            )
        renamed = {name: line[0].renamed(line[1], first) for name, line in found.items() if line is not None}
        used = sorted(name for name in renamed.values() if name)
        twice = sorted({name for name in used if used.count(name) > 1})
        if twice:
            both = sorted(name for name, ours in renamed.items() if ours == twice[0])
            raise ValueError(f"the head has both {both[0]!r} and {both[1]!r}: save it with one of them")
        return renamed


def architectures(fields: Mapping[str, Any]) -> list[str]:
    """Return the classes that a configuration names, none where the field is something else than names."""
    named = fields.get("architectures")
    return [name for name in named if isinstance(name, str)] if isinstance(named, list) else []


@dataclass(frozen=True)
class Verifier:
    """The target that a head is written for, as far as layouts name it.

    Attributes:
        name: folder or Hub id.
        architectures: as its `config.json` names them.
        layers: decoder layers.
        positions: of its configuration, None where it does not say.
        embeddings_VD: its input embeddings, None where they are not known.
    """

    name: str
    architectures: tuple[str, ...]
    layers: int
    positions: int | None = None
    embeddings_VD: torch.Tensor | None = None


# Fields of a config.json and tensors by their names there.
Saved = tuple[dict[str, Any], dict[str, torch.Tensor]]


def unsupported(what: str, who: str) -> NotImplementedError:
    """Return the refusal of a layout that cannot say something of a head."""
    return NotImplementedError(
        f"a head with {what} cannot be written for {who}, which does not read it: use --to eagle"
    )
