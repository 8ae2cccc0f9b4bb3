"""The command that chooses what an EAGLE-1/2 head drafts: the most frequent tokens, beside weights that stay."""

import pytest
import torch
from architectures import base_model
from pairs import random_head
from teaching import data_folder, texts

from eagle.model.dialects.checkpoint import save_head
from eagle.model.dialects.token_maps import head_tokens
from eagle.train.token_map import main


@pytest.fixture
def head(tmp_path):
    save_head(random_head(base_model("llama"), "eagle"), tmp_path / "head")
    return tmp_path / "head"


def folder_of(path, *rows, **fields):
    return data_folder(path, texts([torch.tensor(row) for row in rows]), "someone/base", **fields)


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def refusal(capsys, *arguments) -> str:
    with pytest.raises(SystemExit):
        run(*arguments)
    return capsys.readouterr().err


def test_the_most_frequent_tokens_are_written_and_their_held_out_coverage_printed(tmp_path, head, capsys):
    data = folder_of(tmp_path / "data", [7] * 9 + [5] * 6 + [80] * 3 + [2])
    held = folder_of(tmp_path / "held", [7, 7, 7, 5, 80, 81])
    before = {path.name: path.read_bytes() for path in head.iterdir()}
    assert run("--ea-model-path", head, "--tmpdir", data, "--testpath", held, "--size", 3) == 0
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if line.split()[0] == "3"]
    assert line.split()[-1] == "83.33%" and line.split()[1] == "3.4%"
    assert "token_map.pt: 3 of 89 tokens" in printed
    assert head_tokens(str(head)).tolist() == [5, 7, 80]
    assert {name: (head / name).read_bytes() for name in before} == before


def test_again_writes_the_same_and_size_0_takes_it_away(tmp_path, head, capsys):
    data = folder_of(tmp_path / "data", *([7, 8, 9, token] for token in range(10, 30)))
    written = []
    for _ in range(2):
        run("--ea-model-path", head, "--tmpdir", data, "--size", 5)
        written.append((head / "token_map.pt").read_bytes())
    assert written[0] == written[1]
    for words in ("taken away", "was not there"):
        assert run("--ea-model-path", head, "--size", 0) == 0
        assert words in capsys.readouterr().out and not (head / "token_map.pt").exists()


def test_without_a_size_nothing_is_written(tmp_path, head, capsys):
    data = folder_of(tmp_path / "data", *[[7, 8]] * 10)
    names = sorted(path.name for path in head.iterdir())
    assert run("--ea-model-path", head, "--tmpdir", data) == 0
    assert len(capsys.readouterr().out.splitlines()) > 4
    assert sorted(path.name for path in head.iterdir()) == names


def test_every_tenth_text_is_held_out_and_yet_chosen_from(tmp_path, head, capsys):
    data = folder_of(tmp_path / "data", *[[index + 3] * (1 + 99 * (index == 9)) for index in range(20)])
    run("--ea-model-path", head, "--tmpdir", data, "--size", 1)
    assert head_tokens(str(head)).tolist() == [12]  # the tenth text's
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.split()[0] == "1"]
    assert line.split()[-1] == "0.00%"


def test_wrong_calls_are_refused_in_words(tmp_path, head, capsys):
    data = folder_of(tmp_path / "data", [7, 8])
    eagle3, large = tmp_path / "eagle3", folder_of(tmp_path / "large", [7], [8], vocabulary=500)
    save_head(random_head(base_model("llama"), "eagle3"), eagle3)
    good = ("--ea-model-path", head, "--tmpdir", data, "--testpath", data)
    for arguments, words in (
        ((*good, "--size", 90), "--size=90 must be at most the head's 89 tokens"),
        ((*good, "--size", -1), "--size=-1 must be 0 or more"),
        (("--ea-model-path", eagle3, "--tmpdir", data), "EAGLE-3 head: its draft vocabulary is chosen when"),
        (("--ea-model-path", "someone/head", "--tmpdir", data), "someone/head is no folder"),
        (("--ea-model-path", head), "--tmpdir is missing"),
        (("--ea-model-path", head, "--tmpdir", tmp_path), "holds neither data.json nor features.json"),
        (("--ea-model-path", head, "--tmpdir", data), "too few texts to hold some out"),
        (("--ea-model-path", head, "--tmpdir", large), "500 tokens, and the target knows 89"),
    ):
        assert words in refusal(capsys, *arguments)
    assert not (head / "token_map.pt").exists()
