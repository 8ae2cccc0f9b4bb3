"""Sources into a folder of samples: what is there is kept, what is missing is made.

Knows the order of the work; every part of it is in a file of its own.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

from eagle import progress
from eagle.chat import Template, choose_template
from eagle.data.answer_file import ANSWERS, AnswerFile
from eagle.data.author_choice import author_of
from eagle.data.folder import SUMMARY, Prepared, check_settings, read_summary, vocabulary_hash
from eagle.data.interview import Interview
from eagle.data.maker import Maker
from eagle.data.regenerate import Regeneration
from eagle.data.sources import Raw, contents_of, files_of, read
from eagle.data.writer import Writer, fixed

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
    regeneration: Regeneration | None = None,
) -> Prepared:
    """Tokenise sources into a folder, or finish what an interrupted call began there.

    Args:
        sources: paths, or names of `datasets`.
        tokenizer: the target's.
        folder: where the data goes.
        target: the target's folder or Hub id, to be remembered, and to be loaded where it is to answer.
        template: a FastChat template for the conversations; by default the tokenizer's chat template.
        max_length: conversations are cut to this many tokens, documents into pieces of as many.
        limit: rows to read.
        strict: raise at the first row that cannot be used; by default such rows are counted and skipped.
        by_paragraph: documents of text files end at blank lines, not at the file's end.
        shard_tokens: tokens from which on a shard is written; with `regeneration` its `shard_rows` count instead.
        regeneration: how the target is to write the answers itself; by default they stay as they are.

    Raises:
        FileNotFoundError, ImportError: see `eagle.data.sources.read`, `eagle.chat.choose_template` and
            `eagle.data.author_choice.author_of`.
        ValueError: sources without a usable row, a bad row with `strict`, conversations without a template, a folder
            made with other settings or of other rows, a length below its least value, or a target that cannot answer.
    """
    chosen = choose_template(tokenizer, template)
    asked = {"max_length": max_length, "limit": limit}
    settings = _settings(tokenizer, target, chosen, asked, regeneration) | {"by_paragraph": by_paragraph}
    origin = {"limit": limit, "sources": [content for source in sources for content in contents_of(source)]}
    if (done := _finished(folder, settings, origin)) is not None:
        logger.info("%s is already there", folder)
        return done
    cut: dict[str, Any] = {"rows": regeneration.shard_rows} if regeneration else {"tokens": shard_tokens}
    writer = Writer(folder, settings, **cut)
    rows = writer.keep(_rows(sources, by_paragraph, limit), may_change=regeneration is not None)
    if strict and writer.counts.skipped:
        raise ValueError(writer.counts.skips)
    if writer.shards:
        logger.info("continuing after %d shards, %d rows", writer.shards, writer.counts.rows)
    maker = Maker(tokenizer, chosen, regeneration is not None, max_length, strict)
    total = limit if regeneration is None else _count(sources, by_paragraph, limit)
    bar_of = {"initial": writer.counts.rows, "total": total, "unit": " rows", "mininterval": 1, "miniters": 0}
    with progress.bar(always=True, **bar_of) as bar:
        entries = map(maker.entry, count(writer.counts.rows), rows)
        if regeneration is not None and chosen is not None:
            with closing(AnswerFile(folder / ANSWERS, _made(settings))) as answers:
                author = author_of(target, regeneration, tokenizer, template, max_length)
                interview = Interview(author, answers, tokenizer, chosen, drop_loops=regeneration.drop_loops, bar=bar)
                interview.run(entries, lambda entry: maker.add(entry, writer))
        else:
            for entry in entries:
                maker.add(entry, writer)
                bar.update(1)
    if not writer.counts.samples:
        raise ValueError(f"no usable row in {', '.join(sources)}: {writer.counts.skips}")
    writer.finish(origin)
    return Prepared(folder)


def _rows(sources: Sequence[str], by_paragraph: bool, limit: int | None) -> Iterator[Raw]:
    return islice(chain.from_iterable(read(source, by_paragraph=by_paragraph) for source in sources), limit)


def _count(sources: Sequence[str], by_paragraph: bool, limit: int | None) -> int | None:
    """Return how many rows there are, None where that is not known without loading them."""
    if any(files_of(source) is None for source in sources):
        return limit
    return sum(1 for _ in _rows(sources, by_paragraph, limit))


def _made(settings: dict[str, Any]) -> dict[str, Any]:
    """Return what decides an answer besides its question."""
    return {name: value for name, value in fixed(settings).items() if name != "by_paragraph"}


def _finished(folder: Path, settings: dict[str, Any], origin: dict[str, Any]) -> Prepared | None:
    """Return a folder that is finished and whole; None where something is still to be made.

    Raises:
        ValueError: it was made with other settings, or a shard is damaged.
    """
    if not (folder / SUMMARY).exists():
        return None
    made = read_summary(folder)
    check_settings(folder, made, fixed(settings))
    if any(made.get(name) != value for name, value in settings.items()) or not _same(made, origin):
        return None
    done = Prepared(folder)
    if done.missing:
        return None
    done.check_counts(done.summary)
    done.check()
    return done


def _same(made: dict[str, Any], origin: dict[str, Any]) -> bool:
    """Tell whether a folder was made of the same contents; of those of old formats, of files of the same times."""
    if made.get("limit") != origin["limit"] or len(made.get("sources", [])) != len(origin["sources"]):
        return False
    pairs = zip(made["sources"], origin["sources"], strict=True)
    return all(_same_content(then, now) for then, now in pairs)


def _same_content(then: dict[str, Any], now: dict[str, Any]) -> bool:
    if "modified_ns" in then and "bytes" in now:
        found = Path(now["name"]).stat()
        return (then["name"], then["bytes"], then["modified_ns"]) == (now["name"], now["bytes"], found.st_mtime_ns)
    return then.get("sha256", then["name"]) == now.get("sha256", now["name"])


def _settings(
    tokenizer: Any, target: str, template: Template | None, asked: dict[str, Any], regeneration: Regeneration | None
) -> dict[str, Any]:
    """Check the lengths asked for and return what decides what becomes of a row."""
    for name, least in (("max_length", 2), ("limit", 1)):
        if asked[name] is not None and asked[name] < least:
            raise ValueError(f"{name}={asked[name]} must be at least {least}")
    return {
        "target": target,
        "template": template.name if template else None,
        "vocabulary": max(tokenizer.get_vocab().values()) + 1,
        "vocabulary_hash": vocabulary_hash(tokenizer),
        "max_length": asked["max_length"],
        "regeneration": regeneration.identity if regeneration else None,
        **({"drop_loops": regeneration.drop_loops} if regeneration else {}),
    }
