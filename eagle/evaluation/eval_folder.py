"""The folder of an evaluation: settings, records of finished questions, and the report made of them."""

import json
import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from eagle.evaluation.eval_report import csv_text, figures, lossless_lines, markdown, text, verdict
from eagle.evaluation.plots import check_plotting, draw_eval
from eagle.evaluation.record_file import RecordFile
from eagle.evaluation.report import provenance, without_nan
from eagle.evaluation.scores import FoundDifference, SetScore
from eagle.files import differing, write_text

RECORDS, SETTINGS = "records.jsonl", "settings.json"
logger = logging.getLogger(__name__)


def open_records(folder: Path, settings: Mapping[str, Any]) -> RecordFile:
    """Return what is finished of a run, and keep its settings.

    Args:
        folder: made where it is not there.
        settings: all that decides what a record means, as JSON knows it.

    Raises:
        ValueError: the folder is of a run with other settings.
    """
    path, kept = folder / SETTINGS, RecordFile(folder / RECORDS)
    if kept.records and path.exists():
        if others := differing(json.loads(path.read_text(encoding="utf-8")), settings):
            raise ValueError(f"{folder} has a run of other settings: {others}; choose another --out")
    elif kept.records:
        raise ValueError(f"{folder} has records of unknown settings: choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(settings, indent=1) + "\n")
    return kept


def write_report(
    folder: Path,
    *,
    pair: str,
    sources: Mapping[str, str],
    settings: Mapping[str, Any],
    command: Sequence[str],
    scores: Sequence[SetScore],
    differences: Sequence[FoundDifference],
) -> tuple[str, dict[str, Any]]:
    """Write report.md, report.json, report.csv and pictures; return the report as text and as a document.

    Args:
        folder: where.
        pair: what was evaluated, in words.
        sources: where each set of questions is from.
        settings: of the run, as JSON knows them; `dtype` among them.
        command: what was run.
        scores: by temperature, the mean over sets last of each.
        differences: from the ids of `generate`.
    """
    by_temperature = {score.temperature: score for score in scores}  # the last one of each is the mean
    verdicts = [verdict(score) for score in by_temperature.values()]
    lossless = lossless_lines(scores, differences, settings["dtype"])
    pictures = _pictures(scores, folder)
    about = provenance()
    told = ", ".join(f"{name} {_words(value)}" for name, value in settings.items() if value not in (None, False))
    lines = [
        f"`{shlex.join(command)}`, {date.today().isoformat()}",
        f"settings: {told}",
        *(f"questions {name}: {source}" for name, source in sources.items()),
        ", ".join(f"{name} {value}" for name, value in about.items() if value not in (None, False)),
        *verdicts,
    ]
    write_text(folder / "report.md", markdown(pair, lines, scores, lossless, [one.name for one in pictures]))
    document: dict[str, Any] = {
        "command": list(command),
        "provenance": about,
        "settings": settings,
        "sources": sources,
        "results": [figures(score) for score in scores],
        "differences": [asdict(one) | {"is_near_tie": one.difference.is_near_tie} for one in differences],
    }
    document = without_nan(document)
    write_text(folder / "report.json", json.dumps(document, indent=1, allow_nan=False) + "\n")
    write_text(folder / "report.csv", csv_text(scores))
    where = f"written: {folder / 'report.md'}, with report.json and report.csv"
    return text(scores, [*lossless, *verdicts, where]), document


def _words(value: Any) -> str:
    return " and ".join(map(str, value)) if isinstance(value, list) else str(value)


def _pictures(scores: Sequence[SetScore], folder: Path) -> list[Path]:
    try:
        check_plotting()
    except ImportError as missing:
        logger.warning("%s", missing)
        return []
    return draw_eval(scores, folder)
