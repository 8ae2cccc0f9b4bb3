"""Training data: conversations and documents in, token ids with a loss mask out, in a folder.

    eagle data SOURCE... --base-model-path BASE --out FOLDER [--regenerate]

A source is a .json, .jsonl, .txt or .parquet file, a folder of them, or a name of `datasets`. With `--regenerate` the
target writes the answers itself. Interrupted, by any signal, the same command goes on, and ends with what it would have
written at once.
"""

import json
import sys
from types import SimpleNamespace
from typing import Any

from eagle.commands.data import COMMAND
from eagle.commands.running import run
from eagle.data.answer_file import ANSWERS, written
from eagle.data.folder import Counts, Prepared, unfinished_shards
from eagle.data.preparation import prepare
from eagle.data.regenerate import Regeneration
from eagle.model.support.loading import load_tokenizer

FLAGS = (
    *("ea_model_path", "temperatures", "max_new_tokens", "batch_size", "seed", "dtype"),
    *("drop_loops", "processes", "endpoint", "model", "concurrency"),
)


def _is_given(value: Any) -> bool:
    return value is not None and value is not False


def _regeneration(args: SimpleNamespace) -> Regeneration | None:
    given = {name: getattr(args, name) for name in FLAGS if _is_given(getattr(args, name))}
    if given and not args.regenerate:
        names = ("temperature" if name == "temperatures" else name for name in given)
        flags = ", ".join("--" + name.replace("_", "-") for name in names)
        raise ValueError(f"{flags}: of use with --regenerate alone")
    return Regeneration(**given) if args.regenerate else None


def report(data: Prepared) -> str:
    """Say what a folder holds, in a few lines."""
    made = data.summary
    counts = Counts(**{name: made[name] for name in Counts.__dataclass_fields__ if name in made})
    lines = [
        f"{data.folder}: {counts.samples:,} samples in {made['shards']} shards, from {counts.rows:,} rows",
        f"{counts.tokens:,} tokens, {counts.loss_tokens / counts.tokens:.1%} of them in the loss",
    ]
    if made["template"]:
        lines.append(f"template: {made['template']}")
    if made.get("regeneration"):
        how = ", ".join(f"{name}={_shown(value)}" for name, value in made["regeneration"].items())
        lines.append(f"answers by {made['target']}: {how}")
    if counts.looped:
        dropped = "left out" if made.get("drop_loops") else "kept; --drop-loops leaves them out"
        lines.append(f"{counts.looped:,} of {counts.answers:,} answers repeat themselves without end: {dropped}")
    if counts.truncated:
        lines.append(f"{counts.truncated:,} rows cut to {made['max_length']} tokens")
    if counts.skipped:
        lines.append(counts.skips)
    return "".join(line.encode(errors="backslashreplace").decode() + "\n" for line in lines)


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def saved(args: SimpleNamespace) -> str:
    """Say what an interrupted run has left."""
    folder = args.out
    answers = f" and {written(folder / ANSWERS):,} answers" if (folder / ANSWERS).exists() else ""
    return f"{unfinished_shards(folder)} shards{answers} are saved in {folder}"


def check(args: SimpleNamespace) -> None:
    """Check the options before anything is loaded.

    Raises:
        ValueError: options of `--regenerate` without it, or out of their range.
    """
    _regeneration(args)


def work(args: SimpleNamespace) -> int:
    """Prepare a folder and print what it holds."""
    options: dict[str, Any] = {
        name: getattr(args, name) for name in ("template", "max_length", "limit", "strict", "by_paragraph")
    }
    options["regeneration"] = _regeneration(args)
    tokenizer = load_tokenizer(args.base_model_path)
    data = prepare(args.sources, tokenizer, args.out, target=args.base_model_path, **options)
    sys.stdout.write(json.dumps({"folder": str(data.folder), **data.summary}) + "\n" if args.json else report(data))
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    return run(COMMAND, argv)
