"""Counters of one run that is not timed: forwards, time inside the two models, peak memory.

Hooks stand on the models only within `ModelMeter.attached`; timed rounds run without them.
"""

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn

from eagle.model.ea_model import EaModel

# How often the resident memory of the process is looked at.
SAMPLE_SECONDS = 0.005
FORGET, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


class ModelMeter:
    """Counts for one base model and the heads on it.

    Time inside is that of outermost calls: a layer called within the base model's forward counts once. On an
    accelerator a call only launches work, unless CUDA_LAUNCH_BLOCKING=1 makes it wait.

    Attributes:
        forwards: calls of the base model.
        inside_seconds: time within the base model, its embeddings and output matrix, and the heads' modules.
    """

    def __init__(self, base: Any, models: Iterable[EaModel]) -> None:
        self.base = base
        modules = [base, base.get_input_embeddings(), base.get_output_embeddings()]
        for model in models:
            modules += model.ea_layer.head.modules()
        self._modules = list({id(module): module for module in modules if module is not None}.values())
        self._deep, self._entered = 0, 0.0
        self.forwards, self.inside_seconds = 0, 0.0

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Count what runs within the block, from zero."""
        self._deep, self.forwards, self.inside_seconds = 0, 0, 0.0
        handles = []
        try:
            for module in self._modules:
                handles.append(module.register_forward_pre_hook(self._enter))
                handles.append(module.register_forward_hook(self._exit, always_call=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        if self._deep == 0:
            self._entered = time.perf_counter()
        self._deep += 1
        self.forwards += type(module) is type(self.base)

    def _exit(self, module: nn.Module, args: Any, output: Any) -> None:
        self._deep -= 1
        if self._deep == 0:
            self.inside_seconds += time.perf_counter() - self._entered


class PeakMemory:
    """Highest memory use within a `with` block, in bytes: the device's allocations, or the process's resident set.

    Linux keeps the highest resident set itself; elsewhere a thread looks at it every `SAMPLE_SECONDS`.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sampler: threading.Thread | None = None
        self.bytes = 0

    def __enter__(self) -> "PeakMemory":
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif not _forget_peak():
            self._done = threading.Event()
            self._sampler = threading.Thread(target=self._sample, daemon=True)
            self._sampler.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self._device)
        elif self._sampler is None:
            self.bytes = _peak()
        else:
            self._done.set()
            self._sampler.join()

    def _sample(self) -> None:
        process, is_over = psutil.Process(), False
        while not is_over:
            is_over = self._done.wait(SAMPLE_SECONDS)
            self.bytes = max(self.bytes, process.memory_info().rss)


def _forget_peak() -> bool:
    """Let Linux count the highest resident set of this process anew; tell whether it does."""
    try:
        FORGET.write_text("5")  # see proc(5)
    except OSError:
        return False
    return True


def _peak() -> int:
    """Return the highest resident set since `_forget_peak`, in bytes."""
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])
