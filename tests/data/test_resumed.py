"""Folders go on: made longer or shorter, of files that lie elsewhere, read before they are finished."""

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from authors import ScriptedAuthor, words_of
from chat_templates import FAMILIES, tokenizer_of
from safetensors.numpy import save_file

from eagle.data import Regeneration, load, main, prepare
from eagle.data.answer_file import ANSWERS, AnswerFile
from eagle.data.answers import Answer, Question
from eagle.data.folder import Counts, write_shard, write_summary
from eagle.data.samples import Sample
from eagle.data.shards import write_document
from eagle.data.tensor_files import TensorFile, write_tensors

CHATML = tokenizer_of(FAMILIES["chatml"])
HOW = Regeneration(shard_rows=4)


def row(index: int, turns: int = 2) -> dict:
    """A conversation of questions that are answered one by one."""
    return {"turns": [f"{index}: what is {index}?", "And why?", "Really?"][:turns], "answer": "old"}


def told(index: int) -> dict:
    return {"messages": [{"role": "user", "content": f"{index}?"}, {"role": "assistant", "content": "x" * index}]}


def jsonl(path: Path, rows: list) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def plain(sources, folder: Path, **options):
    return prepare(sources, CHATML, folder, target="base", shard_tokens=200, **options)


@pytest.fixture
def author(monkeypatch) -> ScriptedAuthor:
    """Who answers in `answered`; remembers what it was asked."""
    author = ScriptedAuthor(CHATML)
    monkeypatch.setattr("eagle.data.preparation.author_of", lambda *arguments: author)
    return author


def answered(sources, folder: Path, how: Regeneration = HOW, **options):
    return prepare(sources, CHATML, folder, target="base", regeneration=how, **options)


def made(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ANSWERS}


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}


def lines(folder: Path) -> list[bytes]:
    return sorted((folder / ANSWERS).read_bytes().splitlines())


# --- plain conversions


def test_a_longer_or_shorter_run_keeps_what_it_shares_and_ends_as_if_made_at_once(tmp_path):
    rows = [one for index in range(1, 30) for one in (told(index), "{broken")]
    source, more = jsonl(tmp_path / "a.jsonl", rows), jsonl(tmp_path / "b.jsonl", [told(index) for index in range(9)])
    for limits in ((20, None), (None, 20), (31, 58), (58, 31), (58, 57), (10, 3)):
        whole, folder = tmp_path / f"whole {limits[1]}", tmp_path / f"{limits}"
        plain([source], folder, limit=limits[0])
        before = times(folder)
        plain([source], folder, limit=limits[1])
        if not whole.exists():
            plain([source], whole, limit=limits[1])
        assert made(folder) == made(whole)
        kept = len(before.items() & times(folder).items())
        assert kept >= min(len(before), len(times(folder))) - 1
    plain([source], tmp_path / "both")
    before = times(tmp_path / "both")
    plain([source, more], tmp_path / "both")
    assert len(before.items() & times(tmp_path / "both").items()) == len(before) - 1 > 2
    plain([source, more], tmp_path / "at once")
    assert made(tmp_path / "both") == made(tmp_path / "at once")
    plain([source], tmp_path / "both")
    assert made(tmp_path / "both") == made(tmp_path / "whole None")


