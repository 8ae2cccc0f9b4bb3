"""lm-evaluation-harness's own loop finds of a model with a head what it finds of the base model, in fewer forwards."""

import json
from pathlib import Path

import pytest
from harnesses import chatty_target, five_texts, run_harness, write_lines
from places import PAIR
from transformers import AutoTokenizer

pytestmark = pytest.mark.nightly

STOPS = {"stopped": ["\n\n", "lf.da", " of the"], "free": []}
NEW = 32
GENERATE = {"output_type": "generate_until", "doc_to_target": "{{answer}}", "metric_list": [{"metric": "exact_match"}]}
CHOOSE = {
    "output_type": "multiple_choice",
    "doc_to_choice": ["return self", "import os", "pass"],
    "doc_to_target": 0,
    "metric_list": [{"metric": "acc"}],
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm_eval")
    lines = [{"question": text, "answer": "a"} for text in five_texts()]
    questions = write_lines(folder / "questions.jsonl", lines)
    asked = {
        name: GENERATE | {"generation_kwargs": {"until": until, "max_gen_toks": NEW, "do_sample": False}}
        for name, until in STOPS.items()
    }
    (folder / "tasks").mkdir()
    for name, task in (asked | {"chosen": CHOOSE}).items():
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(questions)}}}
        text = {"task": name, "test_split": "test", "doc_to_text": "{{question}}"}
        # JSON is YAML.
        (folder / "tasks" / f"{name}.yaml").write_text(json.dumps({**task, **data, **text}))
    target = chatty_target(folder / "target")
    run = Path(__file__).with_name("run_lm_eval.py")
    run_harness(run, target, PAIR / "eagle3_head", folder / "tasks", folder / "out.json")
    return json.loads((folder / "out.json").read_text())


def answers(found: dict, name: str, task: str) -> list[str]:
    samples = sorted(found[name]["samples"][task], key=lambda sample: sample["doc_id"])
    return [sample["resps"][0][0] for sample in samples]


@pytest.mark.parametrize("size", [1, 2])
def test_lm_eval_finds_what_it_finds_of_the_base_model(found, size):
    base, eagle = found[f"base {size}"], found[f"eagle {size}"]
    for task in (*STOPS, "chosen"):
        assert len(eagle["samples"][task]) == 5
        assert eagle["samples"][task] == base["samples"][task]
    assert eagle["results"] == base["results"]
    assert [call["ids"] for call in eagle["calls"]] == [call["ids"] for call in base["calls"]]
    assert {len(call["ids"]) for call in eagle["calls"]} == ({1} if size == 1 else {1, 2})


@pytest.mark.parametrize("size", [1, 2])
def test_lm_eval_s_answers_were_drafted(found, size):
    calls = found[f"eagle {size}"]["calls"]
    for call in calls:
        steps, new, accepted = call["counts"]
        assert accepted > 0 and 0 < steps + 1 < max(len(row) - call["prompt"] for row in call["ids"]) <= new
    assert len(calls) == 2 * (5 if size == 1 else 3)


@pytest.mark.parametrize("size", [1, 2])
def test_an_answer_in_lm_eval_ends_before_the_first_stop_and_the_model_at_it(found, size):
    free, stopped = (answers(found, f"base {size}", task) for task in ("free", "stopped"))
    cut = [min((text.split(stop)[0] for stop in STOPS["stopped"]), key=len) for text in free]
    assert answers(found, f"eagle {size}", "stopped") == cut == stopped
    assert sum(short != long for short, long in zip(cut, free, strict=True)) >= 2
    if size == 1:
        check_last_tokens(found["eagle 1"]["calls"], cut)


def check_last_tokens(calls: list[dict], cut: list[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(PAIR / "target")
    texts = []
    for call in calls:
        new = call["ids"][0][call["prompt"] :]
        whole, before = tokenizer.decode(new), tokenizer.decode(new[:-1])
        if len(new) < NEW:
            assert any(stop in whole for stop in STOPS["stopped"])
            assert not any(stop in before for stop in STOPS["stopped"])
            texts.append(whole)
    assert len(texts) >= 2 and all(any(text.startswith(part) for part in cut) for text in texts)
