"""The same head in every dialect, from tables of what each trainer writes, is the same head here.

Tables were read from the packages: speculators 0.9.0 (models/eagle3/core.py, line 32: what is ignored and kept),
nvidia-modelopt 0.47.0 (torch/export/plugins/hf_spec_export.py, lines 52 and 209), specforge 0.2.0 (export/to_sglang.py,
line 37), angelslim 0.5.0 (compressor/speculative/train/models/draft/llama_eagle3.py, line 520), sglang 0.5.14
(srt/models/llama_eagle3.py, line 299: older names of norms). `make interop` runs the packages themselves.
"""

import json
from pathlib import Path

import pytest
import torch
from architectures import base_model
from pairs import random_head
from refusals import assert_refused_in_words
from safetensors.torch import load_file, save_file

from eagle.model.dialects.checkpoint import build_head, describe, load_head, save_head
from eagle.model.dialects.known import DIALECTS
from eagle.model.ea_model import EaModel

BASE = base_model("llama")
TARGET = BASE.config
IDS = "eagle_aux_hidden_state_layer_ids"
LAYER = {
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 89,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
}
TINY = {**LAYER, "draft_vocab_size": 59}
OPTIMIZER = {
    IDS: [1, 2, 3],
    "use_aux_hidden_state": True,
    "use_input_layernorm_in_first_layer": True,
    "use_last_layernorm": True,
    "use_mtp_layernorm": False,
    "next_layer_regular": True,
    "parallel_draft_step": 1,
    "parallel_draft_heads_num_layers": 1,
}


def as_layers(state):
    return {name.replace("midlayer.", "layers.0."): tensor for name, tensor in state.items()}


def with_embeddings(state):
    return {**state, "embed_tokens.weight": BASE.get_input_embeddings().weight.detach().clone()}


def without(state, *names):
    return {name: tensor for name, tensor in state.items() if name not in names}


# Dialect -> fields of its config.json, and what it makes of a head's tensors.
WRITTEN = {
    "SafeAILab": ({**TINY, "architectures": ["LlamaForCausalLM"]}, lambda state: state),
    "SpecForge": (
        {**TINY, "architectures": ["LlamaForCausalLMEagle3"], "eagle_config": {IDS: [1, 2, 3]}, "norm_output": False},
        with_embeddings,
    ),
    "AngelSlim": (
        {**TINY, "architectures": ["Eagle3LlamaForCausalLM"], "target_model_type": "llama"},
        with_embeddings,
    ),
    "Model-Optimizer": (
        {**TINY, "architectures": ["LlamaForCausalLMEagle3"], "eagle_config": OPTIMIZER, "mlp_bias": None},
        lambda state: without(as_layers(state), "t2d"),
    ),
    "speculators": (
        {
            "architectures": ["Eagle3DraftModel"],
            "speculators_model_type": "eagle3",
            "speculators_version": "0.9.0",
            "draft_vocab_size": 59,
            "norm_before_residual": False,
            IDS: [2, 3, 4],
            "transformer_layer_config": {**without(LAYER, "hidden_act"), "model_type": "llama"},
            "speculators_config": {"algorithm": "eagle3", "verifier": {"name_or_path": "x", "architectures": []}},
        },
        lambda state: with_embeddings({**as_layers(state), "verifier_norm.weight": torch.ones(32)}),
    ),
}


def put(folder: Path, fields: dict, state: dict) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
    return str(folder)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_head_is_the_same_in_every_dialect(tmp_path, name):
    head, (fields, change) = random_head(BASE, "eagle3"), WRITTEN[name]
    path = put(tmp_path, fields, change(head.state_dict()))
    described, found = describe(path), load_head(path, TARGET)
    assert described.dialect.name == name and described.version == ("0.9.0" if name == "speculators" else "")
    wanted, got = head.state_dict(), found.state_dict()
    assert set(got) - set(wanted) <= {"embed_tokens.weight"}
    assert all(torch.equal(got[key], tensor) for key, tensor in wanted.items())
    assert found.taps(7) == (2, 3, 4)
    before, after = head.config.to_dict(), found.config.to_dict()
    differing = {key for key in before | after if before.get(key) != after.get(key)}
    assert differing <= {"dtype", "architectures", "tap_layers", "initializer_range", "max_position_embeddings"} | {
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "tie_word_embeddings",
    }


