"""Heads in and out: what was saved is what is loaded, from a folder or from the Hub."""

import json
from pathlib import Path

import pytest
import torch
from architectures import base_model
from huggingface_hub.errors import EntryNotFoundError
from pairs import random_head
from safetensors.torch import load_file, save_file

from eagle.model.configs import EConfig, tapped_layers
from eagle.model.dialects import weights as weight_files
from eagle.model.dialects.checkpoint import load_head, read_config, save_head

TARGET = base_model("llama").config


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
@pytest.mark.parametrize("own_embeddings", [False, True])
def test_a_round_trip_keeps_every_tensor_and_the_configuration(tmp_path, kind, own_embeddings):
    head = random_head(base_model("llama"), kind)
    if own_embeddings:
        head.embed_tokens = torch.nn.Embedding(89, 32)
    save_head(head, tmp_path)
    again = load_head(str(tmp_path), TARGET)
    wanted, got = head.state_dict(), again.state_dict()
    assert set(wanted) == set(got) and all(torch.equal(wanted[name], got[name]) for name in wanted)
    before, after = head.config.to_dict(), again.config.to_dict()
    assert {k for k in before | after if before.get(k) != after.get(k)} <= {"dtype", "architectures"}


def test_files_hold_the_published_names_and_nothing_else(tmp_path):
    modules = "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj"
    modules += " mlp.gate_proj mlp.up_proj mlp.down_proj post_attention_layernorm"
    layer = {f"{module}.weight" for module in modules.split()}
    own = {
        "eagle": {"fc.weight", "fc.bias"},
        "eagle3": {"fc.weight", "norm.weight", "lm_head.weight", "d2t", "t2d"},
    }
    prefixes = {"eagle": "layers.0.", "eagle3": "midlayer."}
    for kind, prefix in prefixes.items():
        save_head(random_head(base_model("llama"), kind), tmp_path / kind)
        extra = {"hidden_norm.weight", "input_layernorm.weight"} if kind == "eagle3" else set()
        names = set(load_file(tmp_path / kind / "model.safetensors"))
        assert names == own[kind] | {prefix + name for name in layer | extra}


def test_the_rotary_base_is_10000_unless_the_head_says_otherwise(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 32, "num_attention_heads": 4}))
    assert read_config(str(tmp_path)).rope_parameters["rope_theta"] == 10000.0


ROPES = {
    "linear": {"type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "mrope": {"type": "mrope", "mrope_section": [2, 1, 1]},
}


@pytest.mark.parametrize("rope", ROPES)
def test_every_rope_type_a_config_names_is_understood(tmp_path, rope):
    save_head(random_head(base_model("llama"), "eagle3"), tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    fields.pop("rope_parameters")
    (tmp_path / "config.json").write_text(json.dumps(fields | {"rope_theta": 500.0, "rope_scaling": ROPES[rope]}))
    rotary = load_head(str(tmp_path), TARGET).rotary_emb
    assert rotary.rope_type == ("default" if rope == "mrope" else rope)
    assert rotary.config.rope_parameters["rope_theta"] == 500.0


def test_bias_is_on_when_config_is_silent_and_the_weights_win(tmp_path, caplog):
    assert EConfig().bias
    head = random_head(base_model("llama"), "eagle", bias=False)
    save_head(head, tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    fields.pop("bias")
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert load_head(str(tmp_path), TARGET).fc.bias is None
    assert "the weights win" in caplog.text


def test_identity_maps_without_a_smaller_vocabulary_are_tolerated(tmp_path):
    save_head(random_head(base_model("llama"), "eagle3", draft_vocab_size=None), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state |= {"d2t": torch.zeros(89, dtype=torch.int64), "t2d": torch.ones(89, dtype=torch.bool)}
    save_file(state, tmp_path / "model.safetensors")
    assert not hasattr(load_head(str(tmp_path), TARGET), "d2t")


def test_a_checkpoint_without_t2d_gets_it_from_d2t(tmp_path):
    head = random_head(base_model("llama"), "eagle3")
    save_head(head, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state.pop("t2d")
    save_file(state, tmp_path / "model.safetensors")
    assert torch.equal(load_head(str(tmp_path), TARGET).t2d, head.t2d)


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_a_hub_id_is_downloaded_with_token_and_revision(tmp_path, monkeypatch, weights):
    save_head(random_head(base_model("llama"), "eagle"), tmp_path)
    if weights.endswith(".bin"):
        torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / weights)
        (tmp_path / "model.safetensors").unlink()
    asked = []

    def download(repository, name, **keywords):
        asked.append((repository, keywords))
        if not (tmp_path / name).exists():
            raise EntryNotFoundError(name)
        return str(tmp_path / name)

    monkeypatch.setattr(weight_files, "hf_hub_download", download)
    head = load_head("someone/head", TARGET, token="t", revision="main")
    assert head.kind == "EAGLE-1/2"
    assert set(map(str, asked)) == {str(("someone/head", {"token": "t", "revision": "main"}))}
    assert Path(tmp_path / weights).exists()


@pytest.mark.parametrize(("layers", "taps"), [(7, (2, 3, 4)), (32, (2, 16, 29)), (80, (2, 40, 77))])
def test_default_taps_are_low_middle_and_high(layers, taps):
    assert tapped_layers(EConfig(), layers) == taps
