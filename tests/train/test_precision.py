"""The precision of a run: what is said decides; where nothing is, the device does, and a run stays with its choice."""

import pytest
import torch

import eagle.train.precision as precision
from eagle.train.precision import chosen_precision
from eagle.train.settings import Settings

ON_CPU = pytest.mark.skipif(torch.accelerator.is_available(), reason="an accelerator decides otherwise")


@pytest.fixture(autouse=True)
def not_launched(monkeypatch, single_precision):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")


def times(monkeypatch, single: float, half: float) -> None:
    """Let products take so long."""
    seconds = {torch.float32: single, torch.bfloat16: half}
    monkeypatch.setattr(precision, "_seconds", lambda left, right: seconds[left.dtype])


def test_what_is_said_decides_the_flag_before_the_launcher(monkeypatch):
    monkeypatch.setattr(precision, "_seconds", None)
    assert chosen_precision(Settings(mixed_precision="fp16"), "bf16").name == "fp16"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert str(chosen_precision(Settings(), "no")).startswith("bf16: as accelerate launch says")
    assert chosen_precision(Settings(mixed_precision="no"), None).name == "no"
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    assert chosen_precision(Settings(deepspeed_config="ds.json"), None).name is None
    assert str(chosen_precision(Settings(), "bf16")) == "bf16: as this run began"


@ON_CPU
def test_bf16_is_taken_where_it_is_clearly_faster(monkeypatch):
    times(monkeypatch, 0.010, 0.004)
    chosen = chosen_precision(Settings(), None)
    assert chosen.name == "bf16" and "10.00 ms in fp32, 4.00 ms in bf16" in str(chosen)
    times(monkeypatch, 0.010, 0.009)
    assert str(chosen_precision(Settings(), None)).startswith("fp32: ")


@ON_CPU
def test_processes_that_could_measure_differently_do_not(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    times(monkeypatch, 0.010, 0.001)
    assert chosen_precision(Settings(), None).name == "no"


def test_products_are_really_timed():
    left = torch.randn(8, 8)
    assert 0 < precision._seconds(left, left) < 10
    assert chosen_precision(Settings(), None).name in ("no", "bf16")
