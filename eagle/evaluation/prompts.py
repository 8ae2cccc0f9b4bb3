"""Prompts: read from JSON lines or drawn at random, brought to a length, gathered into left-padded batches.

Shapes: B batch, S prompt tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eagle.chat import choose_template
from eagle.data.rows import Document, parse
from eagle.data.samples import prompt_ids
from eagle.evaluation.questions import numbered_objects, refused_at
from eagle.evaluation.synthetic import BOS


@dataclass(frozen=True)
class Prompt:
    """One batch of prompts: ids [B, S], padded on the left, and a mask [B, S] with 0 for pads."""

    ids_BS: torch.Tensor
    mask_BS: torch.Tensor

    @property
    def width(self) -> int:
        """Prompt tokens per row, pads included."""
        return int(self.ids_BS.shape[1])


def read_prompts(path: Path, tokenizer: Any, count: int, kind: str | None = None) -> list[torch.Tensor]:
    """Read up to `count` prompts [1, S] from JSON lines, those of a `kind` where one is named.

    A line is a row as `eagle.data.rows` reads it. A `text` is continued. A conversation is asked its first question
    without an answer, of several `turns` the first, else its last question; it is rendered with the tokenizer's chat
    template, which says itself whether a BOS comes first.

    Raises:
        ValueError: there is no prompt, a line is none, or the tokenizer has no chat template for it; the message names
            the line.
    """
    rows: list[torch.Tensor] = []
    for number, fields in numbered_objects(path, path.read_bytes()):
        if kind is None or fields.get("kind") == kind:
            with refused_at(f"{path} line {number}"):
                rows.append(_prompt(tokenizer, fields))
        if len(rows) == count:
            break
    if not rows:
        raise ValueError(f"{path} holds no prompt" + (f" of kind {kind!r}" if kind else ""))
    return rows


def _prompt(tokenizer: Any, fields: dict[str, Any]) -> torch.Tensor:
    row = parse(fields)
    if isinstance(row, Document):
        return text_prompt(tokenizer, row.text)
    template = choose_template(tokenizer)
    if template is None:
        raise ValueError("conversations and questions need a tokenizer with a chat template")
    return torch.tensor([prompt_ids(tokenizer, template, row.to_the_first_open_question())])


def text_prompt(tokenizer: Any, text: str) -> torch.Tensor:
    """Return the ids [1, S] of a text to be continued, with the tokenizer's BOS in front."""
    ids, bos = tokenizer(text)["input_ids"], tokenizer.bos_token_id
    return torch.tensor([ids if bos is None or ids[:1] == [bos] else [bos, *ids]])


def random_prompts(count: int, length: int, vocabulary: int, seed: int = 0) -> list[torch.Tensor]:
    """Draw prompts [1, length] of a synthetic pair: BOS, then any other tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids_RS = torch.randint(1, vocabulary, (count, length), generator=generator)
    ids_RS[:, 0] = BOS
    return list(ids_RS.split(1))


def of_length(rows: Sequence[torch.Tensor], length: int, bos: int | None) -> list[torch.Tensor]:
    """Bring prompts [1, S] to one length: cut, or continued with the prompts that follow, without their BOS."""
    texts = [row[0, 1:] if bos is not None and int(row[0, 0]) == bos else row[0] for row in rows]
    made = []
    for index, row in enumerate(rows):
        parts, following = [row[0]], index + 1
        while sum(map(len, parts)) < length:
            parts.append(texts[following % len(texts)])
            following += 1
        made.append(torch.cat(parts)[None, :length])
    return made


def batched(rows: Sequence[torch.Tensor], batch: int = 1, pad: int = 0) -> list[Prompt]:
    """Gather prompts [1, S] into batches of `batch` rows; the last batch is filled up with the first prompts."""
    short = -len(rows) % batch
    filled = [*rows, *(rows[index % len(rows)] for index in range(short))]
    return [_padded(filled[start : start + batch], pad) for start in range(0, len(filled), batch)]


def _padded(rows: Sequence[torch.Tensor], pad: int) -> Prompt:
    width = max(row.shape[1] for row in rows)
    missing = [width - row.shape[1] for row in rows]
    functional = torch.nn.functional
    ids_BS = torch.cat([functional.pad(row, (n, 0), value=pad) for row, n in zip(rows, missing, strict=True)])
    ones = [torch.ones_like(row) for row in rows]
    mask_BS = torch.cat([functional.pad(row, (n, 0)) for row, n in zip(ones, missing, strict=True)])
    return Prompt(ids_BS, mask_BS)
