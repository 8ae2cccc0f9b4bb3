"""The notebooks run from clean, from either folder, and are shown with outputs that are nobody's machine."""

import base64
import re

import nbformat
import pytest
from notebooks import FOLDER, NOTEBOOKS, executed
from places import ROOT

NAMES = [path.stem for path in NOTEBOOKS]
WHERE = dict(zip(NAMES, [ROOT, FOLDER, ROOT, FOLDER], strict=True))
# What a notebook prints at its end, besides what it asserts itself.
TOLD = {
    "1_drop_in_for_generate": r"beam_search is not supported",
    "2_see_a_tree_grow": r"48 tokens in \d+ steps after the prompt: τ = [3-5]\.",
    "3_train_a_head": r"this one: τ = [1-4]\.\d+, ids equal generate's\nthe shipped one: τ = [2-5]\.",
    "4_measure_a_speed_up": r"EAGLE-3 +(?:36|120) +\d+ +[2-5]\.\d+ .* yes\n",
}
PICTURES = {"1_drop_in_for_generate": 0, "2_see_a_tree_grow": 5, "3_train_a_head": 1, "4_measure_a_speed_up": 3}


def printed(book) -> str:
    outputs = [one for cell in book.cells if cell.cell_type == "code" for one in cell.outputs]
    return "".join(one.text for one in outputs if one.output_type == "stream" and one.name == "stdout")


def pictures(book) -> list[bytes]:
    outputs = [one for cell in book.cells if cell.cell_type == "code" for one in cell.outputs]
    return [base64.b64decode(one.data["image/png"]) for one in outputs if "image/png" in one.get("data", {})]


def run(name, tmp_path, **variables):
    before = (FOLDER / f"{name}.ipynb").read_bytes(), sorted(FOLDER.iterdir())
    folders = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "IPYTHONDIR": str(tmp_path / "ipython")}
    book = executed(FOLDER / f"{name}.ipynb", WHERE[name], TMPDIR=str(tmp_path), **folders, **variables)
    assert ((FOLDER / f"{name}.ipynb").read_bytes(), sorted(FOLDER.iterdir())) == before
    assert re.search(TOLD[name], printed(book)), printed(book)
    assert len(pictures(book)) == PICTURES[name]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures(book))


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_from_clean(name, tmp_path):
    run(name, tmp_path, EAGLE_NOTEBOOK_SHORT="1")


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["3_train_a_head", "4_measure_a_speed_up"])
def test_a_notebook_that_is_short_elsewhere_runs_from_clean_at_full_length(name, tmp_path):
    run(name, tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_shown_with_its_outputs_small_and_free_of_this_machine(name):
    path = FOLDER / f"{name}.ipynb"
    book, text = nbformat.read(path, as_version=4), path.read_text(encoding="utf-8")
    nbformat.validate(book)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert re.search(TOLD[name], printed(book)) and len(pictures(book)) == PICTURES[name]
    assert path.stat().st_size < 300_000 and book.metadata.kernelspec.name == "python3"
    assert not re.search(r"site-packages|/home/|/root/|/work/|\"error\"", text)
