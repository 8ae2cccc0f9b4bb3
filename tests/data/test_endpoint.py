"""A server writes the answers: many at once, whatever it does to some of them, and refused in words where it cannot."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chat_server import chat_server, completion, echo, slowly
from chat_templates import FAMILIES, tokenizer_of
from places import ROOT, environment

from eagle.chat import choose_template
from eagle.data import load, main
from eagle.data.answer_file import ANSWERS
from eagle.data.answers import Question
from eagle.data.endpoint import EndpointAuthor
from eagle.data.samples import conversation_samples, prompt_ids

CHATML = tokenizer_of(FAMILIES["chatml"])


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("target")
    CHATML.save_pretrained(folder)
    return str(folder)


def author(url: str, tokenizer=CHATML, **options) -> EndpointAuthor:
    return EndpointAuthor(url, "tiny", tokenizer, choose_template(tokenizer), **{"wait": 0.01, **options})


def questions(count: int, tokenizer=CHATML) -> list[Question]:
    asked = [[{"role": "user", "content": f"{index}?"}] for index in range(count)]
    template = choose_template(tokenizer)
    return [
        Question(index, 0, f"{index}", f"{index:x}", messages, prompt_ids(tokenizer, template, messages))
        for index, messages in enumerate(asked)
    ]


def taking(asked):
    """Return what gives one question after the other."""
    waiting = iter(asked)
    return lambda: next(waiting, None)


def written(writer: EndpointAuthor, asked: list[Question]) -> dict[int, str]:
    return {answer.question.place: answer.text for answer in writer.write(taking(asked))}


def rows(path: Path, count: int, turns: int = 2) -> str:
    lines = [{"turns": [f"{index}?", "And?"][:turns]} for index in range(count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def arguments(source: str, target: str, out: Path, url: str, *more: str) -> list[str]:
    return [
        source,
        "--tokenizer",
        target,
        "--out",
        str(out),
        "--regenerate",
        "--endpoint",
        url,
        "--model",
        "tiny",
        *more,
    ]


def refused(capsys, *command) -> str:
    assert main(arguments(*command)) != 0
    return capsys.readouterr().err.splitlines()[-1]


# --- what comes back


@pytest.mark.parametrize("name", ["chatml", "llama-2", "llama-3", "vicuna", "mistral", "gemma", "qwen"])
def test_ids_are_those_of_the_conversation_with_the_answer_in_it(name):
    tokenizer = tokenizer_of(FAMILIES[name])
    with chat_server(reply=lambda body, number: completion("  Two  words\n", "stop")) as server:
        (question,) = questions(1, tokenizer)
        (answer,) = author(server.url, tokenizer).write(taking([question]))
    assert (answer.text, answer.ended) == ("Two  words", True)
    messages = [*question.messages, {"role": "assistant", "content": "Two  words"}]
    (sample,) = conversation_samples(tokenizer, choose_template(tokenizer), messages)
    assert [*question.prompt, *answer.ids] == sample.ids[: len(question.prompt) + len(answer.ids)].tolist()
    assert answer.ids == sample.ids[sample.mask].tolist()


def test_an_answer_that_was_cut_has_no_end():
    (question,) = questions(1)
    with chat_server(reply=lambda body, number: completion("Two words", "length")) as server:
        (answer,) = author(server.url).write(taking([question]))
    assert not answer.ended and CHATML.decode(answer.ids) == "Two words"


def test_the_command_answers_turn_by_turn_and_says_so(tmp_path, target, capsys):
    with chat_server(reply=slowly(0.02)) as server:
        source = rows(tmp_path / "rows.jsonl", 20)
        assert main(arguments(source, target, tmp_path / "out", server.url, "--concurrency", "7")) == 0
        said = capsys.readouterr().out
        assert "20 samples in 1 shards" in said and "temperatures=0.0, max_new_tokens=512, model=tiny" in said
        assert 2 <= server.most <= 7 and len(server.bodies) == 40
        second = [body["messages"] for body in server.bodies if len(body["messages"]) > 1]
        assert {len(messages) for messages in second} == {3}
        assert all(
            messages[1] == {"role": "assistant", "content": f"You said: {messages[0]['content']}"}
            for messages in second
        )
        assert "You said: And?<|im_end|>" in CHATML.decode(load(tmp_path / "out")[19].ids)
        assert main(arguments(source, target, tmp_path / "out", f"{server.url}/v1/", "--concurrency", "1")) == 0
        assert len(server.bodies) == 40  # nothing is asked again, wherever the server is


def test_what_is_asked_of_the_server_is_what_was_asked_of_us(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    asked = questions(3)
    with chat_server() as server:
        written(
            author(server.url, temperatures=(0.5,), max_new_tokens=9, seed=3, max_length=len(asked[0].prompt) + 4),
            asked,
        )
        written(author(server.url, temperatures=(0.5,), seed=3), reversed(asked))
        written(author(server.url, temperatures=(0.5,), seed=4), asked)
        written(author(server.url), asked)
    first, second, third, greedy = (
        sorted(server.bodies[start : start + 3], key=lambda body: body["messages"][0]["content"])
        for start in (0, 3, 6, 9)
    )
    assert [body["max_tokens"] for body in (first[0], second[0])] == [4, 512]
    seeds = [[body["seed"] for body in bodies] for bodies in (first, second, third)]
    assert seeds[0] == seeds[1] and len({*seeds[0], *seeds[2]}) == 6 and all(0 <= seed < 2**31 for seed in seeds[0])
    wanted = {"model": "tiny", "temperature": 0.5, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0}
    assert wanted.items() <= first[0].items() and "seed" not in greedy[0] and greedy[0]["temperature"] == 0
    assert {headers.get("Authorization") for headers in server.headers} == {"Bearer secret"}


# --- servers that do not always work


def test_what_fails_for_a_while_is_tried_again():
    def sometimes(body, number):
        failing = [(429, {"error": "busy"}), (500, b"oops"), (503, b""), None]
        place = int(body["messages"][0]["content"][:-1])
        return echo(body, number) if number > place % 5 else failing[(place + number) % 4]

    with chat_server(reply=sometimes) as server:
        texts = written(author(server.url, concurrency=4), questions(20))
    assert texts == {index: f"You said: {index}?" for index in range(20)}
    assert len(server.bodies) == sum(1 + index % 5 for index in range(20))


def test_an_answer_that_does_not_come_is_asked_for_again():
    with chat_server(reply=lambda body, number: time.sleep(0.6 * (number == 1)) or echo(body, number)) as server:
        assert written(author(server.url, seconds=0.3), questions(2)) == {0: "You said: 0?", 1: "You said: 1?"}
        assert len(server.bodies) == 4


def test_a_server_that_dies_midway_loses_no_answer_and_the_same_command_goes_on(tmp_path, target, capsys, monkeypatch):
    monkeypatch.setattr("eagle.data.endpoint.TRIES", 2)
    source, out = rows(tmp_path / "rows.jsonl", 30), tmp_path / "out"
    dead = lambda body, number: None if len(server.bodies) > 20 else echo(body, number)  # noqa: E731
    with chat_server(reply=dead) as server:
        words = refused(capsys, source, target, out, server.url, "--concurrency", "5")
        assert re.search(r"no answer from http.*/v1, tried \d times \(.*\)$", words)
        kept = (out / ANSWERS).read_bytes()
        assert kept.count(b"\n") == 1 + 20
        server.reply = echo
        assert main(arguments(source, target, out, server.url)) == 0
        assert (out / ANSWERS).read_bytes().startswith(kept) and (out / ANSWERS).read_bytes().count(b"\n") == 1 + 60


def test_answers_that_are_on_the_way_when_one_fails_are_kept():
    def one_is_refused(body, number):
        if body["messages"][0]["content"] == "0?":
            return 400, {"error": {"message": "too long"}}
        time.sleep(0.3)
        return echo(body, number)

    with chat_server(reply=one_is_refused) as server:
        seen = []
        with pytest.raises(ValueError, match=r"refuses \(status 400\): .*too long"):
            for answer in author(server.url, concurrency=4).write(taking(questions(9))):
                seen.append(answer.question.place)
        assert sorted(seen) == [1, 2, 3]


# --- servers that cannot


def test_a_server_that_cannot_is_refused_before_any_work(tmp_path, target, capsys):
    source, out = rows(tmp_path / "rows.jsonl", 2), tmp_path / "out"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        words = refused(capsys, source, target, out, f"http://127.0.0.1:{free.getsockname()[1]}")
        assert "no answer from http://127.0.0.1" in words and "refused" in words
    with chat_server() as server:
        for models, expected in (
            ([{"id": "other"}, {"id": "third"}], "does not serve 'tiny', but other, third"),
            ([], "does not serve 'tiny', but nothing"),
            ((401, {"error": "key"}), "wants another key in OPENAI_API_KEY (status 401)"),
            ((200, b"<html>"), "does not answer in JSON: <html>"),
            ((200, {"hello": 1}), "lists no models"),
            ((500, b"oops"), "tried 2 times (status 500, oops)"),
        ):
            server.models = models
            assert expected in refused(capsys, source, target, out, server.url)
        assert "must be a URL" in refused(capsys, source, target, out, "localhost:8000")
        assert not server.bodies
        server.models = (404, b"")  # it lists none: it is asked all the same
        assert main(arguments(source, target, out, server.url)) == 0


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ((400, {"error": {"message": "context length"}}), r"refuses \(status 400\): .*context length"),
        ((404, {"error": "no such model"}), "knows no such path or model"),
        ((403, b""), "wants another key"),
        ((200, b"not JSON"), "does not answer in JSON: not JSON"),
        ((200, {"choices": []}), r"answers what is no chat completion: \{'choices': \[\]\}"),
        ((200, [1]), "answers what is no chat completion"),
        (completion("4", reasoning_content="2 + 2"), "start the server without a reasoning parser"),
    ],
)
def test_an_answer_that_is_none_ends_the_run_in_words(reply, words):
    with chat_server(reply=lambda body, number: reply) as server, pytest.raises((ValueError, OSError), match=words):
        written(author(server.url), questions(1))
    assert len(server.bodies) == 1


def test_a_question_beyond_the_server_s_positions_is_not_asked():
    with chat_server(models=[{"id": "tiny", "max_model_len": 100}]) as server:
        assert (author(server.url).longest, author(server.url, max_length=20).longest) == (99, 19)
        asked = questions(1)
        written(author(server.url), asked)
        assert server.bodies[0]["max_tokens"] == 100 - len(asked[0].prompt)


def test_flags_that_say_nothing_to_a_server_are_refused(tmp_path, target, capsys):
    source, out = rows(tmp_path / "rows.jsonl", 2), tmp_path / "out"
    for more in (["--processes", "2"], ["--dtype", "float32"], ["--ea-model-path", "x"]):
        assert "the server writes the answers, without" in refused(capsys, source, target, out, "http://x", *more)
    assert main([source, "--tokenizer", target, "--out", str(out), "--regenerate", "--endpoint", "http://x"]) == 2
    assert "--endpoint URL and --model NAME go together" in capsys.readouterr().err


def test_ctrl_c_does_not_wait_for_a_server(tmp_path, target):
    source, out = rows(tmp_path / "rows.jsonl", 50), tmp_path / "out"
    with chat_server(
        reply=lambda body, number: time.sleep(60 if len(server.bodies) > 10 else 0) or echo(body, number)
    ) as server:
        command = [
            sys.executable,
            "-m",
            "eagle.data",
            *arguments(source, target, out, server.url, "--concurrency", "4"),
        ]
        running = subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)
        while len(server.bodies) < 14:
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        errors = running.communicate(timeout=20)[1]
    assert running.returncode == 130 and "Traceback" not in errors
    assert errors.splitlines()[-1].startswith(
        f"interrupted: 0 shards and 10 answers are saved in {out}; to go on: eagle data"
    )
