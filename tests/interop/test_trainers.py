"""Heads that the trainers' own packages write load here as the same head, and theirs loads what is written for them.

Each package runs in an environment of its own, which `make interop` makes; without it a test is skipped, in words.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from architectures import base_model
from drafted import drafted, generation
from pairs import random_head
from places import ROOT
from safetensors.torch import load_file, save_file

from eagle.convert import convert_head
from eagle.model.checks.chains import chain_attention
from eagle.model.decoding import decode
from eagle.model.dialects.checkpoint import describe, load_head, save_head
from eagle.model.ea_model import EaModel
from eagle.model.target_features import read_features

pytestmark = pytest.mark.nightly

HERE, MADE = Path(__file__).parent, ROOT / "build" / "interop"
TRAINERS = ("angelslim", "specforge", "modelopt", "speculators")
IDS = "eagle_aux_hidden_state_layer_ids"
LAYER = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 89,
    "max_position_embeddings": 16,
    "rms_norm_eps": 1e-6,
    "head_dim": 8,
}
OWN = {
    "angelslim": LAYER
    | {"draft_vocab_size": 59, "target_model_type": "llama", "architectures": ["Eagle3LlamaForCausalLM"]},
    "specforge": LAYER | {"draft_vocab_size": 59, "norm_output": False, "eagle_config": {IDS: [1, 2, 3]}},
    "modelopt": LAYER | {"draft_vocab_size": 59, "use_aux_hidden_state": True, "use_last_layernorm": True},
    "speculators": {
        "draft_vocab_size": 59,
        IDS: [2, 3, 4],
        "transformer_layer_config": LAYER | {"model_type": "llama"},
    },
}


def run(trainer: str, script: str, *arguments: object) -> None:
    """Run a script with a trainer's own environment."""
    python = MADE / trainer / "bin" / "python"
    if not python.exists():
        pytest.skip(f"no environment of {trainer} at {python}: `make interop` makes it")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    made = subprocess.run(
        [python, HERE / f"{script}_{trainer}.py", *map(str, arguments)], capture_output=True, text=True, env=environment
    )
    assert made.returncode == 0, made.stderr[-2000:]


def written(trainer: str, folder: Path, state: dict[str, torch.Tensor], fields: dict) -> Path:
    """Have a trainer's package write these tensors, under its own names, with these fields."""
    names = {"modelopt": ("layers.0.", "t2d"), "speculators": ("layers.0.", None)}.get(trainer, ("midlayer.", None))
    renamed = {name.replace("midlayer.", names[0]): tensor for name, tensor in state.items() if name != names[1]}
    if trainer == "modelopt":
        renamed.pop("embed_tokens.weight")
    folder.mkdir()
    save_file(renamed, folder / "tensors")
    (folder / "fields").write_text(json.dumps(fields))
    base_model("llama").save_pretrained(folder / "base")
    more = [folder / "base"] if trainer in ("modelopt", "speculators") else []
    run(trainer, "write", folder / "fields", folder / "tensors", folder / "head", *more)
    return folder / "head"


def reference(folder: Path, **fields) -> tuple[Path, dict[str, torch.Tensor]]:
    """Save a random head, and return its tensors with the target's embeddings."""
    head = random_head(base_model("llama"), "eagle3", **fields)
    save_head(head, folder)
    return folder, {
        **head.state_dict(),
        "embed_tokens.weight": base_model("llama").get_input_embeddings().weight.detach(),
    }


def first_tree(path: Path) -> dict:
    model = EaModel(None, base_model("llama"), "none", str(path), total_token=12, depth=3, top_k=3)
    running = generation(model, torch.arange(3, 12)[None])
    return next(drafted(step.tree, 0) for step in decode(running) if step.tree is not None)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_the_same_head_written_by_each_trainer_drafts_the_same_trees(tmp_path, trainer):
    mine, state = reference(tmp_path / "mine")
    theirs = written(trainer, tmp_path / "theirs", state, OWN[trainer])
    names = {"angelslim": "AngelSlim", "specforge": "SpecForge", "modelopt": "Model-Optimizer"}
    assert describe(str(theirs)).dialect.name == names.get(trainer, trainer)
    target = base_model("llama").config
    before, after = load_head(str(mine), target), load_head(str(theirs), target)
    wanted, got = before.state_dict(), after.state_dict()
    assert set(got) - set(wanted) <= {"embed_tokens.weight"}
    assert all(torch.equal(got[name], tensor) for name, tensor in wanted.items())
    assert after.taps(7) == before.taps(7) == (2, 3, 4)
    assert first_tree(theirs) == first_tree(mine)


