"""The reference's commands answer what is asked, with and without a head alike, and lose nothing at an early end."""

import importlib
import json
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from chat_templates import CHATML, GEMMA
from places import PAIR, environment
from templated import templated_target
from transformers import AutoTokenizer, BitsAndBytesConfig

from eagle import chat
from eagle.data.samples import prompt_ids
from eagle.evaluation import answer_command, answering
from eagle.evaluation.answer_command import CHAIN, FAMILIES, answered, devices_of, settings_of
from eagle.evaluation.questions import load_questions
from eagle.model.choices import mc_sim_7b_63

COMMANDS = [
    *(f"gen_{kind}_answer_{family}" for kind in ("ea", "baseline") for family in FAMILIES),
    "gen_ea_alpha_vicuna",
    "gen_ea_alpha_llama2chat",
]
HEAD = str(PAIR / "eagle3_head")
QUESTIONS = {12: ["def f(x):", "class A:"], 3: ["import os\n"], 7: ["for i in range(10):"]}
pytestmark = pytest.mark.usefixtures("on_cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The shipped target with a chat template."""
    return str(templated_target(tmp_path_factory.mktemp("base"), CHATML))


@pytest.fixture
def questions(tmp_path):
    return asked(tmp_path, QUESTIONS)


def asked(folder, questions):
    path = folder / "own.jsonl"
    path.write_text("".join(json.dumps({"question_id": one, "turns": questions[one]}) + "\n" for one in questions))
    return path


def arguments(base, questions, name, *more):
    kept = questions.with_name("answers.jsonl")
    options = ["--base-model-path", base, "--bench-name", str(questions), "--answer-file", str(kept)]
    if "baseline" not in name:
        options += ["--ea-model-path", HEAD]
    return [*options, "--max-new-token", "8", "--model-id", "m", *more]


def main(name, options):
    return importlib.import_module(f"eagle.evaluation.{name}").main(options)


def run(base, questions, name, *more):
    """Run a command; return its records."""
    options = arguments(base, questions, name, *more)
    assert main(name, options) == 0
    return records(questions)


def records(questions):
    return [json.loads(line) for line in questions.with_name("answers.jsonl").read_text().splitlines()]


def refused(capsys, base, questions, name, *more):
    with pytest.raises(SystemExit) as end:
        main(name, arguments(base, questions, name, *more))
    said = capsys.readouterr().err
    assert end.value.code == 2 and "Traceback" not in said and "error: " in said
    return said.partition("error: ")[2]


def ids(found):
    return [choice["ids"] for record in found for choice in record["choices"]]


# --- what is answered


@pytest.mark.parametrize("temperature", ["0", "1.0"])
@pytest.mark.parametrize("family", ["llama3chat", "vicuna"])
def test_both_sides_count_their_ids_and_say_the_same(base, tmp_path, family, temperature):
    sides = {}
    for kind in ("ea", "baseline"):
        (tmp_path / kind).mkdir()
        questions = asked(tmp_path / kind, QUESTIONS)
        sides[kind] = run(base, questions, f"gen_{kind}_answer_{family}", "--temperature", temperature)
        for record in sides[kind]:
            (choice,) = record["choices"]
            assert choice["new_tokens"] == [len(turn) for turn in choice["ids"]]
            assert sum(choice["accept_lengths"]) == sum(choice["new_tokens"])
            assert len(choice["turns"]) == len(choice["wall_time"]) == len(QUESTIONS[record["question_id"]])
            assert min(choice["wall_time"]) > 0 and record["model_id"] == f"m-temperature-{float(temperature)}"
        assert [record["question_id"] for record in sides[kind]] == sorted(QUESTIONS)
    assert ids(sides["ea"]) == ids(sides["baseline"])
    fewer = [[c["idxs"][0] for r in side for c in r["choices"]] for side in sides.values()]
    assert sum(fewer[0]) <= sum(fewer[1]) == sum(c["new_tokens"][0] - 1 for r in sides["ea"] for c in r["choices"])


def test_the_first_answer_stands_in_the_second_prompt(base, questions, monkeypatch):
    prompts, real = [], answering.prompt_ids

    def watched(tokenizer, template, messages):
        prompts.append(list(messages))
        return real(tokenizer, template, messages)

    monkeypatch.setattr(answering, "prompt_ids", watched)
    found = run(base, questions, "gen_ea_answer_llama3chat", "--question-end", "1", "--system-message", "Be brief.")
    first = found[0]["choices"][0]["turns"][0]
    system = {"role": "system", "content": "Be brief."}
    assert prompts[-2:] == [
        [system, {"role": "user", "content": "def f(x):"}],
        [
            system,
            {"role": "user", "content": "def f(x):"},
            {"role": "assistant", "content": first},
            {"role": "user", "content": "class A:"},
        ],
    ]
    assert first


def test_ds_asks_first_turns_only(base, questions):
    for record in run(base, questions, "gen_ea_answer_ds"):
        assert len(record["choices"][0]["turns"]) == 1


def test_every_choice_has_its_own_seed(base, questions):
    name, sampled = "gen_ea_answer_llama3chat", ["--temperature", "1.0", "--question-end", "1"]
    two = run(base, questions, name, *sampled, "--num-choices", "2")
    first, second = two[0]["choices"]
    assert (first["index"], second["index"]) == (0, 1) and first["ids"] != second["ids"]
    questions.with_name("answers.jsonl").unlink()
    assert ids(run(base, questions, name, *sampled)) == [first["ids"]]


def test_a_range_of_questions_is_asked_and_the_others_can_follow(base, questions, capsys):
    name = "gen_baseline_answer_llama3chat"
    found = run(base, questions, name, "--question-begin", "1", "--question-end", "2")
    assert [record["question_id"] for record in found] == [3]
    assert "1 of 1 questions" in capsys.readouterr().out
    assert [record["question_id"] for record in run(base, questions, name)] == sorted(QUESTIONS)
    assert "2 of 3 questions" in capsys.readouterr().out
    assert "leave none of 3 questions" in refused(capsys, base, questions, name, "--question-begin", "3")


@pytest.mark.parametrize("tree", ["mc_sim_7b_63", "[[0], [1], [0, 0]]", None])
def test_the_asked_tree_is_the_model_s(base, questions, monkeypatch, tree):
    made, real = [], answer_command.Answerer
    monkeypatch.setattr(answer_command, "Answerer", lambda settings: made.append(real(settings)) or made[-1])
    name = "gen_ea_answer_llama3chat" if tree else "gen_ea_alpha_vicuna"
    run(base, questions, name, "--question-end", "1", *(["--tree-choices", tree] if tree else []))
    paths = {"mc_sim_7b_63": mc_sim_7b_63, None: CHAIN}.get(tree) or json.loads(tree)
    stats = made[0].model.stats
    assert stats.drafted == len(paths) * stats.row_steps > 0


@pytest.mark.parametrize("family", ["vicuna", "llama2chat"])
def test_alpha_counts_what_the_drafts_had_accepted(base, questions, family):
    reached = 0
    for record in run(base, questions, f"gen_ea_alpha_{family}", "--temperature", "0", "--max-new-token", "16"):
        (choice,) = record["choices"]
        accepted, alpha, tried = choice["accepted"], choice["alpha"], choice["alpha_num"]
        assert len(alpha) == len(tried) == len(CHAIN) and max(accepted) <= len(CHAIN)
        assert tried[0] == len(accepted) and sum(alpha) == sum(accepted)
        assert alpha == [sum(count > depth for count in accepted) for depth in range(len(CHAIN))]
        assert tried[1:] == alpha[:-1]
        reached += sum(alpha)
    assert reached


def test_the_reference_s_records_are_a_part_of_ours(base, questions):
    (record, *_) = run(base, questions, "gen_ea_answer_llama3chat", "--question-end", "1")
    assert {"question_id", "answer_id", "model_id", "choices", "tstamp"} <= record.keys()
    assert {"index", "turns", "idxs", "new_tokens", "wall_time"} <= record["choices"][0].keys()


# --- what is refused


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_of_the_reference_is_understood(name, capsys):
    kind, _, family = name.removeprefix("gen_").rpartition("_")
    flags = {
        "--ea-model-path": "head", "--base-model-path": "base/model", "--model-id": "m", "--bench-name": "gsm8k",
        "--question-begin": "1", "--question-end": "2", "--answer-file": "a.jsonl", "--max-new-token": "3",
        "--total-token": "9", "--depth": "2", "--top-k": "3", "--num-choices": "2", "--num-gpus-per-model": "1",
        "--num-gpus-total": "1", "--max-gpu-memory": "4GiB", "--tree-choices": "mc_sim_7b_63", "--temperature": "0.5",
    }  # fmt: skip
    for spelling in ("--use_eagle3", "--use-eagle3"):
        line = [word for pair in flags.items() for word in pair] + ["--load-in-8bit", spelling]
        args = answer_command.parser(kind, family).parse_args(line)
        assert args.use_eagle3 and args.load_in_8bit and args.temperature == 0.5 and args.question_end == 2
    args.max_gpu_memory = None  # there is no GPU here
    settings = settings_of(kind, family, args)
    made = (settings.ea_model_path, settings.use_eagle3, settings.total_token, settings.depth, settings.top_k)
    if "baseline" in name:
        assert made[:2] == (None, None) and settings.tree == "dynamic"
    else:
        assert made == ("head", True, 9, 2, 3) and settings.tree == mc_sim_7b_63
    assert (settings.max_new_token, settings.num_choices, settings.temperature) == (3, 2, 0.5)
    assert settings.load_in_8bit and settings.base_model_path == "base/model"
    with pytest.raises(SystemExit) as end:
        main(name, ["--help"])
    assert end.value.code == 0 and f"eagle.evaluation.{name}" in capsys.readouterr().out


REFUSED = {
    "--temperature=nan": "--temperature=nan must be at least 0",
    "--max-new-token=0": "--max-new-token=0 must be at least 1",
    "--num-choices=0": "--num-choices=0",
    "--total-token=1": "total_token=1",
    "--tree-choices=[1, 2]": "is no name of a tree, and no list of paths",
    "--tree-choices=nobody": "is no name of a tree",
    "--tree-choices=[[0, 1]]": "has no parent",
    "--num-gpus-total=2": "--num-gpus-total=2: there are 0 GPUs here",
    "--num-gpus-per-model=2": "must be a multiple",
    "--max-gpu-memory=40 apples": "size",
    "--max-gpu-memory=40GiB": "there is no GPU here",
    "--base-model-path=/nowhere/at/all": "'/nowhere/at/all' is neither a folder nor a Hub",
    f"--base-model-path={HEAD}": "holds a draft head, not a base model",
    "--bench-name=nothing": "there is no such file",
    "--template=vicuna": "FastChat has no template 'vicuna'; its closest names are",
    "--ea-model-path=/nowhere": "neither a folder nor a Hub",
}


@pytest.mark.parametrize("option", REFUSED, ids=lambda option: option.replace(HEAD, "HEAD"))
def test_a_wrong_option_is_refused_before_the_model_is_loaded(base, questions, capsys, monkeypatch, option):
    monkeypatch.setattr("eagle.model.ea_model.load_base", lambda *_: pytest.fail("work has begun"))
    assert REFUSED[option] in refused(capsys, base, questions, "gen_ea_answer_llama3chat", option)


def test_two_ways_to_quantise_are_refused(base, questions, capsys):
    said = refused(capsys, base, questions, "gen_ea_answer_ds", "--load-in-8bit", "--load-in-4bit")
    assert "exclude each other" in said


def test_a_base_without_template_and_a_template_without_system_messages_are_refused(questions, capsys, tmp_path):
    name = "gen_baseline_answer_llama3chat"
    assert "choose a --template" in refused(capsys, str(PAIR / "target"), questions, name)
    gemma = str(templated_target(tmp_path / "gemma", GEMMA))
    assert "System role not supported" in refused(capsys, gemma, questions, name, "--system-message", "Be brief.")


def test_an_eagle_3_head_is_insisted_on(base, questions, capsys):
    options = ["--ea-model-path", str(PAIR / "eagle_head"), "--use_eagle3"]
    said = refused(capsys, base, questions, "gen_ea_answer_llama3chat", *options)
    assert "use_eagle3=True" in said and "EAGLE-1/2" in said
    assert run(base, questions, "gen_ea_answer_llama3chat", *options[:2], "--question-end", "1")


def test_quantisation_memory_and_gpus_reach_from_pretrained(monkeypatch):
    settings = answering.AnswerSettings(base_model_path="b", ea_model_path=None, load_in_8bit=True, dtype="bfloat16")
    assert settings.loading().keys() == {"dtype", "quantization_config"}
    quantised = settings.loading()["quantization_config"]
    assert isinstance(quantised, BitsAndBytesConfig) and quantised.load_in_8bit and not quantised.load_in_4bit
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: (100 + gpu, 0))
    memory = {
        (2, "7GiB"): {0: "7GiB", 1: "7GiB"},
        (1, None): {0: 100},  # the others are not this model's
        (4, None): None,
    }
    for (gpus, most), wanted in memory.items():
        settings = answering.AnswerSettings(
            base_model_path="b", ea_model_path=None, num_gpus_per_model=gpus, max_gpu_memory=most
        )
        found = settings.loading()
        assert found["device_map"] == "auto" and found["dtype"] == "float16"
        assert found.get("max_memory") == wanted and "quantization_config" not in found
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert devices_of(4, 2) == ["0,1", "2,3"] and devices_of(2, 2) == [""]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6,7")
    assert devices_of(3, 1) == ["5", "6", "7"]


