"""Harnesses of others, which run by the python of an environment of their own: `make harnesses` makes it."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from places import PAIR, ROOT

MADE = ROOT / "build" / "harnesses"
SPEC_BENCH = MADE / "spec_bench"
# Answers go on where the question ends: the pair has learnt to write files, not to talk.
TEMPLATE = "{% for m in messages %}{{ '# ' + m.role + '\\n' + m.content }}{% endfor %}"


def run_harness(script: Path, *arguments: object) -> None:
    """Run a script in the harnesses' environment; the test is skipped, in words, where there is none."""
    python = MADE / "env" / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no environment at {python}: `make harnesses` makes it")
    quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
    ran = subprocess.run(
        [python, script, *map(str, arguments)], capture_output=True, text=True, env={**os.environ, **quiet}
    )
    assert ran.returncode == 0, ran.stderr[-3000:]


def chatty_target(folder: Path, ends: list[int] | None = None) -> Path:
    """Copy the tiny target, add a chat template to its tokenizer, and have these ids end an answer too."""
    shutil.copytree(PAIR / "target", folder)
    edit(folder / "tokenizer_config.json", chat_template=TEMPLATE)
    if ends:
        edit(folder / "generation_config.json", eos_token_id=[0, *ends])
    return folder


def edit(path: Path, **fields: object) -> None:
    """Set fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def five_texts() -> list[str]:
    """Return the beginnings of Python files that the pair was not trained on."""
    lines = (PAIR / "prompts.jsonl").read_text().splitlines()[:5]
    return [json.loads(line)["text"] for line in lines]


def write_lines(path: Path, rows: list[dict]) -> Path:
    """Write one JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
