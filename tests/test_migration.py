"""docs/migration.md, row by row: what is kept is there, what is replaced says so, what stands in for it exists."""

import importlib
import importlib.util
import inspect
import re
from pathlib import Path

import commands
import pytest
import torch
from architectures import base_model
from pairs import ea_model, random_head
from places import ROOT

from eagle import EaModel
from eagle.model.choices import mc_sim_7b_63
from eagle.model.dialects.checkpoint import save_head
from eagle.modeling_eagle import EAGLE

PAGE = (ROOT / "docs" / "migration.md").read_text(encoding="utf-8")
STATES = ("kept", "kept without effect", "replaced by", "not here")
ASKED = [
    "input_ids",
    "temperature=0.0",
    "top_p=0.0",
    "top_k=0.0",
    "max_new_tokens=512",
    "max_length=2048",
    "log=False",
    "is_llama3=False",
]
MODEL = ["config", "load_emb=False", "path=None", "bias=True", "total_tokens=63", "depth=5", "top_k=8", "threshold=1.0"]
# The reference's arguments, with the defaults that callers rely on.
SIGNATURES = {
    "eagle.model.ea_model.EaModel": [
        "use_eagle3",
        "base_model",
        "base_model_name_or_path",
        "ea_model_path",
        "total_token",
        "depth",
        "top_k",
        "threshold",
        "ea_layer_state_dict",
    ],
    "EaModel.from_pretrained": [
        "use_eagle3=None",
        "base_model_path=None",
        "ea_model_path=None",
        "total_token=60",
        "depth=7",
        "top_k=10",
        "threshold=1.0",
    ],
    **{f"EaModel.{name}": ASKED for name in ("eagenerate", "naivegenerate", "ea_generate", "naive_generate")},
    "EaModel.forward": [
        "input_ids",
        "attention_mask=None",
        "past_key_values=None",
        "output_orig=False",
        "position_ids=None",
    ],
    "EaModel.get_tokenizer": [],
    "ea_layer.reset_kv": [],
    "ea_layer.init_tree": [],
    "ea_layer.topK_genrate": ["hidden_states", "input_ids", "head", "logits_processor"],
    "eagle.model.utils.prepare_logits_processor": ["temperature=0.0", "repetition_penalty=0.0", "top_p=0.0", "top_k=0"],
    "eagle.model.utils.reset_tree_mode": ["model"],
    "eagle.model.kv_cache.initialize_past_key_values": ["model"],
    "eagle.model.cnets.Model": MODEL,
    "eagle.model.cnets1.Model": MODEL,
    "eagle.modeling_eagle.EAGLE": ["base_model", "eagle_path", "use_tree_attn=True"],
    "eagle.modeling_eagle.EAGLE.generate": [
        "input_ids",
        "attention_mask=None",
        "temperature=0.0",
        "top_p=0.0",
        "top_k=0",
        "max_new_tokens=512",
        "max_length=2048",
    ],
}
# What else the reference's users import or ask for; together with the signatures the page must name all of it.
NAMES = {
    *SIGNATURES,
    "eagle.EaModel",
    *(f"EaModel.{name}" for name in ("tokenizer", "eval")),
    *[
        "base_model",
        "ea_layer",
        "config",
        "hidden_size",
        "vocab_size",
        "use_eagle3",
        "base_model_name_or_path",
        "past_key_values",
    ],
    *(
        f"ea_layer.{name}"
        for name in ["total_tokens", "depth", "top_k", "threshold", "d2t", "t2d", "lm_head", "embed_tokens"]
    ),
    *(
        f"eagle.model.utils.{name}"
        for name in (
            [
                "initialize_tree",
                "tree_decoding",
                "evaluate_posterior",
                "update_inference_inputs",
                "generate_tree_buffers",
            ]
        )
    ),
    "eagle.model.choices.mc_sim_7b_63",
    "eagle.model.configs.EConfig",
}
ANSWERING = [
    "--base-model-path",
    "--ea-model-path",
    "--model-id",
    "--bench-name",
    "--question-begin",
    "--question-end",
    "--answer-file",
    "--max-new-token",
    "--temperature",
    "--num-choices",
    "--num-gpus-per-model",
    "--num-gpus-total",
    "--max-gpu-memory",
    "--load-in-8bit",
    "--tree-choices",
]
FLAGS = {
    "eagle.application.webui": [
        "--base-model-path",
        "--ea-model-path",
        "--model-type",
        "--total-token",
        "--max-new-token",
        "--load-in-8bit",
        "--load-in-4bit",
        "--no-eagle3",
    ],
    "eagle.evaluation.gen_ea_answer_*": [*ANSWERING, "--total-token", "--depth", "--top-k", "--use_eagle3"],
    "eagle.evaluation.gen_ea_alpha_*": ANSWERING,
    "eagle.evaluation.gen_baseline_answer_*": ANSWERING,
    "eagle.ge_data.allocation": ["--outdir"],
    "eagle.train.main": (
        ["--basepath", "--configpath", "--lr", "--bs", "--gradient-accumulation-steps", "--tmpdir", "--cpdir"]
    ),
    "eagle.train.main_deepspeed": ["--tmpdir", "--cpdir", "--deepspeed_config", "--local_rank", "--deepspeed"],
    "eagle.traineagle3.main": (
        ["--basepath", "--trainpath", "--testpath", "--savedir", "--local_rank", "--deepspeed_config", "--deepspeed"]
    ),
}
FAMILIES = ("vicuna", "llama2chat", "llama3chat", "mix", "qwen3", "ds")
# Flags that stand alone, and what others are given where a word will not do.
SWITCHES = {"--load-in-8bit", "--load-in-4bit", "--no-eagle3", "--use_eagle3", "--deepspeed"}
VALUES = {
    **dict.fromkeys(
        ["--total-token", "--depth", "--top-k", "--max-new-token", "--num-choices", "--bs", "--question-end"], "7"
    ),
    **dict.fromkeys(["--num-gpus-per-model", "--num-gpus-total", "--question-begin", "--local_rank"], "1"),
    "--gradient-accumulation-steps": "3",
    "--temperature": "0.5",
    "--lr": "0.001",
    "--tree-choices": "mc_sim_7b_63",
    "--max-gpu-memory": "20GiB",
    "--model-type": "vicuna",
}
# What a command cannot do without.
NEEDED = {
    "eagle.evaluation.gen_ea_answer_*": ["--base-model-path", "--ea-model-path"],
    "eagle.evaluation.gen_ea_alpha_*": ["--base-model-path", "--ea-model-path"],
    "eagle.evaluation.gen_baseline_answer_*": ["--base-model-path"],
    "eagle.ge_data.allocation": ["--outdir"],
    "eagle.train.main": ["--tmpdir", "--cpdir"],
    "eagle.train.main_deepspeed": ["--tmpdir", "--cpdir"],
    "eagle.traineagle3.main": ["--basepath", "--trainpath", "--savedir", "--tmpdir", "--cpdir"],
}


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table below a heading."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ") or line.startswith("|-")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def code(cell: str) -> list[str]:
    """Return what a cell has between backticks."""
    return re.findall(r"`([^`]+)`", cell)


