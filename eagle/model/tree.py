"""The draft tree and the tensor operations that build it.

A tree is a root (node 0: the last chosen token, not yet run through the target) and drafted nodes, each after its
parent. Everything about its shape follows from `parents`: no loop over nodes, no host synchronisation.

Shapes: B batch, N nodes, M candidates, K children per expanded node.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from eagle.model.kinds import are_whole, shown


@dataclass(frozen=True)
class DraftTree:
    """A tree of drafted tokens per row of the batch.

    Attributes:
        tokens_BN: token ids, int64.
        parents_BN: parent's node index, -1 for the root; always smaller than the node's own index.
        depths_BN: distance from the root.
        mask_BNN: True where column is an ancestor of row or the row itself.
        scores_BN: cumulative log-probability under the head, 0 for the root.
        levels: most nodes on one path, root included; a host integer.
    """

    tokens_BN: torch.Tensor
    parents_BN: torch.Tensor
    depths_BN: torch.Tensor
    mask_BNN: torch.Tensor
    scores_BN: torch.Tensor
    levels: int

    @property
    def size(self) -> int:
        """Number of nodes, root included."""
        return self.tokens_BN.shape[1]

    def limited(self, max_depths: Sequence[int] | torch.Tensor) -> "DraftTree":
        """Return a tree of the same shape in which row b accepts nothing deeper than `max_depths[b]`.

        Deeper nodes keep their slot but lose their parent (so nothing descends into them) and take the position of
        the deepest allowed level, which keeps every position inside what the target can embed.
        """
        limit_B1 = torch.as_tensor(max_depths, device=self.depths_BN.device)[:, None]
        parents_BN = self.parents_BN.masked_fill(self.depths_BN > limit_B1, -1)
        return replace(self, parents_BN=parents_BN, depths_BN=torch.minimum(self.depths_BN, limit_B1))

    def pinned(self, rows: Sequence[int], token: int) -> "DraftTree":
        """Return a tree of the same shape in which some rows hold one chain of one token.

        Rows that have ended but go on in step with the others emit pads; this is the draft that agrees.
        """
        chain_N = (torch.arange(self.size, device=self.parents_BN.device) - 1).clamp(max=self.levels - 2)
        tokens_BN, parents_BN = self.tokens_BN.clone(), self.parents_BN.clone()
        tokens_BN[list(rows), 1:] = token
        parents_BN[list(rows)] = chain_N
        return from_parents(tokens_BN, parents_BN, self.scores_BN, self.levels)


def from_parents(tokens_BN: torch.Tensor, parents_BN: torch.Tensor, scores_BN: torch.Tensor, levels: int) -> DraftTree:
    """Build a tree from parent indices.

    `(I + P)` to the power of two, four, eight, … reaches all ancestors in log2(levels) products.
    """
    mask_BNN = ancestors(parents_BN, levels)
    return DraftTree(tokens_BN, parents_BN, mask_BNN.sum(-1) - 1, mask_BNN, scores_BN, levels)


def ancestors(parents_BN: torch.Tensor, levels: int) -> torch.Tensor:
    """Return the ancestor-or-self mask [B, N, N] of parent indices [B, N] (-1 for none)."""
    nodes = parents_BN.shape[1]
    eye_NN = torch.eye(nodes, dtype=torch.bool, device=parents_BN.device)
    columns = torch.arange(nodes, device=parents_BN.device)
    reach_BNN = (parents_BN[..., None] == columns) | eye_NN
    reached = 1
    while reached < levels - 1:
        counts_BNN = reach_BNN.float()
        reach_BNN = torch.bmm(counts_BNN, counts_BNN) > 0
        reached *= 2
    return reach_BNN


def root_only(root_B: torch.Tensor) -> DraftTree:
    """Return the tree of plain decoding: one node per row."""
    tokens_B1 = root_B[:, None]
    zeros_B1 = torch.zeros_like(tokens_B1)
    mask_B11 = torch.ones_like(zeros_B1, dtype=torch.bool)[..., None]
    return DraftTree(tokens_B1, zeros_B1 - 1, zeros_B1, mask_B11, zeros_B1.float(), 1)


def best(scores_BM: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the `count` largest scores per row and their indices; ties keep the lower index.

    A bare `topk` breaks ties at will. A child with probability 1 ties with its parent, so a kept set is closed under
    parents only if the parent, which has the lower index, wins.
    """
    ordered_BM, index_BM = torch.sort(scores_BM, dim=-1, descending=True, stable=True)
    return ordered_BM[:, :count], index_BM[:, :count]


