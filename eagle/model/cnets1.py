"""The reference's `eagle.model.cnets1`: an EAGLE-1/2 head by its name and arguments there."""

from copy import deepcopy
from typing import Any

from eagle.model.cnets import refuse_embeddings
from eagle.model.configs import EConfig
from eagle.model.head import EagleHead


def Model(
    config: EConfig,
    load_emb: bool = False,
    path: Any = None,
    bias: bool = True,
    total_tokens: int = 63,
    depth: int = 5,
    top_k: int = 8,
    threshold: float = 1.0,
) -> EagleHead:
    """Return an EAGLE-1/2 head, embeddings included, whose tensors have the names that published files have.

    Args:
        config: the head's.
        load_emb: must be False: fill the embeddings from the head's file.
        bias: whether `fc` has one, whatever the configuration says.
        path, total_tokens, depth, top_k, threshold: no effect; trees grow as `EaModel` is told.

    Returns:
        a head for `load_state_dict`; how its `forward` is called is `DraftHead`'s, not the reference's.

    Raises:
        NotImplementedError: `load_emb`.
    """
    refuse_embeddings(load_emb)
    config = deepcopy(config)
    config.bias = bias
    return EagleHead(config, own_embeddings=True)
