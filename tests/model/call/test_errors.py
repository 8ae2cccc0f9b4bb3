"""Bad input gets a clear error, with the value and the allowed range, before any work starts."""

import copy
import json
import warnings

import pytest
import torch
from architectures import base_model, prompts
from pairs import ea_model, random_head
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from eagle import EaModel
from eagle.model.dialects.checkpoint import save_head
from eagle.model.target import TargetModel


@pytest.fixture
def model(tmp_path):
    return ea_model(tmp_path)


IDS = [[5, 6, 7, 8]]
CALLS = {
    "empty prompt": ({"input_ids": torch.zeros(1, 0, dtype=torch.int64)}, r"at least one token, got \(1, 0\)"),
    "one dimension": ({"input_ids": torch.tensor([5, 6])}, r"\[batch, prompt\].*got \(2,\)"),
    "float ids": ({"input_ids": torch.tensor([[5.0]])}, "whole numbers, got dtype torch.float32"),
    "id too large": ({"input_ids": [[5, 89]]}, "token 89; the model knows 0 to 88"),
    "negative id": ({"input_ids": [[5, -1]]}, "token -1; the model knows 0 to 88"),
    "prompt fills max_length": ({"input_ids": IDS, "max_length": 4}, "4 tokens, max_length=4 leaves no room"),
    "beyond the positions": (
        {"input_ids": IDS, "max_new_tokens": 300},
        "304 tokens, the model has 256 positions: use max_new_tokens=252",
    ),
    "no new tokens": ({"input_ids": IDS, "max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
    "negative temperature": ({"input_ids": IDS, "temperature": -0.5}, "temperature=-0.5 must be 0"),
    "top_p above one": ({"input_ids": IDS, "temperature": 1.0, "top_p": 1.5}, r"top_p=1.5 must lie in \[0, 1\]"),
    "broken top_k": ({"input_ids": IDS, "temperature": 1.0, "top_k": 2.5}, "top_k=2.5 must be a whole number"),
    "no temperature": ({"input_ids": IDS, "temperature": None}, "temperature=None must be a number"),
    "two sets of settings": ({"input_ids": IDS, "do_sample": True}, r"\['do_sample'\] would overrule .* use generate"),
    "no generator": ({"input_ids": IDS, "temperature": 1.0, "generator": 5}, "generator=5 must be a torch.Generator"),
    "mask shape": ({"input_ids": IDS, "attention_mask": torch.ones(1, 3)}, r"shape \(1, 3\), input_ids \(1, 4\)"),
    "mask values": ({"input_ids": IDS, "attention_mask": torch.tensor([[0, 1, 1, 0.5]])}, "only 0 .pad. and 1"),
    "pads in the middle": (
        {"input_ids": [[5, 0, 6]]},
        "first at row 0, place 1; pad on the left .* or pass attention_mask",
    ),
    "ragged rows": ({"input_ids": [[5, 6], [7]]}, "rows of one length, got list"),
    "a whole encoding": ({"input_ids": {"input_ids": IDS}}, r"got dict \(of a tokenizer's result, pass `.input_ids`"),
    "broken max_new_tokens": ({"input_ids": IDS, "max_new_tokens": 4.5}, "max_new_tokens=4.5 must be a whole number"),
    "right padding": ({"input_ids": IDS, "attention_mask": torch.tensor([[1, 1, 1, 0]])}, "padding_side = 'left'"),
    "empty row": ({"input_ids": IDS, "attention_mask": torch.zeros(1, 4)}, "row without any token"),
}


@pytest.mark.parametrize("case", CALLS)
@pytest.mark.parametrize("method", ["eagenerate", "ea_generate", "naivegenerate", "naive_generate"])
def test_a_bad_call_is_refused_before_anything_runs(model, case, method, monkeypatch):
    arguments, message = CALLS[case]
    monkeypatch.setattr(model.target, "_forward", lambda *a, **k: pytest.fail("work has started"))
    with pytest.raises(ValueError, match=message):
        getattr(model, method)(**{"max_new_tokens": 20, **arguments})


def test_an_unknown_keyword_is_never_swallowed(model):
    for method in (model.generate, model.eagenerate, model.naivegenerate):
        with pytest.raises(ValueError, match=r"not used by the model: \['tempersture'\]"):
            method(torch.tensor(IDS), tempersture=0.5)


def test_a_target_in_training_mode_with_dropout_or_checkpointing_is_refused(tmp_path):
    fields = {"n_embd": 32, "n_layer": 7, "n_head": 4, "vocab_size": 89}
    dropping = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **fields)).train()
    checkpointing = copy.deepcopy(base_model("llama")).train()
    assert ea_model(tmp_path, checkpointing).generate(torch.tensor(IDS), max_new_tokens=3).shape == (1, 7)
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")  # since transformers 5.24, and before
    next(getattr(checkpointing, name) for name in names if hasattr(type(checkpointing), name))()
    for base in (dropping, checkpointing):
        model = ea_model(tmp_path, base)
        with warnings.catch_warnings(), pytest.raises(ValueError, match=r"training mode.*call model\.eval\(\) first"):
            warnings.simplefilter("error")
            model.generate(torch.tensor(IDS), max_new_tokens=3)
        model.eval()
        assert model.generate(torch.tensor(IDS), max_new_tokens=3).shape[1] > 4


