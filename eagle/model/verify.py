"""Acceptance: which drafted tokens the target agrees with, and why one pick per node is lossless.

Vocabulary: *accepted* tokens are drafted ones the target picks too; the *bonus* token is the target's own pick after
them; a step *emits* both.

Why it is lossless. The walk is `generate`'s loop body with the logits looked up in the tree instead of computed: at a
node it picks one token t from the target's distribution p and moves to the child that carries t; when there is none,
t is the bonus token. Whatever was drafted, each emitted token is one pick from p at its own prefix.

That equals EAGLE's rejection sampling in distribution. Drafted children are deterministic (top-k), so their proposal
is a point mass: accept child x_1 with probability p(x_1); on rejection zero p(x_1), renormalise, try x_2, …; at the
end sample from what is left. Child x_i is reached with probability
(1 - p(x_1) - … - p(x_{i-1})) * p(x_i) / (1 - p(x_1) - … - p(x_{i-1})) = p(x_i), and a token y that no child carries
with the remaining mass times p(y) over it, p(y): a single draw from p. (Leviathan et al. 2211.17192, appendix A.1;
EAGLE 2401.15077 section 4.)

Shapes: B batch, N tree nodes, A path (root included), V vocabulary, L ids so far.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from eagle.model.tree import DraftTree

KEY = 1 << 32  # more than any vocabulary holds


@dataclass(frozen=True)
class Acceptance:
    """The outcome of one walk.

    Attributes:
        path_BA: accepted node ids, root first, padded with the column's own number.
        n_accepted_B: accepted drafted tokens, 0 to A - 1.
        tokens_BA: emitted tokens; entry i was picked at path node i, entries after `n_accepted` are meaningless.
    """

    path_BA: torch.Tensor
    n_accepted_B: torch.Tensor
    tokens_BA: torch.Tensor

    def to_tensor(self) -> torch.Tensor:
        """Return all of it as one tensor [B, 2 A + 1]."""
        return torch.cat([self.path_BA, self.tokens_BA, self.n_accepted_B[:, None]], 1)

    def read(self) -> "HostAcceptance":
        """Copy the outcome to the host in one transfer, the only one of a step."""
        return HostAcceptance.from_tensor(self.to_tensor())

    @property
    def next_token_B(self) -> torch.Tensor:
        """The bonus token, the next tree's root."""
        # A row that has ended may have nothing to pick from, and goes on with any token.
        return self.tokens_BA.gather(1, self.n_accepted_B[:, None])[:, 0].clamp(min=0)


@dataclass(frozen=True)
class HostAcceptance:
    """An `Acceptance` as host integers."""

    paths: list[list[int]]
    tokens: list[list[int]]
    accepted: list[int]

    @classmethod
    def from_tensor(cls, packed_BX: torch.Tensor) -> "HostAcceptance":
        """Read a packed `Acceptance`."""
        rows, width = packed_BX.tolist(), packed_BX.shape[1] // 2
        return cls([row[:width] for row in rows], [row[width:-1] for row in rows], [row[-1] for row in rows])


def accept_sampled(
    tree: DraftTree,
    logits_BNV: torch.Tensor,
    pick: Callable[[torch.Tensor, int], torch.Tensor],
    stops_early: bool = False,
) -> Acceptance:
    """Walk all rows level by level with stateless warpers; nothing waits for the host.

    Args:
        tree: the verified tree.
        logits_BNV: target logits at every node.
        pick: (logits [B, V], level) -> one token [B] per row.
        stops_early: end at the first level where no row goes on, which reads the device.
    """
    batch, width = tree.tokens_BN.shape[0], min(tree.levels, tree.size)
    device = logits_BNV.device
    every = torch.arange(batch, device=device)
    node_B = torch.zeros(batch, dtype=torch.int64, device=device)
    alive_B = torch.ones(batch, dtype=torch.bool, device=device)
    # Parent and token as one number: a child is found by a single comparison.
    child_BN = tree.parents_BN * KEY + tree.tokens_BN
    nodes, picked, descended = [node_B], [], []
    for level in range(width):
        token_B = pick(logits_BNV[every, node_B], level)
        picked.append(token_B)
        if level == width - 1:
            break
        found_B, place_B = (child_BN == (node_B * KEY + token_B)[:, None]).max(-1)
        alive_B = alive_B & found_B
        node_B = torch.where(alive_B, place_B, node_B)
        descended.append(alive_B)
        nodes.append(node_B)
        if stops_early and not alive_B.any():
            break
    path_BA = torch.arange(width, device=device).repeat(batch, 1)
    tokens_BA = torch.zeros_like(path_BA)
    tokens_BA[:, : len(picked)] = torch.stack(picked, 1)
    if not descended:
        return Acceptance(path_BA, torch.zeros_like(node_B), tokens_BA)
    descended_BA = torch.stack(descended, 1)
    path_BA[:, 1 : len(nodes)] = torch.where(descended_BA, torch.stack(nodes[1:], 1), path_BA[:, 1 : len(nodes)])
    return Acceptance(path_BA, descended_BA.sum(1), tokens_BA)


