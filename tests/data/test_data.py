"""From files to batches: rows read and refused with their places, folders that survive kill -9, every token kept."""

import json
import os
import re
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from chat_templates import FAMILIES, tokenizer_of
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT, environment
from safetensors import SafetensorError

from eagle.chat import ANEW, RowError
from eagle.data import Bucketed, Packed, Sample, load, main, prepare, token_counts
from eagle.data.batches import gathered
from eagle.data.rows import EXPECTED, Conversation, Document, parse
from eagle.data.samples import document_sample, pieces, truncated
from eagle.data.sources import read

HI = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi there!"}]
SHAREGPT = {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi there!"}]}
CHATML = tokenizer_of(FAMILIES["chatml"])


def jsonl(path: Path, rows: list) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def conversation(index: int) -> dict:
    return {
        "messages": [{"role": "user", "content": f"What is {index}?"}, {"role": "assistant", "content": "x" * index}]
    }


def parsed(source, **options) -> list:
    return [raw.parsed() for raw in read(str(source), **options)]


def sample(length: int, first: int = 0) -> Sample:
    return Sample(np.arange(first, first + length, dtype=np.int32), np.ones(length, dtype=bool))


class Held(list):
    """Samples in memory, as batches want them."""

    @property
    def lengths_N(self):
        return np.array([len(one) for one in self])


# --- sources


def test_every_known_form_of_a_conversation_is_the_same_conversation():
    forms = [SHAREGPT, {"messages": HI}, {"data": ["Hello", "Hi there!"]}, {"id": 3, "messages": HI, "text": None}]
    assert [parse(form) for form in forms] == [Conversation(tuple(HI))] * 4
    assert parse({"text": "code"}) == Document("code")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([1], "a list where an object is expected"),
        (
            {"instruction": "x", "answer": "y"},
            f"expected {EXPECTED}, found instruction, answer",
        ),
        ({"messages": []}, "messages is empty"),
        ({"messages": "Hello"}, "messages is not a list of turns"),
        ({"messages": [{"role": "user"}]}, "turn 1 has no content"),
        ({"messages": ["Hello"]}, "turn 1 has no role and no content"),
        ({"messages": [HI[0], {"role": "assistant", "content": [{"type": "text"}]}]}, "turn 2 is not text"),
        ({"messages": [HI[0], {"role": "assistant", "content": " "}]}, "turn 2 is empty"),
        ({"conversations": [{"from": "bot", "value": "Hi"}]}, "turn 1 is from 'bot', expected human, gpt or system"),
        ({"data": ["Hello", None]}, "turn 2 is not text"),
        ({"text": 3}, "text is a int, not a string"),
        ({"text": "\n"}, "an empty document"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(row, words):
    with pytest.raises(RowError, match=f"^{re.escape(words)}$"):
        parse(row)


def test_lines_of_json_are_never_all_in_memory(tmp_path):
    path = jsonl(tmp_path / "long.jsonl", [{"text": "x" * 10_000}] * 500)
    tracemalloc.start()
    try:
        assert sum(len(raw.parsed().text) for raw in read(path)) == 5_000_000
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()


def test_arrays_lines_text_and_folders_are_found_in_order(tmp_path):
    (tmp_path / "a.json").write_text("\ufeff" + json.dumps([SHAREGPT, {"text": "one"}]), encoding="utf-8")
    jsonl(tmp_path / "b.jsonl", ["", {"text": "two"}])
    jsonl(tmp_path / "c.json", ["", {"text": "three"}])
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "e.txt").write_text("\n\nfour\nfive\n\n \nsix")
    (tmp_path / "d" / "notes.md").write_text("not read")
    (tmp_path / "f.txt").write_text(" \n")
    documents = [Document("one"), Document("two"), Document("three")]
    assert parsed(tmp_path) == [Conversation(tuple(HI)), *documents, Document("\n\nfour\nfive\n\n \nsix")]
    assert parsed(tmp_path, by_paragraph=True)[4:] == [Document("four\nfive\n"), Document("six")]
    places = [raw.where.removeprefix(f"{tmp_path}/") for raw in read(str(tmp_path), by_paragraph=True)]
    assert places == [
        "a.json row 1",
        "a.json row 2",
        "b.jsonl line 2",
        "c.json line 2",
        "d/e.txt line 3",
        "d/e.txt line 7",
    ]


def test_sources_that_cannot_be_read_are_named(tmp_path):
    def refusal(kind, source):
        with pytest.raises(kind) as refused:
            list(read(str(source)))
        return str(refused.value)

    assert refusal(FileNotFoundError, "nothing.jsonl") == "nothing.jsonl does not exist"
    assert refusal(FileNotFoundError, "./nothing") == "./nothing does not exist"
    assert "holds no .json, .jsonl, .parquet, .txt file" in refusal(ValueError, tmp_path)
    (tmp_path / "a.csv").write_text("a,b")
    assert "a.csv is no .json, .jsonl, .parquet, .txt file" in refusal(ValueError, tmp_path / "a.csv")
    (tmp_path / "a.jsonl").touch()
    assert "a.jsonl is empty" in refusal(ValueError, tmp_path / "a.jsonl")
    (tmp_path / "a.json").write_text('[{"text": ')
    assert "a.json begins like a JSON array and is none" in refusal(ValueError, tmp_path / "a.json")


def test_parquet_and_datasets_name_the_extra_where_they_are_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    for source in (str(tmp_path / "a.parquet"), "owner/name"):
        with pytest.raises(ImportError, match=rf"{re.escape(source)} .*pip install 'eagle-decoding\[data\]'"):
            list(read(source))


def test_rows_of_parquet_are_rows(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([{"id": 1, **SHAREGPT}, {"id": 2, "conversations": None}]), path)
    good, bad = read(str(path))
    assert good.parsed() == Conversation(tuple(HI)) and bad.where == f"{path} row 2"
    with pytest.raises(RowError, match="expected one of the columns"):
        bad.parsed()
    parquet.write_table(pyarrow.Table.from_pylist([{"id": 1, "output": "x"}]), path)
    with pytest.raises(ValueError, match=r"a\.parquet has the columns id, output; expected one of the columns"):
        list(read(str(path)))


def test_a_name_is_read_with_datasets_as_a_stream(monkeypatch):
    asked = []

    def load_dataset(name, **options):
        asked.append((name, options))
        return iter([{"messages": HI}] if name == "owner/name" else [{"output": "x"}])

    fake = ModuleType("datasets")
    fake.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", fake)
    for source, split in (("owner/name", "train"), ("owner/name:test_sft", "test_sft")):
        assert parsed(source) == [Conversation(tuple(HI))]
        assert asked.pop() == ("owner/name", {"split": split, "streaming": True})
    with pytest.raises(ValueError, match="other has the columns output; expected one of the columns"):
        parsed("other")


# --- samples


def test_a_sample_needs_ids_and_mask_of_one_length():
    with pytest.raises(ValueError, match=r"ids \(3,\) and mask \(2,\) must be \[T\] alike"):
        Sample(np.zeros(3, np.int32), np.zeros(2, bool))


def test_a_document_is_tokenised_as_by_itself_and_counts_whole():
    tokenizer = tokenizer_of(FAMILIES["llama-2"])
    made = document_sample(tokenizer, "What is the capital?")
    assert made.ids.tolist() == tokenizer("What is the capital?")["input_ids"] and made.mask.all()


def test_cutting_keeps_the_beginning_and_refuses_what_holds_no_answer():
    mask = np.array([False, False, True, True])
    cut = truncated(Sample(np.arange(4, dtype=np.int32), mask), 3)
    assert cut.ids.tolist() == [0, 1, 2] and cut.mask.tolist() == [False, False, True]
    with pytest.raises(RowError, match="no answer within the first 2 tokens"):
        truncated(Sample(np.arange(4, dtype=np.int32), mask), 2)


def test_pieces_are_the_document():
    assert [piece.ids.tolist() for piece in pieces(sample(7), 3)] == [[0, 1, 2], [3, 4, 5], [6]]


def test_counts_are_of_tokens_in_the_loss():
    mask = np.array([True, False, True, True])
    counted = [Sample(np.array([5, 5, 2, 5], np.int32), mask), Sample(np.array([7, 1, 1, 1], np.int32), mask & False)]
    assert token_counts(counted, 8).tolist() == [0, 0, 1, 0, 0, 2, 0, 0]
    with pytest.raises(ValueError, match="token id 7 is outside a vocabulary of 4"):
        token_counts(counted, 4)  # of prompts too: no target of so many tokens can read them


# --- batches


def test_samples_of_a_row_keep_their_bounds_and_places():
    batch = gathered([[sample(3, 10), sample(2, 20)], [sample(4, 30)]], length=6, pad=9)
    assert batch.ids_BS.tolist() == [[10, 11, 12, 20, 21, 9], [30, 31, 32, 33, 9, 9]]
    assert batch.segments_BS.tolist() == [[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 0, 0]]
    assert batch.positions_BS.tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 0]]
    assert batch.mask_BS.int().tolist() == [[0, 1, 1, 0, 1, 0], [0, 1, 1, 1, 0, 0]]


