"""Who answers: the target here, in this process or in several, or a server."""

from functools import partial
from typing import Any

import torch

from eagle.chat import Template, choose_template
from eagle.data.answers import Author
from eagle.data.endpoint import EndpointAuthor
from eagle.data.processes import Place, Processes
from eagle.data.regenerate import AnswerGenerator, Regeneration


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
        assert regeneration.model is not None
        return EndpointAuthor(
            regeneration.endpoint,
            regeneration.model,
            tokenizer,
            _chosen(tokenizer, template),
            temperature=regeneration.temperature,
            max_new_tokens=regeneration.max_new_tokens,
            seed=regeneration.seed,
            concurrency=regeneration.concurrency,
            max_length=max_length,
        )
    target_author = partial(_target_author, target, regeneration, tokenizer, template, max_length)
    if regeneration.processes == 1:
        return target_author(Place(None, torch.get_num_threads()))
    return Processes(target_author, regeneration.processes, regeneration.batch_size)


def _target_author(
    target: str, regeneration: Regeneration, tokenizer: Any, template: str | None, max_length: int | None, place: Place
) -> Author:
    return AnswerGenerator(
        target, regeneration, tokenizer, _chosen(tokenizer, template), max_length, device=place.device
    )


def _chosen(tokenizer: Any, name: str | None) -> Template:
    template = choose_template(tokenizer, name)
    assert template is not None  # conversations without one are refused before
    return template
