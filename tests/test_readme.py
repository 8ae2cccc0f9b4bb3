"""What README and the pages beside it say works as it is written there."""

import os
import re
import subprocess
import sys

import pytest
import torch
from places import PAIR, ROOT, environment

README = (ROOT / "README.md").read_text(encoding="utf-8")
MIGRATION = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")


def code_blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_the_two_commands_are_make_targets():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert {"demo", "test", "nightly", "lint", "bench"} <= set(targets)
    assert "make demo" in README and "make test" in README


def test_the_snippet_runs_as_written():
    (snippet,) = code_blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", snippet],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    assert "τ" in done.stdout


def test_the_page_on_generate_runs_as_written_and_prints_what_it_says():
    page = (ROOT / "docs" / "generate.md").read_text(encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(code_blocks("python", page))],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    for printed in code_blocks("text", page):
        assert printed in done.stdout


def reference_snippet() -> str:
    (snippet,) = [block for block in code_blocks("python", MIGRATION) if "fastchat" in block]
    return snippet


@pytest.mark.skipif(bool(os.environ.get("EAGLE_NO_INSTALL")), reason="asked not to install anything")
def test_the_reference_s_example_runs_in_a_venv_made_by_the_install_line(tmp_path):
    (line,) = [block.strip() for block in code_blocks("bash", MIGRATION) if "[chat]" in block]
    assert line == "pip install 'eagle-decoding[chat]'"
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    # The build of torch this environment has, so that no other one is downloaded; then the line, from this checkout.
    torch_version = torch.__version__.split("+")[0]
    for requirement in (f"torch=={torch_version}", f"{ROOT}[chat]"):
        subprocess.run([python, "-m", "pip", "install", "--quiet", requirement], check=True, cwd=tmp_path)
    snippet = reference_snippet().replace("lmsys/vicuna-7b-v1.3", str(PAIR / "target"))
    snippet = snippet.replace("yuhuili/EAGLE-Vicuna-7B-v1.3", str(PAIR / "eagle_head"))
    # Machines without a GPU have no .cuda(); everything else is run to the letter.
    prelude = "" if torch.cuda.is_available() else "import torch; torch.Tensor.cuda = lambda self: self\n"
    done = subprocess.run(
        [python, "-c", prelude + snippet + "\nprint(output)"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "USER: Hello ASSISTANT:" in done.stdout and len(done.stdout) > 500
