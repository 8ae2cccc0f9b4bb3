"""Quantised targets on a CPU: exact where only weights are quantised, near-ties where activations are rounded too."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from architectures import SMALL, VOCABULARY, prompts
from noise_floors import noise_floor, one_by_one
from pairs import ea_model, random_head
from references import generate_ids
from scripted import ScriptedDrafter
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

from eagle import EaModel
from eagle.model.dialects.checkpoint import save_head

QUANT = "not installed: pip install 'eagle-decoding[quant]'"
ao = pytest.importorskip("torchao.quantization", reason=f"torchao is {QUANT}")
pytest.importorskip("bitsandbytes", reason=f"bitsandbytes is {QUANT}")
NEW = 20
SAMPLING = {"temperature": 0.8, "top_k": 20, "top_p": 0.9}
# Weights are quantised, products are fp32: the tree changes nothing but the order of sums.
EXACT = {
    "torchao int8 weight-only": lambda: TorchAoConfig(ao.Int8WeightOnlyConfig()),
    "torchao int4 weight-only": lambda: TorchAoConfig(ao.IntxWeightOnlyConfig(weight_dtype=torch.int4)),
    "torchao float8 weight-only": lambda: TorchAoConfig(ao.Float8WeightOnlyConfig()),
}
# Activations are rounded too, so the last bit of an fp32 sum can become a step of int8 or bf16. LLM.int8 also takes
# outlier columns from the whole forward; a threshold of 2 gives this small model some.
ROUNDING = {
    "torchao int8 dynamic": lambda: TorchAoConfig(ao.Int8DynamicActivationInt8WeightConfig()),
    "bitsandbytes int8": lambda: BitsAndBytesConfig(load_in_8bit=True),
    "bitsandbytes int8 with outliers": lambda: BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=2.0),
    "bitsandbytes nf4": lambda: BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    ),
    "bitsandbytes nf4 twice": lambda: BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
        bnb_4bit_use_double_quant=True,
    ),
    "bitsandbytes fp4": lambda: BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="fp4", bnb_4bit_compute_dtype=torch.float32
    ),
}


def save_base(folder: Path) -> None:
    """Write a Llama wide enough for blocks of 64 weights, without an end of sequence."""
    config = AutoConfig.for_model(
        "llama", **{**SMALL, "hidden_size": 64, "intermediate_size": 128, "eos_token_id": None}
    )
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(4)
    model.save_pretrained(folder)


@cache
def quantised(scheme: str) -> Any:
    with TemporaryDirectory() as folder:
        save_base(Path(folder))
        config = {**EXACT, **ROUNDING}[scheme]()
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, device_map="cpu", quantization_config=config
        )


def weight(base: Any) -> torch.Tensor:
    return base.model.layers[0].mlp.up_proj.weight


@pytest.mark.parametrize("scheme", EXACT)
@pytest.mark.parametrize("drafter", ["random", "scripted"])
@pytest.mark.parametrize(("kind", "sampled"), [("eagle", False), ("eagle3", True)])
def test_ids_equal_generate_with_quantised_weights(tmp_path, scheme, drafter, kind, sampled):
    base = quantised(scheme)
    assert type(weight(base).data).__module__.startswith("torchao.")
    ids, mask = prompts(base, 3)
    seed, extras = (3, SAMPLING) if sampled else (None, {})
    expected = generate_ids(base, ids, mask, NEW, seed, **extras)
    model = ea_model(tmp_path, base, kind)
    if drafter == "scripted":
        model.ea_layer = ScriptedDrafter(expected, VOCABULARY, ids.shape[1], eos=())
    torch.manual_seed(3)
    assert torch.equal(model.eagenerate(ids, max_new_tokens=NEW, attention_mask=mask, **extras), expected)
    if drafter == "scripted":
        assert model.stats.acceptance_length >= 2 and model.ea_layer.noncontiguous > 0


class Unsure(ScriptedDrafter):
    """Proposes its answers on and on, even where the target took the other side of a near-tie."""

    def observe(self, state, features, tokens, counts):
        state.entries = [entries + count for entries, count in zip(state.entries, counts, strict=True)]


@pytest.mark.parametrize("scheme", ROUNDING)
def test_a_first_difference_is_a_near_tie_where_activations_are_rounded(tmp_path, scheme):
    base = quantised(scheme)
    model = ea_model(tmp_path, base)
    prompt = torch.randint(3, VOCABULARY, (3, 1, 8), generator=torch.Generator().manual_seed(0))
    plain = [generate_ids(base, ids, torch.ones_like(ids), NEW) for ids in prompt]
    assert torch.equal(model.naivegenerate(prompt[0], max_new_tokens=NEW), plain[0])
    floor = max(noise_floor(base, ids) for ids in plain)
    assert 0 < floor < 0.5
    accepted = []
    for ids, wanted in zip(prompt, plain, strict=True):
        model.ea_layer = Unsure(wanted, VOCABULARY, ids.shape[1], eos=())
        got = model.eagenerate(ids, max_new_tokens=NEW)
        assert got.shape == wanted.shape
        accepted.append(model.stats.acceptance_length)
        different = (got != wanted)[0].nonzero()
        if len(different):
            first = int(different[0])
            logits = one_by_one(base, wanted[:, :first])[-1]
            assert float((logits[got[0, first]] - logits[wanted[0, first]]).abs()) <= 2 * floor
    assert max(accepted) >= 2


@pytest.mark.parametrize("scheme", ["torchao int8 weight-only", "bitsandbytes int8", "bitsandbytes nf4"])
@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_a_head_is_not_quantised_with_its_target(tmp_path, scheme, kind):
    base = quantised(scheme)
    loaded = ea_model(tmp_path, base, kind).ea_layer.head.state_dict()
    for name, tensor in random_head(base, kind).state_dict().items():
        assert torch.equal(loaded[name], tensor) and loaded[name].dtype == tensor.dtype


@pytest.mark.parametrize(("bits", "kind"), [(8, torch.int8), (4, torch.uint8)])
def test_load_in_bits_reaches_bitsandbytes(tmp_path, bits, kind):
    save_base(tmp_path / "base")
    save_head(random_head(quantised("bitsandbytes nf4"), "eagle3"), tmp_path / "head")
    model = EaModel.from_pretrained(
        base_model_path=tmp_path / "base",
        ea_model_path=tmp_path / "head",
        torch_dtype=torch.float32,
        device_map="cpu",
        **{f"load_in_{bits}bit": True},
    )
    assert weight(model.base_model).dtype == kind
    assert all(parameter.dtype == torch.float32 for parameter in model.ea_layer.parameters())
    ids, mask = prompts(model.base_model, 1)
    assert torch.equal(model.naivegenerate(ids, max_new_tokens=9), generate_ids(model.base_model, ids, mask, 9))
    assert model.eagenerate(ids, max_new_tokens=9).shape == (1, 18)
