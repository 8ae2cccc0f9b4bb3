"""What the page shows: every word escaped, drafted tokens marked, figures of both ways side by side."""

import re
from html.parser import HTMLParser

import pytest
from pages import HOSTILE, ScriptedSession, step, tree

from eagle.application.page_html import figures_html, newest_html, past_html, problem_html, shown_step, tree_html
from eagle.application.session import SessionSettings
from eagle.application.visitors import Visitor


class Read(HTMLParser):
    """The elements of a text, and what stands in those of one name."""

    def __init__(self, text, name=""):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.text, self.found, self._name, self._open = [], [], "", [], name, 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attributes]
        if tag == self._name:
            self.found.append("")
            self._open = 1

    def handle_endtag(self, tag):
        self._open = self._open and tag != self._name

    def handle_data(self, data):
        self.text += data
        if self._open:
            self.found[-1] += data


def answered(steps, question="Why?", **settings):
    visitor = Visitor(ScriptedSession(steps), lambda: ScriptedSession(steps))
    visitor.ask(question, SessionSettings(**settings), chats=False)
    list(visitor.work())
    return visitor


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("chats", [False, True])
def test_words_of_models_and_people_are_text_wherever_they_stand(hostile, chats):
    steps = [step([hostile], 0), step([hostile, hostile], 1, tree([hostile] * 6), "eos")]
    visitor = Visitor(ScriptedSession(steps), lambda: None)
    visitor.ask(hostile, SessionSettings(), chats=chats)
    list(visitor.work())
    visitor.problem = hostile
    shown = Read(newest_html(visitor))
    assert shown.text.count(hostile) == 4
    own = {"article", "div", "span", "mark", "button", "p", "code", "svg", "path", "text", "g", "title", "rect"}
    for text in (newest_html(visitor), tree_html(visitor), problem_html(visitor)):
        read = Read(text)
        assert set(read.tags) <= own and not [name for name in read.attributes if name.startswith("on")]
    assert hostile in Read(problem_html(visitor)).text


def test_whitespace_of_an_answer_is_kept():
    visitor = answered([step(["a\n", "  b\t", "\n\n"], 1, tree("xy"), "eos")])
    assert "a\n  b\t\n\n" in Read(newest_html(visitor)).text


def test_marked_is_what_was_drafted_and_accepted_and_nothing_else():
    steps = [
        step(["One"], 0),
        step([" two", " three", " four"], 2, tree("abc", 2)),
        step([" five"], 0, tree("abc", 0), "eos"),
    ]
    assert Read(newest_html(answered(steps)), "mark").found == [" two", " three"]


def test_a_step_s_words_lead_to_its_tree():
    steps = [step(["One"], 0), step([" two"], 1, tree("ab")), step([" six"], 1, tree("cd"), "eos")]
    visitor = answered(steps)
    found = re.findall(r'data-turn="(\d)" data-step="(\d)">(.*?)</span>', newest_html(visitor))
    assert found == [("0", "0", "One"), ("0", "1", "<mark> two</mark>"), ("0", "2", "<mark> six</mark>")]
    visitor.shown = (0, 1)
    assert newest_html(visitor).count(' shown"') == 1
    assert "Step 2 of 3" in tree_html(visitor) and ">b</text>" in tree_html(visitor)
    visitor.shown = None
    assert shown_step(visitor) == (0, 2) and ">d</text>" in tree_html(visitor)


@pytest.mark.parametrize("shown", [(0, 7), (5, 0), (-1, 0), (0, -1)])
def test_a_step_that_is_not_there_is_not_looked_for(shown):
    visitor = answered([step(["One"], 0), step([" two"], 1, tree("ab"), "eos")])
    visitor.shown = shown
    assert shown_step(visitor) == (0, 1)


def test_plain_answers_have_no_trees_and_no_marks():
    visitor = answered([step(["One"], 0), step([" two"], 0, (), "eos")], drafts=False)
    assert shown_step(visitor) is None and "data-step" not in newest_html(visitor)
    assert "appears here" in tree_html(visitor)


def test_figures_stand_in_the_column_of_their_way():
    visitor = answered([step(["One"], 0), step([" two", " three"], 1, tree("ab"), "eos")])
    table = figures_html(visitor.turns[-1])
    assert re.search(r"tokens/s</th><td><b>200\.0</b></td><td>–</td>", table)
    assert re.search(r"τ</th><td>2\.00</td><td>–</td>", table)
    assert re.search(r"compression ratio</th><td>1\.50</td><td>–</td>", table)
    visitor = answered([step(["One"], 0), step([" two"], 0, (), "eos")], drafts=False)
    assert re.search(r"tokens/s</th><td>–</td><td><b>100\.0</b></td>", figures_html(visitor.turns[-1]))


def test_the_verdict_compares_what_both_ways_said():
    steps = [step(["One"], 0), step([" two", " three"], 1, tree("ab"), "eos")]
    visitor = answered(steps)
    assert "speed of plain" not in figures_html(visitor.turns[-1])
    visitor.compare()
    list(visitor.work())
    assert "the same 3 tokens" in figures_html(visitor.turns[-1]) and "<b>1.00×</b>" in figures_html(visitor.turns[-1])
    visitor.turns[-1].runs[False].ids[1] = 99
    assert "other tokens from number 2 of 3 on</span>" in figures_html(visitor.turns[-1])
    assert "half precision" in figures_html(visitor.turns[-1], True)


def test_only_what_is_being_written_has_a_cursor():
    visitor = answered([step(["One"], 0, (), "eos")])
    assert "cursor" not in newest_html(visitor)
    visitor.ask("And?", SessionSettings(), chats=False)
    assert (past_html(visitor) + newest_html(visitor)).count("cursor") == 1
