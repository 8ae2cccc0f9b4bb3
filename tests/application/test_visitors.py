"""Visitors: each has a session of its own, may change its mind at any time, and leaves nothing behind."""

import threading

import pytest
from pages import ScriptedSession, chat_model, step, tree

from eagle.application import visitors as visitors_module
from eagle.application.session import Session, SessionSettings
from eagle.application.visitors import STOPPED, Visitor, Visitors

STEPS = [step(["One"], 0), step([" two", " three"], 1, tree("ab")), step([" four"], 0, tree("ab", 0), "eos")]
GREEDY = SessionSettings()


def scripted(steps=STEPS, failure=None):
    session = ScriptedSession(steps, failure)
    return Visitor(session, lambda: ScriptedSession(steps)), session


def test_an_answer_is_there_step_by_step():
    visitor, _ = scripted()
    visitor.ask("Why?", GREEDY, chats=False)
    assert visitor.is_waiting
    seen = [len(visitor.turns[-1].answer.steps) if visitor.turns[-1].answer else 0 for _ in visitor.work()]
    assert seen == [0, 1, 2, 3] and visitor.turns[-1].answer.text == "One two three four"
    assert visitor.turns[-1].answer.finished == "eos" and not visitor.is_busy


def test_a_conversation_holds_what_was_said_in_it_and_no_continued_texts():
    visitor, session = scripted()
    for text, chats in (("Hi", True), ("x = ", False), ("Why?", True)):
        visitor.ask(text, GREEDY, chats=chats)
        list(visitor.work())
    said = [asked for asked, _ in session.asked]
    answer = {"role": "assistant", "content": "One two three four"}
    hi, why = {"role": "user", "content": "Hi"}, {"role": "user", "content": "Why?"}
    assert said == [(hi,), "x = ", (hi, answer, why)]


def test_stop_ends_after_the_step_that_runs_and_keeps_what_is_there():
    visitor, session = scripted()
    visitor.ask("Why?", GREEDY, chats=False, compares=True)
    work = visitor.work()
    next(work), next(work)
    visitor.stop()
    list(work)
    assert session.taken == 2 and session.closed == 1 and not visitor.is_busy
    answer = visitor.turns[-1].answer
    assert answer.finished == STOPPED and answer.text == "One two three" and len(visitor.turns[-1].runs) == 1


def test_what_waits_is_taken_back_by_stop_and_its_text_returned():
    visitor, session = scripted()
    visitor.ask("Why?", GREEDY, chats=False)
    visitor.stop()
    assert not visitor.turns and visitor.returned == "Why?" and list(visitor.work()) == [] and not session.asked


def test_a_page_that_closes_while_it_is_answered_stops_the_work_and_frees_the_caches():
    visitor, session = scripted()
    visitor.ask("Why?", GREEDY, chats=False)
    work = visitor.work()
    next(work), next(work)
    visitor.leave()
    assert session.frees == 0  # a step may be running
    list(work)
    assert session.taken == 2 and session.closed == 1 and session.frees == 1
    visitor.ask("More?", GREEDY, chats=False)
    assert list(visitor.work()) == [] and session.taken == 2


def test_work_that_is_dropped_in_the_middle_is_closed():
    visitor, session = scripted()
    visitor.ask("Why?", GREEDY, chats=False)
    work = visitor.work()
    next(work), next(work)
    work.close()
    assert session.closed == 1 and not visitor.is_busy and visitor.turns[-1].answer.finished == STOPPED


@pytest.mark.parametrize("failure", [ValueError("too long"), RuntimeError("out of memory"), TypeError("text")])
def test_a_failure_is_told_the_conversation_stays_and_the_text_returns(failure):
    visitor, session = scripted()
    visitor.ask("Hi", GREEDY, chats=False)
    list(visitor.work())
    session.failure = failure
    visitor.edit(0)
    visitor.ask("Hi there", GREEDY, chats=False)
    list(visitor.work())
    assert visitor.problem == str(failure) and visitor.returned == "Hi there"
    assert [turn.question for turn in visitor.turns] == ["Hi"] and visitor.turns[0].answer.text
    session.failure = None
    visitor.ask("Again", GREEDY, chats=False)
    list(visitor.work())
    assert not visitor.problem and len(visitor.turns) == 2


def test_a_failed_comparison_leaves_the_answer():
    session = ScriptedSession(STEPS)
    visitor = Visitor(session, lambda: ScriptedSession(STEPS, RuntimeError("no room")))
    visitor.ask("Hi", GREEDY, chats=False, compares=True)
    list(visitor.work())
    assert visitor.problem == "no room" and list(visitor.turns[-1].runs) == [True] and not visitor.returned