LENGTHS = st.lists(st.integers(1, 20), min_size=1, max_size=120)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 7), st.integers(0, 3), st.sampled_from(["bucketed", "packed"]))
def test_every_epoch_has_every_sample_once_whole(lengths, batch, epoch, kind):
    held = Held(sample(length, 100 * place) for place, length in enumerate(lengths))
    batches = Bucketed(held, batch) if kind == "bucketed" else Packed(held, batch, 20)
    seen = []
    for made in batches.between(epoch * batches.per_epoch, (epoch + 1) * batches.per_epoch):
        assert len(made.ids_BS) <= batch
        for ids, segments in zip(made.ids_BS, made.segments_BS, strict=True):
            seen += [ids[segments == segment].tolist() for segment in range(1, int(segments.max()) + 1)]
            assert kind == "bucketed" or len(ids) == 20
    assert sorted(seen) == [one.ids.tolist() for one in held]


@pytest.mark.parametrize("kind", ["bucketed", "packed"])
def test_a_step_depends_on_seed_and_number_alone(kind):
    held = Held(sample(1 + place * 7 % 20, 100 * place) for place in range(200))

    def batches(seed):
        return Bucketed(held, 4, seed=seed) if kind == "bucketed" else Packed(held, 4, 20, seed=seed)

    per_epoch, end = batches(0).per_epoch, 3 * batches(0).per_epoch
    whole = [batch.ids_BS.tolist() for batch in batches(0).between(0, end)]
    assert [batch.ids_BS.tolist() for batch in batches(0).between(per_epoch + 5, end)] == whole[per_epoch + 5 :]
    assert batches(0).at(2).ids_BS.tolist() == whole[2] != batches(1).at(2).ids_BS.tolist()
    assert whole[:per_epoch] != whole[per_epoch : 2 * per_epoch] != whole[2 * per_epoch :]


