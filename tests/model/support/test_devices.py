"""A base spread over several places by accelerate: ids and drafted trees stay the same."""

import copy

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from architectures import VOCABULARY, base_model, prompts
from drafted import check_every_step, generation
from pairs import ea_model, random_head
from references import generate_ids
from scripted import ScriptedDrafter

from eagle import EaModel
from eagle.model.dialects.checkpoint import save_head


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


SAMPLING = {"temperature": 0.8, "top_k": 20, "top_p": 0.9}
# Ways of accelerate to keep weights elsewhere than where they are used: of a whole model, or of some layers.
OFFLOADED = {
    "cpu_offload": lambda base, folder: cpu_offload(base, "cpu"),
    "disk_offload": lambda base, folder: disk_offload(base, str(folder), "cpu"),
    "dispatch_model": lambda base, folder: dispatch_model(
        base, device_map(base, 2, "disk"), main_device="cpu", offload_dir=str(folder)
    ),
}


def offloaded(way, folder, name="llama"):
    """Return a copy of a base whose weights accelerate loads for each use; the copy's own are on meta."""
    base = OFFLOADED[way](copy.deepcopy(base_model(name)), folder / "offload")
    assert any(parameter.device.type == "meta" for parameter in base.parameters())
    return base


@pytest.mark.parametrize("way", OFFLOADED)
@pytest.mark.parametrize(("kind", "drafter", "sampled"), [("eagle", "scripted", True), ("eagle3", "random", False)])
def test_a_base_passed_in_offloaded_changes_nothing(tmp_path, way, kind, drafter, sampled):
    plain = base_model("llama")
    ids, mask = prompts(plain, 3)
    seed, extras = (3, SAMPLING) if sampled else (None, {})
    expected = generate_ids(plain, ids, mask, 20, seed, **extras)
    base = offloaded(way, tmp_path)
    model = ea_model(tmp_path, base, kind)
    assert {parameter.device.type for parameter in model.ea_layer.parameters()} == {"cpu"}
    if drafter == "scripted":
        model.ea_layer = ScriptedDrafter(expected, VOCABULARY, ids.shape[1])
    torch.manual_seed(3)
    assert torch.equal(model.eagenerate(ids, max_new_tokens=20, attention_mask=mask, **extras), expected)
    if drafter == "scripted":
        assert model.stats.acceptance_length >= 2 and model.ea_layer.noncontiguous > 0


@pytest.mark.parametrize("way", OFFLOADED)
def test_a_head_without_an_output_matrix_reads_an_offloaded_one(tmp_path, way):
    """EAGLE-1/2 drafts go through the target's embeddings and output matrix, which are on meta between uses."""
    ids, mask = prompts(base_model("llama"), 1)
    model = ea_model(tmp_path, offloaded(way, tmp_path), "eagle")
    assert check_every_step(model, generation(model, ids, mask, new=8), ids, mask) >= 3


def test_a_tied_output_matrix_may_be_offloaded(tmp_path):
    base = copy.deepcopy(base_model("gemma2"))
    assert base.lm_head.weight is base.model.embed_tokens.weight
    ids, mask = prompts(base, 1)
    expected = generate_ids(base, ids, mask, 15)
    model = ea_model(tmp_path, cpu_offload(base, "cpu"), "eagle")
    assert torch.equal(model.eagenerate(ids, max_new_tokens=15), expected)


def test_a_whole_model_device_map_works(tmp_path):
    base = base_model("llama")
    ids, mask = prompts(base, 1)
    model = spread(tmp_path, "eagle3", {"": "cpu"})
    assert torch.equal(model.eagenerate(ids, max_new_tokens=12), generate_ids(base, ids, mask, 12))
