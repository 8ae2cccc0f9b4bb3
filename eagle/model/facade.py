"""What code written for a transformers model asks of it, answered with the base model's own.

`pipeline` asks for these.
"""

from typing import Any

import torch
from transformers import GenerationConfig


class Facade:
    """Attributes of `base_model` under the names they have there.

    Attributes:
        base_model: the causal LM.
    """

    base_model: Any

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
