"""The reference's `eagle.model.cnets`: an EAGLE-3 head by its name and arguments there."""

from typing import Any

from eagle.model.configs import EConfig
from eagle.model.head import Eagle3Head


def refuse_embeddings(load_emb: bool) -> None:
    """Refuse to read a target's embeddings.

    Raises:
        NotImplementedError: they are asked for; the message names what reads them.
    """
    if load_emb:
        raise NotImplementedError(
            "load_emb=True: a head by itself reads no target here: use EaModel.from_pretrained, or "
            "eagle.model.dialects.checkpoint.load_head(path, target)"
        )


def Model(
    config: EConfig,
    load_emb: bool = False,
    path: Any = None,
    bias: bool = True,
    total_tokens: int = 63,
    depth: int = 5,
    top_k: int = 8,
    threshold: float = 1.0,
) -> Eagle3Head:
    """Return an EAGLE-3 head whose tensors have the names that published files have.

    Args:
        config: the head's.
        load_emb: must be False: the embeddings are the target's.
        path, bias, total_tokens, depth, top_k, threshold: no effect; trees grow as `EaModel` is told.

    Returns:
        a head for `load_state_dict`; how its `forward` is called is `DraftHead`'s, not the reference's.

    Raises:
        NotImplementedError: `load_emb`.
    """
    refuse_embeddings(load_emb)
    return Eagle3Head(config)
