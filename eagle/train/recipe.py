"""The two training recipes as modules: a batch in, a loss and tallies out.

A recipe's `forward` is everything that has gradients, so that it can be wrapped whole: by DDP, FSDP or DeepSpeed. The
loss is a sum over this batch's entries divided by counts that the caller adds up over all processes and micro-batches
of a step: however a batch is divided, the gradients add up to those of one mean.

Shapes: B rows, S entries, R entries that count, K unrolled steps, D width, W draft vocabulary, V target vocabulary.
"""

from abc import abstractmethod

import torch
from torch import nn

from eagle.model.head import DraftHead, Eagle3Head
from eagle.train.losses import FEATURE_WEIGHT, STEP_DECAY, TOKEN_WEIGHT, cross_entropy, smooth_l1
from eagle.train.teachers import Teacher
from eagle.train.train_batches import TrainBatch
from eagle.train.training_time_test import training_time_test

FEATURE_NOISE = 0.1


class Recipe(nn.Module):
    """A head with what it is trained to do.

    Args:
        head: trained in place.
        teacher: where embeddings and the target's output come from; none of it is a parameter of this module.
        steps: unrolled steps K.
        checkpoint: keep no activations of a step for its gradient, compute them again.

    Attributes:
        sharded: this module's weights lie in parts, see `losses.cross_entropy`.
    """

    def __init__(self, head: DraftHead, teacher: Teacher, steps: int, checkpoint: bool = False) -> None:
        super().__init__()
        self.head, self.steps, self.checkpoint = head, steps, checkpoint
        self.sharded = False
        self.teacher = (teacher,)  # a teacher's modules are not ours: nothing may register them

    @abstractmethod
    def weights(self, batch: TrainBatch) -> torch.Tensor:
        """Return 1 for every step and entry that counts, else 0: fp32 [K, R]."""

    @abstractmethod
    def losses(
        self, batch: TrainBatch, hidden_KRD: torch.Tensor, weight_KR: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss, a weighted sum, and where the head's likeliest token is the target's: bool [K, R]."""

    def real(self, batch: TrainBatch) -> torch.Tensor:
        """Return which entries have a chain of k earlier ones in their own text: bool [K, R]."""
        places_R = batch.entries.positions_BS.flatten()[batch.entries.rows_R]
        return places_R >= torch.arange(self.steps, device=places_R.device)[:, None]

    def features(self, batch: TrainBatch) -> torch.Tensor:
        """Return the features [B, S, F] that the head reads."""
        return batch.features_BSF

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
        weight_KR = self.weights(batch) / counts_K.clamp(min=1)[:, None]
        loss, right_KR = self.losses(batch, hidden_KRD, weight_KR)
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
    """EAGLE-1/2: smooth L1 on features plus 0.1 times soft cross-entropy, on features with noise U(-0.1, 0.1).

    One step (arXiv 2401.15077, section 3.2).
    """

    def __init__(self, head: DraftHead, teacher: Teacher, checkpoint: bool = False) -> None:
        super().__init__(head, teacher, 1, checkpoint)

    def weights(self, batch: TrainBatch) -> torch.Tensor:
        """Return 1 for every entry."""
        return self.real(batch).float()

    def features(self, batch: TrainBatch) -> torch.Tensor:
        """Add to every row the noise of its seed."""
        noise = [
            torch.rand(row_SF.shape, generator=torch.Generator().manual_seed(seed))
            for row_SF, seed in zip(batch.features_BSF, batch.entries.seeds_B, strict=True)
        ]
        noise_BSF = (torch.stack(noise) * 2 - 1) * FEATURE_NOISE
        return batch.features_BSF + noise_BSF.to(batch.features_BSF)

    def losses(
        self, batch: TrainBatch, hidden_KRD: torch.Tensor, weight_KR: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compare states with the target's next features, and their logits with its logits."""
        (teacher,) = self.teacher
        assert batch.target_hidden_RD is not None
        token_loss, right_KR = cross_entropy(
            hidden_KRD,
            teacher.output_logits,
            [],
            lambda rows: teacher.logits(batch, rows).softmax(-1, dtype=torch.float32),
            TOKEN_WEIGHT * weight_KR,
            batch.target_tokens_R,
        )
        return FEATURE_WEIGHT * smooth_l1(hidden_KRD[0], batch.target_hidden_RD, weight_KR[0]) + token_loss, right_KR


class Eagle3Recipe(Recipe):
    """EAGLE-3: training-time test, every step weighed 0.8 of the one before (arXiv 2503.01840, section 3.2).

    Entries count where the target's likeliest token can be drafted.
    """

    head: Eagle3Head

    @property
    def output(self) -> list[nn.Module]:
        """The modules that make logits of states."""
        return [self.head.lm_head] if self.head.config.norm_output else [self.head.norm, self.head.lm_head]

    @property
    def drafted_W(self) -> torch.Tensor:
        """Target ids of the draft vocabulary."""
        return self.head.target_ids(torch.arange(self.head.draft_size, device=self.head.device))

    def weights(self, batch: TrainBatch) -> torch.Tensor:
        """Return 1 for entries with a whole chain whose answer is in the draft vocabulary."""
        return (self.real(batch) & torch.isin(batch.target_tokens_R, self.drafted_W)).float()

    def losses(
        self, batch: TrainBatch, hidden_KRD: torch.Tensor, weight_KR: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compare the head's logits with the target's over the draft vocabulary."""
        (teacher,), drafted_W = self.teacher, self.drafted_W
        decay_K = STEP_DECAY ** torch.arange(self.steps, device=weight_KR.device)
        # Ids of the draft vocabulary ascend with the target's they stand for.
        places_R = torch.searchsorted(drafted_W, batch.target_tokens_R).clamp(max=len(drafted_W) - 1)
        return cross_entropy(
            hidden_KRD,
            self.head.logits,
            [weight for module in self.output for weight in module.parameters()],
            # Of stored logits an entry may have none that can be drafted; then it does not count.
            lambda rows: teacher.logits(batch, rows)[:, drafted_W].softmax(-1, dtype=torch.float32).nan_to_num(),
            weight_KR * decay_K[:, None],
            places_R.where(drafted_W[places_R] == batch.target_tokens_R, -1),
            self.sharded,
        )