def test_buckets_are_hardly_padded_and_packed_rows_hardly_empty():
    lengths = np.random.default_rng(0).integers(20, 512, 2000)
    held = Held(sample(int(length)) for length in lengths)
    for batches, least in ((Bucketed(held, 8), 0.96), (Packed(held, 8, 512), 0.93)):
        made = list(batches.between(0, batches.per_epoch))
        used = sum(int((batch.segments_BS > 0).sum()) for batch in made) / sum(batch.ids_BS.numel() for batch in made)
        assert used > least


def test_batches_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="batch=0 must be at least 1"):
        Bucketed(Held([sample(3)]), 0)
    with pytest.raises(ValueError, match="no samples to batch"):
        Bucketed(Held(), 2)
    with pytest.raises(ValueError, match="sample 1 has 30 tokens, length=20: prepare it with --max-length"):
        Packed(Held([sample(3), sample(30)]), 1, 20)


# --- folders


def prepared(tmp_path, rows, name="out", tokenizer=CHATML, **options):
    return prepare([jsonl(tmp_path / "rows.jsonl", rows)], tokenizer, tmp_path / name, target="base", **options)


def same(left, right) -> bool:
    pairs = zip(left, right, strict=True)
    return all(np.array_equal(a.ids, b.ids) and np.array_equal(a.mask, b.mask) for a, b in pairs)


