"""`eagle generate` says what `generate` says, of whatever it is asked in whatever way."""

import io
import json
import sys

import pytest
import torch
from places import PAIR
from templated import templated_target
from transformers import AutoModelForCausalLM, AutoTokenizer

from eagle import cli

TEXT = "def read_lines(path):"
FIXED = [
    "--head",
    str(PAIR / "eagle3_head"),
    "--dtype",
    "float32",
    "--total-token",
    "12",
    "--depth",
    "4",
    "--top-k",
    "4",
]


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return templated_target(tmp_path_factory.mktemp("generate"))


@pytest.fixture(scope="module")
def base(target):
    return AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(
        target
    )


def expected(base, ids, **keywords):
    model, _ = base
    prompt = torch.tensor([ids])
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24, **keywords)
    return out[0, len(ids) :].tolist()


def asked(base, content):
    text = base[1].apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    return base[1](text, add_special_tokens=False)["input_ids"]


def answers(capsys, target, *words):
    assert cli.main(["generate", "--base", str(target), *FIXED, "--max-new-token", "24", "--json", *words]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])["answers"]


@pytest.mark.parametrize("more", [[], ["--no-eagle"]])
def test_a_text_is_continued_and_a_question_asked_by_the_template(target, base, capsys, more):
    for words, ids in (
        (["--no-chat", TEXT], base[1](TEXT)["input_ids"]),
        ([TEXT], asked(base, TEXT)),
        (["--chat", TEXT], asked(base, TEXT)),
    ):
        (answer,) = answers(capsys, target, *words, *more)
        assert answer["ids"] == expected(base, ids, do_sample=False)
        assert answer["text"] == base[1].decode(answer["ids"], skip_special_tokens=True)
        assert answer["stats"]["new_tokens"] == 24 and answer["finished"] == "length"
        assert (answer["stats"]["drafted"] == 0) == bool(more)


def test_a_seed_gives_what_generate_samples(target, base, capsys):
    words = ["--no-chat", TEXT, "--temperature", "0.8", "--top-p", "0.9", "--sampling-top-k", "20", "--seed", "3"]
    (answer,) = answers(capsys, target, *words)
    torch.manual_seed(3)
    ids = base[1](TEXT)["input_ids"]
    assert answer["ids"] == expected(base, ids, do_sample=True, temperature=0.8, top_p=0.9, top_k=20)


def test_prompts_come_from_a_file_or_standard_input_and_text_goes_to_a_pipe(
    target, base, capsys, monkeypatch, tmp_path
):
    (tmp_path / "p.jsonl").write_text('{"text": "import os"}\n\n{"turns": ["Hello", "Bye"]}\n')
    one, other = answers(capsys, target, "--prompts", str(tmp_path / "p.jsonl"), "--no-chat")
    assert one["ids"] == expected(base, base[1]("import os")["input_ids"], do_sample=False)
    assert other["ids"] == expected(base, asked(base, "Hello"), do_sample=False)
    monkeypatch.setattr(sys, "stdin", io.StringIO("import os\n"))
    words = ["generate", "--base", str(target), *FIXED, "--max-new-token", "24", "--no-chat", "--quiet"]
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    assert out == one["text"] + "\n" and "tokens/s" not in err


def test_stop_texts_end_an_answer(target, base, capsys):
    (whole,) = answers(capsys, target, "--no-chat", TEXT)
    stop = whole["text"].strip()[10:16]
    (answer,) = answers(capsys, target, "--no-chat", TEXT, "--stop", stop, "never said")
    assert answer["finished"] == "criteria" and stop in answer["text"] and len(answer["ids"]) < 24


@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        ([TEXT, "--prompts", "x"], "pass one of them", 2),
        ([TEXT, "--temperature", "-1"], "temperature=-1.0", 2),
        ([TEXT, "--max-new-token", "0"], "max_new_tokens=0", 2),
        ([TEXT, "--base", "x"], "go together", 2),
        ([TEXT, "--top-k", "0"], "top_k=0", 2),
        (["--prompts", "/nowhere/at/all"], "is not a file", 2),
        (["--prompts", str(PAIR / "eagle.yaml")], "eagle.yaml line 1: not JSON", 1),
        ([""], "the prompt is empty", 1),
        (["--chat", TEXT, "--base", str(PAIR / "target"), *FIXED], "no chat template", 1),
    ],
)
def test_what_cannot_be_answered_is_refused_in_words(words, said, code, capsys):
    assert cli.main(["generate", *words]) == code
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("eagle generate: error: ") and said in err


def test_without_a_pair_anywhere_both_flags_are_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("eagle.application.loading.PAIRS", ())
    assert cli.main(["generate", TEXT]) == 2
    assert "--base-model-path and --ea-model-path" in capsys.readouterr().err
