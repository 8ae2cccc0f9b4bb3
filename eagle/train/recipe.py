"""The two training recipes behind one interface: a batch in, a loss and per-step accuracies out.

Shapes: B rows, S entries, D width, W draft vocabulary, V target vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from eagle.model.configs import EConfig
from eagle.model.head import DraftHead, Eagle3Head, EagleHead
from eagle.model.target import TargetModel
from eagle.train.features import Lesson
from eagle.train.losses import drafted_targets, eagle3_loss, eagle_loss
from eagle.train.unroll import unroll

FEATURE_NOISE = 0.1
STEP_DECAY = 0.8


@dataclass(frozen=True)
class Outcome:
    """The loss of a batch and how often each unrolled step's likeliest token was the target's."""

    loss: torch.Tensor
    accuracies: list[float]


Recipe = Callable[[Lesson], Outcome]


def eagle_recipe(head: EagleHead, target: TargetModel, generator: torch.Generator | None = None) -> Recipe:
    """EAGLE-1/2: one step on features with uniform noise U(-0.1, 0.1) (arXiv 2401.15077, section 3.2)."""

    def run(lesson: Lesson) -> Outcome:
        features_BSF = lesson.features_BSF
        noise_BSF = torch.rand(features_BSF.shape, generator=generator, device=features_BSF.device)
        noisy_BSF = features_BSF + ((noise_BSF * 2 - 1) * FEATURE_NOISE).to(features_BSF.dtype)
        embeds_BSD = embeddings(head, target, lesson.tokens_BS)
        ((hidden_BSD, real_S),) = unroll(head, embeds_BSD, head.fuse(noisy_BSF), steps=1)
        logits_BSV = target.output_logits(hidden_BSD)
        keep_BS = real_S.expand_as(lesson.tokens_BS)
        loss = eagle_loss(hidden_BSD, lesson.next_features_BSF, logits_BSV, lesson.target_logits_BSV, keep_BS)
        return Outcome(loss, [agreement(logits_BSV.argmax(-1), lesson, keep_BS)])

    return run


def eagle3_recipe(head: Eagle3Head, target: TargetModel, steps: int = 7) -> Recipe:
    """EAGLE-3: training-time test over `steps` unrolled steps, weighted 0.8^i (arXiv 2503.01840, section 3.2)."""

    def run(lesson: Lesson) -> Outcome:
        drafted_W = head.target_ids(torch.arange(head.draft_size, device=lesson.tokens_BS.device))
        wanted_BSW, reachable_BS = drafted_targets(lesson.target_logits_BSV, drafted_W)
        embeds_BSD = embeddings(head, target, lesson.tokens_BS)
        hidden_BSD = head.fuse(lesson.features_BSF)
        loss, accuracies = hidden_BSD.new_zeros((), dtype=torch.float32), []
        for step, (out_BSD, real_S) in enumerate(unroll(head, embeds_BSD, hidden_BSD, steps)):
            logits_BSW, keep_BS = head.logits(out_BSD), real_S.expand_as(lesson.tokens_BS)
            loss = loss + STEP_DECAY**step * eagle3_loss(logits_BSW, wanted_BSW, keep_BS & reachable_BS)
            accuracies.append(agreement(head.target_ids(logits_BSW.argmax(-1)), lesson, keep_BS))
        return Outcome(loss, accuracies)

    return run


def embeddings(head: DraftHead, target: TargetModel, ids: torch.Tensor) -> torch.Tensor:
    """Return what the head reads for these tokens: its own embeddings or the target's."""
    return head.embed_tokens(ids) if hasattr(head, "embed_tokens") else target.embed(ids).detach()


def agreement(drafted_BS: torch.Tensor, lesson: Lesson, keep_BS: torch.Tensor) -> float:
    """Return the share of kept entries at which the head's token is the target's likeliest."""
    same_BS = drafted_BS == lesson.answers_BS
    return float((same_BS & keep_BS).sum() / keep_BS.sum())


def new_head(kind: str, target: TargetModel, draft_tokens_W: torch.Tensor | None = None) -> DraftHead:
    """Make an untrained head shaped like one layer of a Llama target.

    Args:
        kind: "eagle" or "eagle3".
        draft_tokens_W: target ids the EAGLE-3 head drafts, ascending; None means all.
    """
    base = target.config
    config = EConfig(
        hidden_size=base.hidden_size,
        intermediate_size=base.intermediate_size,
        num_hidden_layers=1,
        num_attention_heads=base.num_attention_heads,
        num_key_value_heads=getattr(base, "num_key_value_heads", None),
        head_dim=getattr(base, "head_dim", None),
        max_position_embeddings=base.max_position_embeddings,
        rms_norm_eps=getattr(base, "rms_norm_eps", 1e-6),
        vocab_size=base.vocab_size,
        draft_vocab_size=None if draft_tokens_W is None else len(draft_tokens_W),
        bos_token_id=base.bos_token_id,
        eos_token_id=base.eos_token_id,
        bias=True,
    )
    head: DraftHead = EagleHead(config) if kind == "eagle" else Eagle3Head(config)
    for name, weight in head.named_parameters():
        if weight.ndim == 2 and not name.startswith("fc"):
            torch.nn.init.normal_(weight, std=base.initializer_range)
    if isinstance(head, Eagle3Head):
        rows = slice(None) if draft_tokens_W is None else draft_tokens_W
        head.lm_head.weight.data.copy_(target.model.get_output_embeddings().weight[rows])
        if draft_tokens_W is not None and hasattr(head, "d2t"):
            head.d2t.copy_(draft_tokens_W - torch.arange(len(draft_tokens_W)))
            head.t2d[draft_tokens_W] = True
    return head


def frequent_tokens(ids: np.ndarray, vocabulary: int, count: int) -> torch.Tensor:
    """Return the ids of the `count` most frequent tokens, ascending; ties keep the lower id."""
    counts_V = np.bincount(ids, minlength=vocabulary)
    return torch.from_numpy(np.sort(np.argsort(-counts_V, kind="stable")[:count]))