def test_a_folder_gives_back_every_sample(tmp_path):
    rows = [conversation(index) for index in range(1, 40)] + [{"text": "A chat between two.\n"}]
    data = prepared(tmp_path, rows, shard_tokens=200)
    expected = [CHATML.apply_chat_template(row["messages"], return_dict=True)["input_ids"] for row in rows[:-1]]
    expected.append(CHATML(rows[-1]["text"])["input_ids"])
    assert data.summary["shards"] > 3 and [one.ids.tolist() for one in data] == expected
    assert CHATML.decode(data[38].ids[data[38].mask]) == "x" * 39 + "<|im_end|>" and data[-1].mask.all()
    assert data.lengths_N.tolist() == [len(ids) for ids in expected] and len(data) == 40
    assert [one.ids.tolist() for one in data[3:9:2]] == expected[3:9:2]
    with pytest.raises(IndexError, match="sample 40 of 40"):
        data[40]
    summary = data.summary
    assert (summary["rows"], summary["samples"], summary["skipped"]) == (40, 40, 0)
    assert summary["tokens"] == sum(map(len, expected)) and summary["loss_tokens"] == sum(
        int(s.mask.sum()) for s in data
    )
    assert token_counts(data, summary["vocabulary"]).sum() == summary["loss_tokens"]
    batch = next(Packed(data, 2, 128).between(0, 1))
    assert batch.ids_BS.shape == (2, 128) and batch.ids_BS.dtype == torch.int64


def test_bad_rows_are_counted_with_their_places_or_fatal(tmp_path):
    rows = [
        conversation(1),
        "{broken",
        {"messages": []},
        conversation(2),
        {"messages": HI[:1]},
        *[{"messages": []}] * 4,
    ]
    data = prepared(tmp_path, rows)
    path = tmp_path / "rows.jsonl"
    assert (data.summary["rows"], data.summary["samples"], data.summary["skipped"]) == (9, 2, 7)
    assert data.summary["reasons"]["messages is empty"] == 5
    assert data.summary["first"][:3] == [
        f"{path} line 2: not JSON (Expecting property name enclosed in double quotes at column 2)",
        f"{path} line 3: messages is empty",
        f"{path} line 5: no assistant turn after a user's: {ANEW}",
    ]
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))} line 2: not JSON"):
        prepared(tmp_path, rows, "strict", strict=True)


def test_a_line_that_is_no_text_is_a_bad_row(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "caf\xe9"}\n{"text": "cafe"}\n')
    data = prepare([str(path)], CHATML, tmp_path / "out", target="base")
    assert len(data) == 1 and data.summary["first"] == [f"{path} line 1: not UTF-8 text"]


def test_half_a_character_is_a_bad_row(tmp_path):
    path, half = tmp_path / "a.jsonl", json.dumps("lone \ud800 half")
    path.write_text(
        f'{{"text": {half}}}\n{{"text": "cafe"}}\n{{"conversations": [{{"from": "human", "value": {half}}}]}}'
    )
    data = prepare([str(path)], CHATML, tmp_path / "out", target="base")
    reason = "half a character ('\\ud800') at 5"
    assert len(data) == 1 and data.summary["first"] == [f"{path} line 1: {reason}", f"{path} line 3: {reason}"]


def test_a_full_disk_is_named_and_nothing_half_is_left(tmp_path, monkeypatch):
    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half a shard")
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr("eagle.data.tensor_files._save", full)
    with pytest.raises(OSError, match=r"shard_00000.* could not be written .*No space left.*the same command goes on"):
        prepared(tmp_path, [conversation(1)])
    assert not list((tmp_path / "out").iterdir())
    monkeypatch.undo()
    assert len(prepared(tmp_path, [conversation(1)])) == 1