def test_editing_replaces_the_question_and_all_after_it():
    visitor, session = scripted()
    for text in ("a", "b", "c"):
        visitor.ask(text, GREEDY, chats=True)
        list(visitor.work())
    assert visitor.edit(1) == "b"
    visitor.ask("B", GREEDY, chats=True)
    list(visitor.work())
    assert [turn.question for turn in visitor.turns] == ["a", "B"] and len(session.asked[-1][0]) == 3
    with pytest.raises(ValueError, match="no such question"):
        visitor.edit(7)


def test_regenerating_draws_another_seed_and_comparing_the_same():
    visitor, session = scripted()
    visitor.ask("a", SessionSettings(temperature=1.0), chats=True)
    list(visitor.work())
    visitor.ask_again(SessionSettings(temperature=1.0))
    list(visitor.work())
    first, second = (settings.seed for _, settings in session.asked)
    assert len(visitor.turns) == 1 and first != second and None not in (first, second)
    assert len(session.asked[1][0]) == 1
    others = []
    visitor._anew = lambda: others.append(ScriptedSession(STEPS)) or others[-1]
    visitor.compare()
    list(visitor.work())
    settings = others[0].asked[0][1]
    assert settings.seed == second and not settings.drafts and others[0].frees == 1
    assert visitor.turns[-1].agreement == (4, 4)


@pytest.mark.parametrize(("text", "chats"), [("", False), ("  ", True), ("a\ud800", True)])
def test_texts_that_nothing_can_follow_are_refused(text, chats):
    visitor, _ = scripted()
    with pytest.raises(ValueError):
        visitor.ask(text, GREEDY, chats=chats)
    assert not visitor.is_busy and not visitor.turns


def test_a_second_wish_waits_for_the_first():
    visitor, _ = scripted()
    visitor.ask("a", GREEDY, chats=False)
    for wish in (lambda: visitor.ask("b", GREEDY, chats=False), lambda: visitor.ask_again(GREEDY), visitor.compare):
        with pytest.raises(ValueError, match="stop it first"):
            wish()
    assert visitor.editing is None


def test_trees_of_old_answers_are_given_up(monkeypatch):
    monkeypatch.setattr(visitors_module, "KEPT_TREES", 2)
    visitor, _ = scripted()
    for text in "abc":
        visitor.ask(text, GREEDY, chats=False)
        list(visitor.work())
    kept = [any(step.nodes for step in turn.answer.steps) for turn in visitor.turns]
    assert kept == [False, True, True] and visitor.turns[0].answer.text == "One two three four"


def test_clearing_forgets_and_frees():
    visitor, session = scripted()
    visitor.ask("a", GREEDY, chats=False)
    list(visitor.work())
    visitor.clear()
    assert not visitor.turns and session.frees == 1
    visitor.ask("b", GREEDY, chats=False)
    next(visitor.work())  # dropped at once, which closes it
    visitor.clear()
    assert not visitor.is_busy and not visitor.turns


def test_each_visitor_has_a_session_and_takes_it_along(monkeypatch):
    monkeypatch.setattr(visitors_module, "KEPT_HISTORIES", 2)
    made = []
    visitors = Visitors(lambda: made.append(ScriptedSession(STEPS)) or made[-1])
    one, two = visitors.greet("one"), visitors.greet("two")
    assert one is not two and visitors.greet("one") is one and len(made) == 2
    visitors.greet("three")  # two is idle longest
    assert [session.frees for session in made] == [0, 1, 0]
    visitors.leave("one")
    visitors.leave("nobody")
    assert made[0].frees == 1 and one.gone and visitors.known("one") is None and len(visitors) == 2
    visitors.close()
    assert len(visitors) == 0 and two.gone


def test_a_visitor_that_is_stopped_from_another_thread_at_any_moment_is_never_left_busy():
    visitor, _ = scripted(STEPS[:-1] * 20 + STEPS[-1:])
    for _ in range(100):
        visitor.ask("a", GREEDY, chats=False, compares=True)
        stopper = threading.Thread(target=visitor.stop)
        stopper.start()
        list(visitor.work())
        stopper.join()
        assert not visitor.is_busy


def test_an_answer_of_a_model_is_compared_with_the_very_ids_and_its_history_is_reused():
    model = chat_model()
    visitors = Visitors(lambda: Session(model))
    visitor, settings = visitors.greet("one"), SessionSettings(temperature=0.9, top_p=0.9, max_new_tokens=12)
    for text in ("Read a file", "And write it"):
        visitor.ask(text, settings, chats=True, compares=True)
        list(visitor.work())
        last = visitor.turns[-1]
        assert last.agreement == (12, 12) and not visitor.problem
    stats = last.answer.stats
    assert stats.prefilled_tokens < stats.prompt_tokens
    assert last.runs[False].stats.prefilled_tokens == last.runs[False].stats.prompt_tokens
    assert len(visitor.session._prefix) > 0
    visitors.leave("one")
    assert len(visitor.session._prefix) == 0
