"""Fixed-size drafting state for CUDA-graph replay: features that wait for the head, at addresses that stay.

A draft reads a fixed number of entries. Steps that draft nothing add theirs behind them, and the head reads those that
became too many between two steps: how many there are differs every time, so that is never part of a graph.

Shapes: B rows, A entries that a draft reads, T entries that may wait, W new entries, D hidden, F feature width.
"""

from collections.abc import Sequence

import torch

from eagle.model.configs import TreeConfig
from eagle.model.draft_state import DraftState, Observed, at_rows
from eagle.model.drafter import Drafter
from eagle.model.graphs.static_cache import StaticKVCache


class StaticDraftState(DraftState):
    """A stream's drafting with room for T entries and their counts on the device.

    Args:
        tree: how trees grow.
        cache: the head's keys and values.
        width: A, at most T.
        features_BTF: zeros like the features that may wait.

    Attributes:
        entries: the features [B, T, F] and tokens [B, T] that wait for the head.
        counts_B: how many of the T entries are real; `counts` is the host's mirror.
    """

    def __init__(self, tree: TreeConfig, cache: StaticKVCache, width: int, features_BTF: torch.Tensor) -> None:
        super().__init__(tree, cache)
        batch, self.places, _ = features_BTF.shape
        tokens_BT = torch.zeros(batch, self.places, dtype=torch.int64, device=features_BTF.device)
        self.entries = features_BTF, tokens_BT
        self._counts = [0] * batch
        self.bucket, self.width = cache, width
        self.counts_B = torch.zeros_like(tokens_BT[:, 0])

    @property
    def observed(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The first A entries: those beyond the real ones are undecided and leave no trace."""
        features_BTF, tokens_BT = self.entries
        return features_BTF[:, : self.width], tokens_BT[:, : self.width]

    @property
    def counts(self) -> list[int]:
        """How many entries are real, as the host knows since the last step."""
        return self._counts

    def commit(self, hidden_BTD: torch.Tensor) -> torch.Tensor:
        """Keep what the head has read of the real entries; return what it made [B, D] of every row's last one."""
        self.bucket.advance_on_device(self.counts_B)
        return at_rows(hidden_BTD, (self.counts_B - 1).clamp(min=0).to(hidden_BTD.device))

    def observe(self, features_BWF: torch.Tensor, tokens_BW: torch.Tensor, counts_B: torch.Tensor) -> None:
        """Hold W entries, of which `counts_B` are real, and no others."""
        for static, new in zip(self.entries, (features_BWF, tokens_BW), strict=True):
            static[:, : new.shape[1]].copy_(new)
        self.counts_B.copy_(counts_B)

    def append(self, features_B1F: torch.Tensor, tokens_B1: torch.Tensor, counts_B: torch.Tensor) -> None:
        """Put one entry behind those of every row and count it where `counts_B` is 1."""
        features_BTF, tokens_BT = self.entries
        place_B1 = self.counts_B[:, None]
        features_BTF.scatter_(1, place_B1[..., None].expand_as(features_B1F), features_B1F)
        tokens_BT.scatter_(1, place_B1, tokens_B1)
        self.counts_B.add_(counts_B)

    def load(self, other: DraftState) -> None:
        """Go on where another stream's drafting stands, which has no more waiting than a draft reads."""
        self.bucket.copy_from(other.cache)
        self._hold(Observed(*other.observed, other.counts))

    def sync_host(self, counts: Sequence[int], has_drafted: bool) -> None:
        """Tell the host whether the head has read what was observed, and how much has been observed since."""
        if has_drafted:
            self.bucket.sync_host(self._counts)
            self._counts = list(counts)
        else:
            self._counts = [waiting + count for waiting, count in zip(self._counts, counts, strict=True)]

    def make_ready(self, drafter: Drafter, drafts: bool) -> None:
        """Let the head read what waits where it is too much for the next step; between steps only.

        Args:
            drafts: whether that step lets it read A entries, or adds one to the T.
        """
        if max(self._counts) > (self.width if drafts else self.places - 1):
            self._catch_up(drafter)

    def _catch_up(self, drafter: Drafter) -> None:
        """Let the head read all but the newest entry of every row, in pieces a step's slots suffice for."""
        features_BTF, tokens_BT = self.entries
        older = [max(0, count - 1) for count in self._counts]
        place_B1 = torch.tensor(older, device=tokens_BT.device)[:, None]
        place_B1F = place_B1[..., None].expand(-1, -1, features_BTF.shape[-1])
        ones = [min(count, 1) for count in self._counts]
        newest = Observed(features_BTF.gather(1, place_B1F), tokens_BT.gather(1, place_B1), ones)
        backlog, width = DraftState(self.tree, self.bucket, [newest]), drafter.tree.scratch
        for start in range(0, max(older), width):
            counts = [min(max(0, count - start), width) for count in older]
            seen = slice(start, start + width)
            backlog.pending.insert(0, Observed(features_BTF[:, seen], tokens_BT[:, seen], counts))
            drafter.catch_up(backlog)
        self._hold(newest)

    def _hold(self, seen: Observed) -> None:
        self._counts = list(seen.counts)
        counts_B = torch.tensor(self._counts, device=self.counts_B.device)
        self.observe(seen.features_BAF, seen.tokens_BA, counts_B)
