"""Drafting state of one stream: the head's KV cache, and the target features that the head has yet to read.

True features and their tokens wait here for the next draft, over many steps while nothing is drafted.

Shapes: B batch, A or W entries of one step, T entries of several, D head width, F feature width, O observations.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from eagle.model.configs import TreeConfig
from eagle.model.kv_cache import BaseKVCache, KVCache
from eagle.model.tree import Candidates

# Entries that may wait for the next draft; beyond it the head reads them all the same.
RING = 256
# Entries of a prompt that the head reads at once.
READ = 1024


@dataclass(frozen=True)
class Observed:
    """Entries for the head: features and the tokens one position ahead; `counts[b]` of row b are real."""

    features_BAF: torch.Tensor
    tokens_BA: torch.Tensor
    counts: Sequence[int]


class Judge(Protocol):
    """Decides while a tree grows; reads scores, so it waits for the device."""

    def goes_on(self, scores_BK: torch.Tensor) -> bool:
        """Tell whether a further level is drafted below these nodes, the best of the last one."""

    def drafted(self, scores_BM: torch.Tensor) -> int:
        """Return how many of all candidates, the best ones, are verified; 0 leaves the root alone."""


class BaseDraftState(ABC):
    """What one stream's drafting remembers, wherever its features wait.

    Attributes:
        tree: how this stream's trees grow, whatever the drafter's attributes become while it runs.
        judge: decides while they grow; None lets them reach their size.
        cache: the head's keys and values.
        candidates: all that the last draft looked at.
    """

    tree: TreeConfig
    judge: Judge | None = None
    cache: BaseKVCache
    candidates: Candidates | None

    @property
    @abstractmethod
    def counts(self) -> list[int]:
        """How many of the waiting entries are real, per row, as far as the host knows."""

    @abstractmethod
    def is_full(self, entries: int) -> bool:
        """Tell whether the head must read what waits before so many more entries may."""

    @abstractmethod
    def observe(self, features_BWF: torch.Tensor, tokens_BW: torch.Tensor, counts: Any) -> None:
        """Hold W more entries, of which `counts[b]` are real, for the head to read."""

    @abstractmethod
    def waiting(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features [B, T, F] and tokens [B, T] that the head reads next, every row's real ones first."""

    @abstractmethod
    def commit(self, hidden_BTD: torch.Tensor) -> torch.Tensor:
        """Keep what the head has read of the waiting entries; return what it made [B, D] of every row's last one."""


@dataclass
class DraftState(BaseDraftState):
    """Drafting of a stream whose features wait as they came; attributes as in `BaseDraftState`.

    Attributes:
        pending: the observations that wait.
    """

    tree: TreeConfig
    cache: KVCache
    pending: list[Observed] = field(default_factory=list)
    candidates: Candidates | None = None
    judge: Judge | None = None

    def is_full(self, entries: int) -> bool:
        """Tell whether more would wait than the ring holds."""
        waiting = sum(seen.tokens_BA.shape[1] for seen in self.pending)
        return waiting > 0 and waiting + entries > RING

    def observe(self, features_BWF: torch.Tensor, tokens_BW: torch.Tensor, counts: Sequence[int]) -> None:
        """Hold W more entries behind those that wait."""
        self.pending.append(Observed(features_BWF, tokens_BW, counts))

    def waiting(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return all that waits as one observation."""
        seen = merged(self.pending)
        width = max(seen.counts)
        return seen.features_BAF[:, :width], seen.tokens_BA[:, :width]

    @property
    def counts(self) -> list[int]:
        """How many of the waiting entries are real, per row."""
        return [sum(row) for row in zip(*(seen.counts for seen in self.pending), strict=True)]

    def commit(self, hidden_BTD: torch.Tensor) -> torch.Tensor:
        """Keep what the head has read; nothing waits any more."""
        counts = self.counts
        self.pending.clear()
        self.cache.advance(counts)
        if min(counts) == max(counts):
            return hidden_BTD[:, counts[0] - 1]
        return at_rows(hidden_BTD, torch.tensor(counts, device=hidden_BTD.device) - 1)

    def keep_rows(self, rows: Sequence[int]) -> None:
        """Drop all rows of the batch but these."""
        self.cache.keep_rows(rows)
        self.pending = [
            Observed(seen.features_BAF[rows], seen.tokens_BA[rows], [seen.counts[row] for row in rows])
            for seen in self.pending
        ]


def at_rows(hidden_BTD: torch.Tensor, numbers_B: torch.Tensor) -> torch.Tensor:
    """Return entry `numbers_B[b]` of every row b, [B, D]."""
    return hidden_BTD[torch.arange(len(numbers_B), device=hidden_BTD.device), numbers_B]


def merged(pending: Sequence[Observed]) -> Observed:
    """Return several observations as one, every row's real entries first."""
    if len(pending) == 1:
        return pending[0]
    features_BTF = torch.cat([seen.features_BAF for seen in pending], 1)
    tokens_BT = torch.cat([seen.tokens_BA for seen in pending], 1)
    counts_BO = list(zip(*(seen.counts for seen in pending), strict=True))
    counts = [sum(row) for row in counts_BO]
    if min(counts) < tokens_BT.shape[1]:
        widths = [seen.tokens_BA.shape[1] for seen in pending]
        real = [[step < n for n, width in zip(row, widths, strict=True) for step in range(width)] for row in counts_BO]
        order_BT = torch.tensor(real, device=tokens_BT.device).int().argsort(dim=1, descending=True, stable=True)
        tokens_BT = tokens_BT.gather(1, order_BT)
        features_BTF = features_BTF.gather(1, order_BT[..., None].expand_as(features_BTF))
    return Observed(features_BTF, tokens_BT, counts)