@pytest.mark.parametrize("bias", [True, False])
def test_vllm_s_first_eagle_layout_is_an_eagle_head(tmp_path, bias):
    head = random_head(BASE, "eagle", bias=bias)
    inner = {**LAYER, "model_type": "llama", **({"eagle_fc_bias": True} if bias else {})}
    state = {**with_embeddings(head.state_dict()), "lm_head.weight": torch.randn(89, 32)}
    path = put(tmp_path, {"model_type": "eagle", "architectures": ["EAGLEModel"], "model": inner}, state)
    found = load_head(path, TARGET)
    assert describe(path).dialect.name == "vLLM EAGLE-1" and found.kind == "EAGLE-1/2"
    assert all(torch.equal(found.state_dict()[key], tensor) for key, tensor in head.state_dict().items())


def test_a_qwen3_layer_of_speculators_has_q_and_k_norms(tmp_path):
    head = random_head(BASE, "eagle3", qk_norm=True)
    fields, change = WRITTEN["speculators"]
    fields = {**fields, "transformer_layer_config": {**LAYER, "model_type": "qwen3"}}
    found = load_head(put(tmp_path, fields, change(head.state_dict())), TARGET)
    assert torch.equal(found.midlayer.self_attn.q_norm.weight, head.midlayer.self_attn.q_norm.weight)


def test_norms_under_sglang_s_older_names_are_those_of_the_taps(tmp_path):
    head, (fields, _) = random_head(BASE, "eagle3", fc_norm=True), WRITTEN["SpecForge"]
    names = {f"fc_norm.{n}.weight": f"aux_norm_{name}.weight" for n, name in enumerate(("low", "mid", "high"))}
    state = {names.get(key, key): tensor for key, tensor in head.state_dict().items()}
    found = load_head(put(tmp_path, {**fields, "use_aux_norm": True}, state), TARGET)
    assert all(torch.equal(found.fc_norm[n].weight, head.fc_norm[n].weight) for n in range(3))


def test_a_sliding_window_is_read_of_its_layer(tmp_path):
    head, (fields, change) = random_head(BASE, "eagle3"), WRITTEN["speculators"]
    layer = {**fields["transformer_layer_config"], "layer_types": ["sliding_attention"], "sliding_window": 5}
    path = put(tmp_path, {**fields, "transformer_layer_config": layer}, change(head.state_dict()))
    assert load_head(path, TARGET).config.windows == [5]


def test_a_speculators_file_that_is_silent_on_its_residual_says_what_it_is_taken_for(tmp_path, caplog):
    fields, change = WRITTEN["speculators"]
    path = put(tmp_path, without(fields, "norm_before_residual"), change(random_head(BASE, "eagle3").state_dict()))
    assert not describe(path).config.norm_before_residual
    assert "does not say norm_before_residual: read as false, while vLLM takes it for true" in caplog.text


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_a_tensor_that_no_table_has_is_refused_by_name(tmp_path, dialect):
    head = random_head(BASE, "eagle3")
    state = {**head.state_dict(), "surprise.weight": torch.ones(2)}
    if dialect.name == "vLLM EAGLE-1":
        state = {**random_head(BASE, "eagle").state_dict(), "surprise.weight": torch.ones(2)}
    elif dialect.name in ("Model-Optimizer", "speculators"):
        state = as_layers(state)
    assert_refused_in_words(
        lambda: build_head(head.config, state, TARGET, dialect=dialect),
        r"unexpected \['surprise.weight'\], which heads of",
    )


VARIANTS = {
    "fc bias": ("eagle", {"bias": False}),
    "qkv bias": ("eagle3", {"qkv_bias": True}),
    "narrow draft vocabulary": ("eagle3", {"draft_vocab_size": 20}),
    "head_dim": ("eagle3", {"head_dim": 16}),
    "norm_before_residual": ("eagle3", {"norm_before_residual": True}),
    "norm_before_fc": ("eagle3", {"norm_before_fc": True}),
    "fc_norm": ("eagle3", {"fc_norm": True}),
    "norm_output": ("eagle3", {"norm_output": True}),
    "two layers": ("eagle3", {"num_hidden_layers": 2}),
    "q and k norms": ("eagle3", {"qk_norm": True}),
    "window": ("eagle3", {"windows": [2]}),
    "taps": ("eagle3", {"tap_layers": [1, 3, 5]}),
    "rotary base": ("eagle3", {"rope_parameters": {"rope_type": "default", "rope_theta": 3.0}}),
    "rotary kind": ("eagle3", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}),
}