@pytest.mark.parametrize("name", ["token_type_ids", "output_router_logits", "labels"])
def test_inputs_of_a_model_s_own_are_refused(tmp_path, name):
    """A tree has no place for them; `generate` would pass them to the model."""
    model = ea_model(tmp_path, "gpt2" if name == "token_type_ids" else "llama")
    with pytest.raises(NotImplementedError, match=rf"\['{name}'\] are not supported"):
        model.generate(torch.tensor(IDS), **{name: torch.zeros(1, 4, dtype=torch.int64)})


def test_unknown_arguments_of_the_constructor_are_refused(tmp_path):
    with pytest.raises(TypeError, match="trees"):
        ea_model(tmp_path, trees="static")


def test_a_static_tree_wider_than_the_head_s_vocabulary_is_refused(tmp_path):
    with pytest.raises(ValueError, match="rank 70, the head drafts only 59 tokens"):
        ea_model(tmp_path, tree=[[70]])


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        (
            "gpt_neo",
            {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
            "window_size",
        ),
        (
            "doge",
            {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "keep_window_size": 8},
            "keep_window_size",
        ),
    ],
)
def test_a_target_with_windows_of_its_own_is_refused(name, fields, message):
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **fields))
    with pytest.raises(NotImplementedError, match=message):
        TargetModel(base)


TREES = {
    "total_token": (1, r"total_token=1 must be at least 2"),
    "depth": (-1, "depth=-1 must be 0 or more"),
    "top_k": (0, "top_k=0 must be 1 or more"),
    "threshold": (1.5, r"threshold=1.5 must lie in \(0, 1\]"),
    "tree": ("fixed", "tree='fixed' must be 'dynamic', 'static' or a list"),
}


@pytest.mark.parametrize("option", TREES)
def test_an_impossible_tree_is_refused(tmp_path, option):
    value, message = TREES[option]
    with pytest.raises(ValueError, match=message):
        ea_model(tmp_path, **{option: value})


def test_an_impossible_tree_is_refused_before_the_base_is_loaded(tmp_path):
    with pytest.raises(ValueError, match="depth=-1"):
        EaModel.from_pretrained(base_model_path="no/base", ea_model_path="no/head", depth=-1)


def test_a_missing_base_is_called_missing(tmp_path):
    save_head(random_head(base_model("llama"), "eagle"), tmp_path)
    with pytest.raises(FileNotFoundError, match="'/no/base' is neither a folder nor a Hub repository id"):
        EaModel.from_pretrained(base_model_path="/no/base", ea_model_path=str(tmp_path))


@pytest.mark.parametrize("flag", [True, False])
def test_use_eagle3_that_contradicts_the_checkpoint_names_both(tmp_path, flag):
    base = base_model("llama")
    save_head(random_head(base, "eagle" if flag else "eagle3"), tmp_path)
    with pytest.raises(ValueError, match=f"use_eagle3={flag}.*EAGLE-{'1/2' if flag else '3'}"):
        EaModel(flag, base, "none", str(tmp_path))


def damaged(folder, kind="eagle3", config=None, **tensors):
    """Write a random head with tensors replaced (None removes one)."""
    base = base_model("llama")
    save_head(random_head(base, kind), folder)
    state = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        name = name.replace("__", ".")
        state.pop(name) if tensor is None else state.__setitem__(name, tensor)
    save_file(state, folder / "model.safetensors")
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | (config or {})))
    return lambda: EaModel(None, base, "none", str(folder))


