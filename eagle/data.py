"""Training data: conversations and documents in, token ids with a loss mask out, in a folder.

    python -m eagle.data SOURCE... --tokenizer BASE --out FOLDER

A source is a .json, .jsonl, .txt or .parquet file, a folder of them, or a name of `datasets`. Interrupted, by any
signal, the same command goes on after the last whole shard and writes what it would have written at once.
"""

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eagle.chat import RowError, Template, choose_template
from eagle.data_batches import Batch, Batches, Bucketed, Packed
from eagle.data_folder import (
    SUMMARY,
    Counts,
    Prepared,
    check_settings,
    load,
    read_summary,
    shard_path,
    unfinished_run,
    vocabulary_hash,
    write_shard,
    write_summary,
)
from eagle.data_samples import Sample, conversation_samples, document_sample, pieces, token_counts, truncated
from eagle.data_sources import Document, Raw, files_of, read
from eagle.model.loading import load_tokenizer

__all__ = ["Batch", "Batches", "Bucketed", "Packed", "Prepared", "Sample", "load", "main", "prepare", "token_counts"]

SHARD_TOKENS = 1 << 22  # 20 MB; an interrupted run loses at most one shard
logger = logging.getLogger(__name__)


def prepare(
    sources: Sequence[str],
    tokenizer: Any,
    folder: Path,
    *,
    target: str,
    template: str | None = None,
    max_length: int | None = None,
    limit: int | None = None,
    strict: bool = False,
    by_paragraph: bool = False,
    shard_tokens: int = SHARD_TOKENS,
) -> Prepared:
    """Tokenise sources into a folder, or finish what an interrupted call began there.

    Args:
        sources: paths, or names of `datasets`.
        tokenizer: the target's.
        folder: where the data goes.
        target: the target's folder or Hub id, to be remembered.
        template: a FastChat template for the conversations; by default the tokenizer's chat template.
        max_length: conversations are cut to this many tokens, documents into pieces of as many.
        limit: rows to read.
        strict: raise at the first row that cannot be used; by default such rows are counted and skipped.
        by_paragraph: documents of text files end at blank lines, not at the file's end.
        shard_tokens: tokens from which on a shard is written.

    Raises:
        FileNotFoundError, ImportError: see `eagle.data_sources.read` and `eagle.chat.choose_template`.
        ValueError: sources without a usable row, a bad row with `strict`, conversations without a template, a folder
            made with other settings, or a length below its least value.
    """
    for name, value, least in (("max_length", max_length, 2), ("limit", limit, 1)):
        if value is not None and value < least:
            raise ValueError(f"{name}={value} must be at least {least}")
    chosen = choose_template(tokenizer, template)
    settings = {
        "target": target,
        "template": chosen.name if chosen else None,
        "vocabulary": max(tokenizer.get_vocab().values()) + 1,
        "vocabulary_hash": vocabulary_hash(tokenizer),
        "max_length": max_length,
        "limit": limit,
        "by_paragraph": by_paragraph,
        "sources": [described for source in sources for described in _described(source)],
    }
    if (folder / SUMMARY).exists():
        check_settings(folder, read_summary(folder), settings)
        logger.info("%s is already there", folder)
        return Prepared(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards, counts = unfinished_run(folder, settings)
    if shards:
        logger.info("continuing after %d shards, %d rows", shards, counts.rows)
    rows = islice(chain.from_iterable(read(source, by_paragraph=by_paragraph) for source in sources), limit)
    bar = tqdm(islice(rows, counts.rows, None), initial=counts.rows, total=limit, unit=" rows", mininterval=1)
    held, written = list[Sample](), counts.tokens
    for sample in _samples(bar, tokenizer, chosen, counts, max_length, strict):
        if sample is not None:
            held.append(sample)
        elif counts.tokens - written >= shard_tokens:
            write_shard(shard_path(folder, shards), held, settings, counts)
            held, written, shards = [], counts.tokens, shards + 1
    if held:
        write_shard(shard_path(folder, shards), held, settings, counts)
        shards += 1
    if not counts.samples:
        raise ValueError(f"no usable row in {', '.join(sources)}: {counts.skips}")
    write_summary(folder, settings, counts, shards)
    return Prepared(folder)


def _described(source: str) -> list[dict[str, Any]]:
    """Return what tells a source from another one: its files, their sizes and times."""
    files = files_of(source)
    if files is None:
        return [{"name": source}]
    return [{"name": str(f), "bytes": f.stat().st_size, "modified_ns": f.stat().st_mtime_ns} for f in files]


def _samples(
    rows: Iterator[Raw],
    tokenizer: Any,
    template: Template | None,
    counts: Counts,
    max_length: int | None,
    strict: bool,
) -> Iterator[Sample | None]:
    """Yield the samples of each row and count them; None after a row, where a shard may end."""
    if strict and counts.skipped:
        raise ValueError(counts.skips)
    for raw in rows:
        counts.rows += 1
        try:
            made = _of_row(raw, tokenizer, template)
            cut = made if max_length is None else _cut(made, max_length)
        except RowError as reason:
            if strict:
                raise ValueError(f"{raw.where}: {reason}") from reason
            counts.skip(raw.where, reason)
            continue
        counts.truncated += sum(map(len, cut)) < sum(map(len, made))
        for sample in cut:
            counts.add(sample)
            yield sample
        yield None


def _of_row(raw: Raw, tokenizer: Any, template: Template | None) -> list[Sample]:
    row = raw.parsed()
    if isinstance(row, Document):
        return [document_sample(tokenizer, row.text)]
    if template is None:
        raise ValueError(
            f"{raw.where} is a conversation and the tokenizer has no chat template: "
            "name one of FastChat's, as vicuna_v1.1 or llama-2, with --template"
        )
    return conversation_samples(tokenizer, template, row.messages)


def _cut(samples: list[Sample], length: int) -> list[Sample]:
    """Cut conversations to a length; documents, where every token counts, into pieces."""
    return [
        part
        for sample in samples
        for part in (pieces(sample, length) if sample.mask.all() else [truncated(sample, length)])
    ]


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m eagle.data", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("sources", nargs="+", help=".json, .jsonl, .txt or .parquet, folders, names of datasets")
    parser.add_argument("--tokenizer", required=True, help="folder or Hub id of the target")
    parser.add_argument("--out", type=Path, required=True, help="where the data goes")
    parser.add_argument("--template", help="FastChat template; default: the tokenizer's chat template")
    parser.add_argument("--max-length", type=int, help="tokens at which conversations and documents are cut")
    parser.add_argument("--limit", type=int, help="rows to read")
    parser.add_argument("--by-paragraph", action="store_true", help="text files: a document ends at a blank line")
    parser.add_argument("--strict", action="store_true", help="stop at the first row that cannot be used")
    return parser


def report(data: Prepared) -> str:
    """Say what a folder holds, in a few lines."""
    made = data.summary
    counts = Counts(**{name: made[name] for name in Counts.__dataclass_fields__})
    lines = [
        f"{data.folder}: {counts.samples:,} samples in {made['shards']} shards, from {counts.rows:,} rows",
        f"{counts.tokens:,} tokens, {counts.loss_tokens / counts.tokens:.1%} of them in the loss",
    ]
    if made["template"]:
        lines.append(f"template: {made['template']}")
    if counts.truncated:
        lines.append(f"{counts.truncated:,} rows cut to {made['max_length']} tokens")
    if counts.skipped:
        lines.append(counts.skips)
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Prepare a folder and print what it holds."""
    command = parser()
    args = command.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = {name: getattr(args, name) for name in ("template", "max_length", "limit", "strict", "by_paragraph")}
    try:
        tokenizer = load_tokenizer(args.tokenizer)
        data = prepare(args.sources, tokenizer, args.out, target=args.tokenizer, **options)
    except (ValueError, OSError, ImportError) as refusal:
        command.error(str(refusal).partition("\n")[0])
    sys.stdout.write(report(data))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
