"""Sample texts: openings that a target goes on with by itself, greedily.

Shapes: S tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from eagle.model.call.reference import without_defaults
from eagle.model.target import TargetModel

# Of the kinds that most heads are made for; a caller who knows better passes his own.
OPENINGS = (
    "The capital of France is",
    "Once upon a time there was",
    "In this article we describe how",
    "def read_lines(path):\n    ",
    "import os\nimport sys\n\n\ndef main",
    "class Point:\n    def __init__(self, x, y):\n        ",
)
NEW = 64


@dataclass(frozen=True)
class SampleText:
    """Ids [1, S], of which the first `given` are not the target's own."""

    ids_1S: torch.Tensor
    given: int


def read_openings(path: str) -> list[str]:
    """Return the lines of a file.

    Raises:
        FileNotFoundError, ValueError: there is none, or it holds none.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path!r} is no file of prompts")
    found = [line for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    if not found:
        raise ValueError(f"{path!r} holds no prompt: one line is one")
    return found


def sample_texts(target: TargetModel, openings: Sequence[str] | None, tokenizer: Callable[[], Any]) -> list[SampleText]:
    """Let a target go on with some openings.

    Args:
        target: the base model.
        openings: texts; None takes `OPENINGS`, or arbitrary tokens where there is no tokenizer.
        tokenizer: gives the base model's.
    """
    base = without_defaults(target.model)
    config = GenerationConfig(do_sample=False, max_new_tokens=NEW, min_new_tokens=NEW, pad_token_id=0)
    texts = []
    for ids in _ids(target, openings, tokenizer):
        ids_1S = torch.tensor([ids], device=target.device)
        with torch.no_grad():
            found_1S = base.generate(ids_1S, attention_mask=torch.ones_like(ids_1S), generation_config=config)
        texts.append(SampleText(found_1S, len(ids)))
    return texts


def _ids(target: TargetModel, openings: Sequence[str] | None, tokenizer: Callable[[], Any]) -> list[list[int]]:
    try:
        encode = tokenizer()
    except (OSError, ValueError, ImportError):
        if openings is not None:
            raise
        known = target.known_tokens
        return [[(7 + 13 * text + 31 * place) % known for place in range(6)] for text in range(len(OPENINGS))]
    return [encode(text).input_ids or [0] for text in openings or OPENINGS]
