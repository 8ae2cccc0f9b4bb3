"""`eagle processor`: what is printed follows from what was timed."""

import json

import pytest
import torch
from architectures import base_model

from eagle.cli import main
from eagle.evaluation.processor import Timing, advice, shapes_of, table, time_products
from eagle.model.support.prepack import packable


def timing(dtype, stock, packed, inputs=8):
    return Timing(inputs, 16, dtype, (1, 12), stock, packed)


def test_advice_follows_from_the_times():
    timings = [timing("float32", (1.0, 4.0), (1.0, 2.0)), timing("bfloat16", (3.0, 1.5), None)]
    assert advice(timings) == [
        "compile=True in float32: faster for 8 → 16 at 12 rows",
        "compile=True in bfloat16: nothing is faster packed",
        "8 → 16 at 12 rows: bfloat16 takes 0.75 of float32's time",
    ]
    assert "1.00 → 1.00" in table(timings) and "3.00" in table(timings).splitlines()[2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_every_number_of_rows_is_timed_both_ways_where_both_exist(dtype):
    found = time_products(8, 16, dtype, (1, 3), 2)
    assert len(found.stock) == 2 and min(found.stock) > 0
    assert (found.packed is not None) == packable(dtype)


def test_shapes_are_those_of_the_model_s_linear_layers(tmp_path):
    base = base_model("llama")
    base.config.save_pretrained(tmp_path)
    shapes = shapes_of(str(tmp_path))
    assert set(shapes) == {(m.in_features, m.out_features) for m in base.modules() if type(m) is torch.nn.Linear}
    assert shapes == sorted(shapes, key=lambda shape: shape[0] * shape[1])


def test_the_command_prints_a_table_and_writes_json(tmp_path, capsys):
    file = tmp_path / "out.json"
    arguments = ["processor", "--shapes", "8x16", "--rows", "1", "5", "--rounds", "2", "--dtypes", "float32"]
    assert main([*arguments, "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "2 threads" in printed or "1 threads" in printed
    assert "8 → 16" in printed and "compile=True in float32" in printed
    (document,) = json.loads(file.read_text())["timings"]
    assert document["rows"] == [1, 5] and len(document["packed"]) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shapes", "8by16"], "8by16 must be two numbers"),
        (["--shapes", "0x3"], "0x3 must be two numbers"),
        (["--rows", "0"], "--rows=0 must be at least 1"),
        (["--rounds", "0"], "--rounds=0 must be at least 1"),
        (["--base-model-path", "/nowhere/at/all", "--shapes", "1x1"], "name the same thing"),
    ],
)
def test_bad_options_are_one_line_before_anything_is_timed(arguments, words, capsys):
    assert main(["processor", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_model_that_is_not_there_is_one_line(capsys):
    assert main(["processor", "--base-model-path", "/nowhere/at/all"]) == 1
    assert "nowhere" in capsys.readouterr().err.splitlines()[-1]