def test_a_fingerprint_is_of_samples_and_not_of_shards(tmp_path):
    rows = [conversation(index) for index in range(1, 20)]
    one, many = prepared(tmp_path, rows, "one"), prepared(tmp_path, rows, "many", shard_tokens=100)
    assert many.summary["shards"] > 2 and one.fingerprint == many.fingerprint
    others = [prepared(tmp_path, other, f"other {len(other)}") for other in (rows[1:], [*rows, conversation(1)])]
    turned = prepared(tmp_path, [rows[1], rows[0], *rows[2:]], "turned")
    assert len({data.fingerprint for data in (one, turned, *others)}) == 4


def test_conversations_are_cut_and_documents_divided(tmp_path):
    rows = [conversation(1), conversation(60), {"text": "A chat between a curious user. " * 40}]
    whole, data = prepared(tmp_path, rows, "whole"), prepared(tmp_path, rows, max_length=32)
    assert data.summary["truncated"] == 1 and data.lengths_N.max() == 32
    assert data[1].ids.tolist() == whole[1].ids[:32].tolist()
    assert np.concatenate([one.ids for one in data[2:]]).tolist() == whole[2].ids.tolist()
    assert len(prepared(tmp_path, rows, "limited", limit=2)) == 2


def test_data_of_no_use_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no usable row in .*rows\.jsonl: 1 of 1 rows skipped: .* found a, b"):
        prepared(tmp_path, [{"a": 1, "b": 2}])
    plain = tokenizer_of(FAMILIES["none"])
    with pytest.raises(
        ValueError, match=r"rows\.jsonl line 1 is a conversation and the tokenizer has no chat template"
    ):
        prepared(tmp_path, [SHAREGPT], tokenizer=plain)
    assert len(prepared(tmp_path, [{"text": "no template needed"}], "text", tokenizer=plain)) == 1
    assert len(prepared(tmp_path, [SHAREGPT], "fastchat", tokenizer=plain, template="vicuna_v1.1")) == 1
    for name, least in (("max_length", 2), ("limit", 1)):
        with pytest.raises(ValueError, match=f"{name}={least - 1} must be at least {least}"):
            prepared(tmp_path, [SHAREGPT], **{name: least - 1})


