"""Fixed-size drafting state for CUDA-graph replay: features that wait for the head, at addresses that stay.

A draft reads a fixed number of entries. Steps that draft nothing add theirs behind them, and the head reads those that
became too many between two steps: how many there are differs every time, so that is never part of a graph.

Shapes: B rows, A entries that a draft reads, T entries that may wait, W new entries, D hidden, F feature width.
"""

from collections.abc import Sequence

import torch

from eagle.model.configs import TreeConfig
from eagle.model.draft_state import BaseDraftState, Observed, at_rows
from eagle.model.drafter import Drafter
from eagle.model.graphs.static_cache import StaticKVCache
from eagle.model.tree import Candidates


class StaticDraftState(BaseDraftState):
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
        self.tree, self.cache, self.width = tree, cache, width
        self.candidates: Candidates | None = None
        batch, self.places, _ = features_BTF.shape
        tokens_BT = torch.zeros(batch, self.places, dtype=torch.int64, device=features_BTF.device)
        self.entries = features_BTF, tokens_BT
        self._counts = [0] * batch
        self.counts_B = torch.zeros_like(tokens_BT[:, 0])

    def waiting(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the first A entries: those beyond the real ones are undecided and leave no trace."""
        features_BTF, tokens_BT = self.entries
        return features_BTF[:, : self.width], tokens_BT[:, : self.width]

    @property
    def counts(self) -> list[int]:
        """How many entries are real, as the host knows since the last step."""
        return self._counts

    def commit(self, hidden_BTD: torch.Tensor) -> torch.Tensor:
        """Keep what the head has read of the real entries; nothing waits any more."""
        self.cache.advance_on_device(self.counts_B)
        last_BD = at_rows(hidden_BTD, (self.counts_B - 1).clamp(min=0).to(hidden_BTD.device))
        self.counts_B.zero_()
        return last_BD

    def is_full(self, entries: int) -> bool:
        """Say no: `make_ready` has made room before the step."""
        return False

    def observe(self, features_BWF: torch.Tensor, tokens_BW: torch.Tensor, counts: torch.Tensor) -> None:
        """Hold W more entries behind those that wait; `counts` is a tensor [B]."""
        features_BTF, tokens_BT = self.entries
        places_BW = self.counts_B[:, None] + torch.arange(tokens_BW.shape[1], device=tokens_BT.device)
        features_BTF.scatter_(1, places_BW[..., None].expand_as(features_BWF), features_BWF)
        tokens_BT.scatter_(1, places_BW, tokens_BW)
        self.counts_B.add_(counts)

    def load(self, other: BaseDraftState) -> None:
        """Go on where another stream's drafting stands, which has no more waiting than a draft reads."""
        self.cache.copy_from(other.cache)
        self._hold(Observed(*other.waiting(), other.counts))

    def sync_host(self, counts: Sequence[int], has_drafted: bool) -> None:
        """Tell the host whether the head has read what was observed, and how much has been observed since."""
        if has_drafted:
            self.cache.sync_host(self._counts)
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
        width = drafter.tree.scratch
        for start in range(0, max(older), width):
            counts = [min(max(0, count - start), width) for count in older]
            piece = slice(start, start + max(counts))
            drafter.read(self.cache, features_BTF[:, piece], tokens_BT[:, piece])
            self.cache.advance(counts)
        self._hold(newest)

    def _hold(self, seen: Observed) -> None:
        self._counts = list(seen.counts)
        self.counts_B.zero_()
        self.observe(seen.features_BAF, seen.tokens_BA, torch.tensor(self._counts, device=self.counts_B.device))
