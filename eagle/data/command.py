"""Training data: conversations and documents in, token ids with a loss mask out, in a folder.

    python -m eagle.data SOURCE... --base-model-path BASE --out FOLDER [--regenerate]

A source is a .json, .jsonl, .txt or .parquet file, a folder of them, or a name of `datasets`. With `--regenerate` the
target writes the answers itself. Interrupted, by any signal, the same command goes on, and ends with what it would have
written at once.
"""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from eagle import interrupts
from eagle.data.answer_file import ANSWERS, written
from eagle.data.folder import Counts, Prepared, unfinished_shards
from eagle.data.preparation import prepare
from eagle.data.regenerate import DTYPES, Regeneration
from eagle.model.support.loading import load_tokenizer

FLAGS = (
    *("ea_model_path", "temperatures", "max_new_tokens", "batch_size", "seed", "dtype"),
    *("drop_loops", "processes", "endpoint", "model", "concurrency"),
)


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
    answers.add_argument("--temperature", dest="temperatures", type=float, nargs="+", metavar="T", help="of the "
                         "answers; of several every conversation takes one; default: 0, greedy")  # fmt: skip
    answers.add_argument("--max-new-tokens", type=int, help="most tokens of an answer; default: 512")
    answers.add_argument("--batch-size", type=int, help="answers that are written side by side; default: by device")
    answers.add_argument("--seed", type=int, help="of sampling; default: 0")
    answers.add_argument("--dtype", choices=DTYPES, help="of the target; default: auto, the one it was saved in")
    answers.add_argument("--drop-loops", action="store_true", default=None, help="leave out answers that repeat "
                         "themselves without end")  # fmt: skip
    answers.add_argument("--processes", type=int, metavar="N", help="that answer, each with a copy of the target, one "
                         "per accelerator; default: 1")  # fmt: skip
    answers.add_argument("--endpoint", metavar="URL", help="a server of the target answers instead: vLLM, SGLang, "
                         "any with OpenAI's chat completions; OPENAI_API_KEY is its key")  # fmt: skip
    answers.add_argument("--model", metavar="NAME", help="what the server calls the target")
    answers.add_argument("--concurrency", type=int, metavar="N", help="questions that the server is asked at once; "
                         "default: 32")  # fmt: skip
    return parser


def _regeneration(args: argparse.Namespace) -> Regeneration | None:
    given = {name: getattr(args, name) for name in FLAGS if getattr(args, name) is not None}
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


def saved(folder: Path) -> str:
    """Say what an interrupted run has left."""
    shards = unfinished_shards(folder)
    answers = f" and {written(folder / ANSWERS):,} answers" if (folder / ANSWERS).exists() else ""
    return f"{shards} shards{answers} are saved in {folder}"


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
    except RuntimeError as failure:
        raise SystemExit(f"{command.prog}: error: {failure}") from failure
    except KeyboardInterrupt:
        return interrupts.say(saved(args.out), "eagle.data", argv)
    sys.stdout.write(report(data))
    return 0
