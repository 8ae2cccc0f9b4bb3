"""The reference's `eagle.modeling_eagle`: a head beside a Hugging Face model that is loaded already."""

from typing import Any

import torch

from eagle.model.ea_model import EaModel

CHAIN = [[0] * length for length in range(1, 6)]


class EAGLE:
    """A base model with a head of any kind, by the reference's arguments; `EaModel.attach` takes all of ours.

    Args:
        base_model: a causal LM; it is used as it is.
        eagle_path: folder or Hub id of the head.
        use_tree_attn: False drafts a chain of five tokens instead of the static tree.

    Attributes:
        base_model: the same.
        ea_layer: the drafter.
        model: the `EaModel` that does the work; its `stats` are those of the last call.
    """

    def __init__(self, base_model: Any, eagle_path: str, use_tree_attn: bool = True) -> None:
        self.model = EaModel.attach(base_model, eagle_path, tree="static" if use_tree_attn else CHAIN)
        self.base_model, self.ea_layer = self.model.base_model, self.model.ea_layer

    def generate(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        temperature: float = 0.0,
        top_p: float = 0.0,
        top_k: int = 0,
        max_new_tokens: int = 512,
        max_length: int = 2048,
    ) -> list[int] | list[list[int]]:
        """Generate as `EaModel.eagenerate` does.

        Args:
            input_ids: prompt ids [B, S], rows left-padded to one length.
            attention_mask: 0 on pads [B, S].
            temperature, top_p, top_k, max_new_tokens, max_length: see `EaModel.eagenerate`.

        Returns:
            the ids with the prompt, as numbers: of one row a list, of several a list of them, finished ones padded.
        """
        mask = {} if attention_mask is None else {"attention_mask": attention_mask}
        rows: list[list[int]] = self.model.eagenerate(
            input_ids, temperature, top_p, top_k, max_new_tokens, max_length, **mask
        ).tolist()
        return rows[0] if len(rows) == 1 else rows