def candidates(folder: Path, kind: str, **fields) -> torch.Tensor:
    """Return the scores of a first draft, of a head whose tensors that both have are the plain one's."""
    plain, head = random_head(BASE, kind), random_head(BASE, kind, **fields)
    common = {
        n: t for n, t in plain.state_dict().items() if n in head.state_dict() and t.shape == head.state_dict()[n].shape
    }
    head.load_state_dict({**head.state_dict(), **without(common, "d2t", "t2d")})
    save_head(head, folder)
    model = EaModel(None, BASE, "none", str(folder), total_token=8, depth=2, top_k=2)
    model.eagenerate(torch.arange(3, 15)[None], max_new_tokens=2)
    state = model.ea_layer.start(1, 40, [0])
    features = torch.linspace(-1, 1, 12 * 32 * (3 if kind == "eagle3" else 1)).view(1, 12, -1).sin()
    model.ea_layer.observe(state, features, torch.arange(3, 15)[None], [12])
    model.ea_layer.draft(state, torch.tensor([14]))
    return state.candidates.scores_BM


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_changes_what_is_drafted(tmp_path, variant):
    kind, fields = VARIANTS[variant]
    plain, changed = candidates(tmp_path / "plain", kind), candidates(tmp_path / "changed", kind, **fields)
    if variant == "taps":  # other layers of the target, the same arithmetic
        assert torch.equal(plain, changed)
        return
    assert not torch.allclose(plain, changed, atol=1e-4)


# --- vocabularies, files, names


def padded(folder: Path, kind: str, size: int, embeddings: bool = True, **fields) -> str:
    head = random_head(BASE, kind, vocab_size=size, **fields)
    state = head.state_dict()
    if embeddings:
        theirs = BASE.get_input_embeddings().weight.detach()
        state["embed_tokens.weight"] = torch.cat([theirs, torch.randn(20, 32)])[:size].clone()
    return put(folder, {**head.config.to_diff_dict(), "model_type": "llama"}, state)


@pytest.mark.parametrize("size", [80, 96])
@pytest.mark.parametrize(("kind", "fields"), [("eagle", {}), ("eagle3", {}), ("eagle3", {"draft_vocab_size": None})])
def test_vocabularies_that_are_padded_differently_share_what_both_have(tmp_path, caplog, size, kind, fields):
    fields = {"draft_vocab_size": 40, **fields} if kind == "eagle3" else {}
    path = padded(tmp_path, kind, size, **fields)
    if kind == "eagle3" and fields["draft_vocab_size"]:
        state = load_file(tmp_path / "model.safetensors")
        state["d2t"], state["t2d"] = torch.full((40,), 3), (torch.arange(size) >= 3) & (torch.arange(size) < 43)
        save_file(state, tmp_path / "model.safetensors")
    model = EaModel(None, BASE, "none", path)
    assert "what both have is used" in caplog.text
    own = model.ea_layer.head.embed_tokens.weight
    assert torch.equal(own[: min(size, 89)], BASE.get_input_embeddings().weight[: min(size, 89)]) and len(own) == 89
    assert model.ea_layer.head.draft_size == (40 if fields.get("draft_vocab_size") else min(size, 89) if fields else 89)
    ids = torch.arange(3, 12)[None]
    assert torch.equal(model.eagenerate(ids, max_new_tokens=8), model.naivegenerate(ids, max_new_tokens=8))