def test_files_that_are_moved_or_touched_are_the_same_and_edited_ones_are_not(tmp_path, caplog):
    rows = [told(index) for index in range(1, 30)]
    source, folder = Path(jsonl(tmp_path / "a.jsonl", rows)), tmp_path / "out"
    plain([str(source)], folder)
    before, moved = made(folder), source.rename(tmp_path / "moved.jsonl")
    os.utime(moved, ns=(1, 1))
    with caplog.at_level("INFO"):
        plain([str(moved)], folder)
    assert "is already there" in caplog.text and made(folder) == before
    stat = moved.stat()
    jsonl(moved, [*rows[:16], told(18), told(17), *rows[18:]])
    os.utime(moved, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # of the same size and time
    assert moved.stat().st_size == stat.st_size
    with pytest.raises(ValueError, match=r"of other rows: .*moved\.jsonl line 17 is not the one that stood there"):
        plain([str(moved)], folder)
    assert made(folder) == before
    jsonl(moved, [told(index) for index in range(1, 29)])
    assert len(plain([str(moved)], folder)) == 28


def test_an_unfinished_folder_is_read_with_a_warning(tmp_path, caplog):
    rows = [told(index) for index in range(1, 30)]
    whole = plain([jsonl(tmp_path / "a.jsonl", rows)], tmp_path / "out")
    assert whole.finished and whole.files > 3
    wanted = [one.ids.tolist() for one in whole]
    (tmp_path / "out" / "data.json").unlink()
    (tmp_path / "out" / "shard_00002.safetensors").unlink()
    caplog.clear()
    part = load(tmp_path / "out", vocabulary=len(CHATML), tokenizer=CHATML)
    assert not part.finished and part.files == 2 and part.summary["target"] == "base"
    assert [one.ids.tolist() for one in part] == wanted[: len(part)] and part.summary["samples"] == len(part) > 5
    assert f"out is unfinished: 2 shards of {part.summary['rows']} rows are read" in caplog.text
    (tmp_path / "out" / "shard_00000.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no data\.json: make it, or finish it"):
        load(tmp_path / "out")
    assert [one.ids.tolist() for one in plain([str(tmp_path / "a.jsonl")], tmp_path / "out")] == wanted


@pytest.mark.parametrize("version", [1, 2])
def test_a_folder_of_an_earlier_version_is_read_and_stays(tmp_path, version, caplog):
    source, folder = Path(jsonl(tmp_path / "a.jsonl", [told(3)])), tmp_path / "out"
    new = plain([str(source)], tmp_path / "new").summary
    folder.mkdir()
    settings = {name: new[name] for name in ("target", "template", "vocabulary", "vocabulary_hash", "max_length")}
    stat = source.stat()
    settings |= {"limit": None, "by_paragraph": False, "regeneration": None}
    settings["sources"] = [{"name": str(source), "bytes": stat.st_size, "modified_ns": stat.st_mtime_ns}]
    counts, sample = Counts(rows=1), Sample(np.arange(5, dtype=np.int32), np.ones(5, dtype=bool))
    counts.add(sample)
    write_shard(folder, 0, [sample], settings=settings, counts=counts)
    write_summary(folder, settings, counts, 1)
    old_version(folder, version)
    assert [one.ids.tolist() for one in load(folder)] == [[0, 1, 2, 3, 4]]
    with caplog.at_level("INFO"):
        plain([str(source)], folder)
    assert "is already there" in caplog.text
    with pytest.raises(ValueError, match="was begun by an earlier version, which did not write down its rows"):
        plain([jsonl(tmp_path / "b.jsonl", [told(4)])], folder)
    assert len(load(folder)) == 1


def old_version(folder: Path, version: int) -> None:
    """Make a folder one of an earlier version: without rows, in the first one without checksums as well."""
    path = folder / "shard_00000.safetensors"
    file = TensorFile(path)
    tensors = {name: file.read(name) for name in ("ids", "mask", "ends")}
    about = {name: value for name, value in file.about.items() if name != "full"}
    if version == 2:
        write_tensors(path, tensors, about)
    else:
        save_file(tensors, path, {"about": json.dumps(about)})
    document = json.loads((folder / "data.json").read_text())
    for name in ("checksum", "answers", "looped"):
        document.pop(name)
    write_document(folder / "data.json", {**document, "format": version})


# --- answers


def test_questions_are_enough_and_every_turn_is_answered_in_turn(tmp_path, author):
    rows = [
        row(1, 3),
        {"prompt": "2: alone"},
        {"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "3: listed"}]},
        {"question": "4: asked", "answer": "#### 4"},
        {"messages": [{"role": "user", "content": "5: open"}]},
        {"conversations": [{"from": "human", "value": "6: old"}, {"from": "gpt", "value": "no"}]},
    ]
    source = jsonl(tmp_path / "a.jsonl", rows)
    data = answered([source], tmp_path / "out")
    assert data.summary["skipped"] == 0 and len(data) == 6 and data.summary["answers"] == 8
    texts = [CHATML.decode(one.ids) for one in data]
    assert [text.count("<|im_start|>assistant") for text in texts] == [3, 1, 1, 1, 1, 1]
    assert "Be brief." in texts[2] and "no" not in texts[5].split()
    for question in author.asked:
        answer = words_of(question)
        assert answer in texts[question.place] and question.messages[-1]["role"] == "user"
        (folded,) = [one for one in data if answer in CHATML.decode(one.ids[one.mask])]
        assert CHATML.decode(question.prompt) in CHATML.decode(folded.ids)
    with pytest.raises(ValueError, match=r"no usable row.* no assistant turn after a user's: with --regenerate the"):
        plain([jsonl(tmp_path / "b.jsonl", rows[:5])], tmp_path / "plain")


def test_only_what_is_missing_is_asked_whatever_changes_about_the_rows(tmp_path, author):
    a = jsonl(tmp_path / "a.jsonl", [row(index) for index in range(10)])
    b = jsonl(tmp_path / "b.jsonl", [row(index) for index in range(10, 15)])
    asked = []
    for sources, limit in (([a], 6), ([a], None), ([a], 3), ([b, a], None), ([a, b], 12), ([a, b], None)):
        answered(sources, tmp_path / "out", limit=limit)
        asked.append(len(author.asked))
        answered(sources, tmp_path / f"{asked}", limit=limit)
        del author.asked[asked[-1] :]
        assert made(tmp_path / "out") == made(tmp_path / f"{asked}")
    assert asked == [12, 20, 20, 30, 30, 30]
    assert len({(question.key, question.turn) for question in author.asked}) == 30


def test_the_same_question_is_asked_once_and_answered_everywhere(tmp_path, author):
    data = answered([jsonl(tmp_path / "a.jsonl", [row(1)] * 7 + [row(2)] + [row(1, 1)])], tmp_path / "out")
    assert len(author.asked) == 5 and len(data) == 9 and data.summary["answers"] == 17
    assert len({one.ids.tobytes() for one in data[:7]}) == 1


def test_shards_are_cut_of_answers_as_they_come_and_without_a_question(tmp_path, author, monkeypatch):
    source = jsonl(tmp_path / "a.jsonl", [row(index) for index in range(20)])
    seen, write = [], author.write

    def watched(take):
        for answer in write(take):
            seen.append(len(times(tmp_path / "out")))
            yield answer
            if len(seen) == 25:
                raise KeyboardInterrupt

    monkeypatch.setattr(author, "write", watched)
    with pytest.raises(KeyboardInterrupt):
        answered([source], tmp_path / "out")
    assert seen[-1] >= 2 and len(load(tmp_path / "out")) == 4 * len(times(tmp_path / "out"))
    monkeypatch.undo()
    monkeypatch.setattr("eagle.data.preparation.author_of", lambda *arguments: author)
    before = times(tmp_path / "out")
    answered([source], tmp_path / "out")
    assert len(author.asked) <= 40 + author.slots and before.items() <= times(tmp_path / "out").items()
    for path in (tmp_path / "out").glob("shard_*"):
        path.unlink()
    del author.asked[:]
    answered([source], tmp_path / "out")
    answered([source], tmp_path / "whole")
    assert made(tmp_path / "out") == made(tmp_path / "whole") and len(author.asked) == 40


def test_answers_that_repeat_themselves_are_counted_and_left_out_when_that_is_asked(tmp_path, author, capsys):
    author.loops = lambda question: question.place == 1 or (question.place == 2 and question.turn == 1)
    source = jsonl(tmp_path / "a.jsonl", [row(index) for index in range(4)])
    kept = answered([source], tmp_path / "out")
    assert (kept.summary["answers"], kept.summary["looped"], len(kept)) == (8, 3, 4)
    del author.asked[:]
    dropped = answered([source], tmp_path / "out", Regeneration(shard_rows=4, drop_loops=True))
    assert not author.asked  # the answers are there
    assert dropped.summary["looped"] == 2 and len(dropped) == 3
    assert dropped.summary["reasons"] == {"the answer repeats itself without end": 1}
    texts = [CHATML.decode(one.ids) for one in dropped]
    assert [text.count("<|im_start|>assistant") for text in texts] == [2, 1, 2]
    CHATML.save_pretrained(tmp_path / "target")
    arguments = [source, "--tokenizer", str(tmp_path / "target"), "--out", str(tmp_path / "said"), "--regenerate"]
    assert main(arguments) == 0
    assert "3 of 8 answers repeat themselves without end: kept; --drop-loops" in capsys.readouterr().out
    assert main([*arguments, "--drop-loops"]) == 0
    assert "2 of 7 answers repeat themselves without end: left out" in capsys.readouterr().out


def test_answers_made_otherwise_are_refused(tmp_path, author):
    source = jsonl(tmp_path / "a.jsonl", [row(1)])
    answered([source], tmp_path / "out")
    for path in (tmp_path / "out").glob("*"):
        if path.name != ANSWERS:
            path.unlink()
    with pytest.raises(ValueError, match=r"answers\.jsonl was made with regeneration=.*choose another folder"):
        answered([source], tmp_path / "out", Regeneration(temperatures=(1.0,)))
    with pytest.raises(ValueError, match=r"answers\.jsonl was made with max_length=None, now 99"):
        answered([source], tmp_path / "out", max_length=99)
    assert len(answered([source], tmp_path / "out")) == 1 and len(author.asked) == 2


# --- the file of answers


def question(index: int) -> Question:
    messages = [{"role": "user", "content": f"é {index}"}]
    return Question(index, 0, f"{index}", f"{index:x}", messages, [1, 2])


def filled(path: Path, count: int) -> list[Answer]:
    answers = [Answer(question(i), [i, 7], f"\u2028 answer {i}" * (i % 3), i % 2 == 0, i == 3) for i in range(count)]
    file = AnswerFile(path, {"how": 1})
    for answer in answers:
        file.add(answer)
    file.close()
    return answers


def found(path: Path, count: int) -> list[Answer | None]:
    file = AnswerFile(path, {"how": 1})
    try:
        return [file.find(question(index)) for index in range(count)]
    finally:
        file.close()


def test_answers_are_found_again_by_what_was_asked(tmp_path):
    answers = filled(tmp_path / "a.jsonl", 9)
    assert found(tmp_path / "a.jsonl", 10) == [*answers, None]
    said = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").split("\n")[1:-1]]
    assert [line["messages"][-1]["content"] for line in said] == [answer.text for answer in answers]
    assert "é 3" in (tmp_path / "a.jsonl").read_text(encoding="utf-8")


def test_a_line_that_is_torn_at_any_byte_loses_itself_alone(tmp_path):
    answers, path = filled(tmp_path / "a.jsonl", 4), tmp_path / "a.jsonl"
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in [0, 5, *range(last, len(whole), 7), len(whole) - 1]:
        path.write_bytes(whole[:cut])
        assert found(path, 4) == ([*answers[:3], None] if cut >= last else [None] * 4)
        filled(path, 4)
        assert found(path, 4) == answers
    path.write_bytes(whole + b"x" * 9999)  # a torn line that is longer than what comes after it
    file = AnswerFile(path, {"how": 1})
    file.add(Answer(question(4), [4], "short", True))
    file.close()
    assert path.read_bytes().startswith(whole) and len(path.read_bytes()) < len(whole) + 300


def test_a_damaged_line_is_named_and_asked_anew(tmp_path, caplog):
    answers, path, numbers = filled(tmp_path / "a.jsonl", 4), tmp_path / "a.jsonl", random.Random(0)
    whole = path.read_bytes()
    begins = [0, *(place + 1 for place, byte in enumerate(whole) if byte == 10)]
    for _ in range(30):
        number = numbers.randrange(1, 5)
        place = numbers.randrange(begins[number], begins[number + 1] - 1)
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << numbers.randrange(8)]) + whole[place + 1 :])
        caplog.clear()
        assert found(path, 4) == [None if index == number - 1 else answer for index, answer in enumerate(answers)]
        assert f"line {number + 1} is damaged: what it answered is answered anew" in caplog.text
    path.write_bytes(b"[]\n" + whole)
    with pytest.raises(ValueError, match=r"a\.jsonl is damaged, or no file of answers: delete it"):
        found(path, 4)
