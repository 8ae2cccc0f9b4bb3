"""Gradients held off around our own work, and nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def without_gradients() -> Iterator[None]:
    """Hold off gradients; what is made here outlives a caller's `inference_mode`, in which it would freeze."""
    with torch.inference_mode(False), torch.no_grad():
        yield
