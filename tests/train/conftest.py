"""Training in fp32, whatever this processor multiplies faster: tests compare runs with each other."""

import pytest


@pytest.fixture(autouse=True)
def single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
