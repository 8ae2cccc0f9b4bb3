"""PEFT: the causal LM inside a wrapper, its adapter left in place, or a refusal in words.

An adapter that lives in the layers (LoRA and its kin) is part of the target. One that lives in the wrapper (virtual
tokens, weights chosen from the prompt) would be lost where the tree is verified. Knows nothing of trees or caches.
"""

from typing import Any

import torch
from transformers import PreTrainedModel

PROBE = 8  # tokens


def causal_lm(model: Any) -> Any:
    """Return the model itself, or the causal LM inside a PEFT wrapper whose adapter lives in the layers.

    Raises:
        NotImplementedError: the wrapper changes tokens or chooses weights per prompt, which a tree cannot follow.
    """
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
