"""Ended at any moment, by Ctrl-C or by force, a run loses nothing that is finished and ends as if it had gone on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from authors import ScriptedAuthor
from chat_templates import FAMILIES, tokenizer_of
from places import ROOT

from eagle.data import Regeneration, prepare
from eagle.data.answer_file import ANSWERS

CHATML = tokenizer_of(FAMILIES["chatml"])
MOMENTS = 10
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'support'}", "TOKENIZERS_PARALLELISM": "false"}


def contents(folder: Path) -> dict[str, object]:
    """Every file's bytes; of the answers their lines, which come in any order."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {**found, ANSWERS: sorted(found.get(ANSWERS, b"").splitlines())}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forked")
def test_a_run_that_is_ended_at_random_moments_ends_as_if_it_had_never_stopped(tmp_path, monkeypatch):
    rows = [{"turns": [f"{index}: what?", "Why?"][: 1 + index % 2]} for index in range(300)]
    rows[7] = {"text": "A document."}
    rows[9] = {"messages": []}
    source, target = tmp_path / "rows.jsonl", tmp_path / "target"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    CHATML.save_pretrained(target)
    monkeypatch.setattr("eagle.data.preparation.author_of", lambda *arguments: ScriptedAuthor(CHATML))
    prepare([str(source)], CHATML, tmp_path / "whole", target=str(target), regeneration=Regeneration())
    script = [sys.executable, str(ROOT / "tests" / "support" / "interrupted.py"), str(MOMENTS)]
    command = [*script, str(tmp_path / "out"), str(source), "--tokenizer", str(target), "--regenerate"]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 100 < int(done.stdout.split()[-1]) < 448  # the last run had something to go on after, and to do
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
