"""A tree size for `total_token=-1`: verify forwards of several sizes are timed, the best expected rate wins."""

import math
import statistics
import time
from dataclasses import replace

import torch

from eagle.model.configs import TreeConfig
from eagle.model.drafter import Drafter
from eagle.model.target import Taps, TargetModel
from eagle.model.tree import DraftTree, from_parents

SIZES = (8, 16, 24, 32, 40, 48, 60)
ROUNDS = 5


def relative_gain(nodes: int) -> float:
    """Return the tokens a step yields with a tree of this size, relative to 40 nodes.

    The reference weighs 40, 48, 50, 56 and 60 nodes as 1, 1.05, 1.07, 1.1 and 1.13: 0.22 more with every doubling.
    """
    return 1 + 0.22 * math.log2(nodes / 40)


@torch.no_grad()
def fastest_tree(target: TargetModel, drafter: Drafter, taps: Taps) -> TreeConfig:
    """Time drafting and verification on this device and return the tree with the most expected tokens per second."""
    context = min(64, (target.last_position or 64) // 2)
    ids_BS = torch.zeros(1, context, dtype=torch.int64, device=target.device)
    cache = target.new_cache(1, context + max(SIZES), [0])
    target.prefill(ids_BS, None, cache, None)
    sizes = [size for size in SIZES if size <= drafter.tree.nodes] or [drafter.tree.nodes]
    state = drafter.start(1, context + 1, [0])
    features = target.verify(_star(1, target.device), cache, taps).features_BNF
    assert features is not None
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(ROUNDS):
        for size in sizes:
            tree = _star(size, target.device)
            started = time.perf_counter()
            target.verify(tree, cache, taps).logits_BNV[0, 0, 0].item()
            seconds[size].append(time.perf_counter() - started)
    started = time.perf_counter()
    drafter.observe(state, features, torch.zeros(1, 1, dtype=torch.int64, device=target.device), [1])
    int(drafter.draft(state, torch.zeros(1, dtype=torch.int64, device=target.device)).tokens_BN[0, 0])
    drafting = time.perf_counter() - started
    rates = {size: relative_gain(size) / (statistics.median(times) + drafting) for size, times in seconds.items()}
    return replace(drafter.tree, total_token=max(rates, key=lambda size: rates[size]))


def _star(nodes: int, device: torch.device) -> DraftTree:
    """Return a tree whose drafted nodes are all children of the root."""
    zeros_1N = torch.zeros(1, nodes, dtype=torch.int64, device=device)
    parents_1N = torch.zeros_like(zeros_1N)
    parents_1N[:, 0] = -1
    return from_parents(zeros_1N, parents_1N, zeros_1N.float(), 2)
