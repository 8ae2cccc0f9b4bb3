"""Heads of other trainers, and damaged ones: every field is honoured, refused or named, every fault said in words."""

import json
import logging
from pathlib import Path

import pytest
import torch
from architectures import base_model
from pairs import random_head
from refusals import assert_refused_in_words
from safetensors.torch import load_file, save_file

from eagle.model.configs import EConfig, tapped_layers
from eagle.model.dialects.checkpoint import load_head, read_config, save_head
from eagle.model.ea_model import EaModel

TARGET = base_model("llama").config
IDS = "eagle_aux_hidden_state_layer_ids"


def saved(folder: Path, kind: str = "eagle3", **fields) -> Path:
    save_head(random_head(base_model("llama"), kind, **fields), folder)
    return folder


def with_fields(folder: Path, *dropped: str, **fields) -> str:
    path = folder / "config.json"
    known = {name: value for name, value in json.loads(path.read_text()).items() if name not in dropped}
    path.write_text(json.dumps(known | fields))
    return str(folder)


def with_tensors(folder: Path, change) -> str:
    path = folder / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}, path)
    return str(folder)


def as_pickle(folder: Path, change=lambda state: state) -> str:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(change(state), folder / "pytorch_model.bin")
    return str(folder)


# --- fields that are honoured


@pytest.mark.parametrize(
    ("fields", "taps"),
    [
        ({"eagle_config": {IDS: [1, 2, 3]}}, (2, 3, 4)),
        ({"eagle_config": {IDS: [1, 15, 28]}}, (2, 16, 29)),
        ({"eagle_config": {IDS: [2, 16, 29]}}, (2, 16, 29)),
        ({"eagle_config": {IDS: [2, 7, 11]}}, (2, 7, 11)),
        ({IDS: [1, 3, 5]}, (1, 3, 5)),
        ({IDS: [24, 30, 32]}, (24, 30, 32)),
        ({"tap_layers": [1, 3], "eagle_config": {IDS: [1, 2, 3]}}, (1, 3)),
        ({}, (2, 16, 29)),
    ],
)
def test_layer_ids_are_read_by_the_convention_that_wrote_them(tmp_path, fields, taps):
    path = with_fields(saved(tmp_path), "tap_layers", **fields)
    assert tapped_layers(read_config(path), 32) == taps


