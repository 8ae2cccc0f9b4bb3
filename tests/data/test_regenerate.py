"""Answers that the target writes itself: its own ids, whatever the batches, the head and the interruptions."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from places import PAIR, ROOT, environment
from references import generate_ids
from safetensors import safe_open
from transformers import GenerationConfig

from eagle.chat import RowError, choose_template
from eagle.data import Regeneration, load, main, prepare
from eagle.data.answer_file import ANSWERS
from eagle.data.answers import Answer, Question
from eagle.data.dialogues import Dialogue
from eagle.data.regenerate import ends_of
from eagle.model.support.loading import load_base, load_tokenizer

HEAD = str(PAIR / "eagle3_head")
EMPTY = "the target's answer is empty"
NEWLINE = 199  # the pair is of code and hardly ever ends a text: here a line break of its own ends an answer
FIRST = ["def read_lines(path):", "import os\nimport ", "What is a list?", "class A:\n    x = 1"]
SECOND = ["def read(path):", "x = [1, 2]"]


def conversation(index: int) -> dict:
    questions = [FIRST[index % len(FIRST)] + f"  # {index // len(FIRST)}", SECOND[index % 2]]
    turns = [{"role": role, "content": text} for q in questions for role, text in (("user", q), ("assistant", "old"))]
    return {"messages": turns[: 2 if index % 3 == 1 else 4]}


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> str:
    """The pair's target, with line breaks that end answers."""
    folder = tmp_path_factory.mktemp("target")
    for path in (PAIR / "target").iterdir():
        (folder / path.name).symlink_to(path)
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").unlink()
    config |= {"eos_token_id": [0, NEWLINE], "repetition_penalty": 1.7, "top_k": 3}  # none of the last two counts
    (folder / "generation_config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> list[str]:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [*map(conversation, range(5)), {"messages": []}, {"text": "x = 1"}, *map(conversation, range(5, 9))]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return [str(path)]


def made(rows, target, folder, max_length=None, limit=None, **how):
    how = {"dtype": "float32", "max_new_tokens": 16, "shard_rows": 4, "ea_model_path": HEAD, **how}
    tokenizer = load_tokenizer(target)
    options = {"template": "vicuna_v1.1", "max_length": max_length, "limit": limit, "regeneration": Regeneration(**how)}
    return prepare(rows, tokenizer, folder, target=target, **options)


def contents(folder: Path) -> dict[str, object]:
    """Every file's bytes; of the answers their lines, which come in any order."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {**found, ANSWERS: sorted(found[ANSWERS].splitlines())}


@pytest.fixture(scope="module")
def whole(rows, target, tmp_path_factory) -> dict[float, Path]:
    """Folders by temperature, made at once with a head in batches of three."""
    folders = {temperature: tmp_path_factory.mktemp("whole") / "out" for temperature in (0.0, 1.0)}
    for temperature, folder in folders.items():
        made(rows, target, folder, temperatures=(temperature,), batch_size=3)
    return folders


@pytest.fixture(scope="module")
def by_hand(target) -> list[list[tuple[list[int], list[int]]]]:
    """Prompts and answers of the nine conversations, turn by turn, one at a time."""
    base, tokenizer = load_base(target, {"dtype": torch.float32}), load_tokenizer(target)
    base.generation_config = GenerationConfig(eos_token_id=[0, NEWLINE])
    return [_by_hand(base, tokenizer, conversation(index)["messages"]) for index in range(9)]


def _by_hand(base, tokenizer, messages) -> list[tuple[list[int], list[int]]]:
    template, history, said = choose_template(tokenizer, "vicuna_v1.1"), [], []
    for message in messages:
        if message["role"] == "user":
            history.append(message)
            continue
        prompt = tokenizer(template.render(history, asks=True), return_tensors="pt", add_special_tokens=False).input_ids
        answer = generate_ids(base, prompt, torch.ones_like(prompt), 16)[0, prompt.shape[1] :].tolist()
        ended = answer[-1] in (0, NEWLINE)
        text = tokenizer.decode(answer[:-1] if ended else answer).strip()
        if not text:
            break
        said.append((prompt[0].tolist(), answer))
        history.append({"role": "assistant", "content": text})
        if not ended:
            break
    return said


def test_answers_are_those_of_generate_turn_by_turn(target, by_hand, whole):
    data = load(whole[0.0])
    said = [one for conversation in by_hand for one in conversation]
    assert max(map(len, by_hand)) == 2 and any(answer[-1] == NEWLINE for _, answer in said)
    assert any(len(answer) == 16 and answer[-1] != NEWLINE for _, answer in said)  # the limit, and no end after it
    samples = [one for one in data if not one.mask.all()]
    assert [(one.ids[~one.mask].tolist(), one.ids[one.mask].tolist()) for one in samples] == said
    tokenizer = load_tokenizer(target)
    assert [one.ids.tolist() for one in data if one.mask.all()] == [tokenizer("x = 1")["input_ids"]]
    empty = sum(not conversation for conversation in by_hand)
    assert data.summary["reasons"] == {"messages is empty": 1} | ({EMPTY: empty} if empty else {})
    assert data.summary["regeneration"] == {"temperatures": [0.0], "max_new_tokens": 16, "dtype": "float32"}


def test_neither_the_batch_nor_the_head_nor_processes_change_a_byte(rows, target, whole, tmp_path):
    one = made(rows, target, tmp_path / "one", batch_size=1)
    assert one.summary["shards"] == 3
    made(rows, target, tmp_path / "alone", ea_model_path=None)
    made(rows, target, tmp_path / "two", ea_model_path=None, processes=2, batch_size=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "alone") == contents(whole[0.0])
    assert contents(tmp_path / "two") == contents(whole[0.0])


def test_samples_are_the_target_s_own_by_seed(rows, target, whole, tmp_path):
    made(rows, target, tmp_path / "alone", temperatures=(1.0,), ea_model_path=None)
    assert contents(tmp_path / "alone") == contents(whole[1.0])  # with the same noise: id for id
    other = made(rows, target, tmp_path / "other", temperatures=(1.0,), ea_model_path=None, seed=1, limit=4)
    assert other.summary["regeneration"]["seed"] == 1
    shards = [folder / "shard_00000.safetensors" for folder in (*whole.values(), tmp_path / "other")]
    assert len(set(map(load_ids, shards))) == 3


def load_ids(shard: Path) -> bytes:
    with safe_open(shard, "numpy") as file:
        return file.get_tensor("ids").tobytes()


KILLED = """
import os, signal, sys
sys.path[:0] = ["tests/data", "tests/support"]
from pathlib import Path
from test_regenerate import made
from eagle.data.answer_file import AnswerFile
add, calls = AnswerFile.add, []

def add_some(self, answer):
    add(self, answer)
    calls.append(answer)
    if len(calls) == 8:
        os.kill(os.getpid(), signal.SIGKILL)

AnswerFile.add = add_some
made([sys.argv[1]], sys.argv[2], Path(sys.argv[3]), temperatures=(0.0, 1.0), ea_model_path=None, batch_size=3)
"""


def test_a_killed_run_goes_on_to_the_same_bytes_and_writes_no_answer_twice(rows, target, tmp_path):
    command = [sys.executable, "-c", KILLED, *rows, target, str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = (tmp_path / "out" / ANSWERS).read_bytes()
    assert kept.count(b"\n") == 9
    how = {"temperatures": (0.0, 1.0), "ea_model_path": None}
    with pytest.raises(ValueError, match=r"was made with regeneration=.*choose another folder"):
        made(rows, target, tmp_path / "out", temperatures=(0.5,))
    torch.manual_seed(7)  # whatever a process has drawn before
    made(rows, target, tmp_path / "out", **how)
    made(rows, target, tmp_path / "whole", **how)
    assert (tmp_path / "out" / ANSWERS).read_bytes().startswith(kept)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


# What was said stays in the same tokens: "<question>\n<answer>\n".
PLAIN = "{% for m in messages %}{{ m['content'] + '\\n' }}{% endfor %}"


def test_turns_that_go_on_from_the_last_answer_are_one_sample(rows, target, tmp_path):
    tokenizer = load_tokenizer(target)
    tokenizer.chat_template = PLAIN
    how = Regeneration(dtype="float32", max_new_tokens=16, ea_model_path=HEAD)
    data = prepare(rows, tokenizer, tmp_path / "out", target=target, regeneration=how)
    joined = [one for one in data if not one.mask.all() and (np.diff(one.mask.astype(int)) == -1).any()]
    assert joined
    for one in joined:
        first, last = np.flatnonzero(np.diff(one.mask.astype(int)) == -1)[0], len(one) - 1
        assert one.ids[first] == NEWLINE and one.mask[last]


def heard(*turns: tuple[list[int], list[int], str, bool]) -> Dialogue:
    """Return a conversation of three questions after some prompts, answers, their texts, and whether they ended."""
    dialogue = Dialogue(0, [{"role": role, "content": "old"} for role in ("user", "assistant") * 3])
    for prompt, answer, text, ended in turns:
        assert dialogue.reason is None
        dialogue.add(Answer(Question(0, dialogue.answered, "", "", [], prompt), answer, text, ended))
    return dialogue


def shown(dialogue: Dialogue) -> list[tuple[list[int], list[int]]]:
    return [(one.ids.tolist(), np.flatnonzero(one.mask).tolist()) for one in dialogue.said()]


def test_a_dialogue_keeps_what_the_target_saw_and_said():
    one = heard(([1, 2], [3, 9], "c", True), ([1, 2, 3, 9, 4], [5, 9], "e", True))
    assert shown(one) == [([1, 2, 3, 9, 4, 5, 9], [2, 3, 5, 6])] and one.open_turns == 1
    assert [m["content"] for m in one.messages] == ["old", "c", "old", "e", "old", "old"]
    anew = heard(
        ([1, 2], [3, 9], "c", True), ([1, 2, 8, 4], [5, 9], "e", True), ([1, 2, 8, 4, 5, 9, 6], [7], "g", False)
    )
    assert shown(anew) == [([1, 2, 3, 9], [2, 3]), ([1, 2, 8, 4, 5, 9, 6, 7], [4, 5, 7])]


def test_a_dialogue_ends_where_an_answer_says_nothing_or_does_not_end():
    unfinished = heard(([1, 2], [3, 4], "c", False))
    assert shown(unfinished) == [([1, 2, 3, 4], [2, 3])] and unfinished.open_turns == 0
    silent = heard(([1, 2], [3, 9], "c", True), ([1, 2, 3, 9, 4], [9], "", True))
    assert shown(silent) == [([1, 2, 3, 9], [2, 3])] and silent.open_turns == 0
    with pytest.raises(RowError, match=EMPTY):
        heard(([1, 2], [9], "", True)).said()


def test_every_question_is_asked_and_what_follows_the_last_answer_is_left_out(target):
    tokenizer = load_tokenizer(target)
    template = choose_template(tokenizer, "vicuna_v1.1")
    turns = [{"role": role, "content": f"{number}"} for number, role in enumerate(("assistant", "user", "user"))]
    dialogue = Dialogue(0, turns)
    assert [m["role"] for m in dialogue.messages] == ["user", "assistant"] * 2 and dialogue.open_turns == 2
    first = dialogue.question(tokenizer, template, None)
    assert [m["content"] for m in first.messages] == ["1"] and first.turn == 0
    dialogue.add(Answer(first, [5, 9], "one", True))
    second = dialogue.question(tokenizer, template, None)
    assert [m["content"] for m in second.messages] == ["1", "one", "2"] and second.turn == 1
    with pytest.raises(RowError, match="no question of a user's"):
        Dialogue(0, turns[:1]).said()


def test_prompts_without_room_for_an_answer_are_not_answered(rows, target, tmp_path):
    data = made(rows, target, tmp_path / "short", max_length=80)
    assert data.lengths_N.max() == 80
    assert data.summary["reasons"]["a question after 79 tokens leaves no room for an answer"] > 0


def test_the_added_token_that_ends_the_template_s_turns_ends_answers(target):
    tokenizer = load_tokenizer(target)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + '<|im_end|>' }}{% endfor %}"
    template, end = choose_template(tokenizer), tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert ends_of(GenerationConfig(eos_token_id=3), tokenizer, template) == [3, end]
    assert ends_of(GenerationConfig(eos_token_id=[end]), tokenizer, template) == [end]
    tokenizer.chat_template = PLAIN
    assert ends_of(GenerationConfig(), tokenizer, choose_template(tokenizer)) == []


def test_a_target_that_never_ends_is_refused(rows, target, tmp_path):
    for path in Path(target).iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "generation_config.json").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    with pytest.raises(ValueError, match="names no end-of-sequence id and the template ends turns without one"):
        made(rows, str(tmp_path), tmp_path / "out")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("max_new_tokens", 0, "must be at least 1"),
        ("batch_size", 0, "must be at least 1"),
        ("seed", -1, "must be at least 0"),
        ("processes", 0, "must be at least 1"),
        ("dtype", "int8", "must be one of auto"),
    ],
)
def test_values_out_of_range_are_named(field, value, words):
    with pytest.raises(ValueError, match=f"{field}={value!r} {words}"):
        Regeneration(**{field: value})


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_a_temperature_that_is_none_is_named(value):
    with pytest.raises(ValueError, match=f"temperature={value!r} must be 0"):
        Regeneration(temperatures=(0.0, value))


def test_the_command_refuses_flags_of_no_use_and_a_head_that_is_not_there(rows, target, tmp_path, capsys):
    arguments = [*rows, "--tokenizer", target, "--template", "vicuna_v1.1", "--out", str(tmp_path / "out")]
    for more, words, code in (
        (["--temperature", "1", "--batch-size", "2"], "--temperature, --batch-size: of use with --regenerate alone", 2),
        (["--regenerate", "--ea-model-path", "./nothing"], "nothing", 1),
        (["--regenerate", "--max-new-tokens", "0"], "max_new_tokens=0 must be at least 1", 2),
    ):
        assert main([*arguments, *more]) == code
        assert words in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True
