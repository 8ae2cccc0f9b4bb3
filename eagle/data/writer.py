"""A folder of prepared data in the making: rows in, shards out, and what is there already kept.

A shard is kept if it was made of the very rows that stand at its place now. So a run goes on, is made longer or
shorter, and its files may lie elsewhere; which shards there are depends on rows and settings alone.
"""

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from eagle.chat import RowError
from eagle.data.folder import (
    SUMMARY,
    Counts,
    check_settings,
    unfinished_shards,
    write_shard,
    write_summary,
)
from eagle.data.samples import Sample
from eagle.data.shards import shard_path
from eagle.data.sources import Raw
from eagle.data.tensor_files import TensorFile
from eagle.files import sweep

# Settings that are free to change: samples are made anew of the answers that are there.
FREE = ("drop_loops",)


class Writer:
    """A folder in the making; what is there stays as it is until there is something to write.

    Args:
        folder: where the data goes.
        settings: all that decides what becomes of a row.
        tokens: from which on a shard is full; None where `rows` say so.
        rows: that fill a shard.

    Attributes:
        shards: whole ones so far.
        counts: up to the last row that was added.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], *, tokens: int | None = None, rows: int = 1) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        self.folder, self.settings, self.tokens, self.rows = folder, settings, tokens, rows
        self.shards, self.counts = 0, Counts()
        self._samples: list[Sample] = []
        self._digests: list[int] = []
        self._written = 0
        self._stale: int | None = 0

    def keep(self, rows: Iterator[Raw], *, may_change: bool = False) -> Iterator[Raw]:
        """Keep the shards that were made of these rows, and return the rows that none of them has.

        Args:
            rows: all of them.
            may_change: make shards anew from the first row on that is another one; else rows may only be added at the
                end, or left out there.

        Raises:
            ValueError: shards made with other settings, damaged or of other rows.
        """
        there = unfinished_shards(self.folder)
        made_with = [TensorFile(shard_path(self.folder, shard)).about["settings"] for shard in range(there)]
        for settings in made_with:
            check_settings(self.folder, settings, fixed(self.settings))
        longer = False
        while self.shards < there:
            file = TensorFile(shard_path(self.folder, self.shards))
            if "rows" not in file.names:
                raise ValueError(
                    f"{self.folder} was begun by an earlier version, which did not write down its rows: choose another "
                    "folder, or delete it"
                )
            made = file.read("rows").tolist()
            group = list(islice(rows, len(made)))
            alike = _alike(made, [row.digest for row in group]) if made_with[self.shards] == self.settings else 0
            following = list(islice(rows, 1))
            rows = chain(following, rows)
            if alike < len(group) and not may_change:
                raise ValueError(
                    f"{self.folder} was made of other rows: {group[alike].where} is not the one that stood there. Rows "
                    "may be added or left out at the end; for others choose another folder, or delete this one"
                )
            if alike < len(made) or (following and not file.about["full"]):
                rows, longer = chain(group, rows), alike == len(made)
                break
            self.shards, self.counts = self.shards + 1, Counts(**file.about["counts"])
        self._stale = self.shards + longer  # a last shard that is only to become longer stays until it is
        self._written = self.counts.tokens
        return rows

    def add(self, row: Raw, samples: Sequence[Sample]) -> None:
        """Count a row and its samples; write a shard where they fill one."""
        for sample in samples:
            self.counts.add(sample)
        self._samples += samples
        self._end(row)

    def skip(self, row: Raw, reason: RowError) -> None:
        """Count a row that cannot be used."""
        self.counts.skip(row.where, reason)
        self._end(row)

    def _end(self, row: Raw) -> None:
        self.counts.rows += 1
        self._digests.append(row.digest)
        tokens = self.counts.tokens - self._written
        full = len(self._digests) >= self.rows if self.tokens is None else tokens >= self.tokens
        if full and self._samples:
            self._write(full=True)

    def _drop(self) -> None:
        """Delete the shards of other rows, the last ones first, after the document that counts them."""
        if self._stale is not None:
            (self.folder / SUMMARY).unlink(missing_ok=True)
            for path in sorted(self.folder.glob("shard_*.safetensors"), reverse=True):
                if path >= shard_path(self.folder, self._stale):
                    path.unlink()
        self._stale = None

    def _write(self, *, full: bool) -> None:
        self._drop()
        made: dict[str, Any] = {"settings": self.settings, "counts": self.counts, "rows": self._digests, "full": full}
        write_shard(self.folder, self.shards, self._samples, **made)
        self._samples, self._digests, self._written = [], [], self.counts.tokens
        self.shards += 1

    def finish(self, sources: dict[str, Any]) -> None:
        """Write the last shard and `data.json`, which names the sources besides."""
        if self._samples:
            self._write(full=False)
        self._drop()
        write_summary(self.folder, {**self.settings, **sources}, self.counts, self.shards)


def fixed(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that must be those that a folder was made with."""
    return {name: value for name, value in settings.items() if name not in FREE}


def _alike(made: Sequence[int], rows: Sequence[int]) -> int:
    """Return how many rows two lists begin with alike."""
    pairs = enumerate(zip(made, rows, strict=False))
    return next((place for place, pair in pairs if pair[0] != pair[1]), min(len(made), len(rows)))
