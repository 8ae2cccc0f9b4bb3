"""What a caller gets: tokens for a streamer while they come, ids or a `generate` output at the end."""

from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import zip_longest
from typing import Any

import torch
from transformers.generation import GenerateDecoderOnlyOutput

from eagle.model.decoding import Generation, decode
from eagle.model.request_state import DecodeStep
from eagle.model.support.properties import CACHE_NAMES

# What `generate` calls the cache it returns, in this release of transformers.
CACHE_NAME = next(name for name in CACHE_NAMES if name in GenerateDecoderOnlyOutput.__dataclass_fields__)


def steps(generation: Generation) -> Generator[DecodeStep, None, None]:
    """Decode, handing the prompt and then every token [R] to the call's streamer, as `generate` does."""
    request = generation.request
    if request.streamer is None:
        yield from decode(generation)
        return
    request.streamer.put(request.ids_RS.cpu())
    with closing(decode(generation)) as decoded:  # a streamer may raise
        for step in decoded:
            for tokens in zip_longest(*step.tokens, fillvalue=request.pad):
                request.streamer.put(torch.tensor(tokens))
            yield step
    request.streamer.end()


class StepStream(Iterator[DecodeStep]):
    """The steps of one call, taken as they are asked for.

    Attributes:
        stats: what this call has done so far.
    """

    def __init__(self, generation: Generation) -> None:
        self.stats = generation.stats
        self._steps = steps(generation)

    def __next__(self) -> DecodeStep:
        return next(self._steps)

    def close(self) -> None:
        """End the call; what it has run so far stays with its prefix."""
        self._steps.close()


def collected(generation: Generation) -> Any:
    """Decode to the end; return ids [R, S + T], or a `GenerateDecoderOnlyOutput` where the request wants one."""
    for _ in steps(generation):
        pass
    rows, request = generation.rows, generation.request
    if not request.returns_dict:
        return rows.ids()
    return GenerateDecoderOnlyOutput(
        sequences=rows.ids(),
        scores=tuple(rows.scores) if request.keeps_scores else None,
        logits=tuple(rows.logits) if request.keeps_logits else None,
        **{CACHE_NAME: generation.left_cache},
    )
