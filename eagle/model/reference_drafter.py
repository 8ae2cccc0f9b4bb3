"""What scripts written for the reference ask of `ea_layer`, answered by a drafter.

There the layer keeps its own cache and a call's drafting is one method of it; here a `Drafter` holds no state of a
call. Names whose meaning survives have it; the one whose does not says what replaces it.
"""

from collections.abc import Callable
from typing import Any, NoReturn

import torch

OF_HEAD = ("d2t", "t2d", "lm_head")


class ReferenceDrafting:
    """The reference's names of a draft layer.

    Attributes:
        d2t: offsets [W] from draft ids to the target's, where the head drafts a part of its vocabulary.
        t2d: bool [V], which of the target's tokens an EAGLE-3 head drafts, likewise.
        lm_head: the head's own output matrix, where it has one.
    """

    head: Any
    _embed: Callable[[torch.Tensor], torch.Tensor]

    def __getattr__(self, name: str) -> Any:
        if name in OF_HEAD:
            return getattr(self.head, name)
        return super().__getattr__(name)  # type: ignore[misc]

    @property
    def embed_tokens(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """What turns ids [B, S] into embeddings [B, S, D]: the head's own module, or the target's."""
        return self._embed

    def reset_kv(self) -> None:
        """Do nothing: every call has a cache of its own."""

    def init_tree(self) -> None:
        """Do nothing: a tree's tensors follow from its nodes."""

    def topK_genrate(self, hidden_states: Any, input_ids: Any, head: Any, logits_processor: Any) -> NoReturn:
        """Refuse: it drafts from a cache that the reference's layer keeps.

        Raises:
            NotImplementedError: always, with the name of what drafts here.
        """
        raise NotImplementedError(
            "ea_layer.topK_genrate has no counterpart with its arguments here: use "
            "eagle.model.drafter.Drafter.draft, or EaModel.generate_steps, whose steps have their trees"
        )