BY_NAME = [(name, state, here) for names, state, here in rows("Names") for name in code(names)]
BY_FLAG = [
    (command, flag, state) for cell, flags, state, _ in rows("Flags") for command in code(cell) for flag in code(flags)
]


def found(path: str) -> object:
    """Return what a dotted name means; of a class's attributes those of `EaModel` go by its bare name."""
    if path.startswith("EaModel"):
        path = f"eagle.{path}"
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            thing: object = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for name in parts[cut:]:
            thing = getattr(thing, name)
        return thing
    raise ImportError(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return ea_model(tmp_path_factory.mktemp("pair"))


def named(model: EaModel, name: str) -> object:
    """Return what a name of the page means, of a model where it is an attribute of one."""
    if name.startswith(("eagle.", "EaModel.")):
        return found(name)
    return (
        getattr(model.ea_layer, name.removeprefix("ea_layer."))
        if name.startswith("ea_layer.")
        else getattr(model, name)
    )


def test_the_page_names_everything_that_the_reference_s_users_import():
    assert {name for name, *_ in BY_NAME} >= NAMES
    assert {(command, flag) for command, flag, _ in BY_FLAG} >= {
        (command, flag) for command, flags in FLAGS.items() for flag in flags
    }
    assert {state for _, state, _ in BY_NAME} == set(STATES)


@pytest.mark.parametrize(("name", "here"), [(name, here) for name, state, here in BY_NAME if state == "replaced by"])
def test_what_is_replaced_says_by_what_and_that_is_there(model, name, here):
    replacement = code(here)[0]
    assert callable(found(replacement))
    signature = inspect.signature(named(model, name))
    values = [None for each in signature.parameters.values() if each.kind is each.POSITIONAL_OR_KEYWORD]
    with pytest.raises(NotImplementedError) as refusal:
        named(model, name)(*values)
    assert name.rsplit(".", 1)[-1] in str(refusal.value) and replacement in str(refusal.value)


@pytest.mark.parametrize(("name", "here"), [(name, here) for name, state, here in BY_NAME if state == "not here"])
def test_what_is_not_here_cannot_be_imported_and_something_else_can(name, here):
    assert importlib.util.find_spec(name) is None
    assert callable(found(code(here)[0]))


@pytest.mark.parametrize(("name", "state"), [(name, state) for name, state, _ in BY_NAME if state.startswith("kept")])
def test_what_is_kept_is_there_with_the_reference_s_arguments(model, name, state):
    if name == "past_key_values":  # scripts that find none make some and leave them here
        assert not hasattr(model, name)
        model.past_key_values = None
        del model.past_key_values
        return
    thing = named(model, name)
    if name not in SIGNATURES:
        return
    parameters = [each for each in inspect.signature(thing).parameters.values() if each.name != "self"]
    wanted = SIGNATURES[name]
    said = [
        each.name + (f"={each.default}" if "=" in want and each.default is not each.empty else "")
        for each, want in zip(parameters, wanted, strict=False)
    ]
    assert said == wanted
    beyond = [each for each in parameters[len(wanted) :] if each.default is each.empty]
    assert all(each.kind in (each.VAR_KEYWORD, each.VAR_POSITIONAL) for each in beyond)


@pytest.mark.parametrize("name", [name for name, state, _ in BY_NAME if state == "kept without effect"])
def test_what_has_no_effect_changes_no_id(model, name):
    if name == "past_key_values":
        model.past_key_values = "whatever a script left"
    else:
        named(model, name)(*[model for each in SIGNATURES[name]])
    ids = torch.tensor([[5, 9, 3, 7]])
    assert torch.equal(model.eagenerate(ids, max_new_tokens=8), model.naivegenerate(ids, max_new_tokens=8))
    if name == "past_key_values":
        del model.past_key_values


def modules(command: str) -> list[str]:
    """Return the modules that a command of the page stands for."""
    names = FAMILIES[:2] if "alpha" in command else FAMILIES
    return [command.replace("*", name) for name in names] if command.endswith("*") else [command]


@pytest.mark.parametrize(
    ("command", "flag"), [(command, flag) for command, flag, state in BY_FLAG if state.startswith("kept")]
)
def test_a_flag_that_is_kept_is_taken_by_its_command(command, flag, tmp_path):
    if not (ROOT / f"{command.replace('.', '/').replace('*', 'vicuna')}.py").is_file():
        pytest.skip(f"{command} is not in this checkout")
    config = ROOT / "eagle" / "train" / "ds_config.json"
    values = {**VALUES, "--deepspeed_config": str(config)}
    given = [flag, *(name for name in NEEDED.get(command, ()) if name != flag)]
    argv = [word for name in given for word in ([name] if name in SWITCHES else [name, values.get(name, "word")])]
    for module in modules(command):
        taken = vars(commands.of_module(module, argv))
        value = True if flag in SWITCHES else values.get(flag, "word")
        assert str(value) in {str(each) for each in taken.values()}, f"{module} {flag}"


# --- names that are kept over types of ours


def test_a_head_made_by_the_reference_s_name_takes_its_file(tmp_path):
    for name, kind in (("cnets", "eagle3"), ("cnets1", "eagle")):
        made = importlib.import_module(f"eagle.model.{name}").Model
        head = random_head(base_model("llama"), kind)
        state = dict(head.state_dict())
        if name == "cnets1":
            state["embed_tokens.weight"] = torch.zeros(head.config.vocab_size, head.config.hidden_size)
        loaded = made(head.config, bias=head.config.bias, total_tokens=60, depth=7, top_k=10, path="nowhere")
        loaded.load_state_dict(state)
        assert torch.equal(loaded.fc.weight, head.fc.weight)
        with pytest.raises(NotImplementedError, match=r"load_emb=True.*load_head"):
            made(head.config, load_emb=True, path="nowhere")
    assert made(head.config, bias=False).fc.bias is None and head.config.bias


def test_the_layer_s_tensors_are_the_head_s(model):
    layer, head = model.ea_layer, model.ea_layer.head
    assert layer.d2t is head.d2t and layer.t2d is head.t2d and layer.lm_head is head.lm_head
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(layer.embed_tokens(ids), model.base_model.get_input_embeddings()(ids))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        layer.nothing  # noqa: B018


@pytest.mark.parametrize("use_tree_attn", [True, False])
@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_a_head_beside_a_loaded_model_gives_its_greedy_ids_as_numbers(tmp_path: Path, kind, use_tree_attn):
    base = base_model("llama")
    save_head(random_head(base, kind), tmp_path / "head")
    eagle = EAGLE(base, str(tmp_path / "head"), use_tree_attn)
    ids, mask = torch.tensor([[0, 5, 9], [4, 3, 7]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
    want = base.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False, eos_token_id=None)
    eagle.base_model.generation_config.eos_token_id = None
    assert eagle.generate(ids, mask, max_new_tokens=8) == want.tolist()
    assert eagle.generate(ids[1:], max_new_tokens=8) == want[1].tolist()
    assert eagle.ea_layer.total_tokens == (len(mc_sim_7b_63) if use_tree_attn else 5)
