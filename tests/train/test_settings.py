"""Settings of a run: a file says values, never flags; every number is one that can be computed with."""

import math
from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from eagle.commands import data, doctor
from eagle.ge_data import allocation
from eagle.train import configure
from eagle.train.settings import Settings, parse
from eagle.traineagle3 import main as traineagle3

NAN, INF = float("nan"), float("inf")
KINDS = get_type_hints(Settings)
NUMBERS = [name for name, kind in KINDS.items() if {int, float, list[int]} & {kind, *get_args(kind)}]
SWITCHES = [name for name, kind in KINDS.items() if kind is bool]


def refusal(folder: Path, text: str, capsys) -> str:
    """Return what is said about a file."""
    file = folder / "run.yaml"
    file.write_text(text)
    with pytest.raises(SystemExit):
        parse(["--config", str(file)], "x", "y")
    return capsys.readouterr().err


@pytest.mark.parametrize("name", ["report_to", "tap_layers"])
@pytest.mark.parametrize("item", ["--evil", "--bs=7", "-x", "-", "--", "[a]", "{a: b}", "null", "true", "1.5", ".inf"])
def test_an_item_of_a_list_is_no_flag(tmp_path, capsys, name, item):
    said = refusal(tmp_path, f"kind: eagle3\n{name}:\n- 5\n- {item}\n", capsys)
    assert f"{name} holds" in said and "must be a whole number or a name" in said


@pytest.mark.parametrize("value", ["--evil", "--bs=7", "-x", "- x"])
def test_a_value_is_no_flag(tmp_path, value):
    file = tmp_path / "run.yaml"
    file.write_text(f"cpdir: '{value}'\n")
    assert parse(["--config", str(file)], "x", "y") == Settings(config=str(file), cpdir=value)


@pytest.mark.parametrize(
    "text", ["cpdir: {a: b}", "cpdir: '--'", "lr: {}", "bs: [1]", "[" * 100_000, "- bs", "? [a]\n: b"]
)
def test_a_file_of_another_shape_is_refused_in_words(tmp_path, capsys, text):
    assert "run.yaml" in refusal(tmp_path, text, capsys)


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "yes", "text", "{}"])
@pytest.mark.parametrize("name", [name for name in NUMBERS if name != "tap_layers"])
def test_no_number_of_a_file_is_infinite_or_none(tmp_path, capsys, name, value):
    assert name in refusal(tmp_path, f"kind: eagle3\n{name}: {value}\n", capsys)


@pytest.mark.parametrize("value", [INF, -INF, NAN, "5", True, [5]])
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_judged_whoever_makes_the_settings(name, value):
    if name == "tap_layers" and value == [5]:
        return
    with pytest.raises(ValueError, match=f"{name}="):
        Settings(kind="eagle3", **{name: value})


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("value", [1, "no", None])
def test_a_switch_is_true_or_false(name, value):
    with pytest.raises(ValueError, match=f"{name}=.* must be True or False"):
        Settings(kind="eagle3", **{name: value})


def test_a_switch_with_a_default_of_its_kind_is_given_as_the_others_are(tmp_path):
    for given, wanted in (([], None), (["--norm-before-residual"], True), (["--norm-before-residual", "false"], False)):
        assert parse(["--kind", "eagle3", *given], "x", "y").norm_before_residual is wanted


def test_the_default_rate_is_the_optimiser_s():
    rates = {(o, k): Settings(optimizer=o, kind=k).peak_rate for o in ("adamw", "muon") for k in ("eagle", "eagle3")}
    assert list(rates.values()) == [1e-4, 1e-4, 5e-3, 5e-3]
    assert Settings(optimizer="muon", lr=3e-3).peak_rate == 3e-3


def test_target_and_head_have_one_name_each_and_the_former_ones_still_work(tmp_path):
    wanted = Settings(base_model_path="BASE", ea_model_path="HEAD")
    for target in ("--base-model-path", "--base_model_path", "--basepath"):
        for head in ("--ea-model-path", "--ea_model_path", "--init_from", "--init-from"):
            assert parse([target, "BASE", head, "HEAD"], "x", "y") == wanted
            (file := tmp_path / "run.yaml").write_text(f"{target[2:]}: BASE\n{head[2:]}: HEAD\n")
            assert parse(["--config", str(file)], "x", "y") == replace(wanted, config=str(file))


def parsed(parser):
    return lambda words: parser().parse_args(words)


@pytest.mark.parametrize(
    ("made", "former", "rest"),
    [
        (data.COMMAND.arguments, "--tokenizer", ["x", "--out", "y"]),
        (parsed(allocation.parser), "--basepath", ["--outdir", "y"]),
        (parsed(configure.parser), "--basepath", ["--out", "y"]),
        (parsed(traineagle3.parser), "--basepath", ["--trainpath", "x", "--savedir", "y"]),
        (doctor.COMMAND.arguments, "--base", []),
    ],
    ids=["data", "ge_data", "configure", "traineagle3", "doctor"],
)
def test_every_command_calls_the_target_by_one_name(made, former, rest):
    for flag in ("--base-model-path", former):
        assert made([*rest, flag, "BASE"]).base_model_path == "BASE"


def test_choices_are_judged_too():
    with pytest.raises(ValueError, match="kind='eagle2' must be one of eagle, eagle3"):
        Settings(kind="eagle2")
    assert Settings(mixed_precision=None).mixed_precision is None
    assert math.isfinite(Settings(lr=1).peak_rate)