VARIANTS = {
    "plain": {},
    "norm_before_residual": {"norm_before_residual": True},
    "norm_before_fc": {"norm_before_fc": True},
    "fc_norm": {"fc_norm": True},
    "norm_output": {"norm_output": True},
    "q and k norms": {"qk_norm": True},
    "two layers": {"num_hidden_layers": 2},
    "full vocabulary": {"draft_vocab_size": None},
    "head_dim": {"head_dim": 16},
    "bias": {"attention_bias": True},
    "taps": {"tap_layers": [1, 3, 5, 7]},
    "window": {"windows": [5]},
    "q and k norms, window": {"qk_norm": True, "windows": [3]},
    "rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}},
}


@torch.no_grad()
def logits_of(model: EaModel, features_1NF: torch.Tensor, ids_1S: torch.Tensor, steps: int) -> list[torch.Tensor]:
    """Return the head's logits [1, N, W] as chains from every entry, fed with the text's tokens."""
    head, drafter = model.ea_layer.head, model.ea_layer
    entries_N, chain = torch.arange(features_1NF.shape[1]), [[] for _ in range(head.layers_count)]
    hidden_1ND, found = head.fuse(features_1NF), []
    for step in range(steps):
        tokens_1N = torch.nn.functional.pad(ids_1S[:, 1 + step :], (0, step))
        attend = chain_attention(head, chain, entries_N, step)
        hidden_1ND = head(drafter.embeddings(tokens_1N), hidden_1ND, (entries_N + step)[None], attend)
        found.append(head.logits(hidden_1ND))
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_real_speculators_runs_an_exported_head_to_the_same_logits(tmp_path, variant):
    base, fields = base_model("llama"), VARIANTS[variant]
    mine, _ = reference(tmp_path / "mine", **fields)
    base.save_pretrained(tmp_path / "base")
    out = convert_head(tmp_path / "base", mine, "speculators", tmp_path / "out")
    model = EaModel(None, base, "none", str(mine))
    ids_1S = (torch.arange(13)[None] * 7 + 3) % 89
    features_1NF = read_features(model.target, ids_1S, model._taps).features_BSF[:, :-1]
    save_file({"features": features_1NF.contiguous(), "tokens": ids_1S[:, 1:].contiguous()}, tmp_path / "inputs")
    run("speculators", "run", out, tmp_path / "inputs", tmp_path / "outputs")
    theirs = load_file(tmp_path / "outputs")
    # What its windows see beyond the first step differs: there they count from the entry, not from the token.
    steps = 1 if "window" in variant else 3
    for step, wanted in enumerate(logits_of(model, features_1NF, ids_1S, steps)):
        counted = wanted.shape[1] - step
        torch.testing.assert_close(theirs[f"step_{step}"][:, :counted], wanted[:, :counted], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("variant", ["norm_before_fc", "fc_norm", "norm_output", "q and k norms", "two layers"])
def test_a_head_that_the_real_speculators_saves_loads_here(tmp_path, variant):
    fields = VARIANTS[variant]
    mine, state = reference(tmp_path / "mine", **fields)
    flags = {name: value for name, value in fields.items() if name not in ("qk_norm", "num_hidden_layers")}
    layer = LAYER | {"model_type": "qwen3" if "qk_norm" in fields else "llama"}
    layer["num_hidden_layers"] = fields.get("num_hidden_layers", 1)
    own = OWN["speculators"] | {"transformer_layer_config": layer} | flags
    assert first_tree(written("speculators", tmp_path / "theirs", state, own)) == first_tree(mine)
