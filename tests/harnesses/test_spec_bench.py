"""Spec-Bench's own scripts and loop get the base model's answers, and counts that add up."""

import json
import shutil
from pathlib import Path

import pytest
from harnesses import SPEC_BENCH, chatty_target, five_texts, run_harness, write_lines
from places import PAIR
from transformers import AutoTokenizer

pytestmark = pytest.mark.nightly

NEW = 32
# What docs/harnesses.md has a checkout's files say.
DOORS = {
    "ea_model": "from eagle.evaluation.spec_bench import EaModel",
    "kv_cache": "from eagle.model.kv_cache import *",
    "utils": "from eagle.model.utils import *",
}
# What ends an answer beside the end of sequence: nothing, words that some come to, what every one begins with.
ENDS = {"limit": (), "words": (" return", " provides", " for"), "first": ("\n",)}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """Spec-Bench with this library behind its doors, its scripts having asked the base model and a head."""
    if not (SPEC_BENCH / "evaluation" / "eval.py").exists():
        pytest.skip(f"no checkout of Spec-Bench at {SPEC_BENCH}: `make harnesses` fetches it where GitHub is reached")
    folder = tmp_path_factory.mktemp("spec_bench")
    shutil.copytree(SPEC_BENCH / "evaluation", folder / "evaluation")
    (folder / "model" / "eagle3").mkdir(parents=True)
    for name, line in DOORS.items():
        (folder / "model" / "eagle3" / f"{name}.py").write_text(line + "\n")
    turns = [[text] for text in five_texts()]
    turns[0].append("class A:\n")
    lines = [{"question_id": number, "category": "coding", "turns": each} for number, each in enumerate(turns)]
    (folder / "data" / "mt_bench").mkdir(parents=True)
    write_lines(folder / "data" / "mt_bench" / "question.jsonl", lines)
    targets = [chatty_target(folder / name, ids_of(words)) for name, words in ENDS.items()]
    run_harness(Path(__file__).with_name("run_spec_bench.py"), folder, PAIR / "eagle3_head", NEW, *targets)
    return folder


@pytest.fixture(params=ENDS)
def made(request, checkout):
    """Answers and calls by who gave them, the ids that end an answer, and which these are."""
    folder = checkout / "answers" / request.param
    answers = {
        name: [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for name in ("base", "head", "forward")
    }
    return answers, json.loads((folder / "calls.json").read_text()), [0, *ids_of(ENDS[request.param])], request.param


def ids_of(words: tuple[str, ...]) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(PAIR / "target")
    ids = [tokenizer(word, add_special_tokens=False).input_ids for word in words]
    assert all(len(each) == 1 for each in ids)
    return [each[0] for each in ids]


@pytest.mark.parametrize("name", ["head", "forward"])
def test_spec_bench_gets_the_base_model_s_ids_and_answers(made, name):
    answers, calls, _, _ = made
    assert len(answers[name]) == len(answers["base"]) == 5
    for got, wanted in zip(answers[name], answers["base"], strict=True):
        assert got["question_id"] == wanted["question_id"]
        got, wanted = got["choices"][0], wanted["choices"][0]
        assert got["turns"] == wanted["turns"] and "ERROR" not in got["turns"]
        assert got["new_tokens"] == wanted["new_tokens"]
    assert len(calls[name]) >= 6
    assert [call["ids"] for call in calls[name]] == [call["ids"] for call in calls["base"]]


@pytest.mark.parametrize("name", ["head", "forward"])
def test_spec_bench_s_accepted_lengths_are_of_its_steps_and_sum_to_the_new_tokens(made, name):
    answers, calls, ends, ended = made
    for answer in answers[name]:
        choice = answer["choices"][0]
        assert sum(choice["accept_lengths"]) == sum(choice["new_tokens"])
        assert len(choice["accept_lengths"]) == sum(choice["decoding_steps"])
    for call in calls[name]:
        new = call["ids"][call["prompt"] :]
        assert len(new) == NEW or new[-1] in ends
        assert not set(new[:-1]) & set(ends)
    lengths = [len(call["ids"]) - call["prompt"] for call in calls[name]]
    assert {"limit": min(lengths) == NEW, "words": 1 < min(lengths) < NEW, "first": max(lengths) == 1}[ended]


@pytest.mark.parametrize("name", ["head", "forward"])
def test_spec_bench_s_answers_were_drafted(made, name):
    _, calls, _, ended = made
    steps, new, accepted = (sum(call["counts"][place] for call in calls[name]) for place in range(3))
    if ended == "first":
        assert steps == 0
    else:
        assert accepted > 0 and 0 < steps + len(calls[name]) < new
    assert new == sum(len(call["ids"]) - call["prompt"] for call in calls[name])
