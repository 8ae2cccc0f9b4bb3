"""Vocabularies of a head and its target: padded differently, and the maps between draft and target tokens.

Shapes: V target vocabulary, W draft vocabulary, D head width.
"""

import logging

import torch

from eagle.model.configs import EConfig

logger = logging.getLogger(__name__)

# Rows of the embeddings that are compared, and the least mean cosine of copies of one another, rounded or tuned.
SAMPLED, ALIKE = 256, 0.5
UNSAVED = "the draft vocabulary was never saved: export the head again with its token maps"


def similarity(one_VD: torch.Tensor, other_VD: torch.Tensor) -> float:
    """Return the mean cosine of some rows of two tables of embeddings, of those rows that both have."""
    count = min(len(one_VD), len(other_VD))
    rows = torch.arange(0, count, max(1, count // SAMPLED))
    one_RD, other_RD = (table.detach()[rows.to(table.device)].float().cpu() for table in (one_VD, other_VD))
    return float(torch.nn.functional.cosine_similarity(one_RD, other_RD).mean())


def fit_vocabulary(
    config: EConfig, state: dict[str, torch.Tensor], vocabulary: int, embeddings_VD: torch.Tensor | None
) -> None:
    """Bring a head's tensors to the target's vocabulary, where the two are padded differently; edits both arguments.

    Args:
        config: the head's.
        state: its tensors under our names.
        vocabulary: of the target.
        embeddings_VD: the target's, None where they cannot be read.

    Raises:
        ValueError: vocabularies of different tokens, or that cannot be compared.
    """
    if (config.draft_vocab_size or 0) > vocabulary:
        raise ValueError(
            f"draft_vocab_size={config.draft_vocab_size} exceeds the target's {vocabulary} tokens: the head belongs to "
            "another target"
        )
    if config.vocab_size == vocabulary:
        return
    mismatch = f"vocabulary mismatch: the head has {config.vocab_size} tokens, the target {vocabulary}"
    mine_VD = state.get("embed_tokens.weight")
    if mine_VD is None or embeddings_VD is None:
        whose = "the head has no embeddings" if mine_VD is None else "the target's embeddings cannot be read"
        raise ValueError(f"{mismatch}, and {whose} to tell padding from other tokens: use the head's own target")
    if mine_VD.ndim != 2 or mine_VD.shape[1] != embeddings_VD.shape[1] or len(mine_VD) != config.vocab_size:
        raise ValueError(
            f"{mismatch}, and embed_tokens.weight {tuple(mine_VD.shape)} cannot be compared with the target's "
            f"{tuple(embeddings_VD.shape)}: use the head's own target"
        )
    alike = similarity(mine_VD, embeddings_VD)
    if alike < ALIKE:
        raise ValueError(f"{mismatch}, and their embed_tokens differ (mean cosine {alike:.2f}): use its own target")
    logger.warning("%s; what both have is used, as their embeddings agree (mean cosine %.2f)", mismatch, alike)
    more_VD = embeddings_VD.detach()[len(mine_VD) :].to(mine_VD)
    state["embed_tokens.weight"] = torch.cat([mine_VD[:vocabulary], more_VD])
    if "lm_head.weight" in state and config.draft_vocab_size in (None, config.vocab_size):
        drafted = state["lm_head.weight"] = state["lm_head.weight"][:vocabulary]
        if len(drafted) < vocabulary:
            state["d2t"] = torch.zeros(len(drafted), dtype=torch.int64)
            state["t2d"] = torch.arange(vocabulary) < len(drafted)
            config.draft_vocab_size = len(drafted)
        else:
            config.draft_vocab_size = None
    elif "t2d" in state:
        if state["t2d"][vocabulary:].any():
            raise ValueError(f"{mismatch}, and t2d selects tokens beyond them: use the head's own target")
        kept_V = state["t2d"][:vocabulary]
        state["t2d"] = torch.nn.functional.pad(kept_V, (0, vocabulary - len(kept_V)))
    config.vocab_size = vocabulary


def fit_maps(config: EConfig, state: dict[str, torch.Tensor]) -> None:
    """Leave out maps of a full vocabulary, and derive `t2d` where only `d2t` is there; edits `state`.

    Raises:
        ValueError: a map that says something else than the configuration, or that was never saved.
    """
    offsets_W = state.get("d2t")
    if config.draft_vocab_size in (None, config.vocab_size):
        if offsets_W is not None and offsets_W.any():
            raise ValueError(
                f"d2t maps {len(offsets_W)} draft tokens, config.json says draft_vocab_size={config.draft_vocab_size} "
                f"of {config.vocab_size}: set draft_vocab_size to the rows of lm_head.weight"
            )
        # Some exporters write the identity maps although nothing reads them.
        state.pop("d2t", None)
        state.pop("t2d", None)
    elif "t2d" not in state and offsets_W is not None:
        if not offsets_W.any():
            raise ValueError(f"d2t is all zero and there is no t2d: {UNSAVED}")
        ids_W = torch.arange(len(offsets_W)) + offsets_W
        state["t2d"] = torch.zeros(config.vocab_size, dtype=torch.bool)
        state["t2d"][ids_W.clamp(0, config.vocab_size - 1)] = True


def check_maps(state: dict[str, torch.Tensor], vocabulary: int) -> None:
    """Check the maps between draft and target tokens.

    Raises:
        ValueError: they name tokens twice or that are not there, or disagree.
    """
    if "d2t" not in state:
        return
    again = "export the head again with its token maps"
    offsets_W, known_V = state["d2t"], state["t2d"]
    ids_W = torch.arange(len(offsets_W)) + offsets_W
    if len(ids_W.unique()) < len(ids_W):
        raise ValueError(f"d2t gives several draft tokens the same id of the target: {again}")
    if not offsets_W.any() and not bool(known_V[: len(offsets_W)].all() and known_V.sum() == len(offsets_W)):
        raise ValueError(f"d2t is all zero although t2d selects other tokens: {UNSAVED}")
    if int(ids_W.min()) < 0 or int(ids_W.max()) >= vocabulary:
        worst = int(ids_W.min()) if int(ids_W.min()) < 0 else int(ids_W.max())
        raise ValueError(
            f"d2t points to token {worst}, outside the target's {vocabulary} tokens: use the head's own target, or "
            f"{again}"
        )
    chosen_V = torch.zeros(vocabulary, dtype=torch.bool)
    chosen_V[ids_W] = True
    if not torch.equal(chosen_V, known_V.bool()):
        raise ValueError(f"d2t and t2d disagree about which tokens the head drafts: {again}")
