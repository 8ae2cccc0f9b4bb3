"""Rules of the house that can be checked: imports go down, files stay small, importing is cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import eagle

ROOT = Path(eagle.__file__).parent
RANKS = {
    **dict.fromkeys(
        ["choices", "tree", "stats", "cache_layer", "sampling", "facade", "gradients", "logits", "releases"], 0
    ),
    "kv_cache": 0.3,
    **dict.fromkeys(["configs", "bucket_cache", "cache_pool"], 0.5),
    **dict.fromkeys(["verify", "head", "support", "rows", "reference", "adapters", "packing"], 1),
    "draft_state": 0.7,
    "checkpoint": 1.5,
    "target": 2,
    "drafter": 2,
    "loading": 2,
    **dict.fromkeys(["prefix", "inputs", "observation"], 2.5),
    "static_state": 2.2,
    "walk": 2,
    **dict.fromkeys(["decoding", "device_step"], 3),
    "graphs": 3.2,
    "graphed": 3.5,
    "request": 3,
    "output": 3.5,
    "costs": 2.5,
    "shapes": 2.6,
    "prepared": 2.65,
    "adaptive": 2.7,
    "selfcheck": 3,
    "diagnosis": 3.5,
    "ea_model": 4,
}
DATA_RANKS = {
    "chat": 0,
    **dict.fromkeys(["data_samples", "data_sources"], 1),
    "data_shards": 1.5,
    **dict.fromkeys(["data_folder", "data_batches", "data_regenerate"], 2),
    **dict.fromkeys(["data_features", "data_maker"], 3),
    "data": 5,
}
# What data may know of the model: how it is loaded, and in one file how it answers.
DATA_KNOWS = {"data": {"loading"}, "data_regenerate": {"ea_model", "loading", "support"}}
EDGES = ("train", "evaluation", "application", "ge_data")
FILES = sorted(ROOT.rglob("*.py"))


def imports(path: Path) -> list[str]:
    """Return the eagle modules a file imports at run time."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("eagle."):
            found.append(node.module)
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path} has a relative import"
    return found


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name == "model"], ids=lambda p: p.stem)
def test_model_files_import_only_from_lower_ranks(path):
    if path.stem == "__init__":
        return
    for module in imports(path):
        assert module.startswith("eagle.model."), f"{path.name} imports {module}"
        assert RANKS[module.rsplit(".", 1)[1]] < RANKS[path.stem], f"{path.name} imports {module}"


@pytest.mark.parametrize("name", DATA_RANKS)
def test_data_files_import_from_lower_ranks_and_of_the_model_only_what_they_may(name):
    for module in imports(ROOT / f"{name}.py"):
        below = (
            module.removeprefix("eagle.") in DATA_RANKS and DATA_RANKS[module.removeprefix("eagle.")] < DATA_RANKS[name]
        )
        known = module.startswith("eagle.model.") and module.rsplit(".", 1)[1] in DATA_KNOWS.get(name, ())
        assert below or known, f"{name} imports {module}"


@pytest.mark.parametrize("edge", EDGES)
def test_the_edges_never_know_each_other(edge):
    for path in (ROOT / edge).glob("*.py"):
        for module in imports(path):
            other = module.split(".")[1]
            assert other == edge or other not in EDGES, f"{path} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_outgrows_400_lines(path):
    assert len(path.read_text().splitlines()) < 400


def test_no_folder_a_script_runs_from_hides_a_top_level_module():
    for edge in EDGES:
        names = {path.stem for path in (ROOT / edge).glob("*.py")} - {"__init__"}
        assert not names & (sys.stdlib_module_names | {"datasets", "torch", "transformers", "accelerate", "tokenizers"})


def test_importing_eagle_is_cheap_and_loads_nothing():
    code = (
        "import sys, time; t = time.perf_counter(); import eagle; s = time.perf_counter() - t;"
        "heavy = {'torch', 'transformers', 'gradio', 'fastchat', 'numpy'} & set(sys.modules);"
        "print(s); assert not heavy, heavy; eagle.EaModel; assert 'torch' in sys.modules"
    )
    runs = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(2)
    ]
    assert min(runs) < 0.1


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        eagle.nothing  # noqa: B018
