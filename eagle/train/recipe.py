"""The two training recipes as modules: a batch in, a loss and tallies out.

A recipe's `forward` is everything that has gradients, so that it can be wrapped whole: by DDP, FSDP or DeepSpeed. The
loss is a sum over this batch's entries divided by counts that the caller adds up over all processes and micro-batches
of a step: however a batch is divided, the gradients add up to those of one mean.

Shapes: B rows, S entries, R entries that count, K unrolled steps, D width, W draft vocabulary, V target vocabulary.
"""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from eagle.model.head import DraftHead, Eagle3Head
from eagle.train.losses import smooth_l1, token_loss
from eagle.train.settings import Settings
from eagle.train.teachers import Teacher
from eagle.train.train_batches import TrainBatch
from eagle.train.training_time_test import training_time_test

NOISE_ENTRIES = 256  # drawn together, whatever the width of a batch


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a head is trained for.

    Attributes:
        steps: unrolled steps K; from 2 on this is EAGLE-3's training-time test.
        decay: what a step weighs, of the one before.
        feature_weight: of the smooth L1 distance between the head's states and the target's next last hidden states.
        token_weight: of the token loss.
        tv_weight: share of the total variation in the token loss, see `losses.token_loss`.
        noise: features are read with noise from the uniform distribution between -noise and noise.
    """

    steps: int = 1
    decay: float = 0.8
    feature_weight: float = 0.0
    token_weight: float = 1.0
    tv_weight: float = 0.0
    noise: float = 0.0

    def decayed(self, weight_KR: torch.Tensor) -> torch.Tensor:
        """Return what every step and entry counts [K, R], of what it would without a decay."""
        decay_K = self.decay ** torch.arange(self.steps, device=weight_KR.device)
        return weight_KR * decay_K[:, None]


# The papers': arXiv 2401.15077 section 3.2 and 2503.01840 section 3.2.
EAGLE = Objective(feature_weight=1.0, token_weight=0.1, noise=0.1)
EAGLE3 = Objective(steps=7)


def objective_of(settings: Settings) -> Objective:
    """Return the paper's objective of the run's kind, with what the settings change."""
    chosen: dict[str, Any] = {
        "steps": settings.ttt_length,
        "decay": settings.ttt_decay,
        "feature_weight": settings.feature_weight,
        "tv_weight": settings.tv_weight,
        "noise": settings.feature_noise,
    }
    given = {name: value for name, value in chosen.items() if value is not None}
    return replace(EAGLE if settings.kind == "eagle" else EAGLE3, **given)


class Recipe(nn.Module):
    """A head with what it is trained to do.

    Args:
        head: trained in place.
        teacher: where embeddings and the target's output come from; none of it is a parameter of this module.
        objective: what for.
        checkpoint: keep no activations of a step for its gradient, compute them again.

    Attributes:
        sharded: this module's weights lie in parts, see `losses.token_loss`.

    Raises:
        ValueError: features are to be compared with states of another width.
    """

    def __init__(self, head: DraftHead, teacher: Teacher, objective: Objective, checkpoint: bool = False) -> None:
        super().__init__()
        width, target_width = head.config.hidden_size, teacher.config.hidden_size
        if objective.feature_weight and width != target_width:
            raise ValueError(
                f"feature_weight={objective.feature_weight}: a head of width {width} has no states to compare with a "
                f"target's of width {target_width}"
            )
        self.head, self.objective, self.checkpoint = head, objective, checkpoint
        self.sharded = False
        self.teacher = (teacher,)  # a teacher's modules are not ours: nothing may register them

    @property
    def steps(self) -> int:
        """Unrolled steps K."""
        return self.objective.steps

    @abstractmethod
    def weights(self, batch: TrainBatch) -> torch.Tensor:
        """Return 1 for every step and entry that counts, else 0: fp32 [K, R]."""

    @abstractmethod
    def token_loss(
        self, batch: TrainBatch, hidden_KRD: torch.Tensor, weight_KR: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the token loss, a weighted sum, and where the head's likeliest token is the target's: bool [K, R]."""

    def real(self, batch: TrainBatch) -> torch.Tensor:
        """Return which entries have a chain of k earlier ones in their own text: bool [K, R]."""
        places_R = batch.entries.positions_BS.flatten()[batch.entries.rows_R]
        return places_R >= torch.arange(self.steps, device=places_R.device)[:, None]

    def features(self, batch: TrainBatch) -> torch.Tensor:
        """Return the features [B, S, F] that the head reads: every row's with the noise of its seed."""
        features_BSF = batch.features_BSF
        if not self.objective.noise:
            return features_BSF
        (rows, entries, width), device = features_BSF.shape, features_BSF.device
        noise_BSF = torch.empty(rows, -(-entries // NOISE_ENTRIES) * NOISE_ENTRIES, width, device=device)
        generator = torch.Generator(device)
        for row_SF, seed in zip(noise_BSF, batch.entries.seeds_B, strict=True):
            generator.manual_seed(seed)
            # An accelerator draws other numbers for another count: that of a row must not depend on its batch.
            for part_SF in row_SF.split(NOISE_ENTRIES):
                part_SF.uniform_(-self.objective.noise, self.objective.noise, generator=generator)
        return features_BSF + noise_BSF[:, :entries].to(features_BSF)

    def forward(self, batch: TrainBatch, counts_K: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss and, for every step, four counts [4, K].

        Those are, over entries with a whole chain: all of them; those where the head's likeliest token is the
        target's; those whose chain was right up to the step before; and those of them that are right too.

        Args:
            batch: a micro-batch.
            counts_K: what the sums of every step are divided by.
        """
        (teacher,), paired = self.teacher, batch.entries
        own = getattr(self.head, "embed_tokens", None)
        embeds_BSD = own(paired.tokens_BS) if own is not None else teacher.embed(paired.tokens_BS)
        states = training_time_test(
            self.head,
            embeds_BSD.to(self.head.dtype),
            self.head.fuse(self.features(batch).to(self.head.dtype)),
            self.steps,
            paired.positions_BS,
            paired.segments_BS,
            self.checkpoint,
        )
        hidden_KRD = torch.stack([state.flatten(0, 1).index_select(0, paired.rows_R) for state, _ in states])
        weight_KR = self.objective.decayed(self.weights(batch) / counts_K.clamp(min=1)[:, None])
        loss, right_KR = self.token_loss(batch, hidden_KRD, self.objective.token_weight * weight_KR)
        if self.objective.feature_weight:
            assert batch.target_hidden_RD is not None
            distance = smooth_l1(hidden_KRD, batch.target_hidden_RD, weight_KR)
            loss = self.objective.feature_weight * distance + loss
        return loss, self._tallies(batch, right_KR)

    def _tallies(self, batch: TrainBatch, right_KR: torch.Tensor) -> torch.Tensor:
        real_KR, rows_R = self.real(batch), batch.entries.rows_R
        alive_N = torch.ones(batch.entries.tokens_BS.numel(), dtype=torch.bool, device=rows_R.device)
        rows = []
        for real_R, right_R in zip(real_KR, right_KR & real_KR, strict=True):
            # An entry's chain goes on from the entry before it, one step earlier.
            begun_R = real_R & alive_N[rows_R]
            alive_R = begun_R & right_R
            alive_N = torch.zeros_like(alive_N)
            alive_N[rows_R + 1] = alive_R  # the last entry of a row never counts
            rows.append(torch.stack([real_R.sum(), right_R.sum(), begun_R.sum(), alive_R.sum()]))
        return torch.stack(rows, 1)


class EagleRecipe(Recipe):
    """EAGLE-1/2: smooth L1 on features plus 0.1 times soft cross-entropy, on features with noise, in one step."""

    def __init__(
        self, head: DraftHead, teacher: Teacher, objective: Objective = EAGLE, checkpoint: bool = False
    ) -> None:
        super().__init__(head, teacher, objective, checkpoint)

    def weights(self, batch: TrainBatch) -> torch.Tensor:
        """Return 1 for entries with a whole chain."""
        return self.real(batch).float()

    def token_loss(
        self, batch: TrainBatch, hidden_KRD: torch.Tensor, weight_KR: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compare the logits that the target makes of the states with its own."""
        (teacher,) = self.teacher
        return token_loss(
            hidden_KRD,
            teacher.output_logits,
            [],
            lambda rows: teacher.logits(batch, rows).softmax(-1, dtype=torch.float32),
            weight_KR,
            batch.target_tokens_R,
            tv_weight=self.objective.tv_weight,
        )


class Eagle3Recipe(Recipe):
    """EAGLE-3: training-time test, the head's own logits against the target's.

    Entries count where the target's likeliest token can be drafted.
    """

    head: Eagle3Head

    def __init__(
        self, head: DraftHead, teacher: Teacher, objective: Objective = EAGLE3, checkpoint: bool = False
    ) -> None:
        super().__init__(head, teacher, objective, checkpoint)

    @property
    def output(self) -> list[nn.Module]:
        """The modules that make logits of states."""
        return [self.head.lm_head] if self.head.config.norm_output else [self.head.norm, self.head.lm_head]

    @property
    def drafted_W(self) -> torch.Tensor:
        """Target ids of the draft vocabulary."""
        return self.head.target_ids(torch.arange(self.head.draft_size, device=self.head.device))

    def _answers(self, batch: TrainBatch) -> torch.Tensor:
        """Return the target's tokens as ids of the draft vocabulary [R]; -1 where they are not in it."""
        drafted_W = self.drafted_W
        # Ids of the draft vocabulary ascend with the target's they stand for.
        places_R = torch.searchsorted(drafted_W, batch.target_tokens_R).clamp(max=len(drafted_W) - 1)
        return places_R.where(drafted_W[places_R] == batch.target_tokens_R, -1)

    def weights(self, batch: TrainBatch) -> torch.Tensor:
        """Return 1 for entries with a whole chain whose answer is in the draft vocabulary."""
        return (self.real(batch) & (self._answers(batch) >= 0)).float()

    def token_loss(
        self, batch: TrainBatch, hidden_KRD: torch.Tensor, weight_KR: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compare the head's logits with the target's over the draft vocabulary."""
        (teacher,), drafted_W = self.teacher, self.drafted_W
        return token_loss(
            hidden_KRD,
            self.head.logits,
            [weight for module in self.output for weight in module.parameters()],
            # Of stored logits an entry may have none that can be drafted; then it does not count.
            lambda rows: teacher.logits(batch, rows)[:, drafted_W].softmax(-1, dtype=torch.float32).nan_to_num(),
            weight_KR,
            self._answers(batch),
            self.sharded,
            tv_weight=self.objective.tv_weight,
        )
