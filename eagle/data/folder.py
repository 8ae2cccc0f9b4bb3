"""Prepared data on disk: shards of ids and masks, and `data.json`, which says what they are.

    shard_00000.safetensors   ids int32 [tokens], mask bool [tokens], ends int64 [samples]: where each sample ends;
                              rows uint64 [rows]: what tells each row that was read for it from others
    data.json                 written last: a folder without it is unfinished
    answers.jsonl             where the target answers: every answer, see `eagle.data.answer_file`

Every shard carries the settings it was made with and the counts up to its end, so that the shards of an interrupted
run say themselves where to go on, and are read as they are. Files appear whole or not at all.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from eagle.chat import RowError
from eagle.data.samples import Sample
from eagle.data.shards import Texts, read_document, shard_path, write_document
from eagle.data.tensor_files import TensorFile, write_tensors
from eagle.files import differing

FORMATS = (3, 2, 1)  # 2 does not know its rows, 1 is without checksums as well
SHOWN = 5
SUMMARY = "data.json"
logger = logging.getLogger(__name__)


@dataclass
class Counts:
    """What was read and what became of it.

    `answers` counts those that the target wrote, `looped` those of them that repeat themselves without end; `reasons`
    counts skipped rows, `first` names the first few with places.
    """

    rows: int = 0
    samples: int = 0
    tokens: int = 0
    loss_tokens: int = 0
    truncated: int = 0
    answers: int = 0
    looped: int = 0
    skipped: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    first: list[str] = field(default_factory=list)

    def skip(self, where: str, reason: RowError) -> None:
        """Count a row that cannot be used."""
        self.skipped += 1
        self.reasons[str(reason)] = self.reasons.get(str(reason), 0) + 1
        if len(self.first) < SHOWN:
            self.first.append(f"{where}: {reason}")

    def add(self, sample: Sample) -> None:
        """Count a sample."""
        self.samples += 1
        self.tokens += len(sample)
        self.loss_tokens += int(sample.mask.sum())

    @property
    def skips(self) -> str:
        """The skipped rows in one line."""
        if not self.rows:
            return "there is none"
        rest = "; …" if self.skipped > len(self.first) else ""
        return f"{self.skipped} of {self.rows} rows skipped: {'; '.join(self.first)}{rest}"


def vocabulary_hash(tokenizer: Any) -> str:
    """Return what two tokenizers share only if they have the same ids for the same tokens."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()[:16]


def write_shard(
    folder: Path,
    shard: int,
    samples: Sequence[Sample],
    *,
    settings: dict[str, Any],
    counts: Counts,
    rows: Sequence[int] = (),
    full: bool = True,
) -> None:
    """Write samples, and the counts up to their end.

    Args:
        folder, shard: where.
        samples: at least one.
        settings: what the folder is made with.
        counts: up to the end of the shard.
        rows: digests of the rows that were read for it.
        full: whether more rows would begin another shard.

    Raises:
        OSError: the disk is full, or fails; nothing of the shard is left.
    """
    path = shard_path(folder, shard)
    tensors = {
        "ids": np.concatenate([sample.ids for sample in samples]),
        "mask": np.concatenate([sample.mask for sample in samples]),
        "ends": np.cumsum([len(sample) for sample in samples], dtype=np.int64),
        "rows": np.array(rows, dtype=np.uint64),
    }
    about = {"shard": shard, "settings": settings, "counts": asdict(counts), "full": full}
    try:
        write_tensors(path, tensors, about)
    except OSError as failure:
        raise OSError(
            f"{path} could not be written ({failure}): with more room the same command goes on after what is there"
        ) from failure


def check_settings(folder: Path, made: dict[str, Any], settings: dict[str, Any]) -> None:
    """Compare what a folder was made with and what is asked for.

    Raises:
        ValueError: they differ; the message says where.
    """
    if others := differing(made, settings):
        raise ValueError(f"{folder} was made with {others}: choose another folder, or delete it")


def write_summary(folder: Path, settings: dict[str, Any], counts: Counts, shards: int) -> None:
    """Write `data.json`: the folder is finished."""
    write_document(folder / SUMMARY, {"format": FORMATS[0], **settings, **asdict(counts), "shards": shards})


def unfinished_shards(folder: Path) -> int:
    """Return how many shards are there without a gap."""
    return next(index for index in count() if not shard_path(folder, index).exists())


def read_summary(folder: Path) -> dict[str, Any]:
    """Read `data.json`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is of another version.
    """
    return read_document(folder / SUMMARY, FORMATS, "python -m eagle.data")


class Prepared(Texts):
    """A folder of prepared samples, read from the files as they are asked for.

    Attributes:
        folder: where it lies.
        finished: False while more shards are to come; those that are there are whole, and read.
        summary: the contents of `data.json`; of an unfinished folder what its last shard says.
    """

    def __init__(self, folder: Path) -> None:
        self.finished = (folder / SUMMARY).exists() or not unfinished_shards(folder)
        self.summary = read_summary(folder) if self.finished else _so_far(folder)
        super().__init__(folder, self.summary["shards"])


def _so_far(folder: Path) -> dict[str, Any]:
    shards = unfinished_shards(folder)
    about = TensorFile(shard_path(folder, shards - 1)).about
    if "settings" not in about or "counts" not in about:
        raise ValueError(f"{folder} holds shards, but no texts of python -m eagle.data")
    return {"format": FORMATS[0], **about["settings"], **asdict(Counts(**about["counts"])), "shards": shards}


def load(folder: str | Path, *, vocabulary: int | None = None, tokenizer: Any = None) -> Prepared:
    """Open a prepared folder. An unfinished one is read up to its last whole shard, with a warning.

    Args:
        folder: what `python -m eagle.data --out` wrote.
        vocabulary: rows of the target's embedding, which may be more than its tokenizer has tokens.
        tokenizer: the target's, to be compared token by token.

    Raises:
        FileNotFoundError: no shard there yet, or not all that there were.
        ValueError: another format version, a damaged file, or data for another vocabulary than the given target's.
    """
    data = Prepared(Path(folder))
    if missing := data.missing:
        raise FileNotFoundError(f"{folder} has lost {missing[0].name}: the command that made it makes it anew")
    data.check_counts(data.summary)
    if not data.finished:
        _tell_of_unfinished(data.folder, data.files, data.summary["rows"])
    made = f"{folder} was made with the tokenizer of {data.summary['target']}"
    size = data.summary["vocabulary"]
    if vocabulary is not None and size > vocabulary:
        raise ValueError(f"{made}, {size} tokens, and the target knows {vocabulary}: prepare it with the target's own")
    if tokenizer is not None and vocabulary_hash(tokenizer) != data.summary["vocabulary_hash"]:
        raise ValueError(f"{made}, and the target's gives its {len(tokenizer)} tokens other ids: prepare it anew")
    return data


@cache  # once, however often it is loaded
def _tell_of_unfinished(folder: Path, shards: int, rows: int) -> None:
    logger.warning(
        "%s is unfinished: %d shards of %s rows are read; the command that makes it goes on",
        folder,
        shards,
        f"{rows:,}",
    )
