"""Self-check of a target: logits of trees, padded rows and commits against uncached forwards of single paths.

`self_check` runs once at load for architectures the test suite does not cover, so that an unknown model is exact or
refused. The measurements here are also what `diagnosis` reports.

Shapes: B rows, S prompt tokens, N tree nodes, T tokens, V vocabulary.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from eagle.model.kv_cache import KVCache
from eagle.model.support.properties import cache_of
from eagle.model.target import TargetModel
from eagle.model.tree import DraftTree, from_parents

logger = logging.getLogger(__name__)

# `model_type`s that the tests run with; others are checked when they are loaded.
TESTED = frozenset(
    {
        "llama",
        "mistral",
        "mixtral",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "gemma2",
        "gemma3_text",
        "phi3",
        "olmo2",
        "gpt_oss",
        "gpt_neox",
        "gpt2",
    }
)
# What a model, or a transformers it does not go with, may raise where a tree does not run.
FAULTS = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError)
PARENTS = (-1, 0, 0, 1, 2)
LEAVES = (3, 4)
LEVELS = 3
PROMPT = 5
PADS = 2
# How much worse than the model's own rounding a tree may be.
SLACK = 8.0


@dataclass(frozen=True)
class Difference:
    """The largest difference of two forwards that should agree, and what rounding explains."""

    error: float
    allowed: float

    @property
    def is_rounding(self) -> bool:
        """Whether rounding explains the difference; False for NaN."""
        return self.error <= self.allowed

    def __str__(self) -> str:
        """Return both numbers in words."""
        return f"{self.error:.3g} where rounding explains {self.allowed:.3g}"


def worst(differences: Sequence[Difference]) -> Difference:
    """Return the largest error and the largest allowance; NaN survives."""
    return Difference(float(torch.tensor([d.error for d in differences]).max()), max(d.allowed for d in differences))


def least_rounding(values: torch.Tensor, dtype: torch.dtype) -> float:
    """Return what counts as rounding of these values at least, however equal two forwards were."""
    # Half precision sums in fp32, so its last step, one unit, is nearly all of its rounding.
    units = 16 if dtype == torch.float32 else 1
    return float(values.abs().max()) * torch.finfo(dtype).eps * units


class Probe:
    """Random ids and the forwards that are compared; everything in evaluation mode and without gradients.

    Args:
        target: the model.
        prompt: tokens before the first tree.
    """

    def __init__(self, target: TargetModel, prompt: int = PROMPT) -> None:
        self.target, self.model, self.prompt = target, target.model, prompt
        generator = torch.Generator().manual_seed(0)
        width = prompt + 2 * len(PARENTS)
        self.ids_T = torch.randint(target.vocabulary, (width,), generator=generator).to(target.device)
        self.rounding = self._rounding()

    def alone(self, ids_T: torch.Tensor, **forward: Any) -> torch.Tensor:
        """Return the logits [T, V] of one unpadded row without cache."""
        return self.model(input_ids=ids_T[None], use_cache=False, **forward).logits[0].float()

    def difference(self, got: torch.Tensor, wanted: torch.Tensor) -> Difference:
        """Compare logits of this model."""
        allowed = SLACK * max(self.rounding, least_rounding(wanted, self.model.dtype))
        return Difference(float((got.float() - wanted).abs().max()), allowed)

    def _rounding(self) -> float:
        """Return what the model's own arithmetic is worth: a batch of two sums in another order than one row.

        In half precision the same tokens one by one in the model's own cache are asked too, as `generate` runs them.
        """
        ids_T = self.ids_T[: self.prompt + LEVELS]
        alone_TV = self.alone(ids_T)
        twice_TV = self.model(input_ids=ids_T.repeat(2, 1), use_cache=False).logits[0].float()
        noise = float((twice_TV - alone_TV).abs().max())
        if self.model.dtype != torch.float32:
            output = self.model(input_ids=ids_T[None, : self.prompt], use_cache=True)
            for place in range(self.prompt, len(ids_T)):
                token_11 = ids_T[None, place : place + 1]
                output = self.model(input_ids=token_11, use_cache=True, **self._going_on(output))
                noise = max(noise, float((output.logits[0, -1].float() - alone_TV[place]).abs().max()))
        return noise

    def _going_on(self, output: Any) -> dict[str, Any]:
        """Return the argument that hands the model the cache of its last output."""
        return {self.target.cache_keyword: cache_of(output)}

    def tree(self, tokens_BN: torch.Tensor) -> DraftTree:
        """Return the 5-node tree, two branches from the root, with these tokens."""
        parents_BN = torch.tensor(PARENTS, device=tokens_BN.device).repeat(len(tokens_BN), 1)
        return from_parents(tokens_BN, parents_BN, torch.zeros(tokens_BN.shape, device=tokens_BN.device), LEVELS)

    def own_cache(self, tokens: int = 1) -> Difference:
        """Compare `tokens` at once in the model's own cache, one of two rows padded, with an uncached forward."""
        ids_BS, mask_BS = self._padded()
        positions_BS = (mask_BS.cumsum(-1) - 1).clamp(min=0)
        first = self.model(input_ids=ids_BS, attention_mask=mask_BS, position_ids=positions_BS, use_cache=True)
        next_T = self.ids_T[self.prompt : self.prompt + tokens]
        second = self.model(
            input_ids=next_T.repeat(2, 1),
            attention_mask=torch.cat([mask_BS, mask_BS.new_ones(2, tokens)], 1),
            position_ids=positions_BS[:, -1:] + torch.arange(1, tokens + 1, device=ids_BS.device),
            use_cache=True,
            **self._going_on(first),
        )
        alone = [self.alone(torch.cat([self._row(row), next_T]))[-1] for row in (0, 1)]
        return worst([self.difference(second.logits[row, -1], alone[row]) for row in (0, 1)])

    def single_tree(self) -> Difference:
        """Compare every node of a tree behind one row with an uncached forward over its path."""
        cache = self.target.new_cache(1, self.prompt + len(PARENTS), [0])
        self.target.prefill_logits(self.ids_T[None, : self.prompt], None, cache)
        return self._nodes([self._row(0)], self.ids_T[None, self.prompt : self.prompt + len(PARENTS)], cache)

    def committed_rows(self) -> tuple[Difference, Difference]:
        """Compare two trees over two rows, one of them left-padded, the second tree after a ragged commit.

        Returns:
            the differences before and after the commit.
        """
        ids_BS, mask_BS = self._padded()
        cache = self.target.new_cache(2, self.prompt + 2 * len(PARENTS), [0, PADS])
        self.target.prefill_logits(ids_BS, mask_BS, cache)
        rows = [self._row(0), self._row(1)]
        nodes = len(PARENTS)
        tokens_BN = self.ids_T[self.prompt : self.prompt + nodes].repeat(2, 1)
        before = self._nodes(rows, tokens_BN, cache)
        # Nodes 0, 2, 4 of the first row, 0, 1 of the second: nothing stays where it was written.
        paths, counts = [[0, 2, 4], [0, 1, 2]], [3, 2]
        cache.commit(torch.tensor(paths, device=self.target.device), counts, in_place=False)
        rows = [
            torch.cat([row_T, tokens_N[path[:count]]])
            for row_T, tokens_N, path, count in zip(rows, tokens_BN, paths, counts, strict=True)
        ]
        return before, self._nodes(rows, self.ids_T[self.prompt + nodes :].repeat(2, 1), cache)

    def _padded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return two rows of prompt ids, the second padded on the left, and their mask."""
        ids_BS = self.ids_T[: self.prompt].repeat(2, 1)
        mask_BS = torch.ones_like(ids_BS)
        mask_BS[1, :PADS] = 0
        return ids_BS, mask_BS

    def _row(self, row: int) -> torch.Tensor:
        return self.ids_T[PADS * row : self.prompt]

    def _nodes(self, rows: Sequence[torch.Tensor], tokens_BN: torch.Tensor, cache: KVCache) -> Difference:
        """Verify a tree behind `rows` and compare each node with its path alone."""
        tree = self.tree(tokens_BN)
        logits_BNV = self.target.verify(tree, cache, None).logits_BNV
        found = []
        for row, ids_T in enumerate(rows):
            for leaf in LEAVES:
                path_L = tree.mask_BNN[row, leaf].nonzero()[:, 0]
                alone_LV = self.alone(torch.cat([ids_T, tokens_BN[row, path_L]]))[-len(path_L) :]
                found.append(self.difference(logits_BNV[row, path_L], alone_LV))
        return worst(found)

    def lookahead(self) -> Difference:
        """Compare the logits before the last token with those before another one: what comes must not matter."""
        other_T = self.ids_T[: self.prompt].clone()
        other_T[-1] = (other_T[-1] + 1) % self.target.vocabulary
        return self.difference(self.alone(other_T)[:-1], self.alone(self.ids_T[: self.prompt])[:-1])

    def why(self) -> str | None:
        """Return the property that makes a tree wrong, where one can be told by a forward; None otherwise."""
        ids_T = self.ids_T[: self.prompt]
        plain_TV = self.alone(ids_T)
        positions_1T = torch.arange(self.prompt, device=ids_T.device)[None]
        counted = self.difference(self.alone(ids_T, position_ids=positions_1T), plain_TV)
        if not counted.is_rounding:
            return f"it counts positions by a rule of its own: position_ids 0, 1, 2, … change its logits by {counted}"
        for tokens, told in ((1, "a token"), (LEVELS, "several tokens")):
            own = self.own_cache(tokens)
            if not own.is_rounding:
                return f"{told} in its own cache, behind two rows, one padded, differ from no cache by {own}"
        return None


@torch.no_grad()
def self_check(target: TargetModel) -> None:
    """Verify a 5-node tree, padded rows and a commit, and compare every node's logits with an uncached forward.

    Raises:
        NotImplementedError: they differ by more than rounding; the message names the property, where one was found,
            and holds the numbers.
    """
    name = type(target.model).__name__
    was_training = target.model.training
    target.model.eval()
    try:
        probe = Probe(target)
        ahead = probe.lookahead()
        if not ahead.is_rounding:
            raise NotImplementedError(f"{name} attends in both directions: later tokens change its logits by {ahead}")
        tree, own = probe.single_tree(), probe.own_cache()
        reason = None if tree.is_rounding and own.is_rounding else probe.why()
    except NotImplementedError:
        raise
    except FAULTS as problem:
        raise NotImplementedError(f"{name} does not run a tree: {problem}") from problem
    finally:
        target.model.train(was_training)
    told = [] if tree.is_rounding else [f"a tree's logits differ from single forwards by {tree}"]
    if told or reason is not None:
        raise NotImplementedError(
            f"{name} cannot be verified exactly: {'; '.join([*told, *([reason] if reason else [])])}"
        )
    logger.info("%s is not in the tested list; self-check passed: %s", name, worst([tree, own]))
