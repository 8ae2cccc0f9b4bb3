"""Rules of the house that can be checked: imports go down, files stay small, importing is cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import eagle

ROOT = Path(eagle.__file__).parent
# From the bottom to the top: a file imports only what stands before it. A folder is a line, its files in their order.
ORDER = """
    eagle: files interrupts progress chat
    eagle.evaluation: question_sets
    eagle.commands: help line running options generate chat data convert doctor evaluate bench curves processor memory
    eagle.commands: conversation webui
    eagle.model: kinds choices tree configs stats sampling cache_layer kv_cache verify head cnets cnets1
    eagle.model.dialects: weights keys safeailab specforge angelslim model_optimizer speculators vllm_eagle known
    eagle.model.dialects: fields vocabulary token_maps checkpoint layouts publish
    eagle.model.support: gradients output_transform releases adapters properties loading measurements products prepack
    eagle.model: target target_features draft_state draft_window reference_drafter drafter
    eagle.model: cache_reuse request_state walk step
    eagle.model.adaptive: costs profile cost_file calibration chooser confidence_chooser trees prepared shape_chooser
    eagle.model.adaptive: adaptation
    eagle.model: decoding
    eagle.model.graphs: static_cache static_draft_state device_step pool replay
    eagle.model.call: inputs settings prepare reference output facade
    eagle.model.checks: self_check diagnosis openings chains head_diagnosis
    eagle.model: utils draft_vocabulary pair saving ea_model
    eagle: modeling_eagle
    eagle.data: answers rows sources samples tensor_files shards folder writer features batches
    eagle.data: answer_file answer_rules dialogues interview continuous batched regenerate endpoint processes
    eagle.data: author_choice maker preparation command __main__
    eagle.ge_data: disk plan target_embeddings shards allocation
    eagle.train: interruption settings schedule configure train_batches optimizers draft_vocabulary
    eagle.train: heads teachers sources
    eagle.train: ttt_attention training_time_test losses recipe
    eagle.train: precision distributed progress checkpoints export checkpoint_head acceptance loop run main
    eagle.train: main_deepspeed token_map
    eagle.traineagle3: main
    eagle.evaluation: questions synthetic prompts pairs plain_decoder methods model_meter measure report
    eagle.evaluation: record_file intervals near_ties question_runs scores curve_points plots eval_report eval_folder
    eagle.evaluation: bench evaluate speed answering answer_processes answer_command curves memory conversation
    eagle.evaluation: processor spec_bench
    eagle.evaluation: gen_ea_answer_vicuna gen_ea_answer_llama2chat gen_ea_answer_llama3chat gen_ea_answer_mix
    eagle.evaluation: gen_ea_answer_qwen3 gen_ea_answer_ds gen_baseline_answer_vicuna gen_baseline_answer_llama2chat
    eagle.evaluation: gen_baseline_answer_llama3chat gen_baseline_answer_mix gen_baseline_answer_qwen3
    eagle.evaluation: gen_baseline_answer_ds gen_ea_alpha_vicuna gen_ea_alpha_llama2chat
    eagle.application: session tree_plot loading terminal transcript generate terminal_chat
    eagle.application: visitors tree_drawing page_html page webui
    eagle: convert doctor cli
"""
LINES = [line.strip().split(": ") for line in ORDER.strip().splitlines()]
NAMES = [f"{folder}.{name}" for folder, names in LINES for name in names.split()]
PLACES = {name: place for place, name in enumerate(NAMES)}
# What data may know of the model: how it is loaded, and in one file how it answers.
DATA_KNOWS = {
    "command": {"loading"},
    "regenerate": {"ea_model", "loading", "properties", "target"},
    "continuous": {"kv_cache", "sampling", "target", "tree"},
}
EDGES = ("train", "evaluation", "ge_data", "application")
FILES = sorted(ROOT.rglob("*.py"))


def module(path: Path) -> str:
    """Return a file's dotted name."""
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)


def imports(path: Path) -> list[str]:
    """Return the modules of eagle that a file imports, wherever in it and for whatever reason."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path} has a relative import"
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "eagle":
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.append(inner if inner in PLACES else str(node.module))
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] == "eagle"]
    return found


def test_the_order_names_every_file_once():
    files = {module(path) for path in FILES if path.stem != "__init__"}
    assert sorted(NAMES) == sorted(files)


@pytest.mark.parametrize("path", [path for path in FILES if path.stem != "__init__"], ids=module)
def test_a_file_imports_only_what_stands_before_it(path):
    for name in imports(path):
        if name in PLACES:
            assert PLACES[name] < PLACES[module(path)], f"{module(path)} imports {name}"
        else:  # a package: what it hands on stands wherever its files stand
            assert (ROOT.parent / name.replace(".", "/") / "__init__.py").is_file(), name
            last = max((PLACES[one] for one in NAMES if one.startswith(f"{name}.")), default=-1)
            assert name == "eagle" or last < PLACES[module(path)], f"{module(path)} imports {name}"


def test_the_model_knows_nothing_above_it_and_data_of_the_model_only_what_it_may():
    for path in FILES:
        folder = module(path).split(".")[1]
        for name in imports(path):
            if folder == "model":
                assert name in ("eagle", "eagle.files") or name.startswith("eagle.model"), f"{path} imports {name}"
            if folder == "data" and name.startswith("eagle.model."):
                assert name.split(".")[-1] in DATA_KNOWS.get(path.stem, ()), f"{path} imports {name}"


def test_a_class_s_name_has_one_meaning():
    names = [node.name for path in FILES for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("edge", EDGES)
def test_the_edges_never_know_each_other(edge):
    for path in (ROOT / edge).rglob("*.py"):
        for name in imports(path):
            other = name.split(".")[1] if "." in name else ""
            assert other == edge or other not in EDGES, f"{path} imports {name}"


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
