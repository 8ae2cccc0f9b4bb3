"""A transcript is what was said: in order, taken back in pairs, the same after a file."""

import json

import pytest

from eagle.application.transcript import Reply, Transcript
from eagle.model.stats import GenerationStats


def reply(text, *ids):
    return Reply(text, list(ids), "eos", GenerationStats(new_tokens=len(ids), accepted_per_row={0: [1]}))


def talk(*turns):
    transcript = Transcript()
    for question, answer in turns:
        transcript.ask(question)
        transcript.answer(reply(answer, 1, 2))
    return transcript


def test_a_question_is_taken_back_with_its_answer():
    transcript = talk(("a", "b"), ("c", "d"))
    assert transcript.undo() == "c" and transcript == talk(("a", "b"))
    transcript.ask("e")  # without an answer
    assert transcript.undo() == "e" and transcript == talk(("a", "b"))
    assert transcript.undo() == "a" and transcript.undo() is None and transcript == Transcript()


def test_a_saved_conversation_is_the_same_and_can_be_gone_on_with(tmp_path):
    transcript = talk(("ä\n", "b"), ("c", ""), ("/d", "e"))
    transcript.save(tmp_path / "talk.json")
    loaded = Transcript.load(tmp_path / "talk.json")
    assert loaded == transcript
    assert loaded.undo() == "/d" and len(loaded.answers) == 2


def test_conversations_of_others_are_loaded_and_answers_that_were_made_elsewhere_count_as_none(tmp_path):
    (tmp_path / "talk.json").write_text(json.dumps({"conversations": [{"from": "human", "value": "a"}]}))
    transcript = Transcript.load(tmp_path / "talk.json")
    assert transcript.messages == [{"role": "user", "content": "a"}] and transcript.answers == []
    assert transcript.undo() == "a"


NO_STATS = '{"messages": [], "answers": [{"text": "", "ids": [], "finished": "eos", "stats": {"new_tokens": 3}}]}'


@pytest.mark.parametrize(
    "content", ["", "[]", '{"text": "a"}', '{"messages": 3}', '{"messages": [], "answers": [{}]}', NO_STATS]
)
def test_a_file_without_a_conversation_is_refused_by_name(tmp_path, content):
    (tmp_path / "talk.json").write_text(content)
    with pytest.raises(ValueError, match=r"talk\.json holds"):
        Transcript.load(tmp_path / "talk.json")


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        talk(("a", "b")).save(tmp_path / "nowhere" / "talk.json")


def test_a_text_that_two_write_has_their_parts_in_order_and_new_lines_for_what_is_typed():
    assert talk(("def f():", " return 1"), ("x = f()", "\n"), ("y", "")).text == "def f(): return 1\nx = f()\ny"
