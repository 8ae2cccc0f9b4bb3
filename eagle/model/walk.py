"""Acceptance with everything a call asks about each token: processors, criteria, ends; what each row really emits.

Shapes: B rows still in the batch, G rows that go in step, N tree nodes, V vocabulary.
"""

from collections.abc import Sequence
from functools import partial

import torch

from eagle.model.request_state import Request, Rows
from eagle.model.tree import DraftTree
from eagle.model.verify import (
    Acceptance,
    HostAcceptance,
    accept_greedy,
    accept_greedy_on_host,
    accept_per_token,
    accept_sampled,
)

# Logits of a tree up to which a CPU looks at all nodes faster than at those of the path, one by one.
AT_ONCE = 1 << 20


def walk(
    request: Request, rows: Rows, running: Sequence[int], tree: DraftTree, logits_BNV: torch.Tensor
) -> tuple[Acceptance, HostAcceptance, list[list[int]]]:
    """Walk the tree and append what is emitted to the rows.

    Args:
        request: the call.
        rows: all its rows.
        running: numbers of the B rows the tree belongs to.
        tree, logits_BNV: the verified tree.

    Returns:
        the walk, on device and host, and what each running row emits up to its end.
    """
    sampler = request.sampler
    active = [index for index, row in enumerate(running) if rows.finished[row] is None]
    before = [len(rows.new[row]) for row in running]
    # Ended rows are walked along without effect; they ask for noise that is there anyway.
    soonest = min(rows.emitted(running[index]) for index in active)
    positions = [rows.emitted(row) if rows.finished[row] is None else soonest for row in running]
    if sampler.noise is not None:
        sampler.noise.forget_before(soonest - 1)
    if request.needs_host_walk:
        groups = [list(range(len(running)))] if request.lockstep else [[index] for index in active]
        acceptance = accept_per_token(tree, logits_BNV, groups, partial(_pick, request, rows, running, positions))
        walked = acceptance.read()
    else:
        is_cpu = logits_BNV.device.type == "cpu"
        if sampler.is_plain_greedy and tree.size > 1 and not (is_cpu and logits_BNV.numel() > AT_ONCE):
            at_once = accept_greedy_on_host if is_cpu else accept_greedy
            acceptance = at_once(tree, logits_BNV.argmax(-1))
        else:  # stopping early reads the device: elsewhere the host would wait
            acceptance = accept_sampled(tree, logits_BNV, sampler.picker(positions, running), stops_early=is_cpu)
        walked = acceptance.read()
        push_all(rows, running, active, walked)
    return acceptance, walked, [rows.new[row][start:] for row, start in zip(running, before, strict=True)]


def _pick(
    request: Request,
    rows: Rows,
    running: Sequence[int],
    first: Sequence[int],
    group: Sequence[int],
    logits_GV: torch.Tensor,
    level: int,
) -> tuple[list[int], bool]:
    """Run the body of `generate`'s loop for places of the running batch that go in step.

    `first` numbers the first new token of every place; this one is `level` further.
    """
    numbers = [running[index] for index in group]
    positions = [first[index] + level for index in group]
    row = numbers[0] if len(numbers) < len(rows.new) else None
    scores_GV = request.sampler.scores(logits_GV, rows.prefix(numbers), row)
    if request.keeps_scores:
        rows.scores.append(scores_GV)
    if request.keeps_logits:
        rows.logits.append(logits_GV.float())
    return rows.push_watched(numbers, request.sampler.choose(scores_GV, positions, numbers).tolist())


def push_all(rows: Rows, running: Sequence[int], active: Sequence[int], walked: HostAcceptance) -> None:
    """Append to the active rows what a walk emitted, each up to its end."""
    for index in active:
        for token in walked.tokens[index][: walked.accepted[index] + 1]:
            if rows.push(running[index], token):
                break
