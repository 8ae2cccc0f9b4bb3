"""Heads out: every layout keeps every tensor bit by bit, and what a layout cannot say is refused."""

import json
from pathlib import Path

import pytest
import torch
from architectures import base_model
from drafted import drafted, generation
from pairs import ea_model, random_head
from refusals import assert_refused_in_words
from safetensors.torch import load_file

from eagle import cli
from eagle.convert import convert_head
from eagle.model.decoding import decode
from eagle.model.dialects.checkpoint import describe, load_head, save_head
from eagle.model.dialects.layouts import LAYOUTS
from eagle.model.dialects.token_maps import head_tokens, write_token_map
from eagle.model.ea_model import EaModel

BASE = base_model("llama")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    BASE.save_pretrained(folder)
    return folder


def first_tree(path: Path) -> dict:
    model = EaModel(None, BASE, "none", str(path), total_token=12, depth=3, top_k=3)
    running = generation(model, torch.arange(3, 12)[None])
    return next(drafted(step.tree, 0) for step in decode(running) if step.tree is not None)


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "model.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "fields", [{}, {"fc_norm": True, "norm_output": True}, {"tap_layers": [1, 3, 5]}, {"draft_vocab_size": None}]
)
def test_a_round_trip_through_all_layouts_keeps_every_bit_and_every_tree(tmp_path, base, dtype, fields):
    save_head(random_head(BASE, "eagle3", **fields).to(dtype), tmp_path / "0")
    for number, layout in enumerate(["eagle", "speculators", "eagle", "sglang", "eagle"], 1):
        convert_head(base, tmp_path / str(number - 1), layout, tmp_path / str(number))
        assert describe(str(tmp_path / str(number))).dialect.name == {"eagle": "SafeAILab", "sglang": "SpecForge"}.get(
            layout, layout
        )
        assert first_tree(tmp_path / str(number)) == first_tree(tmp_path / "0")
    before, after = tensors(tmp_path / "0"), tensors(tmp_path / "5")
    assert set(before) == set(after)
    assert all(before[name].dtype == after[name].dtype and torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("bias", [True, False])
def test_an_eagle_head_goes_through_sglang_s_layout_with_and_without_a_bias(tmp_path, base, bias, caplog):
    save_head(random_head(BASE, "eagle", bias=bias), tmp_path / "0")
    write_token_map(tmp_path / "0", torch.arange(5, 40))
    convert_head(base, tmp_path / "0", "sglang", tmp_path / "1")
    fields = json.loads((tmp_path / "1" / "config.json").read_text())
    # SGLang's layer has a bias whatever the file says, and takes `bias` for its attention's.
    assert "fc.bias" in tensors(tmp_path / "1") and "bias" not in fields
    assert fields["architectures"] == ["LlamaForCausalLMEagle"]
    convert_head(base, tmp_path / "1", "eagle", tmp_path / "2")
    before, after = tensors(tmp_path / "0"), tensors(tmp_path / "2")
    assert set(before) == set(after) and all(torch.equal(before[name], after[name]) for name in before)
    assert "the weights win" not in caplog.text
    assert torch.equal(head_tokens(str(tmp_path / "2")), torch.arange(5, 40))


def test_each_layout_has_the_names_and_fields_that_its_readers_ask_for(tmp_path, base):
    save_head(random_head(BASE, "eagle3", tap_layers=[2, 4, 6]), tmp_path / "0")
    for layout in LAYOUTS:
        convert_head(base, tmp_path / "0", layout, tmp_path / layout)
    speculators, sglang = (
        json.loads((tmp_path / each / "config.json").read_text()) for each in ("speculators", "sglang")
    )
    assert speculators["eagle_aux_hidden_state_layer_ids"] == [2, 4, 6]
    assert speculators["speculators_config"]["verifier"] == {
        "name_or_path": str(base),
        "architectures": ["LlamaForCausalLM"],
    }
    assert speculators["norm_before_residual"] is False and speculators["transformer_layer_config"]["vocab_size"] == 89
    assert {"layers.0.hidden_norm.weight", "embed_tokens.weight", "d2t", "t2d"} <= set(
        tensors(tmp_path / "speculators")
    )
    # Outputs of layers, as SGLang counts.
    assert sglang["eagle_config"] == {"eagle_aux_hidden_state_layer_ids": [1, 3, 5], "use_aux_hidden_state": True}
    assert sglang["architectures"] == ["LlamaForCausalLMEagle3"] and sglang["draft_vocab_size"] == 59
    assert "midlayer.hidden_norm.weight" in tensors(tmp_path / "sglang") and sglang["max_position_embeddings"] == 256
    assert "embed_tokens.weight" not in tensors(tmp_path / "sglang")
    card = (tmp_path / "sglang" / "README.md").read_text()
    assert "--speculative-algorithm EAGLE3" in card and f"from `{tmp_path / '0'}`" in card
    assert "vllm serve" in (tmp_path / "speculators" / "README.md").read_text()


SPECULATORS, SGLANG = "speculators", "sglang"
UNSAID = {
    "eagle": (SPECULATORS, "eagle", {}),
    "no fc": (SPECULATORS, "eagle3", {"use_aux_hidden_state": False}),
    "qkv bias": (SPECULATORS, "eagle3", {"qkv_bias": True}),
    "both norms": (SPECULATORS, "eagle3", {"norm_before_fc": True, "fc_norm": True}),
    "windows": (SPECULATORS, "eagle3", {"num_hidden_layers": 2, "windows": [3, 4]}),
    "residual": (SGLANG, "eagle3", {"norm_before_residual": True}),
    "one norm": (SGLANG, "eagle3", {"norm_before_fc": True}),
    "window": (SGLANG, "eagle3", {"windows": [3]}),
    "layers": (SGLANG, "eagle3", {"num_hidden_layers": 2}),
    "q and k norms": (SGLANG, "eagle3", {"qk_norm": True}),
    "last output": (SGLANG, "eagle3", {"tap_layers": [3, 5, 7]}),
}


@pytest.mark.parametrize("fault", UNSAID)
def test_what_a_layout_cannot_say_is_refused_and_leaves_nothing(tmp_path, base, fault):
    layout, kind, fields = UNSAID[fault]
    save_head(random_head(BASE, kind, **fields), tmp_path / "0")
    assert_refused_in_words(
        lambda: convert_head(base, tmp_path / "0", layout, tmp_path / "1"), "cannot be written for .*use --to eagle"
    )
    assert [file.name for file in tmp_path.iterdir()] == ["0"]
    convert_head(base, tmp_path / "0", "eagle", tmp_path / "2")
    assert first_tree(tmp_path / "2") == first_tree(tmp_path / "0")


def test_embeddings_of_its_own_are_not_dropped_for_sglang(tmp_path, base):
    head = random_head(BASE, "eagle3")
    head.embed_tokens = torch.nn.Embedding.from_pretrained(BASE.get_input_embeddings().weight.detach().clone())
    save_head(head, tmp_path / "same")
    assert "embed_tokens.weight" not in tensors(convert_head(base, tmp_path / "same", "sglang", tmp_path / "1"))
    head.embed_tokens.weight.data[5] += 1
    save_head(head, tmp_path / "other")
    assert_refused_in_words(
        lambda: convert_head(base, tmp_path / "other", "sglang", tmp_path / "2"), "embed_tokens.weight other than the"
    )


def test_what_the_caller_knows_better_is_written(tmp_path, base):
    save_head(random_head(BASE, "eagle3", norm_output=True), tmp_path / "0")
    changes = {"norm_output": False, "norm_before_residual": True, "rope_theta": 500.0}
    out = convert_head(base, tmp_path / "0", "eagle", tmp_path / "1", capture_layers=[1, 3, 5], changes=changes)
    config = load_head(str(out), BASE.config).config
    assert not config.norm_output and config.norm_before_residual and config.tap_layers == [1, 3, 5]
    assert config.rope_parameters["rope_theta"] == 500.0
    for wrong in ({"wibble": True}, {"norm_output": 1}, {"rope_theta": -1.0}):
        assert_refused_in_words(
            lambda wrong=wrong: convert_head(base, tmp_path / "0", "eagle", tmp_path / "2", changes=wrong),
            next(iter(wrong)),
        )


def test_a_folder_that_holds_something_is_left_alone(tmp_path, base):
    save_head(random_head(BASE, "eagle3"), tmp_path / "0")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    assert_refused_in_words(
        lambda: convert_head(base, tmp_path / "0", "eagle", tmp_path / "full"), "holds something already"
    )
    assert (tmp_path / "full" / "thesis.txt").read_text() == "years of work"
    assert_refused_in_words(lambda: convert_head(base, tmp_path / "0", "onnx", tmp_path / "1"), "must be one of eagle,")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_model_saves_its_head_and_loads_it_again(tmp_path, layout):
    model = ea_model(tmp_path, BASE, "eagle3", head_fields={"tap_layers": [1, 3, 5]})
    model.save_pretrained(tmp_path / "out", layout)
    assert first_tree(tmp_path / "out") == first_tree(tmp_path / "eagle3")
    again = EaModel(None, BASE, "none", str(tmp_path / "out"))
    assert again._taps == (1, 3, 5)


def test_a_model_pushes_what_it_would_save(tmp_path, monkeypatch):
    model, sent = ea_model(tmp_path, BASE, "eagle3"), {}

    def upload(folder, repository, **keywords):
        sent.update({file.name: file.read_bytes() for file in Path(folder).iterdir()}, to=repository, **keywords)
        return "http://hub/commit"

    monkeypatch.setattr("eagle.model.saving.push_folder", upload)
    assert model.push_to_hub("someone/head", "sglang", token="t", private=True) == "http://hub/commit"
    assert (sent["to"], sent["token"], sent["private"]) == ("someone/head", "t", True)
    assert b"--speculative-draft-model-path someone/head" in sent["README.md"]
    assert {"config.json", "model.safetensors"} <= set(sent)


def test_the_command_line_says_where_the_head_is_or_why_not(tmp_path, base, capsys):
    save_head(random_head(BASE, "eagle3"), tmp_path / "0")
    paths = ["convert", "--base", str(base), "--head", str(tmp_path / "0"), "--out", str(tmp_path / "1")]
    asked = [*paths, "--to", "sglang", "--capture-layers", "1", "3", "5", "--set", "norm_output=true"]
    assert cli.main(asked) == 0
    assert "the head in the sglang layout" in capsys.readouterr().out
    fields = json.loads((tmp_path / "1" / "config.json").read_text())
    assert fields["norm_output"] and fields["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == [0, 2, 4]
    assert cli.main([*paths, "--to", "eagle"]) == 1
    assert "holds something already" in capsys.readouterr().err