def test_vocabularies_that_cannot_be_compared_or_differ_are_refused(tmp_path):
    path = padded(tmp_path / "none", "eagle", 96, embeddings=False)
    assert_refused_in_words(
        lambda: EaModel(None, BASE, "none", path), "no embeddings to tell padding from other tokens"
    )
    path = padded(tmp_path / "other", "eagle", 96)
    state = load_file(tmp_path / "other" / "model.safetensors")
    save_file({**state, "embed_tokens.weight": torch.randn(96, 32)}, tmp_path / "other" / "model.safetensors")
    assert_refused_in_words(lambda: EaModel(None, BASE, "none", path), r"their embed_tokens differ \(mean cosine")


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_head_in_several_files_is_read_whole_and_a_lost_one_is_named(tmp_path, kind):
    head = random_head(BASE, "eagle3")
    save_head(head, tmp_path)
    state, ending = load_file(tmp_path / "model.safetensors"), "safetensors" if kind == "safetensors" else "bin"
    (tmp_path / "model.safetensors").unlink()
    stem = "model" if kind == "safetensors" else "pytorch_model"
    parts = {
        f"{stem}-0000{n + 1}-of-00002.{ending}": names for n, names in enumerate((sorted(state)[:6], sorted(state)[6:]))
    }
    for name, names in parts.items():
        some = {each: state[each] for each in names}
        save_file(some, tmp_path / name) if kind == "safetensors" else torch.save(some, tmp_path / name)
    index = {"weight_map": {each: name for name, names in parts.items() for each in names}}
    (tmp_path / f"{stem}.{ending}.index.json").write_text(json.dumps(index))
    found = load_head(str(tmp_path), TARGET).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in head.state_dict().items())
    first, _ = parts
    lost = torch.load(tmp_path / first) if kind == "bin" else load_file(tmp_path / first)
    (tmp_path / first).unlink()
    assert_refused_in_words(lambda: load_head(str(tmp_path), TARGET), f"holds none of .*{first}")
    lost.popitem()
    save_file(lost, tmp_path / first) if kind == "safetensors" else torch.save(lost, tmp_path / first)
    assert_refused_in_words(lambda: load_head(str(tmp_path), TARGET), "disagree about the tensors")
    index["weight_map"]["fc.weight"] = "../elsewhere.safetensors"
    (tmp_path / f"{stem}.{ending}.index.json").write_text(json.dumps(index))
    assert_refused_in_words(lambda: load_head(str(tmp_path), TARGET), "names no files of tensors")


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model.", "draft_model."])
def test_what_a_wrapper_puts_before_every_name_is_left_away(prefix):
    head = random_head(BASE, "eagle3")
    state = {prefix + name: tensor for name, tensor in head.state_dict().items()}
    found = build_head(head.config, state, TARGET).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in head.state_dict().items())


@pytest.mark.parametrize("taps", [[3, 4, 5], (1, 2, 3), [0, 4, 7]])
def test_the_caller_s_layers_come_before_the_configuration_s(tmp_path, taps):
    save_head(random_head(BASE, "eagle3", tap_layers=[2, 3, 4]), tmp_path)
    assert EaModel(None, BASE, "none", str(tmp_path), capture_layers=taps)._taps == tuple(taps)


WRONG_LAYERS = {
    "text": ("1,2,3", "must be a list of layers"),
    "none": ([], "must be a list of layers"),
    "beyond": ([2, 3, 8], "8.*do not name rising layers"),
    "falling": ([4, 3, 2], "do not name rising layers"),
    "too many": ([1, 2, 3, 4], "expected 128.*as many layers as it reads"),
}


@pytest.mark.parametrize("fault", WRONG_LAYERS)
def test_layers_that_cannot_be_are_refused(tmp_path, fault):
    layers, words = WRONG_LAYERS[fault]
    save_head(random_head(BASE, "eagle3"), tmp_path)
    assert_refused_in_words(lambda: EaModel(None, BASE, "none", str(tmp_path), capture_layers=layers), words)


@pytest.mark.parametrize(("kind", "fields"), [("eagle", {}), ("eagle3", {"use_aux_hidden_state": False})])
def test_layers_of_a_head_that_reads_the_last_state_are_refused(tmp_path, kind, fields):
    save_head(random_head(BASE, kind, **fields), tmp_path)
    assert_refused_in_words(
        lambda: EaModel(None, BASE, "none", str(tmp_path), capture_layers=[2, 3, 4]), "reads the last hidden state"
    )


def test_a_head_of_another_width_without_its_own_output_is_refused():
    head = random_head(BASE, "eagle3", hidden_size=16, target_hidden_size=32, own_output=False, draft_vocab_size=None)
    state = {**head.state_dict(), "embed_tokens.weight": torch.randn(89, 16)}
    assert_refused_in_words(
        lambda: build_head(head.config, state, TARGET), "the target's does not fit its hidden_size=16"
    )