def accept_greedy(tree: DraftTree, picks_BN: torch.Tensor) -> Acceptance:
    """Walk all rows and levels at once, where what the target picks at a node does not depend on the walk: greedily.

    Args:
        tree: the verified tree.
        picks_BN: the target's pick at every node.
    """
    width = min(tree.levels, tree.size)
    agrees_BN = (picks_BN.gather(1, tree.parents_BN.clamp(min=0)) == tree.tokens_BN) & (tree.parents_BN >= 0)
    # The root needs no one's agreement; a node is reached when all its ancestors and itself are agreed with.
    disagrees_BN = ~agrees_BN
    disagrees_BN[:, 0] = False
    is_cut_BN = (tree.mask_BNN & disagrees_BN[:, None]).any(-1)
    accepted_B, last_B = tree.depths_BN.masked_fill(is_cut_BN, -1).max(-1)
    on_path_BN = tree.mask_BNN.gather(1, last_B[:, None, None].expand(-1, 1, tree.size))[:, 0]
    # Nodes of the path go to the column of their depth, all others to one more that is dropped.
    columns_BN = torch.where(on_path_BN, tree.depths_BN, width)
    nodes_N = torch.arange(tree.size, device=picks_BN.device)
    path_BA = torch.arange(width + 1, device=picks_BN.device).repeat(len(picks_BN), 1)
    path_BA = path_BA.scatter_(1, columns_BN, nodes_N.expand_as(columns_BN))[:, :width]
    return Acceptance(path_BA, accepted_B, picks_BN.gather(1, path_BA))


def accept_greedy_on_host(tree: DraftTree, picks_BN: torch.Tensor) -> Acceptance:
    """Walk as `accept_greedy` does, on the host: for a device that is the host, where tensor operations cost more."""
    width = min(tree.levels, tree.size)
    children = (tree.parents_BN * KEY + tree.tokens_BN).tolist()
    paths, tokens, accepted = [], [], []
    for row, picks in zip(children, picks_BN.tolist(), strict=True):
        path = [0]
        while (child := path[-1] * KEY + picks[path[-1]]) in row:
            path.append(row.index(child))
        accepted.append(len(path) - 1)
        paths.append(path + list(range(len(path), width)))
        tokens.append([picks[node] for node in paths[-1]])
    return Acceptance(*(torch.tensor(values) for values in (paths, accepted, tokens)))


def accept_per_token(
    tree: DraftTree,
    logits_BNV: torch.Tensor,
    groups: Sequence[Sequence[int]],
    pick: Callable[[Sequence[int], torch.Tensor, int], tuple[list[int], bool]],
) -> Acceptance:
    """Walk on the host, for processors, criteria and callers that must see one token after another.

    The rows of a group go in step, as all rows do in `generate`: they descend while every one of them has a child to
    descend to. So what is asked about each token sees exactly the prefixes `generate` would show it, once each and in
    order, and nothing after the group's last token.

    Args:
        groups: rows of the running batch that are walked, in groups that go in step.
        pick: (group, its logits [G, V], level) -> the group's tokens, and whether all of it ends with them.
    """
    batch, width = tree.tokens_BN.shape[0], min(tree.levels, tree.size)
    parents, tokens = tree.parents_BN.tolist(), tree.tokens_BN.tolist()
    path = [list(range(width)) for _ in range(batch)]
    emitted = [[0] * width for _ in range(batch)]
    accepted = [0] * batch
    for group in groups:
        nodes = [0] * len(group)
        for level in range(width):
            picked, is_over = pick(group, logits_BNV[list(group), nodes], level)
            for row, token in zip(group, picked, strict=True):
                emitted[row][level] = token
            children = [
                _child(parents[row], tokens[row], node, token)
                for row, node, token in zip(group, nodes, picked, strict=True)
            ]
            if None in children:
                break
            nodes = [child for child in children if child is not None]
            for row, node in zip(group, nodes, strict=True):
                path[row][level + 1], accepted[row] = node, level + 1
            if is_over:
                break
    device = logits_BNV.device
    path_BA, accepted_B, tokens_BA = (torch.tensor(values, device=device) for values in (path, accepted, emitted))
    return Acceptance(path_BA, accepted_B, tokens_BA)


def _child(parents: Sequence[int], tokens: Sequence[int], node: int, token: int) -> int | None:
    """Return the child of a node that carries a token."""
    return next((n for n, parent in enumerate(parents) if parent == node and tokens[n] == token), None)