def test_a_folder_of_another_kind_is_refused(tmp_path):
    data = prepared(tmp_path, [conversation(1)])
    written = (tmp_path / "out" / "data.json").stat().st_mtime_ns
    again = prepare([str(tmp_path / "rows.jsonl")], CHATML, tmp_path / "out", target="base")
    assert same(again, data) and (tmp_path / "out" / "data.json").stat().st_mtime_ns == written
    other = tokenizer_of(FAMILIES["llama-3"])
    with pytest.raises(
        ValueError, match=r"out was made with template='chat template .*vocabulary_hash=.*choose another"
    ):
        prepare([str(tmp_path / "rows.jsonl")], other, tmp_path / "out", target="base")
    with pytest.raises(ValueError, match="max_length=None, now 9: choose another folder, or delete it"):
        prepare([str(tmp_path / "rows.jsonl")], CHATML, tmp_path / "out", target="base", max_length=9)
    with pytest.raises(ValueError, match=r"out was made of other rows: .*rows\.jsonl line 1 is not the one that stood"):
        prepared(tmp_path, [conversation(2), conversation(1)])
    with pytest.raises(FileNotFoundError, match=r"holds no data\.json: make it, or finish it"):
        load(tmp_path)
    (tmp_path / "out" / "data.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="has format 99, this version reads 1"):
        load(tmp_path / "out")


def test_a_target_that_does_not_fit_is_refused(tmp_path):
    made = prepared(tmp_path, [conversation(1)])
    size = len(CHATML)
    assert same(load(tmp_path / "out", vocabulary=size + 64, tokenizer=CHATML), made)
    with pytest.raises(
        ValueError, match=rf"tokenizer of base, {size} tokens, and the target knows {size - 1}: prepare"
    ):
        load(tmp_path / "out", vocabulary=size - 1)
    with pytest.raises(ValueError, match=r"the target's gives its .* tokens other ids: prepare it anew"):
        load(tmp_path / "out", tokenizer=tokenizer_of(FAMILIES["gemma"]))


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = ["tests", "tests/support"]
from eagle.data import tensor_files
from chat_templates import FAMILIES, tokenizer_of
from eagle.data import prepare
written, save = [], tensor_files._save

def save_two_and_a_half(tensors, path, metadata):
    if len(written) == 2:
        Path(path).write_bytes(b"half a shard")
        os.kill(os.getpid(), signal.SIGKILL)
    written.append(path)
    save(tensors, path, metadata)

tensor_files._save = save_two_and_a_half
tokenizer = tokenizer_of(FAMILIES["chatml"])
prepare([sys.argv[1]], tokenizer, Path(sys.argv[2]), target="base", max_length=40, shard_tokens=200)
"""


def test_a_killed_run_goes_on_to_the_same_folder_and_redoes_no_shard(tmp_path):
    rows = [row for index in range(1, 40) for row in (conversation(index), {"messages": []})]
    whole = prepared(tmp_path, rows, "whole", max_length=40, shard_tokens=200)
    source, folder = str(tmp_path / "rows.jsonl"), tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", KILLED, source, str(folder)], cwd=ROOT, env=environment())
    assert done.returncode == -signal.SIGKILL and len(list(folder.glob("*.safetensors"))) == 2
    assert same(load(folder), whole[: len(load(folder))]) and not load(folder).finished
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    with pytest.raises(ValueError, match="max_length=40, now 50"):
        prepare([source], CHATML, folder, target="base", max_length=50, shard_tokens=200)
    with pytest.raises(ValueError, match="rows skipped"):
        prepare([source], CHATML, folder, target="base", max_length=40, shard_tokens=200, strict=True)
    data = prepare([source], CHATML, folder, target="base", max_length=40, shard_tokens=200)
    assert same(data, whole) and data.summary == whole.summary and whole.summary["skipped"] == 39
    assert {path: path.stat().st_mtime_ns for path in before} == before
    shards = [f"shard_{index:05d}.safetensors" for index in range(data.summary["shards"])]
    assert sorted(path.name for path in folder.iterdir()) == ["data.json", *shards]


def test_the_command_says_what_it_wrote(tmp_path, capsys):
    CHATML.save_pretrained(tmp_path / "target")
    rows = [conversation(index) for index in range(1, 30)] + [{"messages": []}]
    arguments = [jsonl(tmp_path / "rows.jsonl", rows), "--tokenizer", str(tmp_path / "target"), "--max-length", "24"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    data, said = load(tmp_path / "out"), capsys.readouterr().out.splitlines()
    made = data.summary
    assert said == [
        f"{tmp_path}/out: {len(data)} samples in 1 shards, from 30 rows",
        f"{made['tokens']:,} tokens, {made['loss_tokens'] / made['tokens']:.1%} of them in the loss",
        f"template: {made['template']}",
        f"{made['truncated']} rows cut to 24 tokens",
        f"1 of 30 rows skipped: {tmp_path}/rows.jsonl line 30: messages is empty",
    ]
    assert 0 < made["truncated"] < 29
    assert main(["nothing.jsonl", *arguments[1:], "--out", str(tmp_path / "other")]) == 1
    assert "error: nothing.jsonl does not exist" in capsys.readouterr().err


def test_the_page_on_data_prints_what_it_says(tmp_path):
    page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(bash|python|text)\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    variables = environment(PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}", OMP_NUM_THREADS="1")
    for (language, code), (_, printed) in zip(blocks[::2], blocks[1::2], strict=True):
        command = ["bash", "-c", code] if language == "bash" else [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout == printed
