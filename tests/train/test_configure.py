"""Configurations of new heads: what is derived, what is refused, and that the shipped files are what is derived."""

import json
import os
from pathlib import Path

import pytest
import torch
from published_bases import BASES
from transformers import AutoConfig, GPT2Config, LlamaConfig, OPTConfig, Qwen2Config

import eagle.train.configure as configure
from eagle.model.configs import EConfig, tapped_layers
from eagle.model.dialects.checkpoint import head_config_from
from eagle.model.head import Eagle3Head, EagleHead
from eagle.train.configure import as_published, head_config, main

CONFIGS = Path(configure.__file__).parent / "configs"
READY = [(base, kind) for base in BASES for kind in base.kinds]
SMALL = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
SMALL |= {"vocab_size": 100, "num_hidden_layers": 8, "bos_token_id": 1, "eos_token_id": 2}


def small(theta: float = 5e5, **fields) -> LlamaConfig:
    return LlamaConfig(**{**SMALL, "rope_parameters": {"rope_type": "default", "rope_theta": theta}, **fields})


def theta_of(config: EConfig) -> float:
    return config.rope_parameters["rope_theta"]


def head_on_meta(kind: str, config: EConfig):
    with torch.device("meta"):
        return EagleHead(config) if kind == "eagle" else Eagle3Head(config)


@pytest.mark.parametrize(("base", "kind"), READY, ids=[f"{base.name}_{kind}" for base, kind in READY])
def test_every_shipped_file_is_what_its_base_gives_and_fits_it(base, kind):
    path, target = CONFIGS / f"{base.name}_{kind}.json", base.config()
    config = head_config(kind, target, **base.fields.get(kind, {}))
    if os.environ.get("WRITE_CONFIGS"):
        path.write_text(json.dumps(as_published(kind, config), indent=2) + "\n", encoding="utf-8")
    fields = json.loads(path.read_text(encoding="utf-8"))
    assert fields == json.loads(json.dumps(as_published(kind, config)))
    read = EConfig(**fields)
    assert as_published(kind, read) == fields and as_published(kind, head_config_from(fields, str(path))) == fields
    shapes = {name: tuple(weight.shape) for name, weight in head_on_meta(kind, read).named_parameters()}
    layer = "layers.0" if kind == "eagle" else "midlayer"
    heads, head_dim = target.num_attention_heads, getattr(target, "head_dim", None) or base.hidden // base.heads
    assert shapes[f"{layer}.self_attn.o_proj.weight"] == (base.hidden, heads * head_dim)
    kv_heads = base.fields.get(kind, {}).get("num_key_value_heads", base.kv_heads)
    reads = base.hidden * (1 if kind == "eagle" else 2)
    assert shapes[f"{layer}.self_attn.k_proj.weight"] == (kv_heads * head_dim, reads)
    assert shapes[f"{layer}.mlp.gate_proj.weight"] == (base.width, base.hidden)
    assert shapes["fc.weight"] == (base.hidden, base.hidden * (2 if kind == "eagle" else 3))
    assert ("fc.bias" in shapes) == (kind == "eagle" and "llama_3" not in base.name)
    assert (f"{layer}.self_attn.q_proj.bias" in shapes) == (base.model_type == "qwen2" and kind == "eagle")
    if kind == "eagle3":
        assert shapes["lm_head.weight"] == (32000, base.hidden) and tapped_layers(read, base.layers)


def test_no_shipped_file_is_without_its_base():
    assert sorted(path.stem for path in CONFIGS.iterdir()) == sorted(f"{base.name}_{kind}" for base, kind in READY)


def test_the_rotary_base_is_the_target_s_for_eagle_and_the_default_for_eagle3():
    assert theta_of(head_config("eagle", small())) == 5e5
    assert theta_of(head_config("eagle3", small())) == 1e4
    assert theta_of(head_config("eagle3", small(), rope_theta=5e5)) == 5e5
    scaled = small(rope_parameters={"rope_type": "linear", "rope_theta": 3e4, "factor": 4.0})
    assert head_config("eagle", scaled).rope_parameters == {"rope_type": "default", "rope_theta": 3e4}
    gemma = AutoConfig.for_model("gemma3_text")
    assert theta_of(head_config("eagle", gemma)) == gemma.rope_parameters["full_attention"]["rope_theta"]


def test_bases_without_llama_s_fields_have_heads_too():
    config = head_config("eagle", GPT2Config(n_embd=48, n_head=4, n_positions=128, vocab_size=90))
    assert (config.hidden_size, config.intermediate_size, config.head_dim) == (48, 192, 12)
    assert (config.num_key_value_heads, config.rms_norm_eps, theta_of(config)) == (4, 1e-6, 1e4)
    assert config.max_position_embeddings == 128 and config.num_hidden_layers == 1
    assert (
        head_config("eagle", Qwen2Config(**SMALL)).qkv_bias and not head_config("eagle3", Qwen2Config(**SMALL)).qkv_bias
    )


