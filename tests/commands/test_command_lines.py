"""All command lines alike: help and completion without torch, lists, refusals of one line, exit codes."""

import json
import os
import re
import signal
import subprocess
import sys

import click
import pytest
from click.shell_completion import ShellComplete
from places import environment

from eagle import cli, interrupts, progress
from eagle.commands import bench, convert, curves, data, evaluate, options
from eagle.commands.line import CommandLine, Several
from eagle.evaluation.methods import NAMES
from eagle.evaluation.question_sets import SETS
from eagle.evaluation.synthetic import SHAPES
from eagle.model.configs import EAGLE3_FLAGS
from eagle.model.dialects.layouts import LAYOUTS
from eagle.model.target import PREFILL_CHUNK

LINES = [one for one in cli.COMMAND.commands.values() if isinstance(one, CommandLine)]
LISTS = [(one, option) for one in LINES for option in one.params if isinstance(option, Several)]
WITHOUT_TORCH = "import sys; sys.modules['torch'] = sys.modules['transformers'] = None; from eagle import cli; "


def without_torch(code, **more):
    """Run code where importing torch fails; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH + code],
        capture_output=True,
        text=True,
        env=environment(**more),
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def required(command):
    """Return words that a command wants before anything else."""
    words = []
    for param in command.params:
        if param.required:
            words += [*param.opts[:1], param.type.choices[0] if isinstance(param.type, click.Choice) else "x"]
    return [word for word in words if word != "sources"]


def values(option):
    """Return two values that an option takes."""
    if isinstance(option.type, click.Choice):
        return list(option.type.choices[:2])
    return ["norm_output=true", "rope_theta=1e4"] if option.name == "set" else ["0", "3"]


# --- help


def test_every_command_s_help_needs_no_torch_and_names_all_its_flags():
    printed = without_torch(f"[cli.main([name, '--help']) for name in {[one.name for one in LINES]!r}]", COLUMNS="200")
    pages = printed.split("Usage: ")[1:]
    assert len(pages) == len(LINES)
    for command, page in zip(LINES, pages, strict=True):
        assert page.startswith(f"eagle {command.name}")
        for flag in [*(flag for param in command.params for flag in param.opts if flag.startswith("-")), "--help"]:
            assert re.search(rf"(?<![\w-]){flag}(?![\w-])", page), f"{command.name} {flag}"


def test_the_help_of_all_lists_every_command_with_what_it_does():
    printed = without_torch("cli.main(['--help']); cli.main(['--version'])", COLUMNS="80")
    for name, command in cli.COMMAND.commands.items():
        assert re.search(rf"^  {name} +{re.escape(command.help.splitlines()[0])}$", printed, flags=re.MULTILINE), name
    assert re.fullmatch(r"eagle \S+ \(torch \S+, transformers \S+, Python \S+\)", printed.splitlines()[-1])
    assert max(map(len, printed.splitlines()[:-1])) <= 80


def test_training_shows_the_flags_of_its_own_parser(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["train", "--help"])
    assert left.value.code == 0 and "--draft-vocab-size" in capsys.readouterr().out


def test_no_command_is_the_help_and_wrong(capsys):
    assert cli.main([]) == 2
    assert "chat" in capsys.readouterr().out


# --- lists


@pytest.mark.parametrize(("command", "option"), LISTS, ids=[f"{one.name} {option.opts[0]}" for one, option in LISTS])
def test_a_list_is_the_same_by_spaces_and_given_again(command, option):
    one, other = values(option)
    before = required(command)
    flag = option.opts[0]
    rest = ["--", "x"] if any(isinstance(param, click.Argument) and param.required for param in command.params) else []
    if flag in before:
        before = before[: before.index(flag)]
    by_spaces = vars(command.arguments([*before, flag, one, other, *rest]))
    again = vars(command.arguments([*before, flag, one, flag, other, *rest]))
    assert by_spaces.pop("command_line") != again.pop("command_line")
    assert by_spaces == again and len(by_spaces[option.name]) == 2


def test_a_list_ends_at_the_next_option_and_holds_negative_numbers():
    args = bench.COMMAND.arguments(["--total-token", "4", "-1", "--rounds", "2", "--methods", "generate"])
    assert (args.total_token, args.rounds, args.methods) == ([4, -1], 2, ["generate"])
    assert bench.COMMAND.arguments([]).total_token == [12] and bench.COMMAND.arguments([]).methods is None


def test_a_list_may_be_empty_where_that_means_something(capsys):
    args = curves.COMMAND.arguments(["--depths", "--batch-sizes", "2", "--context-lengths"])
    assert (args.depths, args.batch_sizes, args.context_lengths) == ([], [2], [])
    assert cli.main(["bench", "--batch-sizes", "--rounds", "1"]) == 2
    assert "--batch-sizes wants a value" in capsys.readouterr().err


def test_sources_after_two_dashes_are_no_values_of_a_list():
    args = data.COMMAND.arguments(
        ["--tokenizer", "T", "--out", "o", "--regenerate", "--temperature", "0", "1", "--", "a", "b"]
    )
    assert args.sources == ["a", "b"] and args.temperatures == [0.0, 1.0]


# --- consistency


@pytest.mark.parametrize(
    ("said", "known"),
    [
        (options.SHAPES, tuple(SHAPES)),
        (options.METHODS, tuple(NAMES)),
        (options.LAYOUTS, LAYOUTS),
        (options.FLAGS, EAGLE3_FLAGS),
        (options.PREFILL_CHUNK, PREFILL_CHUNK),
    ],
)
def test_choices_are_what_the_modules_know(said, known):
    assert said == known


def test_one_flag_takes_one_kind_of_value_wherever_it_is():
    kinds = {}
    for command in LINES:
        for option in command.params:
            for flag in option.opts:
                if flag.startswith("--") and flag != "--json":
                    kinds.setdefault(flag, {})[command.name] = (option.type.name, getattr(option, "is_flag", False))
    differing = {flag: by for flag, by in kinds.items() if len(set(by.values())) > 1}
    assert not differing


def test_every_command_has_the_flags_that_all_share():
    for command in LINES:
        flags = {flag for option in command.params for flag in option.opts}
        assert "--debug" in flags and ("--json" in flags or command.name in ("chat", "webui")), command.name
        for name, short in (("--base-model-path", "--base"), ("--ea-model-path", "--head")):
            assert (name in flags) == (short in flags), (command.name, name)


# --- errors


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["bnech"], "no command 'bnech': did you mean bench?"),
        (["zzz"], "no command 'zzz': there are generate, chat"),
        (["bench", "--round", "1"], r"no option --round: did you mean --rounds\?"),
        (["--verson"], r"no option --verson: did you mean --version\?"),
        (["bench", "--rounds", "two"], "'two' is not a valid integer"),
        (["convert", "--base", "x"], "Missing option '--ea-model-path'"),
        (["convert", "--base", "x", "--head", "y", "--to", "eagle", "--out", "z", "--set", "a"], "= is missing"),
        (["convert", "--base", "x", "--head", "y", "--to", "eagle", "--out", "z", "--private"], "--push-to-hub"),
        (["doctor", "--base", "x", "--capture-layers", "1"], "add --ea-model-path"),
        (["memory", "--total-token", "-1"], "tree of one size"),
        (["conversation", "--base", "x"], "go together"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(words, said, capsys):
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and re.search(said, err), err
    assert re.match(r"eagle( \w+)?: error: ", err)


def test_a_refusal_is_one_line_and_exit_code_1_and_debug_shows_where(monkeypatch, capsys):
    words = ["bench", "--base", "/nowhere/at/all", "--head", "/nowhere/else", "--prompts", __file__]
    assert cli.main(words) == 1
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1 and "/nowhere" in err and err.startswith("eagle bench: error: ")
    for debugging in ([*words, "--debug"], ["--debug", *words]):
        assert cli.main(debugging) == 1
        traced = capsys.readouterr().err
        assert "Traceback" in traced and traced.endswith(err)
    monkeypatch.setenv("EAGLE_DEBUG", "1")
    assert bench.COMMAND.home and cli.main(words) == 1 and "Traceback" in capsys.readouterr().err


def test_a_fault_of_the_package_is_called_one(monkeypatch, capsys):
    def fails(args):
        raise TypeError("no such thing\nand more")

    monkeypatch.setattr("eagle.convert.work", fails)
    assert cli.main(["convert", "--base", "x", "--head", "y", "--to", "eagle", "--out", "z"]) == 1
    assert "TypeError: no such thing (a fault of eagle; --debug shows where)" in capsys.readouterr().err


def test_what_an_interrupted_run_has_left_is_said_with_its_command(monkeypatch, capsys):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("eagle.data.command.work", interrupted)
    former = signal.getsignal(signal.SIGINT)
    assert cli.main(["data", "a b", "--tokenizer", "T", "--out", "/nowhere/at/all"]) == interrupts.STATUS
    assert "to go on: eagle data 'a b' --tokenizer T --out /nowhere/at/all" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is former
    monkeypatch.setattr("eagle.evaluation.bench.work", interrupted)
    with pytest.raises(KeyboardInterrupt):  # a program that calls it decides itself
        cli.main(["bench", "--synthetic", "tiny"])


# --- what comes out


def test_json_is_the_last_line_or_a_file(tmp_path, capsys):
    words = ["processor", "--shapes", "8x16", "--rows", "1", "2", "--rounds", "1", "--dtypes", "float32"]
    assert cli.main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["timings"][0]["rows"] == [1, 2]
    assert document["settings"]["command_line"] == ["eagle", *words, "--json"]
    assert cli.main([*words, "--json", str(tmp_path / "there.json")]) == 0
    assert json.loads((tmp_path / "there.json").read_text())["timings"][0]["rows"] == [1, 2]
    assert not capsys.readouterr().out.splitlines()[-1].startswith("{")


def test_a_command_with_positional_words_never_takes_one_for_a_json_file():
    for command in LINES:
        if any(isinstance(param, click.Argument) for param in command.params):
            (json_option,) = [param for param in command.params if "--json" in param.opts]
            assert json_option.is_flag, command.name


def test_quiet_hides_bars(monkeypatch):
    for name in (progress.HIDDEN, "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(name, "")
    with progress.bar(total=1, always=True) as shown:
        assert not shown.disable
    with progress.hidden(), progress.bar(total=1, always=True) as hidden:
        assert hidden.disable
    with progress.bar(total=1, always=True) as shown:
        assert not shown.disable


# --- completion


def completed(*words):
    """Return what a shell would offer for the last word."""
    *before, incomplete = words
    return [item.value for item in ShellComplete(cli.COMMAND, {}, "eagle", "X").get_completions(before, incomplete)]


def test_completion_offers_commands_options_choices_and_sets():
    assert completed("") == list(cli.COMMAND.commands) and completed("be") == ["bench"]
    assert "--base-model-path" in completed("bench", "--ba")
    assert completed("bench", "--synthetic", "1") == ["135m", "13b"]
    assert completed("bench", "--methods", "p") == completed("bench", "--methods", "generate", "p") == ["plain"]
    assert completed("eval", "--questions", "mt") == completed("eval", "--questions", "gsm8k", "mt") == ["mt_bench"]
    assert "mt_bench" in SETS and "--rounds" in completed("bench", "--methods", "generate", "--ro")
    assert evaluate.COMMAND.name == "eval" and completed("convert", "--to", "s") == ["speculators", "sglang"]
    assert convert.COMMAND in LINES


def test_a_shell_asks_without_waiting_for_torch():
    words = {"_EAGLE_COMPLETE": "bash_complete", "COMP_WORDS": "eagle bench --methods pl", "COMP_CWORD": "3"}
    assert "plain" in without_torch("cli.main()", **words)
    assert "complete" in without_torch("cli.main()", _EAGLE_COMPLETE="bash_source")
    assert os.environ.get("_EAGLE_COMPLETE") is None
