"""Who answers: the target here, in this process or in several, or a server."""

from functools import partial
from typing import Any

import torch

from eagle.chat import Template, choose_template
from eagle.data.answers import Author
from eagle.data.continuous import CPU_ROWS, GPU_ROWS
from eagle.data.endpoint import EndpointAuthor
from eagle.data.processes import Place, Processes
from eagle.data.regenerate import Regeneration, load_author


def author_of(
    target: str, regeneration: Regeneration, tokenizer: Any, template: str | None, max_length: int | None
) -> Author:
    """Return who answers.

    Args:
        target: its folder or Hub id.
        regeneration: how answers are written.
        tokenizer: of the conversations.
        template: FastChat's of that name; None for the tokenizer's own.
        max_length: most tokens of a conversation.

    Raises:
        ValueError, OSError: a target, a head or a server that cannot answer.
    """
    if regeneration.endpoint is not None:
        return _server(regeneration, tokenizer, _chosen(tokenizer, template), max_length)
    alone = partial(_target, target, regeneration, tokenizer, template, max_length)
    if regeneration.processes == 1:
        return alone(Place(None, torch.get_num_threads()))
    rows = regeneration.batch_size or (GPU_ROWS if torch.cuda.is_available() else CPU_ROWS)
    return Processes(alone, regeneration.processes, rows)


def _server(regeneration: Regeneration, tokenizer: Any, template: Template, max_length: int | None) -> Author:
    assert regeneration.endpoint is not None and regeneration.model is not None
    return EndpointAuthor(
        regeneration.endpoint,
        regeneration.model,
        tokenizer,
        template,
        temperatures=regeneration.temperatures,
        max_new_tokens=regeneration.max_new_tokens,
        seed=regeneration.seed,
        concurrency=regeneration.concurrency,
        max_length=max_length,
    )


def _target(
    target: str, regeneration: Regeneration, tokenizer: Any, template: str | None, max_length: int | None, place: Place
) -> Author:
    chosen = _chosen(tokenizer, template)
    return load_author(target, regeneration, tokenizer, chosen, max_length, place.device)


def _chosen(tokenizer: Any, name: str | None) -> Template:
    template = choose_template(tokenizer, name)
    assert template is not None  # conversations without one are refused before
    return template
