"""In half precision a first difference from plain decoding is a near-tie, by the model's own measured noise floor."""

import math

import pytest
import torch
from architectures import SMALL
from noise_floors import noise_floor, one_by_one
from pairs import ea_model
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2"])
def test_a_first_difference_is_a_near_tie(tmp_path, name, dtype):
    config = AutoConfig.for_model(name, **{**SMALL, "eos_token_id": None})
    differing = compared = 0
    for seed in range(8):
        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
        model = ea_model(tmp_path, base, total_token=20, depth=4, top_k=5)
        prompt = torch.randint(3, 80, (1, 8))
        drafted = model.eagenerate(prompt, max_new_tokens=40)[0]
        plain = model.naivegenerate(prompt, max_new_tokens=40)[0]
        assert model.stats.steps == 39
        different = (drafted != plain).nonzero()
        compared += 1
        if len(different):
            first = int(different[0])
            logits = one_by_one(base, plain[None, :first])[-1]
            floor = noise_floor(base, plain[None])
            assert 0 < floor < 1
            assert float((logits[drafted[first]] - logits[plain[first]]).abs()) <= 2 * floor
            differing += 1
    assert compared == 8 and differing <= compared


@pytest.mark.contract
@pytest.mark.parametrize("base", [10000.0, 500.0])
def test_contract_rotary_embedding_rotates_halves_by_the_configured_base(tmp_path, base):
    rope = {"rope_type": "default", "rope_theta": base}
    head = ea_model(tmp_path, "llama", head_fields={"rope_parameters": rope}).ea_layer.head
    size, position = head.config.head_dim, 37
    vector = torch.randn(1, 1, 1, size, generator=torch.Generator().manual_seed(0))
    cos, sin = head.rotary_emb(vector, torch.tensor([[position]]))
    got, _ = apply_rotary_pos_emb(vector, vector, cos, sin)
    for i in range(size // 2):
        a, b = vector[0, 0, 0, i].item(), vector[0, 0, 0, i + size // 2].item()
        angle = position * base ** (-2 * i / size)
        assert got[0, 0, 0, i].item() == pytest.approx(a * math.cos(angle) - b * math.sin(angle), abs=1e-5)
        assert got[0, 0, 0, i + size // 2].item() == pytest.approx(b * math.cos(angle) + a * math.sin(angle), abs=1e-5)


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_rotary_frequencies_stay_exact_in_any_dtype(tmp_path, kind):
    model = ea_model(tmp_path, "llama", kind)
    exact = model.ea_layer.head.rotary_emb.inv_freq.clone()
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        head = model.ea_layer.head.to(dtype)
        assert head.dtype == dtype and torch.equal(head.rotary_emb.inv_freq, exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_and_samples_are_computed_in_fp32(tmp_path, dtype):
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SMALL), dtype=dtype).eval()
    model = ea_model(tmp_path, base)
    assert model.ea_layer.head.dtype == dtype
    scores, _ = model.ea_layer._children(torch.randn(1, 1, 32, dtype=dtype), 4)
    assert scores.dtype == torch.float32