def test_the_width_and_biases_of_a_base_are_found_by_whatever_name_it_has_them():
    assert head_config("eagle", GPT2Config(n_embd=48, n_head=4, n_inner=100)).intermediate_size == 100
    assert head_config("eagle", OPTConfig(hidden_size=48, num_attention_heads=4, ffn_dim=70)).intermediate_size == 70
    widths = AutoConfig.for_model("gemma3n_text", num_hidden_layers=2, intermediate_size=[96, 64])
    assert head_config("eagle", widths).intermediate_size == 96
    assert head_config("eagle", AutoConfig.for_model("qwen2_moe")).qkv_bias


def test_the_target_s_own_width_and_vocabulary_may_be_named():
    for kind in ("eagle", "eagle3"):
        assert head_config(kind, small(), hidden_size=64).target_hidden_size is None
    assert head_config("eagle3", small(), 100).draft_vocab_size == 100


def test_the_text_part_of_a_base_that_reads_more_counts():
    base = AutoConfig.for_model("gemma3", text_config={**SMALL, "head_dim": 32}, vision_config={"hidden_size": 24})
    config = head_config("eagle3", base)
    assert (config.hidden_size, config.head_dim, config.vocab_size) == (64, 32, 100)


def test_a_narrow_head_knows_its_target_s_width():
    config = head_config("eagle3", small(), 40, hidden_size=32, fc_norm=True)
    shapes = {name: tuple(weight.shape) for name, weight in head_on_meta("eagle3", config).named_parameters()}
    assert (
        shapes["fc.weight"] == (32, 3 * 64)
        and shapes["lm_head.weight"] == (40, 32)
        and shapes["fc_norm.2.weight"] == (64,)
    )
    assert as_published("eagle3", config).items() >= {"target_hidden_size": 64, "fc_norm": True}.items()


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        ("eagle2", {}, "kind='eagle2' must be one of eagle, eagle3"),
        ("eagle", {"draft_vocab_size": 50}, "draft_vocab_size: of EAGLE-3 heads alone, kind='eagle'"),
        ("eagle", {"fc_norm": True, "hidden_size": 32}, "fc_norm, target_hidden_size: of EAGLE-3 heads alone"),
        ("eagle3", {"draft_vocab_size": 101}, "draft_vocab_size=101 must be at least 1 and at most 100"),
        ("eagle3", {"draft_vocab_size": 0}, "draft_vocab_size=0 must be at least 1 and at most 100"),
        ("eagle3", {"intermediate_size": 0}, "intermediate_size=0 must be at least 1"),
        ("eagle3", {"fc_norms": True}, "a head's configuration has no fc_norms"),
    ],
)
def test_what_a_head_cannot_be_is_refused(kind, fields, words):
    with pytest.raises(ValueError, match=f"^{words}"):
        head_config(kind, small(), **fields)


def test_the_command_writes_what_a_head_is_made_of(tmp_path, capsys):
    small().save_pretrained(tmp_path / "base")
    out, base = tmp_path / "new" / "config.json", str(tmp_path / "base")
    flags = ["--draft-vocab-size", "40", "--norm-before-fc", "--norm-output", "--tap-layers", "1", "3", "6"]
    assert main(["--basepath", base, "--kind", "eagle3", "--out", str(out), *flags]) == 0
    assert capsys.readouterr().out == f"{out}: eagle3 head of width 64 for {base}, drafts 40 tokens\n"
    config = EConfig(**json.loads(out.read_text()))
    assert config.norm_before_fc and config.norm_output and not config.fc_norm and config.tap_layers == [1, 3, 6]
    assert main(["--basepath", base, "--out", str(out), "--no-bias", "--rope-theta", "7"]) == 0
    config = EConfig(**json.loads(out.read_text()))
    assert not config.bias and theta_of(config) == 7 and config.draft_vocab_size is None


def test_the_command_refuses_before_it_writes(tmp_path, capsys):
    small(num_hidden_layers=6).save_pretrained(tmp_path / "base")
    out = tmp_path / "config.json"
    for base, flags, words in (
        (tmp_path / "nothing", [], "nothing holds no config.json"),
        (tmp_path / "base", ["--kind", "eagle3"], "needs at least 7"),
        (tmp_path / "base", ["--kind", "eagle3", "--tap-layers", "1", "2", "7"], "a target with 6 layers"),
        (tmp_path / "base", ["--fc-norm"], "fc_norm: of EAGLE-3 heads alone"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["--basepath", str(base), "--out", str(out), *flags])
        assert stopped.value.code == 2 and words in capsys.readouterr().err
    assert not out.exists()
    assert (
        main(
            ["--basepath", str(tmp_path / "base"), "--kind", "eagle3", "--tap-layers", "1", "2", "5", "--out", str(out)]
        )
        == 0
    )
