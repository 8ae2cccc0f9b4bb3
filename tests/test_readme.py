"""What README says works as it is written there."""

import importlib
import inspect
import os
import re
import subprocess
import sys

import pytest
import torch
from pairs import ea_model
from places import PAIR, ROOT, environment

from eagle import EaModel

README = (ROOT / "README.md").read_text(encoding="utf-8")


def code_blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def test_the_two_commands_are_make_targets():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert {"demo", "test", "nightly", "lint", "bench"} <= set(targets)
    assert "make demo" in README and "make test" in README


def test_the_snippet_runs_as_written():
    (snippet,) = [
        block for block in code_blocks("python") if "EaModel.from_pretrained" in block and "fastchat" not in block
    ]
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


def migration_names() -> list[str]:
    page = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
    names = page[page.index("## Names") : page.index("## Differences")]
    return [
        name for row in re.findall(r"^\| (`.*?) \|", names, flags=re.MULTILINE) for name in re.findall(r"`(.*?)`", row)
    ]


@pytest.mark.parametrize("name", migration_names())
def test_every_name_of_the_migration_page_is_there(tmp_path, name):
    model = ea_model(tmp_path)
    if name.startswith("eagle."):
        module, attribute = name.rsplit(".", 1)
        assert hasattr(importlib.import_module(module), attribute)
    elif name.startswith("EaModel."):
        assert hasattr(EaModel, name.removeprefix("EaModel."))
    else:
        owner = model.ea_layer if name.startswith((".", "ea_layer.")) else model
        assert hasattr(owner, name.rsplit(".", 1)[-1])


def test_the_signatures_are_the_reference_s():
    names = ["input_ids", "temperature", "top_p", "top_k", "max_new_tokens", "max_length", "log", "is_llama3"]
    for method in ("eagenerate", "naivegenerate", "ea_generate", "naive_generate"):
        parameters = list(inspect.signature(getattr(EaModel, method)).parameters)
        assert parameters[1:9] == names
    loading = list(inspect.signature(EaModel.from_pretrained).parameters)
    wanted = ["use_eagle3", "base_model_path", "ea_model_path", "total_token", "depth", "top_k", "threshold"]
    assert loading[:7] == wanted


def reference_snippet() -> str:
    (snippet,) = [block for block in code_blocks("python") if "fastchat" in block]
    return snippet


@pytest.mark.skipif(bool(os.environ.get("EAGLE_NO_INSTALL")), reason="asked not to install anything")
def test_the_reference_s_example_runs_in_a_venv_made_by_the_install_line(tmp_path):
    (line,) = [block.strip() for block in code_blocks("bash") if "[chat]" in block]
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
