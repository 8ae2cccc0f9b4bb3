"""Damaged files of data and features are named, never read: flipped, cut, exchanged or reshaped."""

import random
import shutil
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from architectures import VOCABULARY, base_model
from places import PAIR
from refusals import fault_of
from safetensors.numpy import load_file, save_file
from teaching import random_texts

from eagle.data import load, main
from eagle.data.features import load_features
from eagle.data.folder import Counts, write_shard, write_summary
from eagle.ge_data import allocation

FLIPS = 40


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Two shards of texts, and three of their features."""
    folder = tmp_path_factory.mktemp("whole")
    base_model("llama").save_pretrained(folder / "base")
    samples = random_texts(*([24] * 12)).samples
    (folder / "data").mkdir()
    counts = Counts(rows=len(samples))
    settings = {"target": str(folder / "base"), "template": None, "vocabulary": VOCABULARY, "vocabulary_hash": "none"}
    for shard, part in enumerate((samples[:6], samples[6:])):
        for sample in part:
            counts.add(sample)
        write_shard(folder / "data", shard, part, settings=settings, counts=counts)
    write_summary(folder / "data", settings, counts, 2)
    allocation.main(
        [
            "--outdir",
            str(folder / "features"),
            "--data",
            str(folder / "data"),
            "--shard-mb",
            "0.1",
            "--dtype",
            "float32",
        ]
    )
    return folder


def contents(folder: Path) -> list[list[torch.Tensor]]:
    """Everything that training would read of a folder."""
    if folder.name == "data":
        return [[torch.tensor(sample.ids), torch.tensor(sample.mask)] for sample in load(folder)]
    features = load_features(folder)
    ends = features.target_embeddings()
    return [
        [ends.embeddings_VD, ends.output_VD],
        *([torch.tensor(s.ids), torch.tensor(s.mask), s.features_TF, s.hidden_TD] for s in features),
    ]


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def copied(whole: Path, tmp_path: Path, name: str) -> Path:
    return Path(shutil.copytree(whole / name, tmp_path / name))


def assert_named_or_equal(folder: Path, want, path: Path) -> bool:
    """Return whether the folder was refused; the message names the file."""
    fault, words = fault_of(lambda: contents(folder))
    if fault == "silence":
        assert equal(contents(folder), want)
        return False
    assert fault is None and path.name in words and "delete it" in words
    return True


def equal(got, want) -> bool:
    pairs = zip(chain(*got), chain(*want), strict=True)
    return list(map(len, got)) == list(map(len, want)) and all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", ["data", "features"])
def test_a_flipped_bit_is_found_wherever_it_is(whole, tmp_path, name):
    want, numbers, refused = contents(whole / name), random.Random(1), 0
    folder = copied(whole, tmp_path, name)
    for _ in range(FLIPS):
        path = numbers.choice(files_of(folder))
        before = path.read_bytes()
        place = numbers.choice([numbers.randrange(len(before)), numbers.randrange(min(len(before), 600))])
        path.write_bytes(before[:place] + bytes([before[place] ^ 1 << numbers.randrange(8)]) + before[place + 1 :])
        refused += assert_named_or_equal(folder, want, path)
        path.write_bytes(before)
    assert refused >= FLIPS * 0.9  # the rest is padding of the header


@pytest.mark.parametrize("name", ["data", "features"])
def test_a_file_cut_anywhere_is_refused(whole, tmp_path, name):
    folder = copied(whole, tmp_path, name)
    for path in files_of(folder):
        before = path.read_bytes()
        for length in (0, 5, 200, len(before) // 2, len(before) - 1):
            path.write_bytes(before[:length])
            assert assert_named_or_equal(folder, [], path)
        path.write_bytes(before)


@pytest.mark.parametrize("name", ["data", "features"])
def test_exchanged_shards_are_refused(whole, tmp_path, name):
    folder = copied(whole, tmp_path, name)
    first, second = (folder / f"shard_{index:05d}.safetensors" for index in (0, 1))
    third = first.rename(folder / "third")
    second.rename(first)
    third.rename(second)
    assert assert_named_or_equal(folder, [], first)


SHAPES = {
    "ends fall": lambda t: {**t, "ends": t["ends"][::-1].copy()},
    "ends beyond": lambda t: {**t, "ends": t["ends"] + 1},
    "ends before": lambda t: {**t, "ends": t["ends"][:-1]},
    "no ends": lambda t: {name: part for name, part in t.items() if name != "ends"},
    "empty ends": lambda t: {**t, "ends": t["ends"][:0]},
    "square ends": lambda t: {**t, "ends": t["ends"][:, None]},
    "short mask": lambda t: {**t, "mask": t["mask"][:-1]},
    "long ids": lambda t: {**t, "ids": np.append(t["ids"], t["ids"][:1])},
    "no ids": lambda t: {name: part for name, part in t.items() if name != "ids"},
}


@pytest.mark.parametrize("how", SHAPES)
@pytest.mark.parametrize("name", ["data", "features"])
def test_parts_that_do_not_fit_together_are_refused_even_without_checksums(whole, tmp_path, name, how):
    folder = copied(whole, tmp_path, name)
    path = files_of(folder)[0]
    save_file(SHAPES[how](load_file(path)), path, {"about": "{}"})
    assert assert_named_or_equal(folder, [], path)


@pytest.mark.parametrize("name", ["data", "features"])
def test_a_folder_that_lost_a_shard_says_so_and_its_document_is_not_believed(whole, tmp_path, name):
    folder = copied(whole, tmp_path, name)
    document = folder / ("data.json" if name == "data" else "features.json")
    text, made = document.read_text(), 3 if name == "data" else 2
    document.write_text(text.replace('"samples": 12', '"samples": 11'))
    with pytest.raises(ValueError, match="is not what was written"):
        contents(folder)
    document.write_text(text.replace('"samples": 12', '"samples": 11').replace(f'"format": {made}', '"format": 1'))
    with pytest.raises(ValueError, match="samples=12, now 11"):
        contents(folder)
    document.write_text(text[:-9])
    with pytest.raises(ValueError, match="is damaged"):
        contents(folder)
    document.write_text(text)
    (folder / "shard_00001.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has lost shard_00001\.safetensors: the command that made it"):
        contents(folder)


def test_files_of_before_there_were_checksums_are_read(whole, tmp_path):
    for name, document, made in (("data", "data.json", 3), ("features", "features.json", 2)):
        want, folder = contents(whole / name), copied(whole, tmp_path, name)
        for path in files_of(folder):
            save_file(load_file(path), path, {"about": "{}"})
        (folder / document).write_text((folder / document).read_text().replace(f'"format": {made}', '"format": 1'))
        if name == "features":
            (folder / "target_embeddings.safetensors").rename(folder / "doors.safetensors")
        assert equal(contents(folder), want)


def test_the_command_names_a_damaged_shard_of_a_finished_folder(tmp_path, capsys):
    path, target = tmp_path / "rows.jsonl", str(PAIR / "target")
    path.write_text('{"text": "one two three"}\n{"text": "four five six"}\n')
    command = [str(path), "--tokenizer", target, "--out", str(tmp_path / "data")]
    assert main(command) == 0
    shard = tmp_path / "data" / "shard_00000.safetensors"
    before = bytearray(shard.read_bytes())
    before[-1] ^= 1
    shard.write_bytes(before)
    assert main(command) == 1
    assert "shard_00000.safetensors is damaged" in capsys.readouterr().err
    shard.unlink()
    assert main(command) == 0 and len(load(tmp_path / "data")) == 2
