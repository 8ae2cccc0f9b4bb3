"""What was given as a base: a causal LM, or one inside a wrapper of PEFT with its adapter in place, or a refusal.

An adapter that lives in the layers (LoRA and its kin) is part of the target. One that lives in the wrapper (virtual
tokens, weights chosen from the prompt) would be lost where the tree is verified. Knows nothing of trees or caches.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from eagle.model.kinds import shown

PROBE = 8  # tokens


def causal_lm(model: Any) -> Any:
    """Return the model itself, or the causal LM inside a PEFT wrapper whose adapter lives in the layers.

    Raises:
        TypeError: it is no model, or one that cannot generate: an encoder, a decoder without its output matrix.
        NotImplementedError: the wrapper changes tokens or chooses weights per prompt, which a tree cannot follow, or
            the model was compiled.
    """
    _check_generates(model)
    if isinstance(model, PreTrainedModel) or not hasattr(model, "peft_config"):
        return model
    name = type(model).__name__
    if not hasattr(model, "get_base_model"):
        raise NotImplementedError(f"{name} mixes kinds of adapters; merge them into the base model first")
    config = model.active_peft_config
    if config.is_prompt_learning:
        raise NotImplementedError(
            f"{name} with {type(config).__name__} puts virtual tokens before the prompt; eagle hands a model nothing "
            f"but tokens"
        )
    if getattr(config, "alora_invocation_tokens", None):
        raise NotImplementedError(f"{name}: an activated LoRA begins inside the prompt, which a tree cannot follow")
    inner = model.get_base_model()
    difference = _difference(model, inner)
    if not difference <= 0:  # NaN is refused too
        raise NotImplementedError(
            f"{name} with {type(config).__name__}: the wrapper's logits differ from those of the model inside it by "
            f"{difference:.3g}; its adapter is more than weights"
        )
    return inner


def _check_generates(model: Any) -> None:
    if not isinstance(model, nn.Module):
        hint = ": from_pretrained(base_model_path=...) loads one" if isinstance(model, str) else ""
        raise TypeError(f"base_model={shown(model)} must be a loaded causal LM, not a {type(model).__name__}{hint}")
    if hasattr(model, "ea_layer"):
        raise TypeError("base_model is an EaModel, which has a base and a head already: pass its base_model")
    compiled = [name or "all of it" for name, part in model.named_modules() if _is_compiled(part, is_whole=not name)]
    if compiled:
        raise NotImplementedError(
            f"base_model was compiled by torch.compile ({compiled[0]}), so its features are out of reach: pass it as "
            "it was loaded"
        )
    can_generate = getattr(model, "can_generate", None)
    if not (callable(getattr(model, "generate", None)) and (can_generate is None or can_generate())):
        raise TypeError(f"base_model must be a causal LM; {type(model).__name__} cannot generate")


def _is_compiled(part: nn.Module, is_whole: bool) -> bool:
    """Tell whether hooks on a part, or on parts of the whole model, would no longer run."""
    if hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) is not None:
        return True
    return is_whole and hasattr(part.forward, "_torchdynamo_orig_callable")


@torch.no_grad()
def _difference(wrapper: Any, inner: Any) -> float:
    """Return the largest difference of logits between wrapper and inner model on a few tokens.

    It is 0 where the wrapper only calls the inner model: the same kernels then see the same tensors.
    """
    vocabulary = inner.config.get_text_config(decoder=True).vocab_size
    ids_1S = torch.randint(vocabulary, (1, PROBE), generator=torch.Generator().manual_seed(0))
    if inner.device.type != "meta":  # of an offloaded model accelerate moves the inputs
        ids_1S = ids_1S.to(inner.device)
    was_training = wrapper.training
    wrapper.eval()
    try:
        outer_V, inner_V = (m(input_ids=ids_1S, use_cache=False).logits[0, -1].float() for m in (wrapper, inner))
    finally:
        wrapper.train(was_training)
    return float((outer_V - inner_V).abs().max())
