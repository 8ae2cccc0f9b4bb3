"""A drafter that knows the answer: it drives verify, accept and commit where a random head would accept nothing.

It proposes the target's own continuation as one path among random siblings, numbers the nodes in a random
parents-first order and breaks the path at a random depth. It also keeps every feature it is shown, so a test can
compare them with an uncached forward.
"""

import random
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from eagle.model.configs import TreeConfig
from eagle.model.drafter import Drafter
from eagle.model.tree import DraftTree, from_parents


@dataclass
class ScriptedState:
    rows: list[int]
    entries: list[int]
    features: list[list[torch.Tensor]] = field(default_factory=list)
    ended: set[int] = field(default_factory=set)
    tree: TreeConfig | None = None
    candidates: None = None

    def keep_rows(self, rows):
        self.rows = [self.rows[row] for row in rows]
        self.entries = [self.entries[row] for row in rows]


class ScriptedDrafter(nn.Module):
    """Proposes parts of `answers` [B, S + T]; `prompt` is S and `eos` ends a row."""

    def __init__(self, answers, vocabulary, prompt, eos=(2,), nodes=9, seed=0):
        super().__init__()
        self.prompt, self.eos = prompt, set(eos)
        self.answers = answers.tolist()
        self.vocabulary = vocabulary
        self.tree = TreeConfig(total_token=nodes, depth=4, top_k=3)
        self.random = random.Random(seed)
        self.states: list[ScriptedState] = []
        self.noncontiguous = 0

    def start(self, batch, capacity, pads):
        # A restart (recomputation at a rotary switch) begins with the rows that still run.
        rows = list(range(batch))
        state = ScriptedState(rows, [0] * batch, [[] for _ in self.answers], tree=self.tree)
        self.states.append(state)
        return state

    def observe(self, state, features, tokens, counts):
        for index, (row, count) in enumerate(zip(state.rows, counts, strict=True)):
            state.features[row] += list(features[index, :count])
            state.entries[index] += count
            # Entry t pairs feature t with token t + 1: what is observed must be what the target said, up to its end.
            first = state.entries[index] - count + 1
            for place, token in enumerate(tokens[index, :count].tolist(), start=first):
                if row in state.ended or place >= len(self.answers[row]):
                    break
                assert token == self.answers[row][place]
                if place >= self.prompt and token in self.eos:
                    state.ended.add(row)

    def draft(self, state, root):
        trees = [self._row(row, at) for row, at in zip(state.rows, state.entries, strict=True)]
        tokens, parents = (torch.tensor(part) for part in zip(*trees, strict=True))
        tokens[:, 0] = root
        return from_parents(tokens, parents, torch.zeros(tokens.shape), self.tree.levels)

    def _row(self, row: int, at: int) -> tuple[list[int], list[int]]:
        path = self.answers[row][at + 1 : at + self.tree.levels]
        path = path[: self.random.randint(0, len(path))]
        nodes: list[tuple[int, int]] = [(-1, -1)]  # (parent, token) in the order of making
        depth = {0: 0}
        for token in path:
            nodes.append((len(nodes) - 1, token))
            depth[len(nodes) - 1] = depth[len(nodes) - 2] + 1
        while len(nodes) < self.tree.nodes:
            parent, token = self.random.randrange(len(nodes)), self.random.randrange(self.vocabulary)
            if depth[parent] + 1 < self.tree.levels and (parent, token) not in nodes:
                nodes.append((parent, token))
                depth[len(nodes) - 1] = depth[parent] + 1
        order = self._parents_first([parent for parent, _ in nodes])
        number = {node: index for index, node in enumerate(order)}
        walked = [number[n] for n in range(len(path) + 1)]
        self.noncontiguous += walked != list(range(len(walked)))
        return [nodes[n][1] for n in order], [number.get(nodes[n][0], -1) for n in order]

    def _parents_first(self, parents: list[int]) -> list[int]:
        order, free = [], {0}
        while free:
            node = self.random.choice(sorted(free))
            free.remove(node)
            order.append(node)
            free |= {child for child, parent in enumerate(parents) if parent == node}
        return order


@contextmanager
def answering(drafter: Drafter, answer: list[int], seed: int = 0):
    """Let a real drafter, which reads features as ever, propose a known answer of one row meanwhile."""
    script = ScriptedDrafter(torch.tensor([answer]), max(answer) + 1, 0, nodes=drafter.tree.nodes, seed=seed)

    def draft(state, root):
        drafter._feed(state)
        tokens, parents = (torch.tensor([part]) for part in script._row(0, state.cache.lengths[0]))
        tokens[:, 0] = root
        return from_parents(tokens, parents, torch.zeros(tokens.shape), script.tree.levels)

    drafter.draft = draft
    try:
        yield
    finally:
        del drafter.draft


def is_tree(tree: DraftTree, row: int = 0) -> bool:
    """Whether one row's tree keeps its own invariants."""
    parents, mask = tree.parents_BN[row], tree.mask_BNN[row]
    for node in range(1, tree.size):
        parent, own = int(parents[node]), torch.arange(tree.size) == node
        if not (0 <= parent < node and torch.equal(mask[node], mask[parent] | own)):
            return False
    return int(parents[0]) == -1
