"""What code written for a transformers model asks of it, answered with the base model's own."""

from typing import Any

import torch
from transformers import GenerationConfig

# Methods of a transformers model that mean the base model, asked for under their own names.
PASSED_ON = (
    "compute_transition_scores",
    "get_input_embeddings",
    "get_memory_footprint",
    "get_output_embeddings",
    "num_parameters",
    "tie_weights",
)


class ForwardOutput(tuple[Any, ...]):
    """What `forward` returns: the reference's tuple, and the attributes of the base model's output (`logits`, …)."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self[0], name)


class Facade:
    """Attributes of `base_model` under the names they have there.

    Attributes:
        base_model: the causal LM.
        base_model_name_or_path: where its tokenizer is.
        target: the same, with taps.
    """

    base_model: Any
    base_model_name_or_path: str
    target: Any
    _taps: Any
    main_input_name = "input_ids"

    def __getattr__(self, name: str) -> Any:
        if name in PASSED_ON:
            return getattr(self.base_model, name)
        return super().__getattr__(name)  # type: ignore[misc]

    @property
    def name_or_path(self) -> str:
        """Where the base model's tokenizer is; harnesses load it from there."""
        return self.base_model_name_or_path

    @property
    def device(self) -> torch.device:
        """Where the base model is."""
        return self.base_model.device

    @property
    def dtype(self) -> torch.dtype:
        """The base model's dtype."""
        return self.base_model.dtype

    @property
    def generation_config(self) -> GenerationConfig:
        """The base model's generation defaults; setting it sets the base model's."""
        return self.base_model.generation_config

    @generation_config.setter
    def generation_config(self, config: GenerationConfig) -> None:
        self.base_model.generation_config = config

    @property
    def hf_device_map(self) -> dict[str, Any] | None:
        """Where accelerate put the base model's parts; None where it is in one place."""
        return getattr(self.base_model, "hf_device_map", None)

    @property
    def input_modalities(self) -> tuple[str, ...]:
        """What `generate` reads."""
        return ("text",)

    @property
    def output_modalities(self) -> tuple[str, ...]:
        """What `generate` writes."""
        return ("text",)

    def can_generate(self) -> bool:
        """Say yes."""
        return True

    @torch.no_grad()
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        output_orig: bool = False,
        position_ids: torch.Tensor | None = None,
        cache: Any = None,
    ) -> ForwardOutput:
        """Run the base model once and return what a head reads beside its output (the reference's method).

        Args:
            past_key_values, cache: the base model's own cache of earlier tokens, under either of its names.

        Returns:
            `(outputs, hidden)`, or `(outputs, logits, hidden)` with `output_orig`; `outputs` are the base model's, so
            the cache in them has the name it has there (`cache` since transformers 5.24, `past_key_values` before);
            `hidden` [B, S, F] are the features: F is the hidden size (EAGLE-1/2) or that of all layers read (EAGLE-3).
            Attributes of `outputs` are found on the tuple as well, so that `model(ids).logits` works.

        Raises:
            ValueError: both names of the cache are given.
        """
        if cache is not None and past_key_values is not None:
            raise ValueError("past_key_values and cache name the same thing: pass one of them")
        earlier = cache if cache is not None else past_key_values
        with self.target.tapped(self._taps) as caught:
            outputs = self.base_model(
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                **{self.target.cache_keyword: earlier},
            )
        hidden = self.target.joined(caught, self._taps)
        return ForwardOutput((outputs, outputs.logits, hidden) if output_orig else (outputs, hidden))
