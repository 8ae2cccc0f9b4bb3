"""The chat pair: heads that fit SmolLM2-135M-Instruct and are small, recipes that can be run."""

import json

import pytest
import torch
from places import ROOT
from safetensors import safe_open

from eagle.train.settings import parse

PAIR = ROOT / "examples" / "chat_pair"
WIDTH, VOCABULARY = 576, 49_152


def tensors(kind):
    with safe_open(PAIR / f"{kind}_head" / "model.safetensors", "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_a_head_fits_the_target_and_holds_numbers(kind):
    config = json.loads((PAIR / f"{kind}_head" / "config.json").read_text())
    assert (config["hidden_size"], config["vocab_size"], config["num_hidden_layers"]) == (WIDTH, VOCABULARY, 1)
    found = tensors(kind)
    assert all(torch.isfinite(value).all() for value in found.values() if value.is_floating_point())
    assert {value.dtype for value in found.values() if value.is_floating_point()} == {torch.bfloat16}
    assert found["fc.weight"].shape == (WIDTH, WIDTH * {"eagle": 2, "eagle3": 3}[kind])
    if kind == "eagle3":
        drafted = found["d2t"] + torch.arange(len(found["d2t"]))
        assert len(drafted) == config["draft_vocab_size"] == found["lm_head.weight"].shape[0]
        assert drafted.min() >= 0 and drafted.max() < VOCABULARY and len(drafted.unique()) == len(drafted)
        assert found["t2d"].nonzero().flatten().equal(drafted)


def test_the_heads_are_small():
    assert sum(path.stat().st_size for path in PAIR.glob("*_head/*.safetensors")) <= 40e6


@pytest.mark.parametrize(("kind", "steps"), [("eagle", 390), ("eagle3", 500)])
def test_a_recipe_is_one_that_training_takes(kind, steps):
    settings = parse(["--config", str(PAIR / f"{kind}.yaml")], "test", "")
    assert settings.kind == kind and settings.cpdir == f"build/chat_pair/{kind}_head"
    assert settings.tmpdir == "build/chat_pair/train" and settings.max_steps == steps
