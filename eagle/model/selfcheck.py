"""A target checked against itself: a small tree in one forward, and each of its paths in a forward without cache.

Runs once at load for architectures the test suite does not cover, so that an unknown model is exact or refused.
"""

import logging

import torch

from eagle.model.target import TargetModel
from eagle.model.tree import from_parents

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
PARENTS = (-1, 0, 0, 1, 2)
PROMPT = 5
# How much worse than the model's own rounding a tree may be, and the least that counts as rounding in its dtype.
SLACK = 8.0


@torch.no_grad()
def self_check(target: TargetModel) -> None:
    """Verify a 5-node tree and compare every node's logits with an uncached forward.

    Raises:
        NotImplementedError: they differ by more than rounding; the message holds the numbers.
    """
    was_training = target.model.training
    target.model.eval()
    try:
        error, allowed = _tree_error(target)
    except (RuntimeError, TypeError, IndexError) as problem:
        raise NotImplementedError(f"{type(target.model).__name__} does not run a tree: {problem}") from problem
    finally:
        target.model.train(was_training)
    name = type(target.model).__name__
    if not error <= allowed:  # NaN is refused too
        raise NotImplementedError(
            f"{name}: a tree's logits differ from single forwards by {error:.3g} where rounding explains "
            f"{allowed:.3g}; this architecture cannot be verified exactly"
        )
    logger.info("%s is not in the tested list; self-check passed: error %.3g of %.3g", name, error, allowed)


def _tree_error(target: TargetModel) -> tuple[float, float]:
    """Return the largest difference of a node's logits and what rounding explains."""
    generator = torch.Generator().manual_seed(0)
    ids_T = torch.randint(target.vocabulary, (PROMPT + len(PARENTS),), generator=generator).to(target.device)
    prompt_1S, tokens_1N = ids_T[None, :PROMPT], ids_T[None, PROMPT:]
    cache = target.new_cache(1, PROMPT + len(PARENTS), [0])
    target.prefill(prompt_1S, None, cache, None)
    tree = from_parents(tokens_1N, torch.tensor([PARENTS], device=target.device), torch.zeros(1, len(PARENTS)), 3)
    logits_NV = target.verify(tree, cache, None).logits_BNV[0].float()
    errors, rounding = [], 0.0
    for node in range(len(PARENTS)):
        path_L = tokens_1N[:, tree.mask_BNN[0, node]]
        row_1T = torch.cat([prompt_1S, path_L], 1)
        alone_V = target.model(input_ids=row_1T, use_cache=False).logits[0, -1].float()
        errors.append(float((logits_NV[node] - alone_V).abs().max()))
        # A batch of two sums in another order: what the model's own arithmetic is worth.
        twice_V = target.model(input_ids=row_1T.repeat(2, 1), use_cache=False).logits[0, -1].float()
        rounding = max(rounding, float((twice_V - alone_V).abs().max()))
    floor = float(logits_NV.abs().max()) * torch.finfo(target.model.dtype).eps * 16
    worst = torch.tensor(errors).max()  # keeps NaN, which Python's max may lose
    return float(worst), SLACK * max(rounding, floor)
