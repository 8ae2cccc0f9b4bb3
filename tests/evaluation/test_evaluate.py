"""`eagle eval`: figures that follow from its records, runs that go on, ids that can differ, refusals before work."""

import csv
import json
import signal
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from places import PAIR
from templated import templated_target
from transformers import AutoTokenizer

from eagle import cli
from eagle.evaluation import bench, evaluate
from eagle.evaluation.question_runs import Interviewer, QuestionRecord
from eagle.evaluation.record_file import read_records

HEADS = [str(PAIR / "eagle_head"), str(PAIR / "eagle3_head")]
NAMES = ["generate", "plain decoding", "prompt lookup", "EAGLE-1"]
NAMES += [f"EAGLE-{kind} [{size}]" for kind in (2, 3) for size in ("6", "auto")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a target that has a chat template, and two sets of questions: one question is far too long."""
    folder = tmp_path_factory.mktemp("evaluate")
    templated_target(folder)
    talk = [{"question_id": 7, "category": "talk", "turns": ["The little dog", "And then?"]}]
    talk += [{"question_id": "long", "turns": ["word " * 4000]}, {"question_id": 9, "turns": ["A cat sat on"]}]
    sums = [{"question": "One and one is"}, {"question": "Two and two is"}]
    for name, rows in (("talk", talk), ("sums", sums)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def command(place, out, *more, heads=HEADS, sets=("talk", "sums"), new=10, trees=("6", "-1")):
    heads = ["--ea-model-path", *heads] if heads else []
    questions = [str(place / f"{name}.jsonl") for name in sets]
    tree = ["--total-token", *trees, "--depth", "2", "--top-k", "3"]
    fixed = ["--base-model-path", str(place / "target"), *heads, "--questions", *questions, *tree]
    return [*fixed, "--max-new-token", str(new), "--out", str(out), *more]


@pytest.fixture(scope="module")
def evaluated(place):
    """A whole run: its folder, its report, its records, what it printed."""
    from contextlib import redirect_stdout
    from io import StringIO

    printed = StringIO()
    with redirect_stdout(printed):
        assert cli.main(["eval", *command(place, place / "out")]) == 0
    document = json.loads((place / "out" / "report.json").read_text())
    records = [QuestionRecord.from_dict(found) for _, found in read_records(place / "out" / "records.jsonl")]
    return place / "out", document, records, printed.getvalue()


def of(document, questions, temperature, name):
    (found,) = [r for r in document["results"] if (r["questions"], r["temperature"]) == (questions, temperature)]
    return next(method for method in found["methods"] if method["name"] == name)


def test_every_method_answers_every_question_at_every_temperature(evaluated):
    _, document, records, _ = evaluated
    assert [(r.questions, r.temperature, r.question_id) for r in records] == [
        *[("talk", t, q) for t in (0.0, 1.0) for q in (7, 9)],
        *[("sums", t, q) for t in (0.0, 1.0) for q in (1, 2)],
    ]
    for record in records:
        assert all(list(turn) == NAMES for turn in record.turns)
        assert len(record.turns) == {7: 2}.get(record.question_id, 1)
    tables = [(r["questions"], r["temperature"], r["asked"], r["too_long"]) for r in document["results"]]
    assert tables == [
        (n, t, q, long) for t in (0.0, 1.0) for n, q, long in (("talk", 2, 1), ("sums", 2, 0), ("mean", 4, 1))
    ]


def test_ids_are_those_of_generate_greedy_and_seeded(evaluated):
    _, document, records, printed = evaluated
    for record in records:
        for turn in record.turns:
            same = [name for name in turn if name != "prompt lookup" or not record.temperature]
            assert all(turn[name].ids == turn["generate"].ids and turn[name].ids for name in same)
    assert document["differences"] == []
    lookup = of(document, "talk", 1.0, "prompt lookup")
    assert lookup["equal"] is None and of(document, "talk", 1.0, "EAGLE-1")["equal"] == 3
    # Three turns and two, seven methods beside generate; at T = 1 prompt lookup need not be equal.
    assert f"{5 * 7 + 5 * 6} of {5 * 7 + 5 * 6} answers have the ids of generate (float32)" in printed


def test_both_definitions_of_acceptance_follow_from_the_records(evaluated):
    _, document, records, _ = evaluated
    for name in NAMES[1:]:
        runs = [turn[name] for r in records if (r.questions, r.temperature) == ("talk", 0.0) for turn in r.turns]
        steps = [count for run in runs for count in run.accepted]
        found = of(document, "talk", 0.0, name)
        assert found["acceptance_length"]["value"] == pytest.approx(1 + sum(steps) / len(steps))
        assert found["tokens_per_forward"]["value"] == pytest.approx(sum(len(r.ids) for r in runs) / len(steps))
        assert sum(found["accepted_lengths"]) == len(steps)
        assert found["accepted_lengths"] == [steps.count(n) for n in range(max(steps) + 1)]
        reached = [sum(count >= depth for count in steps) for depth in range(8)]
        shares = [after / before for before, after in pairwise(reached) if before >= 10 and any(steps)]
        assert [share["value"] for share in found["acceptance_by_depth"]] == pytest.approx(shares)
        assert found["tokens"] == sum(len(run.ids) for run in runs)
    assert of(document, "talk", 0.0, "generate")["acceptance_length"] is None
    assert of(document, "talk", 0.0, "EAGLE-2 [6]")["acceptance_length"]["value"] > 1.2


def test_speeds_are_ratios_of_means_over_questions_to_the_faster_baseline(evaluated):
    _, document, records, _ = evaluated
    chosen = [r for r in records if (r.questions, r.temperature) == ("talk", 0.0) and r.turns]

    def speed(name):
        rates = [sum(len(t[name].ids) for t in r.turns) / sum(t[name].seconds[0] for t in r.turns) for r in chosen]
        return sum(rates) / len(rates)

    fastest = max(speed("generate"), speed("plain decoding"))
    for name in NAMES:
        found = of(document, "talk", 0.0, name)["speedup"]
        assert found["value"] == pytest.approx(speed(name) / fastest) and found["low"] <= found["high"]
    means = [of(document, s, 0.0, "EAGLE-1")["speedup"]["value"] for s in ("talk", "sums", "mean")]
    assert means[2] == pytest.approx(sum(means[:2]) / 2)


def test_the_report_is_written_for_people_programs_and_spreadsheets(evaluated):
    folder, document, _, printed = evaluated
    page = (folder / "report.md").read_text()
    for words in (
        "eagle eval --base-model-path",
        "3 answers (3 cut at the limit), 1 too long for the base",
        "Mean over all sets, T = 1",
    ):
        assert words in page
    assert "EAGLE-2 [6] beside EAGLE-1: " in page and "EAGLE-3 [auto] beside EAGLE-2 [auto]: " in page
    assert printed.count("to say whether drafting pays: best is ") == 2
    rows = list(csv.DictReader((folder / "report.csv").open()))
    (row,) = [r for r in rows if list(r.values())[:4] == ["sums", "1", "EAGLE-1", "acceptance_length"]]
    wanted = of(document, "sums", 1.0, "EAGLE-1")["acceptance_length"]
    assert [float(row[name]) for name in ("value", "low", "high")] == pytest.approx(list(wanted.values()), rel=1e-4)
    assert document["provenance"]["torch"] == torch.__version__ and document["command"][:2] == ["eagle", "eval"]
    from matplotlib.image import imread

    for name in ("speedup.png", "acceptance.png", "split.png"):
        assert f"![{name}]({name})" in page and imread(folder / name).std() > 0.02


def test_the_second_turn_is_asked_after_the_first_answer_of_generate(place, monkeypatch):
    asked = []
    inner = Interviewer._prompt

    def watched(self, messages):
        asked.append([dict(message) for message in messages])
        return inner(self, messages)

    monkeypatch.setattr(Interviewer, "_prompt", watched)
    only = ["--num-questions", "1", "--temperature", "0", "--methods", "generate", "eagle3"]
    assert evaluate.main(command(place, place / "turns", *only, sets=["talk"])) == 0
    ((_, record),) = read_records(place / "turns" / "records.jsonl")
    said = record["turns"][0]["generate"]["ids"]
    tokenizer = AutoTokenizer.from_pretrained(place / "target")
    assert [m["content"] for m in asked[-1]] == ["The little dog", tokenizer.decode(said), "And then?"]
    assert [m["role"] for m in asked[-1]] == ["user", "assistant", "user"]


# --- going on


def watch_asking(monkeypatch, stop_after=None, reason=None):
    asked, inner = [], Interviewer.ask

    def ask(self, name, question, temperature, methods):
        if len(asked) == stop_after:
            raise reason
        asked.append((name, temperature, question.id))
        return inner(self, name, question, temperature, methods)

    monkeypatch.setattr(Interviewer, "ask", ask)
    return asked


def test_an_interrupted_run_goes_on_and_asks_nothing_twice(place, monkeypatch, capsys):
    out, few = place / "resumed", ["--methods", "generate", "eagle2"]
    with monkeypatch.context() as patch:
        first = watch_asking(patch, 3, KeyboardInterrupt())
        assert evaluate.main(command(place, out, *few)) == 130
    assert "is kept in" in capsys.readouterr().err and len(first) == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # for whoever called it
    kept = (out / "records.jsonl").read_text()
    with (out / "records.jsonl").open("a") as file:
        file.write('{"questions": "talk", "tempera')  # a killed process was writing
    with monkeypatch.context() as patch:
        second = watch_asking(patch)
        assert evaluate.main(command(place, out, *few)) == 0
        third = watch_asking(patch)
        assert evaluate.main(command(place, out, *few)) == 0
    assert [q for _, _, q in third] == ["long"] * 2  # which is never asked, and never written down
    asked = [one for one in (*first, *second) if one[2] != "long"]
    sets = (("talk", (7, 9)), ("sums", (1, 2)))
    assert sorted(asked) == sorted((name, t, q) for name, ids in sets for t in (0.0, 1.0) for q in ids)
    assert (out / "records.jsonl").read_text().startswith(kept)
    assert len(read_records(out / "records.jsonl")) == 8


def test_more_questions_and_temperatures_may_be_asked_for_and_nothing_else(place, monkeypatch, capsys):
    out, few = place / "more", ["--methods", "generate", "eagle2"]
    assert evaluate.main(command(place, out, *few, "--num-questions", "1", "--temperature", "0", sets=["sums"])) == 0
    with monkeypatch.context() as patch:
        asked = watch_asking(patch)
        assert evaluate.main(command(place, out, *few, "--temperature", "0", "0.5", sets=["sums"])) == 0
    assert asked == [("sums", 0.0, 2), ("sums", 0.5, 1), ("sums", 0.5, 2)]
    for other in (["--rounds", "2"], ["--seed", "1"], ["--as-text"]):
        assert evaluate.main(command(place, out, *few, *other, sets=["sums"])) == 1
        assert "has a run of other settings: " in capsys.readouterr().err


def test_a_broken_line_is_named(place, capsys):
    out, few = place / "broken", ["--methods", "generate", "eagle2", "--temperature", "0"]
    assert evaluate.main(command(place, out, *few, sets=["sums"])) == 0
    lines = (out / "records.jsonl").read_text().splitlines()
    (out / "records.jsonl").write_text("\n".join([lines[0][:40], *lines[1:]]) + "\n")
    assert evaluate.main(command(place, out, *few, sets=["sums"])) == 1
    assert "records.jsonl line 1 is damaged" in capsys.readouterr().err


# --- ids


def test_a_method_that_says_something_else_is_listed_and_fails_the_run(place, monkeypatch, capsys):
    inner = evaluate.choose_methods

    def with_a_liar(*args):
        made = inner(*args)

        def lie(prompt, new):
            out = made[-1].run(prompt, new)
            out[0, -3] = (out[0, -3] + 1) % 100
            return out

        return [*made[:-1], replace(made[-1], run=lie)]

    monkeypatch.setattr(evaluate, "choose_methods", with_a_liar)
    few = ["--methods", "generate", "eagle2", "--num-questions", "1"]
    assert evaluate.main(command(place, place / "lied", *few, sets=["sums"], trees=("6",))) == 1
    printed = capsys.readouterr().out
    assert "0 of 2 answers have the ids of generate" in printed
    assert printed.count("EAGLE-2 has token") == 2 and "at new token 7" in printed and "NOT a near-tie" in printed
    (found, _) = json.loads((place / "lied" / "report.json").read_text())["differences"]
    assert found["difference"]["position"] == 7 and not found["is_near_tie"] and found["difference"]["floor"] < 1e-3


# --- without a head, with an assistant


def test_methods_that_need_no_head_are_measured_without_one(place, capsys):
    assert evaluate.main(command(place, place / "headless", heads=None, sets=["sums"])) == 0
    document = json.loads((place / "headless" / "report.json").read_text())
    assert [m["name"] for m in document["results"][0]["methods"]] == NAMES[:3] and document["differences"] == []
    fast = ["--max-new-token", "6", "--rounds", "1", "--num-prompts", "1", "--json", str(place / "bench.json")]
    assert bench.main(["--base-model-path", str(PAIR / "target"), *fast]) == 0
    rows = json.loads((place / "bench.json").read_text())["results"]
    assert [row["name"] for row in rows] == NAMES[:3] and all(row["ids_equal"] for row in rows)
    assert "drafting" in capsys.readouterr().out.splitlines()[-1]


def test_an_assistant_that_is_the_target_itself_has_all_accepted(place):
    few = ["--methods", "generate", "assistant", "--assistant-model-path", str(place / "target")]
    assert evaluate.main(command(place, place / "assisted", *few, heads=None, sets=["sums"])) == 0
    document = json.loads((place / "assisted" / "report.json").read_text())
    found = of(document, "sums", 0.0, "assistant model")
    assert found["equal"] == 2 and found["acceptance_length"]["value"] > 2
    assert of(document, "sums", 1.0, "assistant model")["equal"] is None


@pytest.mark.parametrize(
    ("more", "words", "code"),
    [
        (["--methods", "eagle2"], "must hold generate", 2),
        (["--methods", "generate", "assistant"], "needs --assistant-model-path", 1),
        (["--temperature", "0", "0"], "names something twice", 2),
        (["--temperature", "-1"], "must be at least 0", 2),
        (["--max-new-token", "0"], "must be at least 1", 2),
        (["--template", "vicunna"], "closest names are vicuna", 1),
        (["--template", "vicuna_v1.1", "--as-text"], "leave out --template", 2),
        (["--questions", "mt_benhc"], "mt_bench", 1),
    ],
)
def test_what_cannot_be_asked_is_refused_in_words(place, capsys, more, words, code):
    assert evaluate.main([*command(place, place / "refused"), *more]) == code
    assert words in capsys.readouterr().err and not (place / "refused").exists()


def test_a_tokenizer_without_a_template_needs_to_be_told(place, capsys):
    asked = ["--base-model-path", str(PAIR / "target"), "--questions", str(place / "sums.jsonl")]
    asked += ["--out", str(place / "text"), "--max-new-token", "4", "--methods", "generate", "plain"]
    assert evaluate.main(asked) == 1
    assert "--template, or add --as-text" in capsys.readouterr().err
    assert evaluate.main([*asked, "--as-text", "--temperature", "0"]) == 0


def test_fewer_questions_are_spread_over_the_whole_set():
    assert [evaluate.spread(range(80), n)[:3] for n in (8, 80, None, 99)] == [(0, 10, 20), *[(0, 1, 2)] * 3]
    assert evaluate.spread(range(3), 2) == (0, 1) and len(evaluate.spread(range(79), 20)) == 20
