"""The request of a call, its rows while they are decoded, and the output of a step; the one place where a row ends.

Shapes: R rows the call began with, G rows that go in step, S prompt tokens, T new tokens, L ids so far, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import StoppingCriteriaList

from eagle.model.sampling import NO_TOKEN, Sampler
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
        pads_ended: rows that ended emit pads; without an end-of-sequence id `generate` lets them go on to the end.
        lockstep: all rows emit their t-th token at the same moment, because something watches them together.
        keeps_scores: processed scores of every token are kept, and handed to the criteria.
        keeps_logits: raw logits of every token are kept.
        prefill_chunk: prompt tokens per forward.
        returns_dict: the caller wants more than ids.
        streamer: gets every token, all rows at a time.
    """

    ids_RS: torch.Tensor
    attention_mask_RS: torch.Tensor | None
    limit: int
    eos: frozenset[int]
    pad: int
    sampler: Sampler
    criteria: StoppingCriteriaList = field(default_factory=StoppingCriteriaList)
    pads_ended: bool = True
    lockstep: bool = False
    keeps_scores: bool = False
    keeps_logits: bool = False
    prefill_chunk: int = 8192
    returns_dict: bool = False
    streamer: Any = None

    @property
    def pads(self) -> list[int]:
        """Left pads per row."""
        if self.attention_mask_RS is None:
            return [0] * len(self.ids_RS)
        return (self.attention_mask_RS == 0).sum(-1).tolist()

    @property
    def needs_host_walk(self) -> bool:
        """Whether something wants every token by itself, so that the walk must run on the host."""
        keeps = self.keeps_scores or self.keeps_logits
        return self.lockstep or keeps or bool(self.criteria) or not self.sampler.is_stateless


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
    """The ids of all rows and why each ended.

    Attributes:
        new: new ids per row up to its end.
        finished: why a row has ended, None while it goes on.
        scores, logits: [R, V] per token, where the request keeps them.
    """

    def __init__(self, request: Request) -> None:
        count, self.prompt = request.ids_RS.shape
        self.request = request
        self.new: list[list[int]] = [[] for _ in range(count)]
        self.finished: list[str | None] = [None] * count
        self.scores: list[torch.Tensor] = []
        self.logits: list[torch.Tensor] = []
        self._met = [False] * count  # rows whose criteria have said stop
        # Ids on the device are kept only for whoever reads prefixes.
        if request.needs_host_walk:
            self._ids_RT = torch.full((count, request.limit), request.pad, device=request.ids_RS.device)
            self._ids_RT[:, : self.prompt] = request.ids_RS

    def length(self, row: int) -> int:
        """Return how many ids a row has, prompt and pads included; in step, pads after its end count too."""
        return self.prompt + self.emitted(row)

    def emitted(self, row: int) -> int:
        """Return how many new ids a row has; in step, pads after its end count too."""
        return max(map(len, self.new)) if self.request.lockstep else len(self.new[row])

    def push(self, row: int, token: int) -> bool:
        """Append an emitted token and tell whether the row ends with it.

        Raises:
            RuntimeError: nothing could be sampled, as `torch.multinomial` has it.
        """
        if token == NO_TOKEN:
            raise RuntimeError("nothing to sample from: the scores hold inf or nan, or every token is forbidden")
        self.new[row].append(token)
        if token in self.request.eos:
            self.finished[row] = "eos"
        elif self.prompt + len(self.new[row]) >= self.request.limit:
            self.finished[row] = "length"
        return self.finished[row] is not None

    def push_watched(self, rows: Sequence[int], tokens: Sequence[int]) -> tuple[list[int], bool]:
        """Append one token to each of G rows that go in step, and ask the criteria.

        Returns:
            what each row really got (rows that had ended get pads), and whether all of them have ended.
        """
        place = self.length(rows[0])
        got = [t if self.finished[r] is None else self.request.pad for r, t in zip(rows, tokens, strict=True)]
        for row, token in zip(rows, got, strict=True):
            if self.finished[row] is None:
                self.push(row, token)
            self._ids_RT[row, place] = token
        # Asked even where a row has ended: a criterion sees every token, as in `generate`.
        if self.request.criteria:
            self._ask(rows)
        return got, all(self.finished[row] is not None for row in rows)

    def _ask(self, rows: Sequence[int]) -> None:
        scores = tuple(self.scores) if self.request.keeps_scores else None
        done = self.request.criteria(self.prefix(rows), scores).reshape(-1).tolist()
        for row, is_done in zip(rows, done, strict=True):
            self._met[row] |= is_done
        if self.request.pads_ended or all(self._met[row] for row in rows):
            for row in rows:
                if self._met[row]:
                    self.finished[row] = self.finished[row] or "criteria"

    def prefix(self, rows: Sequence[int]) -> torch.Tensor:
        """Return the ids so far [G, L] of neighbouring rows of one length, prompt and pads included."""
        return self._ids_RT[rows[0] : rows[-1] + 1, : self.length(rows[0])]

    def ids(self) -> torch.Tensor:
        """Return all ids so far [R, S + T], shorter rows padded on the right."""
        return self.padded(range(len(self.new)), self.prompt + max(map(len, self.new)))

    def padded(self, rows: Sequence[int], width: int) -> torch.Tensor:
        """Return the ids of some rows [B, width], finished ones filled with the pad id.

        Whoever was shown ids may have written into them, which counts as in `generate`; `new` is what was emitted.
        """
        if self.request.needs_host_walk:
            return self._ids_RT[list(rows), :width]
        tails = [(self.new[row] + [self.request.pad] * width)[: width - self.prompt] for row in rows]
        prompt_BS = self.request.ids_RS[list(rows)]
        return torch.cat([prompt_BS, torch.tensor(tails, dtype=torch.int64, device=prompt_BS.device)], 1)
