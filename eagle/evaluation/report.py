"""Reports of measurements: aligned tables for a person, one JSON document for a program."""

import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers

import eagle
from eagle.commands.options import STDOUT
from eagle.evaluation.measure import Row
from eagle.evaluation.methods import BASELINES
from eagle.files import write_text
from eagle.model.stats import REPLAY_STAGES, STAGES
from eagle.model.support.measurements import processor_name

UNKNOWN = "–"
PARTS = (*STAGES, *REPLAY_STAGES, "host")


def aligned(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table: the first column to the left, the others to the right, the last one ragged."""
    widths = [max(len(line[index]) for line in [header, *lines]) for index in range(len(header))]
    widths[0] = max(widths[0], 16)
    # The last column is ragged, so that a line ends with what it says.
    pads = [f"<{widths[0]}", *(f">{width + 3}" for width in widths[1:-1])]
    return "\n".join(
        "".join(f"{cell:{pad}}" for cell, pad in zip(line, pads, strict=False)) + "  " + line[-1]
        for line in [header, *lines]
    )


def number(value: float | None, digits: int = 0, unit: str = "") -> str:
    """Return a number as text, a dash for what nobody measured."""
    return UNKNOWN if value is None or math.isnan(value) else f"{value:.{digits}f}{unit}"


def at(temperature: float) -> str:
    """Return a temperature in words."""
    return "greedy" if not temperature else f"T = {temperature:g}"


def _setting(rows: Sequence[Row]) -> list[str]:
    """Return the columns that tell rows of one method apart."""
    wanted = {"batch": {row.batch_size for row in rows} - {1}, "prompt": {row.prompt_length for row in rows} - {None}}
    return [name for name, values in wanted.items() if values]


def _placed(row: Row, columns: Sequence[str]) -> list[str]:
    length = "as is" if row.prompt_length is None else str(row.prompt_length)
    known = {"batch": str(row.batch_size), "prompt": length}
    return [row.name, *(known[name] for name in columns)]


def table(rows: Sequence[Row]) -> str:
    """Return what every method did as aligned text."""
    columns = _setting(rows)
    memory = ["peak MB"] if any(row.peak_bytes for row in rows) else []
    header = ["method", *columns, "tokens", "steps", "τ", "tokens/s", "speed-up", *memory, "ids equal"]
    lines = [
        [
            *_placed(row, columns),
            str(row.tokens),
            number(row.steps),
            number(row.acceptance_length, 2),
            number(row.tokens_per_second, 1),
            number(row.speedup, 2, "x"),
            *([number(row.peak_bytes / 1e6)] if memory else []),
            "yes" if row.ids_equal else "no",
        ]
        for row in rows
    ]
    return aligned(header, lines)


def verdict(rows: Sequence[Row]) -> str:
    """Say whether drafting pays here, and with what; the least and the largest round bound what can be said."""
    drafting = [row for row in rows if row.name not in BASELINES]
    if not drafting:
        return "nothing that drafts was measured"
    best = max(drafting, key=lambda row: row.speedup)
    columns = _setting(rows)
    place = f" ({', '.join(f'{name} {cell}' for name, cell in zip(columns, _placed(best, columns)[1:], strict=True))})"
    low, high = min(best.ratios), max(best.ratios)
    pays = "pays" if low > 1 else "does not pay" if high < 1 else "neither pays nor costs in every round"
    return (
        f"drafting {pays} here: best is {best.name}{place if columns else ''}, "
        f"{best.speedup:.2f}x the faster baseline (rounds {low:.2f} to {high:.2f})"
    )


def parts_of(rows: Sequence[Row]) -> list[str]:
    """Return the parts of a step that a table or picture of these rows shows: of replays only where some replayed."""
    return [name for name in PARTS if name not in REPLAY_STAGES or any(name in row.step_ms for row in rows)]


def split_table(rows: Sequence[Row]) -> str:
    """Return where the time goes, in milliseconds, as aligned text; methods without steps of their own have dashes."""
    columns = _setting(rows)
    named = parts_of(rows)
    header = ["ms per step", *columns, "prefill", *named, "step", "outside the models"]
    lines = []
    for row in rows:
        parts = row.step_ms
        step = sum(parts.values()) if parts else None
        figures = [number(parts.get(name), 2) for name in named]
        outside = number(100 * row.outside_share, 0, " %")
        lines.append([*_placed(row, columns), number(row.prefill_ms, 1), *figures, number(step, 2), outside])
    return aligned(header, lines)


def provenance() -> dict[str, Any]:
    """Return what a reader needs to repeat a measurement: versions, device, threads, commit."""
    folder = Path(eagle.__file__).parent
    # With "-dirty" where files that git knows differ from it: then the commit is not what has run.
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude", "*"]
    commit = subprocess.run(command, capture_output=True, text=True)
    return {
        "eagle": eagle.__version__,
        "commit": commit.stdout.strip() or None,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "processor": processor_name(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "blocking_launches": os.environ.get("CUDA_LAUNCH_BLOCKING") == "1",
    }


def check_json(args: SimpleNamespace) -> None:
    """Check `--json` before anything is loaded.

    Raises:
        ValueError: its folder is not there.
    """
    if args.json is not None and not args.json.absolute().parent.is_dir():
        raise ValueError(f"--json={args.json}: there is no such folder")


def write_json(args: SimpleNamespace, results: dict[str, Any]) -> None:
    """Print or write results beside provenance and settings, as `--json` asks; what nobody measured is null."""
    if args.json is None:
        return
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    give(args.json, without_nan({"provenance": provenance(), "settings": settings, **results}))


def give(place: Path, document: dict[str, Any]) -> None:
    """Print a document as one line, or write it into a file, as `--json` asks."""
    if place == STDOUT:
        sys.stdout.write(json.dumps(document, allow_nan=False) + "\n")
    else:
        write_text(place, json.dumps(document, indent=1, allow_nan=False) + "\n")


def without_nan(value: Any) -> Any:
    """Return the same with null for NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {name: without_nan(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value
