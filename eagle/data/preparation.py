"""Training data: conversations and documents in, token ids with a loss mask out, in a folder.

    python -m eagle.data SOURCE... --tokenizer BASE --out FOLDER [--regenerate]

A source is a .json, .jsonl, .txt or .parquet file, a folder of them, or a name of `datasets`. With `--regenerate` the
target writes the answers itself. Interrupted, by any signal, the same command goes on after the last whole shard and
writes what it would have written at once.
"""

import argparse
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from eagle.chat import Template, choose_template
from eagle.data.folder import SUMMARY, Counts, Prepared, Writer, check_settings, read_summary, vocabulary_hash
from eagle.data.maker import Maker
from eagle.data.regenerate import DTYPES, AnswerGenerator, Regeneration
from eagle.data.sources import Raw, files_of, read
from eagle.model.support.loading import load_tokenizer

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
            `eagle.data.regenerate.AnswerGenerator`.
        ValueError: sources without a usable row, a bad row with `strict`, conversations without a template, a folder
            made with other settings, a length below its least value, or a target that cannot answer.
    """
    chosen = choose_template(tokenizer, template)
    asked = {"max_length": max_length, "limit": limit, "by_paragraph": by_paragraph}
    settings = _settings(sources, tokenizer, target, chosen, asked, regeneration)
    if (done := _finished(folder, settings)) is not None:
        logger.info("%s is already there", folder)
        return done
    writer = Writer(folder, settings)
    if strict and writer.counts.skipped:
        raise ValueError(writer.counts.skips)
    author = AnswerGenerator(target, regeneration, tokenizer, chosen, max_length) if regeneration and chosen else None
    maker = Maker(tokenizer, chosen, author, max_length, strict)
    together, least = (regeneration.shard_rows, 0) if regeneration else (1, shard_tokens)
    rows = islice(chain.from_iterable(read(source, by_paragraph=by_paragraph) for source in sources), limit)
    for group in _groups(rows, writer, together, limit):
        maker.add(group, writer)
        if writer.held_tokens >= least:
            writer.write()
    if not writer.counts.samples:
        raise ValueError(f"no usable row in {', '.join(sources)}: {writer.counts.skips}")
    writer.finish()
    return Prepared(folder)


def _finished(folder: Path, settings: dict[str, Any]) -> Prepared | None:
    """Return a folder that is finished and whole; None where something is still to be made.

    Raises:
        ValueError: it was made with other settings, or a shard is damaged.
    """
    if not (folder / SUMMARY).exists():
        return None
    check_settings(folder, read_summary(folder), settings)
    done = Prepared(folder)
    if done.missing:
        return None
    done.check_counts(done.summary)
    done.check()
    return done


def _settings(
    sources: Sequence[str],
    tokenizer: Any,
    target: str,
    template: Template | None,
    asked: dict[str, Any],
    regeneration: Regeneration | None,
) -> dict[str, Any]:
    """Check the lengths asked for and return all that decides what a folder holds."""
    for name, least in (("max_length", 2), ("limit", 1)):
        if asked[name] is not None and asked[name] < least:
            raise ValueError(f"{name}={asked[name]} must be at least {least}")
    return {
        "target": target,
        "template": template.name if template else None,
        "vocabulary": max(tokenizer.get_vocab().values()) + 1,
        "vocabulary_hash": vocabulary_hash(tokenizer),
        **asked,
        "regeneration": regeneration.identity if regeneration else None,
        "sources": [described for source in sources for described in _described(source)],
    }


def _described(source: str) -> list[dict[str, Any]]:
    """Return what tells a source from another one: its files, their sizes and times."""
    files = files_of(source)
    if files is None:
        return [{"name": source}]
    return [{"name": str(f), "bytes": f.stat().st_size, "modified_ns": f.stat().st_mtime_ns} for f in files]


def _groups(rows: Iterable[Raw], writer: Writer, size: int, total: int | None) -> Iterator[list[Raw]]:
    """Yield the rows that no shard has yet, so many at a time, and show the progress."""
    done = writer.counts.rows
    if done:
        logger.info("continuing after %d shards, %d rows", writer.shards, done)
    rest = islice(rows, done, None)
    with tqdm(initial=done, total=total, unit=" rows", mininterval=1) as bar:
        while group := list(islice(rest, size)):
            yield group
            bar.update(len(group))


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(prog="python -m eagle.data", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("sources", nargs="+", help=".json, .jsonl, .txt or .parquet, folders, names of datasets")
    parser.add_argument("--base-model-path", "--tokenizer", required=True, help="folder or Hub id of the target")
    parser.add_argument("--out", type=Path, required=True, help="where the data goes")
    parser.add_argument("--template", help="FastChat template; default: the tokenizer's chat template")
    parser.add_argument("--max-length", type=int, help="tokens at which conversations and documents are cut")
    parser.add_argument("--limit", type=int, help="rows to read")
    parser.add_argument("--by-paragraph", action="store_true", help="text files: a document ends at a blank line")
    parser.add_argument("--strict", action="store_true", help="stop at the first row that cannot be used")
    answers = parser.add_argument_group("answers by the target")
    answers.add_argument("--regenerate", action="store_true", help="the target writes all answers itself")
    answers.add_argument("--ea-model-path", help="a head of the target: the same answers in less time")
    answers.add_argument("--temperature", type=float, help="of the answers; default: 0, greedy")
    answers.add_argument("--max-new-tokens", type=int, help="most tokens of an answer; default: 512")
    answers.add_argument("--batch-size", type=int, help="answers that are written side by side; default: 8")
    answers.add_argument("--seed", type=int, help="of sampling; default: 0")
    answers.add_argument("--dtype", choices=DTYPES, help="of the target; default: auto, the one it was saved in")
    return parser


def _regeneration(args: argparse.Namespace) -> Regeneration | None:
    names = ("ea_model_path", "temperature", "max_new_tokens", "batch_size", "seed", "dtype")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if given and not args.regenerate:
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ValueError(f"{flags}: of use with --regenerate alone")
    return Regeneration(**given) if args.regenerate else None


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
    if made.get("regeneration"):
        how = ", ".join(f"{name}={value}" for name, value in made["regeneration"].items())
        lines.append(f"answers by {made['target']}: {how}")
    if counts.truncated:
        lines.append(f"{counts.truncated:,} rows cut to {made['max_length']} tokens")
    if counts.skipped:
        lines.append(counts.skips)
    return "".join(line.encode(errors="backslashreplace").decode() + "\n" for line in lines)


def main(argv: list[str] | None = None) -> int:
    """Prepare a folder and print what it holds."""
    command = parser()
    args = command.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options: dict[str, Any] = {
        name: getattr(args, name) for name in ("template", "max_length", "limit", "strict", "by_paragraph")
    }
    try:
        options["regeneration"] = _regeneration(args)
        tokenizer = load_tokenizer(args.base_model_path)
        data = prepare(args.sources, tokenizer, args.out, target=args.base_model_path, **options)
    except (ValueError, NotImplementedError, OSError, ImportError) as refusal:
        command.error(str(refusal).partition("\n")[0])
    sys.stdout.write(report(data))
    return 0