@pytest.mark.parametrize("taps", [(7,), (2, 7), (0, 3, 5, 7), (1, 2, 3)])
def test_any_number_of_taps_and_the_last_layer_s_output_give_what_an_uncached_forward_gives(tmp_path, taps):
    base = base_model("llama")
    layers, ids, caught = base.model.layers, torch.arange(3, 12)[None], {}
    assert len(layers) == 7
    model = EaModel(None, base, "none", str(saved(tmp_path, tap_layers=list(taps))))
    handles = [
        layer.register_forward_hook(lambda m, a, out, n=n: caught.update({n + 1: out}))
        for n, layer in enumerate(layers)
    ]
    with torch.no_grad():
        caught[0] = base.model.embed_tokens(ids)
        base(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    wanted = torch.cat([caught[n][0] if isinstance(caught[n], tuple) else caught[n] for n in taps], -1)
    cache = model.target.new_cache(1, 32, [0])
    ((_, output),) = model.target.prefill(ids, None, cache, model._taps)
    torch.testing.assert_close(output.features_BNF, wanted)
    assert torch.equal(model.eagenerate(ids, max_new_tokens=12), model.naivegenerate(ids, max_new_tokens=12))


def test_norm_output_means_what_it_says_whoever_wrote_it(tmp_path, caplog):
    for architecture in ("LlamaForCausalLM", "LlamaForCausalLMEagle3"):
        for value in (True, False):
            path = with_fields(
                saved(tmp_path / f"{architecture}{value}"), architectures=[architecture], norm_output=value
            )
            assert read_config(path).norm_output is value
    assert caplog.text.count("before September 2026") == 1


def test_an_eagle3_layer_is_known_by_its_shapes_and_not_by_its_name(tmp_path):
    folder = saved(tmp_path)
    before = load_head(str(folder), TARGET).state_dict()
    path = with_tensors(folder, lambda s: {n.replace("midlayer.", "layers.0."): t for n, t in s.items()})
    after = load_head(path, TARGET)
    assert after.kind == "EAGLE-3" and all(torch.equal(after.state_dict()[name], t) for name, t in before.items())


@pytest.mark.parametrize("wrapper", ["module", "state_dict", "model"])
def test_tensors_within_the_one_dictionary_that_trainers_write_are_found(tmp_path, wrapper):
    folder = saved(tmp_path)
    before = load_head(str(folder), TARGET).state_dict()
    after = load_head(as_pickle(folder, lambda state: {wrapper: state, "step": 7}), TARGET).state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_unknown_fields_are_named(tmp_path, caplog):
    path = with_fields(saved(tmp_path), wibble=1, eagle_config={"wobble": 2})
    assert not hasattr(read_config(path), "wibble")
    assert "['wibble'] of config.json are not known" in caplog.text and "['wobble'] of eagle_config" in caplog.text


def test_a_path_a_file_in_it_and_a_path_object_are_one_head(tmp_path):
    base, folder = base_model("llama"), saved(tmp_path)
    for path in (str(folder), folder, folder / "config.json", str(folder / "config.json")):
        assert EaModel(None, base, "none", path).use_eagle3


def test_embeddings_that_are_not_the_target_s_are_named(tmp_path, caplog):
    base = base_model("llama")
    theirs = base.get_input_embeddings().weight.detach()
    for number, weight in enumerate((theirs.clone(), theirs + 0.1 * torch.randn_like(theirs) * theirs.std())):
        folder = saved(tmp_path / str(number))
        with_tensors(folder, lambda s, weight=weight: {**s, "embed_tokens.weight": weight})
        EaModel(None, base, "none", str(folder))
    assert "embed_tokens" not in caplog.text
    folder = saved(tmp_path / "random")
    with_tensors(folder, lambda s: {**s, "embed_tokens.weight": torch.randn_like(theirs)})
    EaModel(None, base, "none", str(folder))
    assert "embed_tokens are not like the target's (mean cosine" in caplog.text


# --- faults that are refused, each in words of its own


def code(folder: Path) -> str:
    class Evil:
        def __reduce__(self):
            return (Path(folder / "ran").touch, ())

    return as_pickle(folder, lambda state: {"fc.weight": Evil()})


def cut(name: str, length: int):
    def damage(folder: Path) -> str:
        path = folder / name
        path.write_bytes(path.read_bytes()[:length])
        return str(folder)

    return damage


def cast(name: str, dtype: torch.dtype):
    return lambda folder: with_tensors(folder, lambda s: {**s, name: s[name].to(dtype)})


def changed(name: str, change):
    return lambda folder: with_tensors(folder, lambda s: {**s, name: change(s[name])})


def without(name: str):
    return lambda folder: with_tensors(folder, lambda s: {n: t for n, t in s.items() if n != name})


def field(**fields):
    return lambda folder: with_fields(folder, **fields)


def two_layers(state):
    return {**state, **{n.replace("midlayer.", "layers.1."): t.clone() for n, t in state.items() if "midlayer." in n}}


FAULTS = {
    "speculators": (field(speculators_model_type="eagle3"), "transformer_layer_config=None"),
    "other speculator": (field(speculators_model_type="dflash"), "kind 'dflash' is not supported, only 'eagle3'"),
    "other layer": (
        field(speculators_model_type="eagle3", transformer_layer_config={"model_type": "gemma2"}),
        "layer of 'gemma2' is not supported",
    ),
    "vllm eagle": (field(model={"hidden_size": 32}), r"unexpected \['d2t', 'midlayer.hidden_norm.weight'"),
    "truncated": (field(model={"vocab_size": 89}, truncated_vocab_size=20), "truncated_vocab_size=20"),
    "other drafter": (field(architectures=["DFlashDraftModel"]), "drafts in another way than EAGLE"),
    "latent attention": (
        field(architectures=["Eagle3DeepseekV2ForCausalLM"]),
        "latent attention .Eagle3DeepseekV2ForCausalLM. is not supported",
    ),
    "no aux": (field(eagle_config={"use_aux_hidden_state": False}), r"unexpected \['fc.weight'\]"),
    "no aux normed": (
        lambda f: with_fields(f, use_aux_hidden_state=False, norm_before_fc=True),
        "it cannot have hidden_size=32 for a target of 32, norm_before_fc",
    ),
    "count of taps": (field(num_aux_hidden_states=4), "num_aux_hidden_states=4, and names 3 layers"),
    "windows text": (field(windows=["5"]), "windows="),
    "windows many": (field(windows=[5, 5]), "windows="),
    "no last norm": (field(eagle_config={"use_last_layernorm": False}), "use_last_layernorm=False"),
    "mtp norm": (field(use_mtp_layernorm=True), "use_mtp_layernorm=True"),
    "window": (field(layer_types=["sliding_attention"]), "sees only so far back.*in silence"),
    "window 0": (field(layer_types=["sliding_attention"], sliding_window=0), "window of at least 1"),
    "kinds": (field(layer_types=["sliding_attention"] * 2, sliding_window=8), "one kind for each"),
    "chunks": (field(layer_types=["chunked_attention"]), "sees only so far back"),
    "ids text": (field(eagle_config={IDS: "1,2,3"}), "must be a list of layers"),
    "ids floats": (field(**{IDS: [1.0, 2.0, 3.0]}), "must be a list of layers"),
    "ids none": (field(tap_layers=[]), "must be a list of layers"),
    "eagle_config text": (field(eagle_config="yes"), "must hold fields"),
    "layers": (field(num_hidden_layers=10**7), "num_hidden_layers=10000000, the file has 1"),
    "more layers": (field(num_hidden_layers=2), "num_hidden_layers=2, the file has 1"),
    "head_dim": (field(head_dim=10**12), "head_dim=1000000000000, which must be"),
    "head_dim large": (field(head_dim=10**7), "does not fit"),
    "head_dim 0": (field(head_dim=0), "head_dim=0"),
    "width text": (field(hidden_size="32"), "hidden_size='32'"),
    "width float": (field(hidden_size=32.0), "hidden_size=32.0"),
    "width list": (field(hidden_size=[32]), r"hidden_size=\[32\]"),
    "width": (field(hidden_size=48), "hidden size 48"),
    "negative": (field(intermediate_size=-4), "intermediate_size=-4"),
    "true": (field(vocab_size=True), "vocab_size=True"),
    "vocabulary": (field(vocab_size=100), "vocabulary mismatch"),
    "draft vocabulary": (field(draft_vocab_size=200), "draft_vocab_size=200 exceeds"),
    "heads": (field(num_attention_heads=5), "does not fit|config.json describes no head"),
    "eps": (field(rms_norm_eps="small"), "config.json"),
    "act": (field(hidden_act="wibble"), "config.json|wibble"),
    "rope": (field(rope_scaling={"rope_type": "wibble"}), "rope|config.json"),
    "rope text": (field(rope_scaling="linear"), "rope|config.json"),
    "rope nested": (field(rope_parameters={"full_attention": {"rope_theta": 2.0}}), "rotary embedding|kind of layer"),
    "rope nested type": (
        field(rope_parameters={"rope_type": "default", "full_attention": {"rope_theta": 2.0}}),
        "every kind of layer",
    ),
    "rope part": (field(partial_rotary_factor=0.25), "partial_rotary_factor"),
    "rope part nested": (
        field(rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5}),
        "partial_rotary_factor",
    ),
    "rope thetas": (field(rope_theta=2.0), "rope_theta twice"),
    "rope without type": (field(rope_scaling={"factor": 8.0}), "does not know"),
    "rope factor": (field(rope_scaling={"type": "linear", "factor": 0.0}), "rotary embedding"),
    "rope no factor": (field(rope_scaling={"rope_type": "yarn"}), "rotary embedding"),
    "rope text factor": (field(rope_scaling={"type": "linear", "factor": "2"}), "rotary embedding"),
    "rope llama3": (field(rope_scaling={"rope_type": "llama3", "factor": 8.0}), "rotary embedding"),
    "theta 0": (field(rope_theta=0), "rope_theta="),
    "theta text": (field(rope_theta="x"), "rope_theta="),
    "eps negative": (field(rms_norm_eps=-1.0), "rms_norm_eps=-1.0"),
    "eps large": (field(rms_norm_eps=float("inf")), "rms_norm_eps=inf"),
    "zero norm": (changed("norm.weight", torch.zeros_like), "'norm.weight' is all zero"),
    "one d2t": (
        lambda f: with_tensors(f, lambda s: {n: -torch.arange(len(t)) if n == "d2t" else t for n, t in s.items()}),
        "the same id",
    ),
    "no query": (without("midlayer.self_attn.q_proj.weight"), "missing .*q_proj"),
    "scalar fc": (changed("fc.weight", lambda t: t.sum()), "fc.weight reads"),
    "fc_norm": (field(fc_norm=True), "missing .*fc_norm.0"),
    "flag text": (field(norm_output="false"), "config.json"),
    "config cut": (cut("config.json", 20), "config.json is no JSON"),
    "config empty": (cut("config.json", 0), "config.json is no JSON"),
    "config list": (lambda f: (f / "config.json").write_text("[1]") and str(f), "holds a list"),
    "config deep": (lambda f: (f / "config.json").write_text("[" * 10**5) and str(f), "config.json is no JSON"),
    "config lost": (lambda f: (f / "config.json").unlink() or str(f), "holds none of"),
    "weights lost": (lambda f: (f / "model.safetensors").unlink() or str(f), "holds none of"),
    "weights cut": (cut("model.safetensors", 3000), "model.safetensors is damaged"),
    "header cut": (cut("model.safetensors", 30), "model.safetensors is damaged"),
    "weights empty": (cut("model.safetensors", 0), "model.safetensors is damaged"),
    "weights text": (lambda f: (f / "model.safetensors").write_text("<html>404</html>") and str(f), "is damaged"),
    "nowhere": (lambda f: str(f / "nowhere"), "neither a folder nor"),
    "nowhere object": (lambda f: f / "nowhere", "neither a folder nor"),
    "no name": (lambda f: "", "neither a folder nor|holds none"),
    "fp8": (cast("fc.weight", torch.float8_e4m3fn), "fc.weight holds float8_e4m3fn numbers.*dequantise"),
    "fp8 e5": (cast("lm_head.weight", torch.float8_e5m2), "float8_e5m2"),
    "int8": (cast("midlayer.mlp.up_proj.weight", torch.int8), "int8 numbers"),
    "bool": (cast("norm.weight", torch.bool), "norm.weight holds bool"),
    "complex": (lambda f: as_pickle(f, lambda s: {**s, "fc.weight": s["fc.weight"].to(torch.complex64)}), "complex64"),
    "sparse": (lambda f: as_pickle(f, lambda s: {**s, "fc.weight": s["fc.weight"].to_sparse()}), "sparse"),
    "float d2t": (cast("d2t", torch.float32), "d2t holds float32 numbers, it needs whole ones"),
    "float t2d": (cast("t2d", torch.float16), "t2d holds float16"),
    "zero d2t": (changed("d2t", torch.zeros_like), "never saved"),
    "far d2t": (changed("d2t", lambda t: t + 80), "outside the target's 89"),
    "negative d2t": (changed("d2t", lambda t: t - 80), "outside|disagree"),
    "other t2d": (changed("t2d", lambda t: ~t), "disagree"),
    "short d2t": (changed("d2t", lambda t: t[:-1]), "d2t: file"),
    "zero fc": (changed("fc.weight", torch.zeros_like), "'fc.weight' is all zero"),
    "zero embeddings": (
        lambda f: with_tensors(f, lambda s: {**s, "embed_tokens.weight": torch.zeros(89, 32)}),
        "'embed_tokens.weight' is all zero",
    ),
    "nan": (changed("norm.weight", lambda t: t * float("nan")), "'norm.weight' holds NaN"),
    "infinity": (changed("lm_head.weight", lambda t: t + float("inf")), "'lm_head.weight' holds NaN or inf"),
    "missing": (without("norm.weight"), r"missing \['norm.weight'\]"),
    "no fc": (without("fc.weight"), "missing 'fc.weight'"),
    "renamed": (lambda f: with_tensors(f, lambda s: {f"x.{n}": t for n, t in s.items()}), "no draft head found"),
    "more": (
        lambda f: with_tensors(f, lambda s: {**s, "extra.weight": torch.ones(2)}),
        r"unexpected \['extra.weight'\]",
    ),
    "two layers": (lambda f: with_tensors(f, two_layers), "num_hidden_layers=1, the file has 2"),
    "no d2t": (without("d2t"), r"missing \['d2t'\]"),
    "zero d2t alone": (
        lambda f: with_tensors(f, lambda s: {n: t * 0 if n == "d2t" else t for n, t in s.items() if n != "t2d"}),
        "d2t is all zero and there is no t2d: the draft vocabulary was never saved: export",
    ),
    "no lm_head": (without("lm_head.weight"), "lacks lm_head.weight for its draft vocabulary of 59 tokens"),
    "forgotten draft vocabulary": (
        lambda f: with_fields(f, "draft_vocab_size"),
        "d2t maps 59 draft tokens.*set draft_vocab_size to the rows of lm_head.weight",
    ),
    "both names": (
        lambda f: with_tensors(f, lambda s: {**s, "layers.0.hidden_norm.weight": torch.ones(32)}),
        "has both 'layers.0.hidden_norm.weight' and 'midlayer.hidden_norm.weight'",
    ),
    "smaller vocabulary": (field(vocab_size=60), "vocabulary mismatch: the head has 60 tokens, the target 89, and the"),
    "narrow fc": (changed("fc.weight", lambda t: t[:, :-1]), "fc.weight reads"),
    "flat fc": (changed("fc.weight", lambda t: t.flatten()), "fc.weight reads"),
    "square lm_head": (changed("lm_head.weight", lambda t: t[:5]), "lm_head.weight: file"),
    "expanded": (
        lambda f: as_pickle(f, lambda s: {**s, "lm_head.weight": torch.ones(1, 1).expand(1 << 16, 1 << 15)}),
        "lm_head.weight: file",
    ),
    "pickle": (code, "could run code"),
    "pickle list": (lambda f: as_pickle(f, list), "holds a list instead of tensors"),
    "pickle nested": (lambda f: as_pickle(f, lambda s: {"a": s, "b": s}), r"keys \['a', 'b'\]"),
    "pickle two": (lambda f: as_pickle(f, lambda s: {"module": s, "model": s}), "instead of tensors"),
    "pickle tensor": (lambda f: as_pickle(f, lambda s: s["fc.weight"]), "holds a Tensor"),
    "pickle empty": (lambda f: as_pickle(f, lambda s: {}), "instead of tensors"),
    "pickle numbers": (lambda f: as_pickle(f, lambda s: {"fc.weight": [1, 2]}), "instead of tensors"),
    "pickle cut": (lambda f: as_pickle(f) and cut("pytorch_model.bin", 2000)(f), "pytorch_model.bin is damaged"),
    "pickle text": (lambda f: as_pickle(f) and (f / "pytorch_model.bin").write_text("404") and str(f), "is damaged"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_foreign_or_damaged_head_is_refused_in_words(tmp_path, fault):
    damage, words = FAULTS[fault]
    path = damage(saved(tmp_path))
    assert_refused_in_words(lambda: EaModel(None, base_model("llama"), "none", path), words)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
@pytest.mark.parametrize("pickled", [False, True])
def test_exchanged_folders_are_refused_before_anything_is_loaded(tmp_path, kind, pickled):
    head, base = str(saved(tmp_path / "head", kind)), str(tmp_path / "base")
    if pickled:
        as_pickle(tmp_path / "head")
    base_model("llama").save_pretrained(base)
    for paths in ((head, base), (head, head), (base, base)):
        assert_refused_in_words(
            lambda paths=paths: EaModel.from_pretrained(base_model_path=paths[0], ea_model_path=paths[1]),
            "exchanged",
        )


def test_a_head_of_another_target_is_refused(tmp_path):
    path = str(saved(tmp_path))
    other = EConfig(hidden_size=64, vocab_size=89)
    assert_refused_in_words(lambda: load_head(path, other), "hidden size 32, this one has 64")


def test_a_quiet_load_says_nothing(tmp_path, caplog):
    caplog.set_level(logging.INFO, "eagle")
    EaModel(None, base_model("llama"), "none", str(saved(tmp_path)))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
