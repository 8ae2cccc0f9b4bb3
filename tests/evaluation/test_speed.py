"""The speed-up of two files of answers is what one computes by hand, and what cannot be compared is named."""

import json
import math

import pytest

from eagle.evaluation import speed
from eagle.evaluation.record_file import RecordFile


def answers(path, *choices, **more):
    """Write one answer a question, the ids from 1; a choice may be anything."""
    file = RecordFile(path)
    for number, choice in enumerate(choices, start=1):
        file.add({"question_id": number, "choices": [choice], **more})
    return str(path)


def choice(tokens, seconds, accepted=None, ids=None):
    found = {"index": 0, "turns": ["a"] * len(tokens), "idxs": tokens, "new_tokens": tokens, "wall_time": seconds}
    return found | {name: value for name, value in (("accepted", accepted), ("ids", ids)) if value is not None}


def compared(capsys, *arguments):
    assert speed.main([*arguments, "--json"]) == 0

    def refuse(name):
        raise AssertionError(f"JSON has {name}")

    return json.loads(capsys.readouterr().out, parse_constant=refuse)


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        speed.main(list(arguments))
    assert end.value.code == 2
    words = capsys.readouterr().err
    assert "Traceback" not in words
    return words


def test_figures_are_those_computed_by_hand(tmp_path, capsys):
    # 12 tokens in 3 s and 6 in 1 s: 4 and 6 tokens/s, whose mean is 5. The baseline's 2 and 2, of other lengths.
    ours = answers(
        tmp_path / "a",
        choice([7, 5], [1.0, 2.0], [2, 0, 3, 1], [[1] * 7, [2] * 5]),
        choice([6], [1.0], [0, 2], [[3] * 6]),
    )
    base = answers(
        tmp_path / "b", choice([7, 5], [4.0, 2.0], None, [[1] * 7, [2] * 5]), choice([4], [2.0], None, [[3] * 4])
    )
    found = compared(capsys, ours, base)
    assert found["questions"] == 2
    assert found["speedup"]["value"] == pytest.approx(5 / 2)
    assert (found["tokens_per_second"], found["baseline_tokens_per_second"]) == pytest.approx((5, 2))
    assert found["acceptance_length"]["value"] == pytest.approx(1 + 8 / 6)
    assert found["tokens_per_forward"]["value"] == pytest.approx(18 / 6)
    # Of 6 drafts 4 accept one, of these 3 two, of these 1 three, of that none.
    assert found["acceptance_by_depth"] == pytest.approx([4 / 6, 3 / 4, 1 / 3, 0])
    assert found["equal"] == 1
    for name, low, high in (("speedup", 2, 3), ("acceptance_length", 2, 2.5), ("tokens_per_forward", 3, 3)):
        assert (found[name]["low"], found[name]["high"]) == pytest.approx((low, high)), name
    assert speed.main([ours, base]) == 0
    said = capsys.readouterr().out
    assert "speed-up          2.50x [2.00, 3.00]" in said and "equal ids         1 of 2" in said
    assert "0-α, 1-α, …       0.67 0.75 0.33 0.00" in said and "2.33 [2.00, 2.50] (1 + accepted / drafts)" in said


def test_equal_questions_have_intervals_of_one_point(tmp_path, capsys):
    ours = answers(tmp_path / "a", *[choice([6], [2.0], [1, 3])] * 5)
    base = answers(tmp_path / "b", *[choice([6], [3.0])] * 5)
    found = compared(capsys, ours, base)
    for name, value in (("speedup", 1.5), ("acceptance_length", 3), ("tokens_per_forward", 3)):
        assert found[name] == pytest.approx({"value": value, "low": value, "high": value})


def test_questions_are_paired_by_their_ids_whatever_their_order(tmp_path, capsys):
    first, second = choice([4], [1.0], [1], [[1] * 4]), choice([2], [1.0], [0], [[2] * 2])
    ours, base = answers(tmp_path / "a", first, second), RecordFile(tmp_path / "b")
    base.add({"question_id": 2, "choices": [second]})
    base.add({"question_id": 1, "choices": [first]})
    found = compared(capsys, ours, str(base.path))
    assert found["equal"] == 2 and found["speedup"] == pytest.approx({"value": 1, "low": 1, "high": 1})


def test_only_first_choices_count(tmp_path, capsys):
    ours = tmp_path / "a"
    RecordFile(ours).add({"question_id": 1, "choices": [choice([4], [1.0]), choice([400], [1.0])]})
    assert compared(capsys, str(ours), answers(tmp_path / "b", choice([2], [1.0])))["speedup"]["value"] == 2


def test_files_of_the_reference_are_compared_by_their_speed_alone(tmp_path, capsys):
    files = [answers(tmp_path / name, choice([8], [s]), answer_id="x", tstamp=1.0) for name, s in (("a", 1), ("b", 2))]
    found = compared(capsys, *files)
    assert found["speedup"]["value"] == 2 and found["acceptance_by_depth"] == []
    assert found["acceptance_length"] is found["tokens_per_forward"] is found["equal"] is None
    assert speed.main(files) == 0
    said = capsys.readouterr().out
    assert "τ" not in said and "equal" not in said and "-α" not in said and "2.00x" in said


