"""The few trees to choose from under CUDA graphs, where each costs a capture."""

from dataclasses import replace
from heapq import heappop, heappush

import numpy as np

from eagle.model.adaptive.costs import Costs
from eagle.model.adaptive.trees import all_trees
from eagle.model.configs import TreeConfig

# How often the first guess of a head is right, for whose text trees are prepared.
RIGHT = (0.5, 0.75)


def prepared(limit: TreeConfig, costs: Costs) -> list[TreeConfig]:
    """Return at most three trees, the limit last.

    The others give most tokens per second of all trees within the limit, if of a head's guesses at one token the first
    is right with probability r, the second with r of what is left, and so on, for each r of `RIGHT`.
    """
    trees = all_trees(limit)
    sizes = (np.array([getattr(tree, name) for tree in trees]) for name in ("total_token", "depth", "top_k"))
    seconds_S = costs.steps(costs.contexts[-1], *sizes)
    found = [max(range(len(trees)), key=lambda s: (1 + gain(trees[s], right)) / seconds_S[s]) for right in RIGHT]
    last = replace(limit, total_token=limit.nodes)
    return [*dict.fromkeys(trees[number] for number in found if trees[number] != last), last]


def gain(tree: TreeConfig, right: float) -> float:
    """Return the expected accepted tokens of a tree of the likeliest nodes, for a head as in `prepared`."""
    nodes, total = [(-right, 1, 0)], 0.0  # negative probability, depth, which guess: the likeliest comes first
    for _ in range(tree.nodes - 1):
        probability, depth, guess = heappop(nodes)
        total -= probability
        if guess + 1 < tree.top_k:
            heappush(nodes, (probability * (1 - right), depth, guess + 1))
        if depth <= tree.depth:
            heappush(nodes, (probability * right, depth + 1, 0))
    return total
