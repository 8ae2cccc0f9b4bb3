"""Spec-Bench's door: the model and the forward function that its scripts ask for.

A checkout of Spec-Bench runs its own `evaluation/inference_eagle3.py` over this library when `model/eagle3/ea_model.py`
in it reads `from eagle.evaluation.spec_bench import EaModel`; see docs/harnesses.md.
"""

from typing import Any

import torch

from eagle.model import ea_model
from eagle.model.decoding import Generation


def ea_forward(
    inputs: Any, model: "SpecBenchModel", tokenizer: Any, max_new_tokens: int, temperature: float = 0.0, **kwargs: Any
) -> tuple[torch.Tensor, int, int, list[int]]:
    """Answer one prompt as Spec-Bench's `run_eval` wants it.

    Args:
        inputs: the tokenizer's output, one row.
        tokenizer: not used.
        kwargs: what `EaModel.eagenerate` takes besides.

    Returns:
        ids [1, S + T], new tokens, forwards of the base model, and the new tokens of each: the prefill, every step.
    """
    ids_BS = inputs.input_ids.to(model.device)
    return model.eagenerate(ids_BS, temperature=temperature, max_new_tokens=max_new_tokens, log=True, **kwargs)  # type: ignore[no-any-return]


class SpecBenchModel(ea_model.EaModel):
    """`eagle.EaModel` whose `log=True` gives what Spec-Bench counts: as many steps as it has accepted lengths."""

    def _logged(self, generation: Generation, log: bool) -> Any:
        logged = super()._logged(generation, log)
        if not log:
            return logged
        ids_BS, new_token, _ = logged
        lengths = list(generation.stats.tokens_per_step)
        return ids_BS, new_token, len(lengths), lengths


EaModel = SpecBenchModel  # the name that its scripts import