def test_figures_that_some_questions_cannot_have_are_no_nan_and_no_infinity(tmp_path, capsys):
    # An answer of one token has no draft: questions drawn again may all be of that kind.
    ours = answers(tmp_path / "a", choice([1], [1.0], []), choice([3], [1.0], [1]))
    base = answers(tmp_path / "b", choice([1], [1.0]), choice([3], [1.0]))
    found = compared(capsys, ours, base)
    assert found["acceptance_length"] == {"value": 2, "low": 2, "high": 2}
    assert all(math.isfinite(value) for value in found["tokens_per_forward"].values())
    none = compared(capsys, answers(tmp_path / "c", choice([1], [1.0], [])), answers(tmp_path / "d", choice([1], [1])))
    assert none["acceptance_length"] is None


def test_tokens_that_are_not_those_of_the_ids_are_refused_by_line(tmp_path, capsys):
    path = tmp_path / "a"
    path.write_text("\n")  # which counts as a line, and is none
    answers(path, choice([2], [1.0], None, [[1, 2]]), choice([3], [1.0], None, [[1, 2]]))
    words = refused(capsys, str(path), str(path))
    assert f"{path} line 3: new_tokens=[3], and its ids are [2]" in words


def test_a_question_that_one_file_lacks_is_named_on_both_sides(tmp_path, capsys):
    one, other = RecordFile(tmp_path / "a"), RecordFile(tmp_path / "b")
    for file, questions in ((one, [1, 2, "x"]), (other, [1, *range(20, 40)])):
        for question in questions:
            file.add({"question_id": question, "choices": [choice([1], [1.0])]})
    words = refused(capsys, str(one.path), str(other.path))
    assert "the answers lack 20, 21, 22, 23, 24, 25, 26, 27, 28 and 11 more; the baseline lacks 2, x" in words


def test_a_question_that_is_answered_twice_is_named(tmp_path, capsys):
    file = RecordFile(tmp_path / "a")
    for question in (7, 8, 7):
        file.add({"question_id": question, "choices": [choice([1], [1.0])]})
    assert "a line 3: question 7 is answered in line 1 already" in refused(capsys, str(file.path), str(file.path))


WRONG = {
    "no id": ({"choices": [choice([1], [1.0])]}, "question_id=None"),
    "a list as id": ({"question_id": [1], "choices": [choice([1], [1.0])]}, r"question_id=[1]"),
    "no choices": ({"question_id": 1}, "no choices"),
    "empty choices": ({"question_id": 1, "choices": []}, "no choices"),
    "a text as choice": ({"question_id": 1, "choices": ["x"]}, "no choices"),
    "no tokens": ({"question_id": 1, "choices": [{"wall_time": [1.0]}]}, "it has no new_tokens"),
    "no times": ({"question_id": 1, "choices": [{"new_tokens": [1]}]}, "it has no wall_time"),
    "a number as tokens": ({"question_id": 1, "choices": [{"new_tokens": 1}]}, "new_tokens=1"),
    "negative tokens": ({"question_id": 1, "choices": [choice([-1], [1.0])]}, "new_tokens=[-1]"),
    "texts as times": ({"question_id": 1, "choices": [choice([1], ["1"])]}, "wall_time=['1']"),
    "no time": ({"question_id": 1, "choices": [choice([1], [0.0])]}, "is no speed"),
    "nothing said": ({"question_id": 1, "choices": [choice([0], [1.0])]}, "is no speed"),
    "a time too few": ({"question_id": 1, "choices": [choice([1, 1], [1.0])]}, "is no speed"),
    "texts as accepted": ({"question_id": 1, "choices": [choice([1], [1.0], ["x"])]}, "accepted=['x']"),
    "flat ids": ({"question_id": 1, "choices": [choice([1], [1.0], None, [1])]}, "ids must be a list of lists"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_line_that_is_no_answer_is_named(tmp_path, capsys, case):
    record, words = WRONG[case]
    RecordFile(tmp_path / "a").add(record)
    said = refused(capsys, str(tmp_path / "a"), str(tmp_path / "a"))
    assert f"{tmp_path / 'a'} line 1: " in said and words in said


@pytest.mark.parametrize("number", ["NaN", "Infinity"])
def test_a_time_that_is_no_number_is_refused(tmp_path, capsys, number):
    path = tmp_path / "a"
    path.write_text(f'{{"question_id": 1, "choices": [{{"new_tokens": [1], "wall_time": [{number}]}}]}}\n')
    assert "line 1: wall_time=" in refused(capsys, str(path), str(path))


def test_a_file_that_is_not_there_or_holds_nothing_is_refused(tmp_path, capsys):
    (tmp_path / "empty").touch()
    assert "holds no answers" in refused(capsys, str(tmp_path / "empty"), str(tmp_path / "empty"))
    assert "nowhere" in refused(capsys, str(tmp_path / "nowhere"), str(tmp_path / "empty"))
