"""The draft vocabulary of an EAGLE-3 head: which tokens, and how much of texts they were not chosen by they cover.

Shapes: V vocabulary, W draft vocabulary.
"""

import logging
from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eagle.data.samples import counted_tokens

SIZES = tuple(1 << power for power in range(10, 16))
ENOUGH = 0.99  # of held-out answers: what a proposed vocabulary covers
HOLDS_OUT = 10  # every so many-th text, where none are given
logger = logging.getLogger(__name__)
Counts = NDArray[np.int64]


class DraftVocabulary:
    """Tokens by how often they are to be predicted.

    Args:
        texts: samples that are learnt from.
        size: of the target's vocabulary, V.
        held_out: other samples; None takes every tenth of `texts` for coverage alone: it is chosen by all of them.
        name: of the held-out texts, to be said.
    """

    def __init__(self, texts: Any, size: int, held_out: Any = None, name: str = "") -> None:
        self.texts, self.size, self.held_out = texts, size, held_out
        self.name = name if held_out is not None else "a tenth of the texts, held out"

    @cached_property
    def _counts(self) -> tuple[tuple[Counts, Counts], tuple[Counts, Counts]]:
        """How often every token is an answer's, and is there at all: [V] each, of texts and of every tenth of them."""
        tenth = range(HOLDS_OUT - 1, len(self.texts), HOLDS_OUT)
        rest = (sample for place, sample in enumerate(self.texts) if place % HOLDS_OUT != HOLDS_OUT - 1)
        part = counted_tokens((self.texts[place] for place in tenth), self.size)
        others = counted_tokens(rest, self.size)
        return (others[0] + part[0], others[1] + part[1]), part

    def tokens(self, count: int) -> torch.Tensor:
        """Return the ids of the `count` tokens to draft, ascending: [W].

        Those of answers come first, by how often they are there; then those of prompts; then, where more are asked for
        than there are, the lowest ids, which tokenizers give to what is frequent in any text.
        """
        (answers_V, all_V), _ = self._counts
        seen, others = int((answers_V > 0).sum()), int(((answers_V == 0) & (all_V > 0)).sum())
        if count > seen:
            prompts, filled = min(others, count - seen), max(0, count - seen - others)
            logger.info(
                "only %s different tokens are in the answers, %s are asked for: the rest are %s of the prompts%s",
                f"{seen:,}",
                f"{count:,}",
                f"{prompts:,}",
                f" and the {filled:,} lowest other ids; more texts, or --draft-vocab-size {max(2, seen)}"
                if filled
                else "",
            )
        return frequent_tokens(answers_V, count, all_V)

    @cached_property
    def _covered(self) -> NDArray[np.float64] | None:
        """The share of held-out answers that the first 1, 2, … tokens cover: [V]; None without such answers."""
        whole, part = self._counts
        if self.held_out is not None:
            asked_V = counted_tokens(self.held_out, self.size)[0]
            known = whole
        else:
            asked_V = part[0]
            known = whole[0] - part[0], whole[1] - part[1]
        if not asked_V.sum() or not known[0].sum():
            return None
        covered: NDArray[np.float64] = asked_V[by_frequency(*known)].cumsum() / asked_V.sum()
        return covered

    def coverage(self, sizes: Iterable[int]) -> dict[int, float] | None:
        """Return the share of held-out answers that vocabularies of some sizes cover; None without such answers."""
        return None if self._covered is None else {size: float(self._covered[size - 1]) for size in sizes}

    def report(self, chosen: int) -> str:
        """Say what sizes cover, and which of them is enough.

        Args:
            chosen: the run's own.
        """
        sizes = sorted({size for size in SIZES if size < self.size} | {chosen, self.size})
        shares = self.coverage(sizes)
        if shares is None:
            return f"draft vocabulary of {chosen:,} tokens: too few texts to hold some out and say what it covers"
        names = {size: f"all {size:,}" if size == self.size else f"{size:,}" for size in sizes}
        row = ", ".join(f"{names[size]}: {100 * share:.2f} %" for size, share in shares.items())
        enough = next((size for size in sizes if size < self.size and shares[size] >= ENOUGH), None)
        proposed = f"--draft-vocab-size {enough}" if enough is not None else "all tokens"
        return (
            f"draft vocabulary: share of the answers of {self.name} that it covers: {row}\n"
            f"this run drafts {names[chosen]}; to cover {100 * ENOUGH:.0f} %: {proposed}"
        )


def by_frequency(counts_V: Counts, others_V: Counts | None = None) -> NDArray[np.int64]:
    """Return all ids, the most frequent first; equal ones by the other counts, then the lower first."""
    return np.lexsort((-counts_V,) if others_V is None else (-others_V, -counts_V))


def frequent_tokens(counts_V: Counts, count: int, others_V: Counts | None = None) -> torch.Tensor:
    """Return the ids of the `count` most frequent tokens, ascending: [W]."""
    return torch.from_numpy(np.sort(by_frequency(counts_V, others_V)[:count]))
