"""Processors and criteria that watch a call token by token."""

import torch
from architectures import VOCABULARY
from transformers import (
    LogitsProcessor,
    StoppingCriteria,
)


class Counting(LogitsProcessor):
    """Keeps state: what it does depends on how often it was asked, and it works in place."""

    def __init__(self):
        self.calls = 0

    def __call__(self, input_ids, scores):
        self.calls += 1
        scores[:, self.calls % VOCABULARY] += 8.0
        scores[:, input_ids.shape[1] % VOCABULARY] -= 4.0
        return scores


class Together(LogitsProcessor):
    """Looks at all rows at once."""

    def __call__(self, input_ids, scores):
        return scores + torch.roll(scores, 1, 0) * 0.5


class SumCriterion(StoppingCriteria):
    """Ends a row by its own ids, and remembers what it was shown."""

    def __init__(self):
        self.seen = []

    def __call__(self, input_ids, scores, **kwargs):
        self.seen.append(input_ids.shape)
        return input_ids[:, -2:].sum(-1) % 7 == 0
