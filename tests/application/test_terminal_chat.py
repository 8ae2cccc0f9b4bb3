"""`eagle chat`, line by line, and in a pseudo-terminal."""

import json
import os
import re
import signal
import sys
from dataclasses import replace

import pytest
from places import PAIR, ROOT, environment
from templated import templated_target
from transformers import AutoTokenizer

from eagle import EaModel
from eagle.application import terminal
from eagle.application.session import Session, SessionSettings
from eagle.application.terminal_chat import HELP, TerminalChat
from eagle.application.transcript import Transcript

TREE = {"total_token": 12, "depth": 4, "top_k": 4}
NEW = 24
SETTINGS = SessionSettings(max_new_tokens=NEW)


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return templated_target(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def model(target):
    paths = {"base_model_path": str(target), "ea_model_path": str(PAIR / "eagle3_head")}
    return EaModel.from_pretrained(**paths, **TREE, dtype="float32").eval()


@pytest.fixture
def chat(model):
    return TerminalChat(Session(model), SETTINGS)


def expected(model, messages, new=NEW):
    """Return the ids with which `generate` answers."""
    tokenizer = model.tokenizer
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    out = model.base_model.generate(**inputs, max_new_tokens=new, do_sample=False)
    return out[0, inputs["input_ids"].shape[1] :].tolist()


def assert_generate_says_the_same(model, transcript, new=NEW):
    """Check every answer; one that was stopped is the beginning of what `generate` would say."""
    places = [place for place, message in enumerate(transcript.messages) if message["role"] == "assistant"]
    assert len(places) == len(transcript.answers)
    for place, answer in zip(places, transcript.answers, strict=True):
        is_whole = answer.finished != "stopped"
        assert answer.ids == expected(model, transcript.messages[:place], new if is_whole else len(answer.ids))
        text = model.tokenizer.decode(answer.ids, skip_special_tokens=True)
        assert transcript.messages[place]["content"] == answer.text == text


def test_answers_are_those_of_generate_turn_by_turn_with_and_without_the_head(chat, model, capsys):
    for line in ("Hello", "/eagle off", "And then?", "/eagle on", "//why"):
        chat.take(line)
    assert_generate_says_the_same(model, chat.transcript)
    assert [bool(answer.stats.drafted) for answer in chat.transcript.answers] == [True, False, True]
    assert chat.transcript.messages[-2]["content"] == "/why"
    out = capsys.readouterr().out
    assert all(answer.text in out for answer in chat.transcript.answers) and out.count(" tokens/s, cut at") == 3


def test_a_ctrl_c_keeps_what_was_said_and_the_next_answer_knows_it(chat, model, monkeypatch, capsys):
    inner, steps = terminal.write_step, []

    def interrupted(pieces):
        inner(pieces)
        steps.append(pieces)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(terminal, "write_step", interrupted)
    chat.take("Hello")
    (answer,) = chat.transcript.answers
    assert answer.finished == "stopped" and 3 <= len(answer.ids) < NEW and len(steps) == 3
    assert "stopped]" in capsys.readouterr().out
    chat.take("Go on")
    assert_generate_says_the_same(model, chat.transcript)
    assert chat.transcript.answers[-1].finished == "length"


def test_regenerate_undo_and_clear(chat, capsys):
    chat.take("Hello")
    first = chat.transcript.answers[0]
    chat.take("/regenerate")
    assert [a.ids for a in chat.transcript.answers] == [first.ids] and len(chat.transcript.messages) == 2
    assert "greedy" in capsys.readouterr().out
    chat.take("/temperature 5")
    chat.take("/regenerate")
    assert chat.transcript.answers[0].ids != first.ids and chat.settings == replace(SETTINGS, temperature=5.0)
    chat.take("/undo")
    assert chat.transcript.messages == [] == chat.transcript.answers
    chat.take("Hello")
    chat.take("/clear")
    assert chat.transcript == Transcript() and chat.nodes == ()


def test_the_tree_is_the_last_step_s_and_figures_are_those_of_the_answers(chat, capsys):
    chat.take("Hello")
    capsys.readouterr()
    chat.take("/tree")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(chat.nodes) + 1
    assert sum(line.endswith(" ✓") for line in lines) == sum(node.is_accepted for node in chat.nodes) - 1
    chat.take("/stats")
    stats = chat.transcript.answers[0].stats
    said = capsys.readouterr().out
    assert f"1 answer, {NEW} tokens" in said
    assert f"τ {stats.acceptance_length:.2f} over {stats.steps} steps" in said


def test_a_conversation_goes_on_in_another_one(chat, model, tmp_path, capsys):
    path = tmp_path / "a talk.json"
    chat.take("Hello")
    chat.take(f"/save '{path}'")
    other = TerminalChat(Session(model), SETTINGS)
    other.take(f"/load '{path}'")
    other.take("And then?")
    assert other.transcript.messages[:2] == chat.transcript.messages
    assert_generate_says_the_same(model, other.transcript)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/regen", "no command /regen: did you mean /regenerate?"),
        ("/nothing", "no command /nothing: /help lists them"),
        ("/temperature hot", "a number"),
        ("/temperature -1", "temperature=-1.0 must be 0"),
        ("/eagle maybe", "on or off"),
        ("/tree", "no step has drafted yet"),
        ("/regenerate", "there is no question"),
        ("/undo", "nothing was said"),
        ("/save", "/save FILE: name one file"),
        ("/save /nowhere/at/all.json", "there is no folder /nowhere/at"),
        ("/load /nowhere/at/all.json", "/nowhere/at/all.json: No such file"),
        ("/load 'a", "No closing quotation"),
        ("word " * 3000, "positions"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_changes_nothing(chat, capsys, line, said):
    chat.take(line)
    out = capsys.readouterr().out
    assert said in out and len(out.splitlines()) == 1
    assert chat.transcript == Transcript() and chat.settings == SETTINGS


def test_every_command_is_in_the_help(chat, capsys):
    chat.take("/help")
    out = capsys.readouterr().out
    assert sorted(chat._commands) == sorted(line.split()[0] for line in HELP) and all(line in out for line in HELP)


# --- in a pseudo-terminal

pexpect = pytest.importorskip("pexpect", reason="needs a pseudo-terminal")
ANSWERED = r"\[\d+ tokens, (τ [\d.]+, )?[\d.]+ tokens/s(, [\w ]+)?\]"


class Screen:
    """A terminal with `eagle chat` in it."""

    def __init__(self, *words):
        command = ["-m", "eagle.cli", "chat", *words]
        more = {"TERM": "dumb", "NO_COLOR": "", "FORCE_COLOR": "", "HF_HUB_OFFLINE": "1"}
        options = {"cwd": ROOT, "env": environment(**more), "dimensions": (40, 100), "timeout": 120}
        self.child = pexpect.spawn(sys.executable, command, encoding="utf-8", **options)

    def says(self, pattern):
        """Wait for words and the next prompt; return all that came."""
        self.child.expect(pattern)
        said = self.child.before + self.child.after
        self.child.expect("> ")
        return said + self.child.before

    def asked(self, line, pattern=ANSWERED):
        """Type a line, and wait for what it is answered with."""
        self.child.sendline(line)
        return self.says(pattern)

    def left(self):
        """Return the exit status."""
        self.child.expect(pexpect.EOF)
        self.child.close()
        return self.child.exitstatus


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_a_person_talks_in_a_terminal(model, target, tmp_path):
    options = [word for name, value in TREE.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    paths = ["--base", str(target), "--head", str(PAIR / "eagle3_head"), "--dtype", "float32"]
    screen = Screen(*paths, *options, "--max-new-tokens", "600")
    assert "ask something" in screen.says("Ctrl-D leaves")
    screen.child.sendline("Hello")
    screen.child.expect("\x1b\\[32m")  # a drafted token, on its way
    screen.child.sendintr()
    assert "stopped" in screen.says(ANSWERED)
    assert "/regenerate" in screen.asked("/help", "Ctrl-C stops")
    tree = screen.asked("/tree", r"\d+ drafted, \d+ accepted")
    assert f", {tree.count('✓')} accepted" in tree and tree.count("──") == int(re.search(r"(\d+) drafted", tree)[1])
    screen.child.sendline("And then?")
    screen.child.expect("\x1b\\[32m")
    screen.child.sendintr()
    screen.says(ANSWERED)
    screen.child.sendline("/regenerate")
    screen.child.expect("\x1b\\[32m")
    screen.child.sendintr()
    screen.says(ANSWERED)
    screen.child.sendintr()  # at the prompt it ends nothing
    screen.says("Ctrl-D leaves")
    screen.asked(f"/save {tmp_path / 'talk.json'}", "4 messages")
    screen.child.sendline("/exit")
    assert screen.left() == 0
    transcript = Transcript.load(tmp_path / "talk.json")
    assert [message["content"] for message in transcript.messages[::2]] == ["Hello", "And then?"]
    assert all(answer.finished == "stopped" for answer in transcript.answers)
    assert_generate_says_the_same(model, transcript, 600)


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
@pytest.mark.skipif((ROOT / "build" / "chat_pair" / "target").exists(), reason="the chat pair would be taken")
def test_without_a_word_the_shipped_pair_continues_what_is_typed(tmp_path):
    screen = Screen("--max-new-token", "16")
    assert "tiny_pair/target: it has no chat template, and continues" in screen.says("Ctrl-D leaves")
    assert "cut at the limit" in screen.asked("def read(path):")
    screen.asked(f"/save {tmp_path / 'text.json'}", "2 messages")
    screen.child.sendeof()
    assert screen.left() == 0
    document = json.loads((tmp_path / "text.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(PAIR / "target")
    (answer,) = document["answers"]
    assert answer["text"] == tokenizer.decode(answer["ids"], skip_special_tokens=True) and len(answer["ids"]) == 16
    assert re.search(r"return|\"\"\"|self", answer["text"])
