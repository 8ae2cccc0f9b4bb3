"""The reference's `eagle.model.utils`, for scripts that import it: thin names over what this library does itself.

`prepare_logits_processor` works. The steps of its decoding loop are functions there that share caches and buffers of
a shape that does not exist here; each says in words what replaces it. `torch` is handed on, because scripts take it
from here by `from eagle.model.utils import *`.
"""

from typing import Any, NoReturn

import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

__all__ = [
    "evaluate_posterior",
    "generate_tree_buffers",
    "initialize_tree",
    "prepare_logits_processor",
    "reset_tree_mode",
    "torch",
    "tree_decoding",
    "update_inference_inputs",
]


def prepare_logits_processor(
    temperature: float = 0.0, repetition_penalty: float = 0.0, top_p: float = 0.0, top_k: int = 0
) -> LogitsProcessorList:
    """Return processors for `eagenerate(logits_processor=…)`; a filter of 0 is off, temperatures up to 1e-5 are greedy.

    In the order of `generate`: penalty, temperature, top-k, top-p.
    """
    processors = LogitsProcessorList()
    if repetition_penalty > 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(repetition_penalty))
    if temperature > 1e-5:
        if temperature != 1.0:
            processors.append(TemperatureLogitsWarper(temperature))
        if top_k > 0:
            processors.append(TopKLogitsWarper(top_k))
        if 1e-8 <= top_p < 1.0:
            processors.append(TopPLogitsWarper(top_p))
    return processors


def reset_tree_mode(model: Any) -> None:
    """Do nothing: no tree mask ever stays on the base model."""


def initialize_tree(*args: Any, **kwargs: Any) -> NoReturn:
    """Refuse: the prefill is `eagle.model.decoding.Generation.prefill`."""
    _refuse("initialize_tree", "EaModel.eagenerate, or eagle.model.decoding.Generation.prefill")


def tree_decoding(*args: Any, **kwargs: Any) -> NoReturn:
    """Refuse: verification is `eagle.model.target.TargetModel.verify`."""
    _refuse("tree_decoding", "eagle.model.target.TargetModel.verify")


def evaluate_posterior(*args: Any, **kwargs: Any) -> NoReturn:
    """Refuse: acceptance is in `eagle.model.verify`."""
    _refuse("evaluate_posterior", "eagle.model.verify.accept_sampled")


def update_inference_inputs(*args: Any, **kwargs: Any) -> NoReturn:
    """Refuse: the commit is `eagle.model.kv_cache.KVCache.commit`."""
    _refuse("update_inference_inputs", "eagle.model.kv_cache.KVCache.commit")


def generate_tree_buffers(*args: Any, **kwargs: Any) -> NoReturn:
    """Refuse: static trees are given as `EaModel(tree=paths)`."""
    _refuse("generate_tree_buffers", "EaModel.from_pretrained(tree=paths)")


def _refuse(name: str, instead: str) -> NoReturn:
    raise NotImplementedError(f"eagle.model.utils.{name} has no counterpart with its arguments here: use {instead}")
