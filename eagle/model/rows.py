"""What a call is, what a step emits, and the rows in between: the one place where a row is stopped.

Shapes: R rows the call began with, S prompt tokens, T new tokens, L ids so far.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from transformers import StoppingCriteriaList

from eagle.model.sampling import Sampler
from eagle.model.tree import DraftTree


@dataclass(frozen=True)
class Request:
    """One call, checked and prepared.

    Attributes:
        ids_RS: prompt ids, left-padded.
        attention_mask_RS: None where nothing is padded.
        limit: most tokens of a row, prompt and pads included.
        eos: ids that end a row.
        pad: id that finished rows emit.
        sampler: how tokens are picked.
        criteria: further stopping criteria, asked after every token as in `generate`.
    """

    ids_RS: torch.Tensor
    attention_mask_RS: torch.Tensor | None
    limit: int
    eos: frozenset[int]
    pad: int
    sampler: Sampler
    criteria: StoppingCriteriaList = field(default_factory=StoppingCriteriaList)
    bucket: bool = False

    @property
    def pads(self) -> list[int]:
        """Left pads per row."""
        if self.attention_mask_RS is None:
            return [0] * len(self.ids_RS)
        return (self.attention_mask_RS == 0).sum(-1).tolist()


@dataclass(frozen=True)
class DecodeStep:
    """What one step emitted, for all R rows.

    Attributes:
        tokens: new token ids per row; empty for rows that had ended.
        drafted: drafted nodes verified per active row; 0 for the prefill and plain decoding.
        accepted: drafted tokens the target agreed with, per row, before cutting at an end.
        finished: why a row has ended ("eos", "length", "criteria"), None while it goes on.
        tree: the verified tree of the rows in `tree_rows`; None for the prefill.
        tree_rows: numbers of the rows the tree belongs to.
    """

    tokens: list[list[int]]
    drafted: int
    accepted: list[int]
    finished: list[str | None]
    tree: DraftTree | None = None
    tree_rows: tuple[int, ...] = ()


class Rows:
    """The ids of all rows and why each ended."""

    def __init__(self, request: Request) -> None:
        count, self.prompt = request.ids_RS.shape
        self.request = request
        self.new: list[list[int]] = [[] for _ in range(count)]
        self.finished: list[str | None] = [None] * count
        # Ids on the device are kept only for whoever reads prefixes.
        self._keeps_ids = bool(request.criteria) or not request.sampler.is_stateless
        if self._keeps_ids:
            self._ids_RT = torch.full((count, request.limit), request.pad, device=request.ids_RS.device)
            self._ids_RT[:, : self.prompt] = request.ids_RS

    def length(self, row: int) -> int:
        """Return how many ids a row has, prompt and pads included."""
        return self.prompt + len(self.new[row])

    def push(self, row: int, token: int) -> bool:
        """Append an emitted token and tell whether the row ends with it."""
        if self._keeps_ids:
            self._ids_RT[row, self.length(row)] = token
        self.new[row].append(token)
        if token in self.request.eos:
            self.finished[row] = "eos"
        elif self.length(row) >= self.request.limit:
            self.finished[row] = "length"
        # Asked even where the row has ended: a criterion sees every token, as in `generate`.
        if self.request.criteria and bool(self.request.criteria(self.prefix(row), None).all()):
            self.finished[row] = self.finished[row] or "criteria"
        return self.finished[row] is not None

    def prefix(self, row: int) -> torch.Tensor:
        """Return a row's ids so far [1, L], prompt and pads included."""
        return self._ids_RT[row : row + 1, : self.length(row)]

    def ids(self) -> torch.Tensor:
        """Return all ids so far [R, S + T], shorter rows padded on the right."""
        return self.padded(range(len(self.new)), self.prompt + max(map(len, self.new)))

    def padded(self, rows: Sequence[int], width: int) -> torch.Tensor:
        """Return the ids of some rows [B, width], finished ones filled with the pad id."""
        tails = [(self.new[row] + [self.request.pad] * width)[: width - self.prompt] for row in rows]
        prompt_BS = self.request.ids_RS[list(rows)]
        return torch.cat([prompt_BS, torch.tensor(tails, dtype=torch.int64, device=prompt_BS.device)], 1)
