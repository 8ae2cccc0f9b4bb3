"""What every test relies on: exact fp32 products, one thread per worker, no Hub, shared models as they were made."""

import os
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from architectures import edited_models


@pytest.fixture(autouse=True)
def exact_arithmetic() -> None:
    # Before every test: libraries change it for all (torchao does, when it quantises).
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = False


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hide every GPU from a test and from the processes that it starts."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for part in (torch.cuda, torch.accelerator):
        monkeypatch.setattr(part, "is_available", lambda: False)
    _forget_devices()
    yield
    _forget_devices()


def _forget_devices() -> None:
    # accelerate asks once per process where it runs.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(autouse=True)
def shared_models_stay_as_made() -> Iterator[None]:
    yield
    assert not edited_models(), "a test edited a model that others share: it must edit a copy"
