"""Token maps in and out of files: published lists are read, what is no draft vocabulary is refused in words."""

from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import base_model
from huggingface_hub.errors import EntryNotFoundError
from pairs import random_head
from places import PAIR
from refusals import assert_refused_in_words
from safetensors.torch import load_file

from eagle import EaModel
from eagle.model import ea_model as loading
from eagle.model.dialects import token_maps
from eagle.model.dialects import weights as weight_files
from eagle.model.dialects.checkpoint import load_head, save_head
from eagle.model.dialects.token_maps import asked_tokens, head_tokens, read_token_map, write_token_map

IDS = torch.tensor([2, 5, 9, 40])


def file_of(folder, content, name="freq_4.pt") -> str:
    torch.save(content, folder / name)
    return str(folder / name)


@pytest.mark.parametrize(
    "content",
    [[40, 2, 9, 5], (40, 2, 9, 5), [40, 2, 9, 5, 2], torch.tensor([40, 2, 9, 5]), IDS.to(torch.int32)],
    ids=["list", "tuple", "repeated", "tensor", "int32"],
)
def test_a_published_list_is_read_in_whatever_order_it_is(tmp_path, content):
    got = read_token_map(file_of(tmp_path, content))
    assert got.dtype == torch.int64 and torch.equal(got, IDS)


@pytest.mark.parametrize(
    "ids", [[40, 2, 9, 5], IDS, IDS.numpy(), range(2, 6)], ids=["list", "tensor", "numpy", "range"]
)
def test_ids_are_taken_as_they_are_and_sorted(ids):
    assert torch.equal(asked_tokens(ids), torch.tensor(sorted(map(int, ids))))


NONE = {
    "text": "freq.pt",
    "missing": "/nowhere/freq.pt",
    "floats": [1.0, 2.0],
    "float-tensor": torch.tensor([1.0]),
    "bools": [True, False],
    "true": True,
    "number": 7,
    "empty": [],
    "empty-tensor": torch.tensor([], dtype=torch.int64),
    "repeated": [3, 4, 3],
    "negative": [-1, 4],
    "huge": [1 << 62],
    "table": torch.zeros(2, 2, dtype=torch.int64),
    "scalar": torch.tensor(4),
    "dict": {3: 4},
    "bytes": b"34",
    "table-numpy": np.zeros((2, 2), dtype=int),
    "scalar-numpy": np.array(4),
}


@pytest.mark.parametrize("name", NONE)
def test_what_is_no_map_is_refused_before_a_base_or_a_head_is_read(monkeypatch, name):
    for owner, work in ((loading, "load_base"), (loading, "read_config"), (loading, "load_pair")):
        monkeypatch.setattr(owner, work, lambda *args, **more: pytest.fail("work has started"))
    paths = {"base_model_path": PAIR / "target", "ea_model_path": PAIR / "eagle_head"}
    assert_refused_in_words(lambda: EaModel.from_pretrained(**paths, token_map=NONE[name]), "token_map")
    assert_refused_in_words(lambda: EaModel(None, None, "none", "none", token_map=NONE[name]), "token_map")


WRONG = {
    "floats": [1.0, 2.0],
    "empty": [],
    "negative": [4, -7],
    "dict": {"ids": [1]},
    "nested": [[1, 2]],
    "table": torch.zeros(2, 2, dtype=torch.int64),
    "text": "1 2 3",
    "code": Path("x"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_of_something_else_is_refused_by_its_name(tmp_path, name):
    path = file_of(tmp_path, WRONG[name])
    assert_refused_in_words(lambda: read_token_map(path), "freq_4.pt")


def test_a_damaged_file_is_refused_by_its_name(tmp_path):
    path = Path(file_of(tmp_path, list(range(4000))))
    path.write_bytes(path.read_bytes()[:900])
    assert_refused_in_words(lambda: read_token_map(str(path)), "freq_4.pt is damaged")


def test_a_map_of_the_hub_is_named_by_repository_and_file(tmp_path, monkeypatch):
    path, asked = file_of(tmp_path, [3, 1]), []

    def download(repository, name, **keywords):
        asked.append((repository, name, keywords))
        if name != "freq_4.pt":
            raise EntryNotFoundError("there is none")
        return path

    monkeypatch.setattr(token_maps, "hf_hub_download", download)
    assert asked_tokens("someone/lists/freq_4.pt", token="t").tolist() == [1, 3]
    assert asked == [("someone/lists", "freq_4.pt", {"token": "t"})]
    with pytest.raises(FileNotFoundError, match=r"someone/lists/freq_5.pt"):
        asked_tokens("someone/lists/freq_5.pt")


@pytest.mark.parametrize("has_map", [True, False])
def test_the_map_of_a_head_of_the_hub_comes_from_its_own_repository(tmp_path, monkeypatch, has_map):
    if has_map:
        write_token_map(tmp_path, IDS)

    def download(repository, name, **keywords):
        assert (repository, keywords) == ("someone/head", {"revision": "r"})
        if not (tmp_path / name).exists():
            raise EntryNotFoundError(name)
        return str(tmp_path / name)

    monkeypatch.setattr(weight_files, "hf_hub_download", download)
    got = head_tokens("someone/head", revision="r")
    assert torch.equal(got, IDS) if has_map else got is None


def test_written_maps_are_lists_that_other_programs_read_and_the_same_bytes_again(tmp_path):
    write_token_map(tmp_path, IDS)
    first = (tmp_path / "token_map.pt").read_bytes()
    write_token_map(tmp_path, IDS)
    assert (tmp_path / "token_map.pt").read_bytes() == first
    assert torch.load(tmp_path / "token_map.pt", weights_only=True) == IDS.tolist()
    assert [path.name for path in tmp_path.iterdir()] == ["token_map.pt"]


def test_a_head_is_saved_with_its_map_and_its_other_files_are_those_of_a_head_without(tmp_path):
    head = random_head(base_model("llama"), "eagle")
    save_head(head, tmp_path / "all")
    head.draft_only(IDS, torch.randn(4, 32), torch.randn(4), lambda logits: logits)
    save_head(head, tmp_path / "part")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "all" / name).read_bytes()
    assert not (tmp_path / "all" / "token_map.pt").exists()
    assert torch.equal(head_tokens(str(tmp_path / "part")), IDS)
    assert set(load_file(tmp_path / "part" / "model.safetensors")) == set(head.state_dict())
    load_head(str(tmp_path / "part"), base_model("llama").config)  # knows no map
