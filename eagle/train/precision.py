"""The precision of products in training: what is asked for, what a run began with, or what this device is fast at.

Master weights and optimisers are fp32 in any case.
"""

import os
import time
from dataclasses import dataclass

import torch

from eagle.train.settings import Settings

ROWS, WIDTH, ROUNDS = 512, 1024, 5
FASTER = 0.8  # of fp32's time; nearer to it bf16 brings too little for what it rounds away


@dataclass(frozen=True)
class ChosenPrecision:
    """What accelerate is told, "no" for fp32, and why; None leaves it to DeepSpeed's file."""

    name: str | None
    why: str

    def __str__(self) -> str:
        shown = {None: "precision", "no": "fp32"}.get(self.name, self.name)
        return f"{shown}: {self.why}"


def chosen_precision(settings: Settings, begun: str | None) -> ChosenPrecision:
    """Choose the precision of a run.

    Args:
        settings: the run's.
        begun: what the part before this one had, or None.
    """
    if settings.mixed_precision is not None:
        return ChosenPrecision(settings.mixed_precision, "as --mixed_precision says")
    if (launched := os.environ.get("ACCELERATE_MIXED_PRECISION")) is not None:
        return ChosenPrecision(launched, "as accelerate launch says; --mixed_precision changes it")
    if settings.deepspeed_config is not None:
        return ChosenPrecision(None, f"as {settings.deepspeed_config} says")
    if begun is not None:
        return ChosenPrecision(begun, "as this run began")
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
        return ChosenPrecision("bf16" if able else "no", f"this GPU has {'it' if able else 'no bf16'}")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        return ChosenPrecision("no", "several processes on CPUs, which could measure differently")
    return _measured(device)


def _measured(device: torch.device) -> ChosenPrecision:
    left, right = torch.randn(ROWS, WIDTH, device=device), torch.randn(WIDTH, WIDTH, device=device)
    dtypes = torch.float32, torch.bfloat16
    pairs = [(left.to(dtype), right.to(dtype)) for dtype in dtypes]
    try:
        # In turns, and the least disturbed round of each.
        rounds = [[_seconds(*pair) for pair in pairs] for _ in range(ROUNDS)]
    except RuntimeError as failure:
        return ChosenPrecision("no", f"this device does not multiply bf16 ({str(failure).partition(chr(10))[0]})")
    single, half = (min(times) for times in zip(*rounds, strict=True))
    shape = f"{ROWS} x {WIDTH} by {WIDTH} x {WIDTH} takes {1000 * single:.2f} ms in fp32, {1000 * half:.2f} ms in bf16"
    return ChosenPrecision("bf16" if half <= FASTER * single else "no", shape)


def _seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    began = time.perf_counter()
    (left @ right).sum().item()
    return time.perf_counter() - began
