"""A row is used whole or refused by its place: nothing that it says vanishes, and no row ends a run."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from chat_templates import FAMILIES, tokenizer_of
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle.chat import LONGEST_REASON, RowError
from eagle.data import load, main, prepare
from eagle.data.rows import COLUMNS, EXPECTED, LEARNED, REMARKS, UNREAD, Conversation, Document, parse
from eagle.data.sources import read

HI = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi there!"}]
CONVERSATION = Conversation(tuple(HI))
CHATML = tokenizer_of(FAMILIES["chatml"])
HALF = "\ud800"
KEYS = [*COLUMNS, *("from", "value", "role", "content", "type"), *UNREAD, *LEARNED]


def reason(row) -> str:
    with pytest.raises(RowError) as refused:
        parse(row)
    return str(refused.value)


def with_last(**more) -> dict:
    return {"messages": [HI[0], {**HI[1], **more}]}


def jsonable(leaves: st.SearchStrategy) -> st.SearchStrategy:
    keys = st.sampled_from([*KEYS, "id", HALF])
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
    )


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "user", "gpt", "text", HALF])
TURNS = st.lists(
    st.fixed_dictionaries({}, optional=dict.fromkeys(("from", "value", "role", "content", "name"), jsonable(LEAVES)))
)


@settings(max_examples=300, deadline=None)
@given(jsonable(LEAVES) | st.dictionaries(st.sampled_from(KEYS), TURNS, max_size=2))
def test_whatever_a_row_is_it_is_read_or_refused_in_one_line(row):
    try:
        made = parse(row)
    except RowError as refused:
        said = str(refused)
        assert said.encode() and said.isprintable() and len(said) <= LONGEST_REASON
    else:
        texts = (
            [made.text] if isinstance(made, Document) else [text for turn in made.messages for text in turn.values()]
        )
        assert all(text.encode() is not None for text in texts)


# --- nothing vanishes


@pytest.mark.parametrize("key", ["tool_calls", "reasoning_content", "function_call", "prefix", "value", HALF])
def test_what_a_message_says_besides_its_words_is_refused_by_name(key):
    printed = key.encode(errors="backslashreplace").decode()
    assert reason(with_last(**{key: [{"name": "f"}]})) == f"turn 2 has {printed}, which would be lost"
    assert reason(with_last(**{key: "f", "content": None})) == f"turn 2 has {printed}, which would be lost"
    for nothing in (None, "", [], {}):  # a column of parquet has every key
        assert parse(with_last(**{key: nothing})) == CONVERSATION


@pytest.mark.parametrize("key", UNREAD)
def test_what_a_row_says_besides_its_column_is_refused_by_name(key):
    for column in ({"messages": HI}, {"text": "code"}, {"data": ["Hello", "Hi there!"]}):
        assert reason({**column, key: "[{}]"}) == f"{key} beside {next(iter(column))} would be lost"
        assert parse({**column, key: None}) == parse({**column, key: "[]"}) == parse(column)


def test_remarks_about_a_row_or_a_turn_are_passed_over():
    assert parse(with_last(**dict.fromkeys(REMARKS, "x"))) == CONVERSATION
    assert parse({"messages": HI, "id": 3, "source": "x", "score": 0.5, "anything": {"else": [1]}}) == CONVERSATION


@pytest.mark.parametrize("key", LEARNED)
def test_an_answer_that_is_not_to_be_learned_is_refused(key):
    assert parse(with_last(**{key: 1})) == parse(with_last(**{key: True})) == CONVERSATION
    assert parse({"messages": [{**HI[0], key: 0}, HI[1]]}) == CONVERSATION  # no question is learned
    for value in (0, False, 0.5, []):
        assert (
            reason(with_last(**{key: value}))
            == f"turn 2 is an answer whose {key} is not 1: all answers are learned alike"
        )


@pytest.mark.parametrize("column", ["conversations", "messages"])
def test_both_ways_to_write_a_turn_are_read_in_both_columns(column):
    sharegpt = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi there!"}]
    empty = {"from": None, "value": None, "role": None, "content": None}
    for turns in (HI, sharegpt, [{**empty, **turn} for turn in HI], [HI[0], sharegpt[1]]):
        assert parse({column: turns}) == CONVERSATION
    assert reason({column: [{**HI[0], "from": "human"}]}).startswith("turn 1 has ")
    assert parse({column: [{"role": "tool", "content": "3"}]}) == Conversation(({"role": "tool", "content": "3"},))


def test_parts_of_text_are_one_text_and_others_are_refused():
    def text(words):
        return {"type": "text", "text": words, "image_url": None}

    assert parse(with_last(content=[text("Hi "), text("there!")])) == CONVERSATION
    assert reason(with_last(content=[text("Hi"), {"type": "image_url"}])) == (
        "turn 2 has a part 'image_url', expected text"
    )
    assert reason(with_last(content=[{**text("Hi"), "audio": "x"}])) == "turn 2 has audio, which would be lost"
    assert reason(with_last(content=["Hi"])) == "turn 2 has a part 'Hi', expected text"
    assert reason(with_last(content=[])) == "turn 2 is empty"
    assert reason(with_last(content=None)) == "turn 2 has no content"


def test_parquet_and_datasets_are_asked_for_every_key_that_would_be_lost(monkeypatch):
    rows = [{"messages": HI, "tools": None, "id": 1}, {"messages": HI, "tools": "[{}]", "id": 2}]

    class File:
        schema_arrow = SimpleNamespace(names=["id", "tools", "messages"])

        def __init__(self, path):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *failure):
            pass

        def iter_batches(self, batch_size, columns):
            yield SimpleNamespace(to_pylist=lambda: [{name: row[name] for name in columns} for row in rows])

    fake, datasets = ModuleType("pyarrow"), ModuleType("datasets")
    fake.parquet, datasets.load_dataset = SimpleNamespace(ParquetFile=File), lambda name, **options: iter(rows)
    monkeypatch.setitem(sys.modules, "pyarrow", fake)
    monkeypatch.setitem(sys.modules, "datasets", datasets)
    monkeypatch.setattr("eagle.data.sources.files_of", lambda source: [Path(source)] if "." in source else None)
    for source in ("a.parquet", "owner/name"):
        good, bad = read(source)
        assert good.parsed() == CONVERSATION
        with pytest.raises(RowError, match=r"^tools beside messages would be lost$"):
            bad.parsed()


# --- questions


@pytest.mark.parametrize(
    "beside", [{}, {"answer": "#### 4"}, {"reference": ["x"], "category": "math", "question_id": 3}]
)
def test_rows_of_questions_are_conversations_without_answers(beside):
    asked, system = {"role": "user", "content": "Hello"}, {"role": "system", "content": "Be brief."}
    for row in (
        {"prompt": "Hello"},
        {"prompt": [asked]},
        {"question": "Hello"},
        {"turns": ["Hello"]},
        {"messages": [asked]},
    ):
        assert parse({**row, **beside}) == Conversation((asked,))
    assert parse({"prompt": [system, asked], **beside}) == Conversation((system, asked))
    assert parse({"turns": ["Hello", "And?"], **beside}) == Conversation((asked, {"role": "user", "content": "And?"}))
    assert parse({"messages": HI, "prompt": "Hello", **beside}) == CONVERSATION
    assert parse({"text": "code", "prompt": "Hello", **beside}) == Document("code")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": 3}, "prompt is not a text or a list of turns"),
        ({"prompt": []}, "prompt is empty"),
        ({"prompt": ""}, "turn 1 is empty"),
        ({"prompt": ["Hello"]}, "turn 1 has no role and no content"),
        ({"question": ["Hello"]}, "question is not a text"),
        ({"turns": "Hello"}, "turns is not a list of turns"),
        ({"turns": ["Hello", {"content": "x"}]}, "turn 2 is not text"),
        ({"prompt": "Hello", "system": "Be brief."}, "system beside prompt would be lost"),
    ],
)
def test_a_question_that_cannot_be_asked_says_why(row, words):
    assert reason(row) == words


def test_what_is_asked_first_is_the_first_question_without_an_answer():
    def asked(*roles: str) -> int:
        messages = tuple({"role": role, "content": "x"} for role in roles)
        return len(Conversation(messages).to_the_first_open_question())

    assert asked("user") == 1 and asked("user", "user") == 1 and asked("system", "user", "tool") == 2
    assert asked("user", "assistant", "user") == 3 and asked("user", "assistant", "user", "assistant") == 3
    assert asked("user", "assistant", "user", "user", "assistant") == 3
    with pytest.raises(RowError, match="no user turn"):
        asked("system", "assistant")


# --- no row ends a run

BAD = {
    '{"messages": [{"role": {"a": 1}, "content": "x"}]}': "turn 1 is not text",
    '{"conversations": [{"from": ["human"], "value": "x"}]}': "turn 1 is not text",
    '{"conversations": [{"from": {"a": "b"}, "value": "x"}]}': "turn 1 is not text",
    '{"messages": [{"role": "\\ud800", "content": "x"}]}': "half a character ('\\ud800') at 0",
    '{"conversations": [{"from": "\\ud800", "value": "x"}]}': "turn 1 is from '\\ud800', expected human, gpt or system",
    '{"\\ud800": 1}': f"expected {EXPECTED}, found \\ud800",
    '{"messages": [{"role": "user", "content": "x", "\\ud800": 1}]}': "turn 1 has \\ud800, which would be lost",
    '{"a":' * 100_000 + "1" + "}" * 100_000: "JSON that is nested too deeply",
    '{"id": ' + "9" * 5000 + ', "text": "x"}': "JSON with a number of too many digits",
}


def written(path: Path, lines: list[str]) -> str:
    array = path.name == "array.json"
    path.write_text("[" + ",\n".join(lines) + "]" if array else "".join(line + "\n" for line in lines))
    return str(path)


@pytest.mark.parametrize("name", ["rows.jsonl", "lines.json", "array.json"])
def test_a_bad_row_is_counted_with_its_place_or_fatal(tmp_path, name, capsys):
    good = json.dumps({"messages": HI})
    source, place = written(tmp_path / name, [good, *BAD, good]), "row" if name == "array.json" else "line"
    data = prepare([source], CHATML, tmp_path / "out", target="base")
    assert (len(data), data.summary["rows"], data.summary["skipped"]) == (2, len(BAD) + 2, len(BAD))
    assert data.summary["first"] == [
        f"{source} {place} {number}: {why}" for number, why in list(enumerate(BAD.values(), start=2))[:5]
    ]
    assert {why: list(BAD.values()).count(why) for why in BAD.values()} == data.summary["reasons"]
    CHATML.save_pretrained(tmp_path / "target")
    command = ["--tokenizer", str(tmp_path / "target"), "--out", str(tmp_path / "again")]
    assert main([source, *command]) == 0 and f"{len(BAD)} of {len(BAD) + 2} rows skipped" in capsys.readouterr().out
    for number, (line, why) in enumerate(BAD.items()):
        alone = written(tmp_path / f"{number}.jsonl", [good, line])
        with pytest.raises(ValueError) as refused:
            prepare([alone], CHATML, tmp_path / f"strict {number}", target="base", strict=True)
        assert str(refused.value) == f"{alone} line 2: {why}"


def test_a_row_of_an_array_that_is_no_json_is_a_bad_row(tmp_path):
    good = json.dumps({"text": 'brackets ]}, " and \\" in a string'})
    path = tmp_path / "array.json"
    path.write_bytes(f"[{good}, {{broken}}, ".encode() + b'{"text": "caf\xe9"}' + f", {good}]\n".encode())
    data = prepare([str(path)], CHATML, tmp_path / "out", target="base")
    assert len(data) == 2 and data[0].ids.tolist() == data[1].ids.tolist()
    assert [line.partition(" (")[0] for line in data.summary["first"]] == [
        f"{path} row 2: not JSON",
        f"{path} row 3: not UTF-8 text",
    ]


def test_an_object_over_several_lines_is_a_row_and_a_broken_one_is_named_once(tmp_path):
    path = tmp_path / "one.json"
    path.write_text("\n" + json.dumps({"messages": HI}, indent=2))
    assert [(raw.where, raw.parsed()) for raw in read(str(path))] == [(f"{path} row 1", CONVERSATION)]
    path.write_text(json.dumps({"messages": HI}, indent=2).replace(",", ""))
    with pytest.raises(ValueError, match=r"one\.json begins like a JSON object and is none: Expecting ',' delimiter"):
        list(read(str(path)))
    path.write_text('{"text": "cut\n{"text": "whole"}\n')  # lines of JSON, of which the first is broken
    assert [raw.where for raw in read(str(path))] == [f"{path} line 1", f"{path} line 2"]


@pytest.mark.parametrize("by_paragraph", [False, True])
def test_a_document_that_is_no_text_is_a_bad_row(tmp_path, by_paragraph):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9\r\nbar")
    (tmp_path / "b.txt").write_bytes("\ufeffcafé\r\nbar".encode())
    bad, good = read(str(tmp_path), by_paragraph=by_paragraph)
    assert good.parsed() == Document("café\nbar")
    with pytest.raises(RowError, match=r"^not UTF-8 text$"):
        bad.parsed()


def test_a_name_that_is_no_text_is_kept(tmp_path, capsys):
    CHATML.save_pretrained(tmp_path / "target")
    source = written(tmp_path / "caf\udce9.jsonl", [json.dumps({"text": "x"}), "{broken"])
    arguments = [source, "--tokenizer", str(tmp_path / "target"), "--out", str(tmp_path / "out")]
    assert main(arguments) == main(arguments) == 0  # the second finds the folder made with the same source
    assert load(tmp_path / "out").summary["sources"][0]["name"] == source
    assert "caf\\udce9.jsonl line 2: not JSON" in capsys.readouterr().out
