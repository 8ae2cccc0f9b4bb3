"""What is read of a model from outside: its list of decoder layers, whatever other lists it has."""

import copy

import pytest
import torch
from architectures import ARCHITECTURES, SMALL, VOCABULARY, base_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from verdicts import assert_exact

from eagle.model.support.properties import decoder
from eagle.model.target import TargetModel

LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
EXPERTS = {"moe_topk": 2, "n_routed_experts": 4, "zero_expert_num": 2, "expert_ffn_hidden_size": 24}


def longcat(layers):
    """Return a model whose every layer attends twice, so that its layers are half as many as its caches."""
    fields = {
        name: value
        for name, value in SMALL.items()
        if name not in ("num_hidden_layers", "num_key_value_heads", "intermediate_size")
    }
    fields |= {"num_layers": layers, "ffn_hidden_size": 48, "head_dim": 8, "qk_head_dim": 16, **LATENT, **EXPERTS}
    torch.manual_seed(5)
    config = AutoConfig.for_model("longcat_flash", **{**fields, "vocab_size": VOCABULARY})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim >= 2:
                weight.normal_(0.0, 1.5 / weight.shape[-1] ** 0.5)
    return model


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_two_attentions_in_a_layer_are_not_taken_for_two_layers(tmp_path, layers):
    base = longcat(layers)
    target = TargetModel(base)
    assert target.layers is base.model.layers and len(target.layers) == layers and target.cached_layers == 2 * layers
    assert_exact(base, tmp_path, "greedy", 1)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_list_inside_a_layer_is_never_taken_for_the_list_of_layers(name):
    base = copy.deepcopy(base_model(name))
    layers = decoder(base).layers
    for layer in layers:
        layer.first = nn.ModuleList(nn.Linear(2, 2) for _ in layers)
        layer.deep = nn.Sequential(nn.ModuleDict({"parts": nn.ModuleList(nn.Linear(2, 2) for _ in layers)}))
    assert decoder(base).layers is layers
    base.config.num_hidden_layers = len(layers) + 1
    for layer in layers:
        layer.first.append(nn.Linear(2, 2))
    with pytest.raises(NotImplementedError, match="has no list of 8 decoder layers"):
        decoder(base)