DAMAGE = {
    "missing": ({"midlayer__mlp__up_proj__weight": None}, r"missing \['midlayer.mlp.up_proj.weight'\]"),
    "unexpected": ({"extra__weight": torch.ones(2)}, r"unexpected \['extra.weight'\]"),
    "zero d2t": ({"d2t": torch.zeros(59, dtype=torch.int64)}, "d2t is all zero"),
    "wild d2t": ({"d2t": torch.full((59,), 60)}, "outside the target's 89 tokens"),
    "d2t against t2d": ({"t2d": torch.ones(89, dtype=torch.bool)}, "d2t and t2d disagree"),
    "nan": ({"norm__weight": torch.full((32,), float("nan"))}, "'norm.weight' holds NaN"),
    "all zero": ({"midlayer__self_attn__o_proj__weight": torch.zeros(32, 32)}, "o_proj.weight' is all zero"),
    "fc width": ({"fc__weight": torch.ones(32, 64)}, "reads 64 inputs, expected 96"),
    "lm_head rows": ({"lm_head__weight": torch.ones(60, 32)}, r"lm_head.weight: file \(60, 32\), expected \(59, 32\)"),
    "no head": (
        {"midlayer__self_attn__q_proj__weight": None},
        r"missing \['midlayer.self_attn.q_proj.weight'\]",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_head_is_refused_with_the_tensor_s_name(tmp_path, case):
    tensors, message = DAMAGE[case]
    with pytest.raises(ValueError, match=message):
        damaged(tmp_path, **tensors)()


MISFITS = {
    "vocabulary": ({"vocab_size": 90}, "the head has 90 tokens, the target 89"),
    "draft vocabulary": ({"draft_vocab_size": 120}, "draft_vocab_size=120 exceeds the target's 89"),
    "target width": ({"target_hidden_size": 64}, "hidden size 64, this one has 32"),
    "taps": ({"tap_layers": [1, 2, 9]}, r"tap_layers=\[1, 2, 9\].*7 layers"),
    "own embeddings": ({"target_hidden_size": 32, "hidden_size": 16}, "needs its own embed_tokens.weight"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_head_for_another_target_is_refused(tmp_path, case):
    config, message = MISFITS[case]
    with pytest.raises(ValueError, match=message):
        damaged(tmp_path, config=config)()


def test_missing_files_are_named(tmp_path):
    base = base_model("llama")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        EaModel(None, base, "none", str(tmp_path))
    save_head(random_head(base, "eagle"), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        EaModel(None, base, "none", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="neither a folder nor a Hub repository"):
        EaModel(None, base, "none", str(tmp_path / "nowhere"))


def test_a_base_without_a_tokenizer_says_so_on_first_use(tmp_path):
    model = ea_model(tmp_path)
    model.base_model_name_or_path = str(tmp_path)
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        model.get_tokenizer()


REFUSED = {
    "bloom": ({"hidden_size": 32, "n_layer": 2, "n_head": 4}, "takes no position_ids"),
    "mpt": ({"d_model": 32, "n_layers": 2, "n_heads": 4}, "takes no position_ids"),
    "falcon": (
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True},
        "uses ALiBi",
    ),
    "mamba": ({"hidden_size": 32, "num_hidden_layers": 2}, "position_ids"),
    "qwen3_next": (
        {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 64, "num_experts": 2},
        "linear_attention",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_target_whose_tree_cannot_be_verified_is_refused_by_property(name):
    fields, message = REFUSED[name]
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **fields))
    with pytest.raises(NotImplementedError, match=message):
        TargetModel(base)


def test_an_attention_kernel_that_misreads_masks_is_refused(tmp_path):
    with pytest.raises(ValueError, match="attn_implementation='flash_attention_2'"):
        base = base_model("llama")
        save_head(random_head(base, "eagle"), tmp_path)
        base.save_pretrained(tmp_path / "base")
        EaModel.from_pretrained(
            base_model_path=tmp_path / "base", ea_model_path=tmp_path, attn_implementation="flash_attention_2"
        )


def test_prompts_fixture_pads_left():
    ids, mask = prompts(base_model("llama"), 3)
    assert mask[1].tolist() == [0, 0, *[1] * 7] and ids.shape == mask.shape
