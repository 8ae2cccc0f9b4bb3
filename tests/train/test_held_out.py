"""The acceptance length on held-out texts: which prompts, how it is counted, what a run keeps and says of it."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from architectures import base_model
from pairs import random_head
from teaching import Texts, data_folder, losses_of, random_texts, school, weights_of

from eagle.data.folder import load
from eagle.data.samples import Sample
from eagle.model.dialects.checkpoint import save_head
from eagle.train import loop
from eagle.train.acceptance import MeasuredAcceptance, decode, prompts
from eagle.train.run import run_of
from eagle.train.settings import Settings

SMALL = {"head_dtype": "float32", "bs": 4, "lr": 0.01, "warmup_steps": 2, "ttt_length": 3}


def text(length: int, first: int) -> Sample:
    """A text that is an answer from its token `first` on."""
    ids = np.arange(3, 3 + length, dtype=np.int32) % 80
    return Sample(ids, np.arange(length) >= first)


def test_a_prompt_is_what_is_before_the_first_answer_or_the_start_of_a_plain_text(tmp_path):
    samples = [text(9, 4), text(3, 0), text(10, 1), text(200, 0), text(30, 12), text(8, 2)]
    data = load(data_folder(tmp_path / "data", Texts(samples), "none"))
    found = prompts(data, 4)
    assert [ids.tolist() for ids in found] == [
        [samples[place].ids[:length].tolist()] for place, length in ((0, 4), (2, 5), (3, 64), (4, 12))
    ]
    short = load(data_folder(tmp_path / "short", Texts([text(3, 0)]), "none"))
    with pytest.raises(ValueError, match=r"no text in .*short is long enough"):
        prompts(short, 4)


def test_a_trial_counts_each_depth_among_those_that_reached_it():
    measured = MeasuredAcceptance.of([0, 1, 3, 3, 1])
    assert measured.tau == 1 + 8 / 5
    assert measured.conditional == pytest.approx([4 / 5, 2 / 4, 2 / 2])


def test_prompts_are_continued_as_far_as_the_target_s_positions_go(tmp_path, monkeypatch):
    base, asked = base_model("llama"), []
    save_head(random_head(base, "eagle3"), tmp_path / "head")
    texts = [torch.randint(3, 80, (1, length)) for length in (10, 250, 256)]

    def generate(self, ids, max_new_tokens, max_length):
        asked.append((ids.shape[1], max_new_tokens, max_length))
        self.stats = SimpleNamespace(accepted_per_step=[len(asked)])

    monkeypatch.setattr("eagle.train.acceptance.EaModel.eagenerate", generate)
    accepted = decode(base, "none", tmp_path / "head", texts, Settings(eval_tokens=20))
    assert asked == [(10, 20, 30), (250, 6, 256)] and accepted == [1, 2]


def scripted(monkeypatch, *taus: int) -> list[int]:
    """Let the acceptance lengths of a run be these."""
    left = list(taus)
    monkeypatch.setattr("eagle.train.acceptance.decode", lambda *_: [left.pop(0) - 1] * 10)
    return left


def test_a_run_is_measured_every_so_many_steps_and_at_its_end(tmp_path, monkeypatch):
    run = Settings(**SMALL, **school(tmp_path), max_steps=5, eval_every=2)
    scripted(monkeypatch, 1, 2, 2)
    run_of(replace(run, testpath=run.tmpdir))
    assert losses_of(run.cpdir, "tau") == [1, 2, 2]
    lines = [json.loads(line) for line in (Path(run.cpdir) / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "tau" in line] == [2, 4, 5]
    card = (Path(run.cpdir) / "README.md").read_text()
    assert "2.00 tokens per forward on held-out texts, greedy, tree of 60, after 4 steps" in card


def test_a_run_that_goes_on_remembers_its_best_head(tmp_path, monkeypatch):
    run = Settings(**SMALL, **school(tmp_path), max_steps=6, eval_every=2, save_every=2)
    run = replace(run, testpath=run.tmpdir)
    one_step, left = loop.one_step, scripted(monkeypatch, 3, 2, 1)

    def interrupted(run, step, rate):
        if step == 3:
            raise KeyboardInterrupt
        return one_step(run, step, rate)

    with monkeypatch.context() as once:
        once.setattr(loop, "one_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_of(run)
    best = weights_of(Path(run.cpdir) / "best" / "step_00000002")
    run_of(run)
    assert not left and all(torch.equal(weight, best[name]) for name, weight in weights_of(run.cpdir).items())
    assert "3.00 tokens per forward" in (card := (Path(run.cpdir) / "README.md").read_text())
    assert "after 2 steps" in card and "6 steps, 576 tokens" in card
    assert sorted(path.name for path in Path(run.cpdir).iterdir() if path.is_dir()) == ["best", "checkpoints"]


def test_a_head_is_measured_by_the_tree_that_was_asked_for(tmp_path, monkeypatch):
    trees = []

    class Model:
        def __init__(self, *arguments, total_token):
            trees.append(total_token)

    monkeypatch.setattr("eagle.train.acceptance.EaModel", Model)
    assert decode(None, "none", tmp_path, [], Settings(eval_total_token=17)) == [] and trees == [17]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_head_is_written_in_a_dtype_of_its_own_and_trained_further_in_fp32(tmp_path, dtype):
    run = Settings(**{**SMALL, "head_dtype": None}, **school(tmp_path), kind="eagle3", max_steps=1, dtype=dtype)
    run_of(replace(run, draft_vocab_size=20))
    weights = weights_of(run.cpdir)
    assert weights["d2t"].dtype == torch.int64 and weights["fc.weight"].dtype == torch.bfloat16
    run_of(replace(run, ea_model_path=run.cpdir, cpdir=str(tmp_path / "further"), head_dtype="float32"))
    after = weights_of(tmp_path / "further")["fc.weight"]
    assert after.dtype == torch.float32 and not torch.equal(after, after.bfloat16().float())


def test_a_narrow_head_is_written_with_the_embeddings_that_it_learnt(tmp_path):
    run = Settings(**SMALL, **school(tmp_path), kind="eagle3", max_steps=2, testpath=str(tmp_path / "data"))
    config = {"hidden_size": 16, "target_hidden_size": 32, "intermediate_size": 24, "num_attention_heads": 4}
    config |= {"num_key_value_heads": 2, "num_hidden_layers": 1, "vocab_size": 89}
    (tmp_path / "narrow.json").write_text(json.dumps({**config, "max_position_embeddings": 64}))
    run_of(replace(run, configpath=str(tmp_path / "narrow.json"), eval_tokens=4, eval_prompts=1))
    assert weights_of(run.cpdir)["embed_tokens.weight"].shape == (89, 16)


def test_the_card_says_what_a_head_is_and_how_it_came_about(tmp_path):
    school(tmp_path)
    samples, target = random_texts(*([24] * 12)), str(tmp_path / "base")
    data = data_folder(tmp_path / "chats", samples, target, template="chatml")
    run = Settings(**SMALL, tmpdir=str(data), cpdir=str(tmp_path / "head"), kind="eagle3", draft_vocab_size=20)
    run_of(replace(run, epochs=2.0))
    card = (tmp_path / "head" / "README.md").read_text()
    size = sum(weight.numel() for name, weight in weights_of(run.cpdir).items() if name not in ("d2t", "t2d"))
    for row in (
        f"| parameters | {size:,} |",
        "| draft vocabulary | 20 of 89 tokens |",
        "| training | 6 steps, 576 tokens |",
        "| chat template | chatml |",
        "\nepochs: 2.0\n",
        "\ndraft_vocab_size: 20\n",
    ):
        assert row in card
    assert "acceptance length" not in card and "\nseed:" not in card
