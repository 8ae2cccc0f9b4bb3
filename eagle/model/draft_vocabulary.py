"""The draft vocabulary of an EAGLE-1/2 head: all tokens, or those of a token map, where that is faster here.

The output matrix is multiplied at every draft level, and a part of its rows is quicker. Only what is drafted changes:
a token outside is never proposed, and the target picks it all the same. What that costs in acceptance depends on the
text and is not known here, so the rule looks at time alone.

Shapes: V target vocabulary, W draft vocabulary, D hidden width.
"""

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from eagle.model.drafter import likeliest
from eagle.model.head import EagleHead
from eagle.model.kinds import is_number
from eagle.model.support.gradients import without_gradients
from eagle.model.support.measurements import device_name, kept_file, read, write
from eagle.model.support.output_transform import output_matrix, transformed
from eagle.model.target import TargetModel

logger = logging.getLogger(__name__)

# A map that lies with a head is used if drafting from it takes at most this share of the time: less gained is no more
# than what the tokens left out may cost.
FASTER = 0.8
# Nodes of the levels that are timed, a first one and a further one, and the children that each gets.
LEVELS, CHILDREN = (1, 10), 10
LEAST_ROUNDS, ROUNDS, SECONDS = 3, 25, 0.4


def choose_draft_vocabulary(head: EagleHead, target: TargetModel, ids_W: torch.Tensor, *, is_asked: bool) -> None:
    """Let a head draft from a token map alone, if the caller asks for it or it is faster on this machine.

    Args:
        head: on its device, in its dtype.
        target: whose output matrix it drafts through; its rows are copied.
        ids_W: ids of the target, ascending.
        is_asked: whether the map is used whatever the time.

    Raises:
        ValueError: an id that the target does not have.
        NotImplementedError: the map is asked for, and the output matrix cannot be cut.
    """
    if int(ids_W[-1]) >= target.vocabulary:
        raise ValueError(f"the token map names token {int(ids_W[-1])}, outside the target's {target.vocabulary} tokens")
    weight_VD = output_matrix(target.model)
    if weight_VD is None:
        module = target.model.get_output_embeddings()
        words = f"the target's output matrix, a {type(module).__name__}, cannot be cut to the rows of a token map"
        if is_asked:
            raise NotImplementedError(f"{words}: pass token_map=False")
        logger.info("%s: the head drafts from all tokens", words)
        return
    bias_V = target.model.get_output_embeddings().bias
    places_W = ids_W.to(weight_VD.device)
    rows_WD = weight_VD[places_W].to(head.device, head.dtype)
    bias_W = None if bias_V is None else bias_V.detach()[places_W].to(head.device, head.dtype)
    transform = partial(transformed, transform=target.logit_transform)
    if not is_asked:
        seconds = _level_seconds(head, target, lambda hidden: transform(F.linear(hidden, rows_WD, bias_W)), len(ids_W))
        is_faster = seconds[1] <= FASTER * seconds[0]
        logger.info(
            "drafting two levels from %d tokens takes %.2f ms, from all %d %.2f ms: the token map is %s",
            len(ids_W),
            1e3 * seconds[1],
            target.vocabulary,
            1e3 * seconds[0],
            "used" if is_faster else "not used",
        )
        if not is_faster:
            return
    head.draft_only(ids_W, rows_WD, bias_W, transform)


def _level_seconds(
    head: EagleHead, target: TargetModel, part: Callable[[torch.Tensor], torch.Tensor], size: int
) -> list[float]:
    """Return the seconds of drafting `LEVELS` from all tokens and from a part; timed if they are not known."""
    made_of = {
        "device": device_name(head.device),
        "dtype": str(head.dtype),
        "sizes": [target.vocabulary, size, head.config.hidden_size],
        "transform": target.logit_transform,
        "output": [str(target.device), type(target.model.get_output_embeddings()).__name__],
    }
    path = kept_file("draft_vocabularies", made_of)
    known: Any = read(path)
    if isinstance(known, list) and len(known) == 2 and all(is_number(one) and 0 < one < float("inf") for one in known):
        return known
    with without_gradients():
        seconds = _timed(head, [target.output_logits, part])
    write(path, seconds)
    return seconds


def _timed(head: EagleHead, ways: list[Callable[[torch.Tensor], torch.Tensor]]) -> list[float]:
    """Time ways to make logits in alternating rounds; the least disturbed round of each counts."""
    levels = [torch.randn(1, nodes, head.config.hidden_size).to(head.device, head.dtype) for nodes in LEVELS]

    def once(logits: Callable[[torch.Tensor], torch.Tensor]) -> float:
        started = time.perf_counter()
        for hidden_1SD in levels:
            scores_1SK, _ = likeliest(logits(hidden_1SD).to(head.device), CHILDREN)
        scores_1SK.sum().item()  # waits until the device has done what was queued
        return time.perf_counter() - started

    for way in ways:
        once(way)
    least, deadline = [float("inf")] * len(ways), time.perf_counter() + SECONDS
    for turn in range(ROUNDS):
        if turn >= LEAST_ROUNDS and time.perf_counter() > deadline:
            break
        least = [min(best, once(way)) for best, way in zip(least, ways, strict=True)]
    return least
