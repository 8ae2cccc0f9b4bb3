"""A file of records keeps every whole line, whatever happened to its last one, and says which line is wrong."""

import errno
import json
from pathlib import Path

import pytest
from refusals import assert_refused_in_words

from eagle.evaluation.record_file import RecordFile, read_records

ONE, TWO = {"id": 1, "text": "é\u2028"}, {"id": 2}


@pytest.fixture
def path(tmp_path):
    file = RecordFile(tmp_path / "records.jsonl")
    file.add(ONE)
    file.add(TWO)
    return file.path


def lines(path: Path) -> list[dict]:
    data = path.read_bytes()
    assert data.endswith(b"\n")
    return [json.loads(line) for line in data[:-1].split(b"\n")]


def test_what_is_added_is_read_again(path):
    assert lines(path) == RecordFile(path).records == [ONE, TWO]
    assert read_records(path) == [(1, ONE), (2, TWO)]


def test_nothing_is_made_before_the_first_record(tmp_path):
    assert RecordFile(tmp_path / "none.jsonl").records == []
    assert not (tmp_path / "none.jsonl").exists()


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_last_line_that_is_cut_off_is_done_again(path, caplog, cut):
    whole = path.read_bytes()
    path.write_bytes(whole[: -1 - cut])
    file = RecordFile(path)
    assert file.records == [ONE] and ("ends within line 2" in caplog.text) == (cut < len(json.dumps(TWO)))
    file.add(TWO)
    file.add({"id": 3})
    assert lines(path) == file.records == [ONE, TWO, {"id": 3}]


def test_a_file_that_holds_a_cut_off_line_only_begins_anew(path):
    path.write_bytes(b'{"id": 1, "te')
    RecordFile(path).add(TWO)
    assert lines(path) == [TWO]


def test_a_whole_last_line_without_its_newline_is_kept(path, caplog):
    path.write_bytes(path.read_bytes()[:-1])
    file = RecordFile(path)
    assert file.records == [ONE, TWO] and not caplog.text
    file.add({"id": 3})
    assert lines(path) == [ONE, TWO, {"id": 3}]


@pytest.mark.parametrize("ending", ["", "\n"])
@pytest.mark.parametrize(
    "line, words", [('{"id": 2', "is damaged"), ("[2]", "is list, not an object"), ("2", "is int, not an object")]
)
def test_a_line_that_is_no_object_is_named(path, line, words, ending):
    path.write_bytes(path.read_bytes() + b"\n" + line.encode() + b'\n{"id": 3}' + ending.encode())
    assert_refused_in_words(lambda: RecordFile(path), f"records.jsonl line 4 {words}")


def test_a_last_line_that_is_no_object_is_named_without_its_newline_too(path):
    path.write_bytes(path.read_bytes() + b"2")
    assert_refused_in_words(lambda: RecordFile(path), "records.jsonl line 3 is int")


class FullDisk:
    """A file on a disk that takes the first bytes of a line only."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, data):
        self.file.write(data[:5])
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_keeps_earlier_lines_and_later_ones_stay_whole(path, monkeypatch):
    file = RecordFile(path)
    with monkeypatch.context() as full:
        real = Path.open

        def opened(self, *a, **k):
            return FullDisk(real(self, *a, **k)) if a == ("ab",) else real(self, *a, **k)

        full.setattr(Path, "open", opened)
        with pytest.raises(OSError, match="No space left"):
            file.add({"id": 3})
    assert path.read_bytes().endswith(b'{"id"') and file.records == [ONE, TWO]
    assert RecordFile(path).records == [ONE, TWO]
    file.add({"id": 4})
    assert lines(path) == file.records == [ONE, TWO, {"id": 4}]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_json_does_not_know_is_never_written(path, value):
    with pytest.raises(ValueError, match="JSON"):
        RecordFile(path).add({"id": 3, "value": value})
    assert lines(path) == [ONE, TWO]


def test_half_a_surrogate_is_kept(path):
    RecordFile(path).add({"id": "\ud800"})
    assert RecordFile(path).records[-1] == {"id": "\ud800"}
