"""The same call to `base.generate` and to `EaModel.generate`, with a drafter that knows the answer."""

from functools import cache
from typing import Any

import torch
from architectures import SMALL, VOCABULARY
from scripted import ScriptedDrafter
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

EOS = (12, 65)
NEW = 24
OMITTED = object()
MAKE = "make "  # keywords under this prefix hold functions that make a fresh value for every call


@cache
def small_base(vocabulary: int = VOCABULARY, eos: tuple[int, ...] = EOS) -> Any:
    """Return a 2-layer, 32-wide Llama whose own generation config samples, penalises repetition and has two ends."""
    config = AutoConfig.for_model("llama", **{**SMALL, "num_hidden_layers": 2, "vocab_size": vocabulary})
    torch.manual_seed(5)
    base = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in base.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(4)
    base.generation_config = GenerationConfig(
        repetition_penalty=1.1,
        temperature=0.8,
        top_p=0.95,
        eos_token_id=list(eos),
        pad_token_id=0,
        bos_token_id=1,
    )
    return base


def made(keywords: dict[str, Any]) -> dict[str, Any]:
    """Return keywords with fresh values: stateful processors must not be shared between two calls."""
    return {k.removeprefix(MAKE): v() if k.startswith(MAKE) else v for k, v in keywords.items()}


def both(model: Any, ids: torch.Tensor, mask: torch.Tensor | None, seed: int = 3, **keywords: Any) -> tuple[Any, Any]:
    """Return what `base.generate` and `model.generate` say to one call; the drafter proposes the right answer."""
    base = model.base_model
    arguments = {"max_new_tokens": NEW, "attention_mask": mask, **keywords}
    arguments = {name: value for name, value in arguments.items() if value is not OMITTED}
    torch.manual_seed(seed)
    want = base.generate(ids, **made(arguments))
    answers = want if isinstance(want, torch.Tensor) else want.sequences
    eos = base.generation_config.eos_token_id or ()
    model.ea_layer = ScriptedDrafter(answers, model.vocab_size, ids.shape[1], eos, seed=seed)
    torch.manual_seed(seed)
    return want, model.generate(ids, **made(arguments))