def at_places(values_BNX: torch.Tensor, places_BK: torch.Tensor) -> torch.Tensor:
    """Return entry `places_BK[b, k]` of every row b, [B, K, X]."""
    if len(values_BNX) == 1:  # most calls; `index_select` takes a third of the time
        return values_BNX.index_select(1, places_BK[0])
    return values_BNX.gather(1, places_BK[..., None].expand(-1, -1, values_BNX.shape[-1]))


@dataclass(frozen=True)
class Candidates:
    """All nodes a draft has looked at, root excluded; `parents_BM` indexes candidates, -1 for the root.

    A dynamic tree's are laid out as `width` children of the root, then levels of width² (0 where the tree is static).
    """

    tokens_BM: torch.Tensor
    parents_BM: torch.Tensor
    scores_BM: torch.Tensor
    width: int = 0

    @property
    def levels(self) -> int:
        """Most levels below the root."""
        total = self.scores_BM.shape[1]
        return 1 + (total - self.width) // self.width**2 if self.width else total

    def to_tensor(self) -> torch.Tensor:
        """Return all of it but `width` as one tensor [B, 3 M] of integers, scores as the bits they are."""
        return torch.cat([self.tokens_BM, self.parents_BM, self.scores_BM.view(torch.int32).long()], 1)

    @classmethod
    def from_tensor(cls, packed_BX: torch.Tensor, width: int) -> "Candidates":
        """Return what was packed."""
        tokens_BM, parents_BM, bits_BM = packed_BX.chunk(3, 1)
        return cls(tokens_BM, parents_BM, bits_BM.int().view(torch.float32), width)


def select(root_B: torch.Tensor, candidates: Candidates, drafted: int, levels: int) -> DraftTree:
    """Keep the `drafted` best candidates and the root (EAGLE-2's re-ranking, arXiv 2406.16858 section 4.2)."""
    _, kept_BN = best(candidates.scores_BM, drafted)
    kept_BN = kept_BN.sort(dim=-1).values
    batch, total = candidates.scores_BM.shape
    # Where each candidate ended up; the extra last column stands for the root, reached by index -1.
    node_of_BM = torch.zeros(batch, total + 1, dtype=torch.int64, device=kept_BN.device)
    numbers_N = torch.arange(1, kept_BN.shape[1] + 1, device=kept_BN.device)
    node_of_BM.scatter_(1, kept_BN, numbers_N.expand_as(kept_BN))
    parents_BN = node_of_BM.gather(1, candidates.parents_BM.gather(1, kept_BN) % (total + 1))
    root_B1 = root_B[:, None]
    return from_parents(
        torch.cat([root_B1, candidates.tokens_BM.gather(1, kept_BN)], 1),
        torch.cat([torch.full_like(root_B1, -1), parents_BN], 1),
        torch.cat([torch.zeros_like(root_B1, dtype=torch.float32), candidates.scores_BM.gather(1, kept_BN)], 1),
        levels,
    )


@dataclass(frozen=True)
class StaticLevel:
    """One level of a static tree, as indices into the level before.

    Attributes:
        expand: which nodes of the previous level get children (position in that level).
        parent: for each node here, its parent's place in `expand`.
        rank: for each node here, which of the parent's top-k children it is.
    """

    expand: tuple[int, ...]
    parent: tuple[int, ...]
    rank: tuple[int, ...]


def static_levels(paths: Sequence[Sequence[int]]) -> tuple[StaticLevel, ...]:
    """Sort the root-to-node paths of an EAGLE-1 tree into levels.

    Raises:
        ValueError: no lists of whole numbers, empty list, negative rank, or a path whose parent is not in the list.
    """
    others = [path for path in paths if not are_whole(path)]
    if others:
        raise ValueError(f"tree path {shown(others[0])} must be a list of child ranks, whole numbers of 0 or more")
    wanted = sorted({tuple(path) for path in paths}, key=lambda p: (len(p), p))
    if not wanted or any(not path or min(path) < 0 for path in wanted):
        raise ValueError(f"tree paths must be non-empty lists of child ranks >= 0, got {list(paths)[:3]!r}")
    levels: list[StaticLevel] = []
    previous: list[tuple[int, ...]] = [()]
    for depth in range(1, len(wanted[-1]) + 1):
        here = [path for path in wanted if len(path) == depth]
        orphans = [list(path) for path in here if path[:-1] not in previous]
        if orphans or not here:
            raise ValueError(f"tree path {orphans[:1] or depth!r} has no parent in the list")
        inner = [path for path in previous if any(child[:-1] == path for child in here)]
        levels.append(
            StaticLevel(
                expand=tuple(previous.index(path) for path in inner),
                parent=tuple(inner.index(path[:-1]) for path in here),
                rank=tuple(path[-1] for path in here),
            )
        )
        previous = here
    return tuple(levels)
