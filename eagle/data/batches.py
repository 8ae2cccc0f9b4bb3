"""Batches of samples for training: of similar lengths, or packed into rows of one length.

A step's batch depends on seed and step alone, so that a run goes on at any step as if it had never stopped.

Shapes: B rows, S tokens per row.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from eagle.data.samples import Sample

POOL = 50  # batches of samples that are sorted by length together: mixed enough, and hardly padded
OPEN = 32  # rows that are filled at the same time


class Samples(Protocol):
    """What batches are made of: a prepared folder, or anything like it."""

    @property
    def lengths_N(self) -> NDArray[np.int64]:
        """Tokens of every sample."""

    def __getitem__(self, index: int, /) -> Sample: ...


@dataclass(frozen=True)
class Batch:
    """Rows of samples side by side.

    Attributes:
        ids_BS: int64; pads are the pad id.
        mask_BS: bool; True where predicting the token counts in the loss.
        segments_BS: int64; 0 for pads, 1, 2, … for the samples of a row. A token may see those of its own segment.
        positions_BS: int64; each token's place in its own sample, 0 for pads.
    """

    ids_BS: torch.Tensor
    mask_BS: torch.Tensor
    segments_BS: torch.Tensor
    positions_BS: torch.Tensor


def gathered(rows: Sequence[Sequence[Sample]], length: int | None = None, pad: int = 0) -> Batch:
    """Lay the samples of each row side by side, padded on the right to `length` or to the longest row.

    A token at the start of a sample has nothing of its own to be predicted from: its mask is False.
    """
    # Rows without samples fill batches; a model is not called without tokens.
    width = length if length is not None else max(2, *(sum(map(len, row)) for row in rows))
    ids_BS = np.full((len(rows), width), pad, dtype=np.int64)
    mask_BS = np.zeros_like(ids_BS, dtype=bool)
    segments_BS, positions_BS = np.zeros_like(ids_BS), np.zeros_like(ids_BS)
    for row, samples in enumerate(rows):
        begin = 0
        for segment, sample in enumerate(samples, start=1):
            place = row, slice(begin, begin + len(sample))
            ids_BS[place], mask_BS[place], segments_BS[place] = sample.ids, sample.mask, segment
            mask_BS[row, begin] = False
            positions_BS[place] = np.arange(len(sample))
            begin += len(sample)
    return Batch(*map(torch.from_numpy, (ids_BS, mask_BS, segments_BS, positions_BS)))


class Batches(ABC):
    """Endless epochs of batches, each sample once per epoch, by seed and step.

    Args:
        samples: what is batched.
        batch: rows of a batch; the last of an epoch may have fewer.
        seed: of every order.
        pad: the id of pads.

    Raises:
        ValueError: no samples, or `batch` below 1.
    """

    length: int | None = None

    def __init__(self, samples: Samples, batch: int, *, seed: int = 0, pad: int = 0) -> None:
        if batch < 1:
            raise ValueError(f"batch={batch} must be at least 1")
        if not len(samples.lengths_N):
            raise ValueError("there are no samples to batch")
        self.samples, self.batch, self.seed, self.pad = samples, batch, seed, pad
        self._epoch: tuple[int, list[list[list[int]]]] = (-1, [])

    @property
    @abstractmethod
    def rows(self) -> int:
        """Rows of an epoch."""

    @abstractmethod
    def plan(self, epoch: int) -> list[list[list[int]]]:
        """Return the epoch's batches: for every row the samples in it."""

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch."""
        return -(-self.rows // self.batch)

    def rows_at(self, step: int) -> list[list[int]]:
        """Return the samples in every row of a step's batch; steps are counted from 0 over all epochs."""
        epoch, place = divmod(step, self.per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = epoch, self.plan(epoch)
        return self._epoch[1][place]

    def laid(self, rows: Sequence[Sequence[int]]) -> Batch:
        """Lay samples into rows; a row without any is all pads."""
        return gathered([[self.samples[index] for index in row] for row in rows], self.length, self.pad)

    def at(self, step: int) -> Batch:
        """Return the batch of a step."""
        return self.laid(self.rows_at(step))

    def between(self, first: int, end: int) -> Iterator[Batch]:
        """Yield the batches of the steps `first`, …, `end - 1`."""
        return (self.at(step) for step in range(first, end))

    def _random(self, *words: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *words])

    def _cut(self, order: Sequence[list[int]]) -> list[list[list[int]]]:
        return [list(order[start : start + self.batch]) for start in range(0, len(order), self.batch)]


class Bucketed(Batches):
    """One sample per row, batches of similar lengths: padded to their longest."""

    @property
    def rows(self) -> int:
        """Samples."""
        return len(self.samples.lengths_N)

    def plan(self, epoch: int) -> list[list[list[int]]]:
        """Sort pools of a random order by length, cut them into batches, and shuffle those."""
        random, pool = self._random(epoch), self.batch * POOL
        order, batches = random.permutation(self.rows), []
        for start in range(0, self.rows, pool):
            chosen = order[start : start + pool]
            sorted_ = chosen[np.argsort(self.samples.lengths_N[chosen], kind="stable")]
            batches += self._cut([[int(index)] for index in sorted_])
        return [batches[int(place)] for place in random.permutation(len(batches))]


class Packed(Batches):
    """Several whole samples per row of one length, each a segment of its own.

    Which samples share a row is drawn once, so that all epochs have the same number of steps; their order is not.

    Args:
        length: tokens of every row.

    Raises:
        ValueError: a sample is longer than `length`.
    """

    def __init__(self, samples: Samples, batch: int, length: int, *, seed: int = 0, pad: int = 0) -> None:
        super().__init__(samples, batch, seed=seed, pad=pad)
        longest = int(samples.lengths_N.max())
        if longest > length:
            place = int(samples.lengths_N.argmax())
            raise ValueError(f"sample {place} has {longest} tokens, length={length}: prepare it with --max-length")
        self.length = length
        self._packs = packs(samples.lengths_N, length, self._random().permutation(len(samples.lengths_N)))

    @property
    def rows(self) -> int:
        """Packed rows."""
        return len(self._packs)

    def plan(self, epoch: int) -> list[list[list[int]]]:
        """Shuffle the rows."""
        return self._cut([self._packs[int(place)] for place in self._random(epoch).permutation(self.rows)])


def packs(lengths_N: NDArray[np.int64], length: int, order: NDArray[np.int64]) -> list[list[int]]:
    """Put samples, in this order, each into the fullest of the open rows that has room; the fullest row is closed."""
    done: list[list[int]] = []
    rows: list[tuple[int, list[int]]] = []
    for index in map(int, order):
        room = length - int(lengths_N[index])
        fitting = [row for row in rows if row[0] <= room]
        used, row = max(fitting, key=lambda row: row[0], default=(0, []))
        rows = [other for other in rows if other[1] is not row]
        rows.append((used + int(lengths_N[index]), [*row, index]))
        if len(rows) > OPEN:
            fullest = max(rows, key=lambda row: row[0])
            rows.remove(fullest)
            done.append(fullest[1])
    return done + [row for _, row in rows]
