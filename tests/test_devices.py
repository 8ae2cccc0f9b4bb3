"""A base spread over several places by accelerate: ids and drafted trees stay the same."""

import pytest
import torch
from architectures import base_model, prompts
from pairs import random_head
from references import generate_ids
from test_drafted_trees import check_every_step, generation

from eagle import EaModel
from eagle.model.checkpoint import save_head


def device_map(base, split: int, elsewhere: str) -> dict[str, str]:
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    for index in range(len(base.model.layers)):
        places[f"model.layers.{index}"] = "cpu" if index < split else elsewhere
    return places


def spread(tmp_path, kind, places):
    base = base_model("llama")
    base.save_pretrained(tmp_path / "base")
    save_head(random_head(base, kind), tmp_path / kind)
    return EaModel.from_pretrained(
        base_model_path=tmp_path / "base",
        ea_model_path=tmp_path / kind,
        total_token=10,
        depth=3,
        top_k=3,
        device_map=places,
        offload_folder=tmp_path / "offload",
        torch_dtype=torch.float32,
    )


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_layers_offloaded_to_disk_change_nothing(tmp_path, kind):
    base = base_model("llama")
    ids, mask = prompts(base, 3)
    model = spread(tmp_path, kind, device_map(base, 4, "disk"))
    assert any(parameter.device.type == "meta" for parameter in model.base_model.parameters())
    assert torch.equal(model.eagenerate(ids, max_new_tokens=12, attention_mask=mask), generate_ids(base, ids, mask, 12))
    assert check_every_step(model, generation(model, ids, mask, new=8), ids, mask) >= 3


@pytest.mark.skipif(torch.cuda.device_count() < 1, reason="needs a second device")
@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_layers_on_two_devices_change_nothing(tmp_path, kind):
    base = base_model("llama")
    ids, mask = prompts(base, 1)
    model = spread(tmp_path, kind, device_map(base, 4, "cuda:0"))
    assert torch.equal(model.eagenerate(ids, max_new_tokens=12).cpu(), generate_ids(base, ids, mask, 12))


def test_a_whole_model_device_map_works(tmp_path):
    base = base_model("llama")
    ids, mask = prompts(base, 1)
    model = spread(tmp_path, "eagle3", {"": "cpu"})
    assert torch.equal(model.eagenerate(ids, max_new_tokens=12), generate_ids(base, ids, mask, 12))
