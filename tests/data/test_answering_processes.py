"""Several processes answer as one: the same folder, everything kept where one dies, and none left behind."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from authors import ScriptedAuthor
from chat_templates import FAMILIES, tokenizer_of
from places import ROOT

from eagle.data import Regeneration, load, prepare
from eagle.data.answer_file import ANSWERS
from eagle.data.answers import Answer, Question
from eagle.data.processes import Place, Processes, places

CHATML = tokenizer_of(FAMILIES["chatml"])


def scripted(seconds: float, place: Place) -> ScriptedAuthor:
    return ScriptedAuthor(CHATML, seconds=seconds)


class Dying(ScriptedAuthor):
    """Is killed after some answers, once in a folder."""

    def __init__(self, once: str, place: Place) -> None:
        super().__init__(CHATML)
        self.once, self.count = Path(once), 0

    def answer(self, question) -> Answer:
        self.count += 1
        if self.count == 9:
            try:
                self.once.touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.005)
        return super().answer(question)


class Counting(ScriptedAuthor):
    """Answers how many questions it had been given until then."""

    def __init__(self, place: Place) -> None:
        super().__init__(CHATML, slots=8)

    def answer(self, question) -> Answer:
        return replace(super().answer(question), text=str(len(self.asked)))


def refusing(words: str, place: Place) -> ScriptedAuthor:
    raise FileNotFoundError(words)


@pytest.fixture
def answered(tmp_path, monkeypatch):
    """Make a folder with an author."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"turns": [f"{i}?", "Why?"][: 1 + i % 2]}) + "\n" for i in range(60)))

    def made(name: str, author):
        monkeypatch.setattr("eagle.data.preparation.author_of", lambda *arguments: author)
        how = Regeneration(shard_rows=16)
        return prepare([str(path)], CHATML, tmp_path / name, target="base", regeneration=how)

    return made


def contents(folder: Path) -> dict[str, object]:
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {**found, ANSWERS: sorted(found[ANSWERS].splitlines())}


@pytest.fixture
def forked(monkeypatch):
    """Processes of this one, which begin at once; a test that they end in leaves none behind."""
    context = multiprocessing.get_context("fork")
    monkeypatch.setattr("torch.multiprocessing.get_context", lambda kind: context)
    yield
    assert not multiprocessing.active_children()


def test_processes_make_the_folder_of_one_and_all_of_them_answer(answered, tmp_path, forked):
    answered("one", ScriptedAuthor(CHATML))
    author = Processes(partial(scripted, 0.01), 2, batch=4)
    ends = {id(end): 0 for end in author._ends}
    receive = author._received

    def watched(end):
        said = receive(end)
        ends[id(end)] += isinstance(said, Answer)
        return said

    author._received = watched
    answered("two", author)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert sum(ends.values()) == 90 and min(ends.values()) > 20


def test_a_process_waits_for_questions_that_are_under_way(forked):
    waiting, first = (
        iter([Question(i, 0, f"{i}", f"{i:x}", [{"role": "user", "content": "?"}], [1]) for i in range(40)]),
        [],
    )

    def slowly() -> Question | None:
        time.sleep(0.01)
        return next(waiting, None)

    for answer in Processes(Counting, 2, batch=8).write(slowly):
        first.append(int(answer.text))
    assert len(first) == 40 and min(first) == 8  # none began with fewer than it writes at once


def test_a_process_that_dies_is_named_and_the_answers_of_all_are_kept(answered, tmp_path, forked):
    make = partial(Dying, str(tmp_path / "once"))
    with pytest.raises(RuntimeError, match=r"process \d of 2 has died \(SIGKILL\): the same command goes on"):
        answered("out", Processes(make, 2, batch=4))
    kept = (tmp_path / "out" / ANSWERS).read_bytes()
    assert kept.count(b"\n") > 8 and not multiprocessing.active_children()
    answered("out", Processes(make, 2, batch=4))
    assert (tmp_path / "out" / ANSWERS).read_bytes().startswith(kept)
    answered("one", ScriptedAuthor(CHATML))
    assert contents(tmp_path / "out") == contents(tmp_path / "one") and len(load(tmp_path / "out")) == 60


def test_what_a_process_is_refused_with_is_said_here(forked):
    with pytest.raises(OSError, match="no such target"):
        Processes(partial(refusing, "no such target"), 2, batch=4)


PARENT = """
import time
from dataclasses import replace
from functools import partial
from authors import PlainAuthor
from eagle.data.processes import Processes

if __name__ == "__main__":
    author = Processes(PlainAuthor, 2, batch=4)
    print("ready", flush=True)
    time.sleep(60)
"""


def test_processes_end_with_their_parent(tmp_path):
    path = tmp_path / "parent.py"
    path.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'support'}"}
    parent = subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, env=environment)
    assert parent.stdout is not None and parent.stdout.readline() == b"ready\n"
    running = [one for one in psutil.Process(parent.pid).children() if "spawn_main" in " ".join(one.cmdline())]
    assert len(running) == 2
    parent.kill()
    parent.wait()
    for _ in range(100):
        running = [one for one in running if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
        time.sleep(0.1 * bool(running))
    assert not running


def test_threads_or_accelerators_are_divided(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert places(2) == [Place(None, 3)] * 2 and places(9) == [Place(None, 1)] * 9
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert [place.device for place in places(3)] == ["cuda:0", "cuda:1", "cuda:0"]
