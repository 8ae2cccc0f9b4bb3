"""What a terminal is given: green where the head was right, no character that steers it, trees, a Ctrl-C noted."""

import os
import signal

import pytest

from eagle.application import terminal
from eagle.application.session import Piece, SessionStep, TreeNode


def test_control_characters_are_shown_not_obeyed():
    text = terminal.safe("a\x1b[31mb\x07\r\x7f\x9b2J\n\tend é日")
    assert text == "a␛[31mb␇␍␡\N{REPLACEMENT CHARACTER}2J\n\tend é日"


@pytest.mark.parametrize(
    ("variables", "coloured"),
    [({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)],
)
def test_drafted_tokens_are_green_where_colours_are_taken(variables, coloured, monkeypatch, capsys):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    pieces = (Piece("a", True), Piece("b", True), Piece("", False), Piece("c", False))
    terminal.write_step(SessionStep(pieces, None))
    green = "\x1b[32mab\x1b[0mc"
    assert capsys.readouterr().out == (green if coloured else "abc")


def test_a_tree_shows_every_node_under_its_parent_and_marks_the_path(monkeypatch, capsys):
    monkeypatch.setenv("NO_COLOR", "1")
    nodes = [
        TreeNode(1, "[root]", -1, 1.0, True),
        TreeNode(2, " a", 0, 0.75, True),
        TreeNode(3, "\x1b", 0, 0.2, False),
        TreeNode(4, "[b]", 1, 0.5, False),
    ]
    terminal.write_tree(nodes)
    assert capsys.readouterr().out.splitlines() == [
        "'[root]'",
        "├── ' a' 0.75 ✓",
        "│   └── '[b]' 0.50",
        "└── '\\x1b' 0.20",
    ]


def test_a_first_ctrl_c_is_noted_and_a_second_one_ends_what_is_done():
    former = signal.getsignal(signal.SIGINT)
    with terminal.stopping() as stop:
        assert not stop.is_asked
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is former