# --- what is kept


def test_a_run_that_is_interrupted_goes_on_where_it_was(base, questions, monkeypatch, capsys):
    whole = ids(run(base, questions, "gen_ea_answer_llama3chat"))
    kept = questions.with_name("answers.jsonl")
    kept.unlink()
    counted, real = [], answering.Answerer.answer

    def answer(self, question, model_id):
        counted.append(question.id)
        if len(counted) == 3:
            raise KeyboardInterrupt
        return real(self, question, model_id)

    monkeypatch.setattr(answering.Answerer, "answer", answer)
    before = signal.getsignal(signal.SIGINT)
    try:
        options = arguments(base, questions, "gen_ea_answer_llama3chat")
        capsys.readouterr()
        assert main("gen_ea_answer_llama3chat", options) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    said = capsys.readouterr().err.replace("\r", "\n").strip().splitlines()
    assert said[-1].startswith("interrupted: finished answers are kept; to go on: python -m eagle.evaluation.gen_ea")
    left = kept.read_bytes()
    assert [record["question_id"] for record in records(questions)] == [12, 3]
    found = run(base, questions, "gen_ea_answer_llama3chat")
    assert counted == [12, 3, 7, 7]
    assert ids(found) == whole and [record["question_id"] for record in found] == [3, 7, 12]
    assert set(left.splitlines()) < set(kept.read_bytes().splitlines())
    assert run(base, questions, "gen_ea_answer_llama3chat") == found and len(counted) == 4


def test_a_full_disk_and_a_failing_answer_end_with_one_line(base, questions, monkeypatch, capsys):
    monkeypatch.setattr(answering.Answerer, "answer", lambda *_: {"question_id": 1, "value": torch.tensor(1)}["none"])
    with pytest.raises(KeyError):  # a mistake of ours stays one
        main("gen_ea_answer_ds", arguments(base, questions, "gen_ea_answer_ds"))

    def full(self, record):
        raise OSError(28, "No space left on device")

    monkeypatch.undo()
    monkeypatch.setattr(answer_command.RecordFile, "add", full)
    assert "No space left" in refused(capsys, base, questions, "gen_ea_answer_ds")


def test_a_killed_run_loses_no_answer_and_asks_none_twice(base, tmp_path):
    questions = asked(tmp_path, {number: [f"x = {number}"] for number in range(40, 0, -1)})
    name, kept = "gen_baseline_answer_llama3chat", tmp_path / "answers.jsonl"
    options = arguments(base, questions, name)
    child = subprocess.Popen(
        [sys.executable, "-m", f"eagle.evaluation.{name}", *options],
        env=environment(OMP_NUM_THREADS="1"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not kept.exists() or kept.read_bytes().count(b"\n") < 3:
        assert child.poll() is None, child.stderr.read()
        time.sleep(0.005)
    child.kill()
    child.communicate()
    lines = kept.read_bytes().split(b"\n")[:-1]
    assert 3 <= len(lines) < 40
    found = run(base, questions, name)
    assert [record["question_id"] for record in found] == list(range(1, 41))
    assert set(lines) < set(kept.read_bytes().splitlines())


def test_a_last_answer_that_is_cut_off_is_given_again(base, questions):
    name = "gen_ea_answer_llama3chat"
    whole, kept = ids(run(base, questions, name)), questions.with_name("answers.jsonl")
    kept.write_bytes(kept.read_bytes()[:-100])
    assert ids(run(base, questions, name)) == whole


@pytest.mark.parametrize(
    "change, words",
    [
        (["--temperature", "0.5"], "temperature=0.0, now 0.5"),
        (["--model-id", "other"], "model_id='m-temperature-0.0', now 'other-temperature-0.0'"),
        (["--total-token", "20"], "total_token=60, now 20"),
        ("words", "question 3 was asked in other words"),
        ("twice", "question 3 is answered twice"),
        ("foreign", "question 3: no answer that this command has made"),
    ],
)
def test_answers_of_other_settings_or_questions_are_refused(base, questions, capsys, change, words):
    name = "gen_ea_answer_llama3chat"
    (record,) = run(base, questions, name, "--question-begin", "1", "--question-end", "2")
    kept = questions.with_name("answers.jsonl")
    if change == "words":
        asked(questions.parent, {3: ["something else"]})
    elif change == "twice":
        kept.write_bytes(kept.read_bytes() * 2)
    elif change == "foreign":
        kept.write_text(json.dumps({name: record[name] for name in record.keys() - {"made"}}) + "\n")
    before = kept.read_bytes()
    assert words in refused(capsys, base, questions, name, *(change if isinstance(change, list) else [])).replace(
        '"', "'"
    )
    assert kept.read_bytes() == before


def test_another_tree_decides_nothing_of_a_baseline(base, questions):
    found = run(base, questions, "gen_baseline_answer_llama3chat")
    assert run(base, questions, "gen_baseline_answer_llama3chat", "--total-token", "20", "--use_eagle3") == found


def test_a_question_that_is_too_long_is_named_and_left_out_each_time(base, tmp_path, caplog):
    long = "x = 1\n" * 900
    questions = asked(tmp_path, {1: [long], 2: ["import os"], 3: ["def f():", long]})
    for _ in range(2):
        caplog.clear()
        found = run(base, questions, "gen_ea_answer_llama3chat")
        assert [record["question_id"] for record in found] == [2]
        for number in (1, 3):
            assert f"question {number} is left out: " in caplog.text
        assert "8 new ones are more than the base's 2048 positions" in caplog.text


def test_answers_go_up_to_the_last_position(base, tmp_path, caplog):
    tokenizer = AutoTokenizer.from_pretrained(base)
    template = chat.choose_template(tokenizer)
    texts = ["x = 1\n" * count for count in range(300, 600)]
    rooms = [2048 - len(prompt_ids(tokenizer, template, [{"role": "user", "content": text}])) for text in texts]
    text, room = next((text, room) for text, room in zip(texts, rooms, strict=True) if 2 <= room <= 12)
    questions, name = asked(tmp_path, {1: [text]}), "gen_ea_answer_llama3chat"
    assert run(base, questions, name, "--max-new-token", str(room + 1)) == [] and "is left out" in caplog.text
    (record,) = run(base, questions, name, "--max-new-token", str(room))
    assert record["choices"][0]["new_tokens"] == [room]


# --- several processes


def test_two_processes_give_the_answers_of_one(base, questions, caplog):
    asked(questions.parent, QUESTIONS | {5: ["x = 1\n" * 900]})
    name = "gen_ea_answer_llama3chat"
    args = answer_command.parser("ea_answer", "llama3chat").parse_args(
        [*arguments(base, questions, name), "--temperature", "1.0"]
    )
    settings, found = settings_of("ea_answer", "llama3chat", args), load_questions(str(questions)).questions
    one, two = (
        {record["question_id"]: ids([record]) for record in answered(settings, found, "m", devices)}
        for devices in ([""], ["", ""])
    )
    assert one == two and one.keys() == QUESTIONS.keys()
    assert caplog.text.count("question 5 is left out") == 2


def test_what_a_process_is_refused_with_is_said_in_its_words(questions):
    settings = answering.AnswerSettings(base_model_path=str(PAIR / "target"), ea_model_path=HEAD, dtype="float32")
    with pytest.raises(ValueError, match="no chat template: choose a --template"):
        list(answered(settings, load_questions(str(questions)).questions[:1], "m", ["", ""]))


def test_processes_end_with_the_command(base, questions):
    code = (
        "import sys, json; from eagle.evaluation.answer_command import *; from eagle.evaluation.questions import *\n"
        "if __name__ == '__main__':\n"
        " import psutil\n"
        " args = parser('ea_answer', 'llama3chat').parse_args(sys.argv[1:])\n"
        " s = settings_of('ea_answer', 'llama3chat', args)\n"
        " for record in answered(s, load_questions(args.bench_name).questions[:1], 'm', ['', '']):\n"
        "  print(*[one.pid for one in psutil.Process().children(recursive=True)], flush=True)\n"
        "  input()\n"
    )
    script = questions.with_name("script.py")
    script.write_text(code)
    child = subprocess.Popen(
        [sys.executable, str(script), *arguments(base, questions, "gen_ea_answer_llama3chat")],
        env=environment(OMP_NUM_THREADS="1"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    processes = [int(word) for word in child.stdout.readline().split()]
    assert processes and all(alive(process) for process in processes)
    child.kill()
    child.communicate()
    ends = time.monotonic() + 10
    while any(alive(process) for process in processes) and time.monotonic() < ends:
        time.sleep(0.02)
    assert not any(alive(process) for process in processes)


def alive(process):
    if not psutil.pid_exists(process):
        return False
    return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
