"""Teachers, which make training batches: the frozen target in the loop, or its features on disk.

Shapes: B rows, T tokens of a row, R entries that count, D hidden width, V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedConfig

from eagle.data.batches import Batches
from eagle.data.features import Features
from eagle.model.support.output_transform import transformed
from eagle.model.target import Taps, TargetModel
from eagle.model.target_features import check_output, read_features
from eagle.train.train_batches import Top, TrainBatch, ahead, entries, sent

CHUNK = 1024  # rows of logits held at once


class Teacher(ABC):
    """The frozen side of training.

    Attributes:
        config: the target's text configuration.
        batches: the texts, in order.
        device: where batches are wanted.
    """

    config: PreTrainedConfig
    batches: Batches
    device: torch.device

    @abstractmethod
    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the target's embeddings of token ids, on `device`."""

    @abstractmethod
    def output_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits [..., V] that the target makes of last hidden states; gradients flow to those."""

    @abstractmethod
    def train_batch(self, rows: Sequence[Sequence[int]], seeds_B: list[int]) -> TrainBatch:
        """Return what rows of samples teach."""

    def logits(self, batch: TrainBatch, rows: slice) -> torch.Tensor:
        """Return the target's logits [r, V] at some of the counted entries; what was not stored is -infinity."""
        if batch.top is None:
            assert batch.target_hidden_RD is not None
            return self.output_logits(batch.target_hidden_RD[rows])
        ids_rK, logits_rK = batch.top.ids_RK[rows], batch.top.logits_RK[rows]
        blank_rV = logits_rK.new_full((len(ids_rK), self.config.vocab_size), -torch.inf)
        return blank_rV.scatter(1, ids_rK.long(), logits_rK)

    @torch.no_grad()
    def _target_tokens(self, target_hidden_RD: torch.Tensor) -> torch.Tensor:
        parts = [self.output_logits(part).argmax(-1) for part in target_hidden_RD.split(CHUNK)]
        return torch.cat(parts)


class TargetTeacher(Teacher):
    """The target itself, run on every batch: no disk, no second copy.

    Args:
        target: the frozen target, in its own dtype, on any devices.
        taps: what the features are.
        batches: texts.
        device: where the head is.
    """

    def __init__(self, target: TargetModel, taps: Taps, batches: Batches, device: torch.device) -> None:
        check_output(target)
        self.target, self.taps, self.batches, self.device = target, taps, batches, device
        self.config = target.config

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the target's embeddings of token ids."""
        with torch.no_grad():
            return self.target.embed(ids.to(self.target.device)).to(self.device)

    def output_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Apply the target's own output transform, in its dtype."""
        device = self.target.device
        with torch.autocast(device.type, enabled=False):
            return self.target.output_logits(hidden.to(device, self.target.model.dtype)).to(self.device)

    def train_batch(self, rows: Sequence[Sequence[int]], seeds_B: list[int]) -> TrainBatch:
        """Run the target over rows of samples."""
        batch = self.batches.laid(rows)
        paired = entries(batch, seeds_B, self.device)
        ids_BT = sent(batch.ids_BS, self.target.device)
        seen = read_features(self.target, ids_BT, self.taps, batch.positions_BS, batch.segments_BS)
        target_hidden_RD = ahead(seen.hidden_BSD.to(self.device), paired.rows_R)
        features_BSF = seen.features_BSF[:, :-1].to(self.device)
        return TrainBatch(paired, features_BSF, target_hidden_RD, None, self._target_tokens(target_hidden_RD))


class FeatureTeacher(Teacher):
    """Features on disk: no target, but for its embeddings and, without stored logits, its output matrix.

    Args:
        features: what `python -m eagle.ge_data.allocation` wrote.
        config: the target's text configuration.
        batches: of the same samples.
        device: where the head is.
    """

    def __init__(self, features: Features, config: PreTrainedConfig, batches: Batches, device: torch.device) -> None:
        self.features, self.config, self.batches, self.device = features, config, batches, device
        embeddings = features.target_embeddings()
        self.embeddings_VD = embeddings.embeddings_VD.to(device)
        self.output_VD, self.bias_V = (
            None if part is None else part.to(device) for part in (embeddings.output_VD, embeddings.bias_V)
        )
        self.transform = embeddings.transform

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the target's embeddings of token ids."""
        return F.embedding(ids, self.embeddings_VD)

    def output_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Apply the target's own output transform, in its dtype."""
        assert self.output_VD is not None  # where it is not stored, logits are, and nobody asks
        with torch.autocast(self.device.type, enabled=False):
            logits = F.linear(hidden.to(self.output_VD.dtype), self.output_VD, self.bias_V)
        return transformed(logits, self.transform)

    def train_batch(self, rows: Sequence[Sequence[int]], seeds_B: list[int]) -> TrainBatch:
        """Read the features of rows of samples."""
        batch = self.batches.laid(rows)
        paired = entries(batch, seeds_B, self.device)
        samples = [[self.features[index] for index in row] for row in rows]
        # Any sample, for widths and types: rows that only fill a batch have none of their own.
        some, width = self.features[0], batch.ids_BS.shape[1]

        def laid(name: str) -> torch.Tensor | None:
            if getattr(some, name) is None:
                return None
            parts = [torch.cat([getattr(some, name)[:0], *(getattr(each, name) for each in row)]) for row in samples]
            values_BTX = pad_sequence(parts, batch_first=True)
            return sent(F.pad(values_BTX, (0, 0, 0, width - values_BTX.shape[1])), self.device)

        features_BTF, ids_BTK, logits_BTK = laid("features_TF"), laid("top_ids_TK"), laid("top_logits_TK")
        assert features_BTF is not None
        hidden_BTD = features_BTF if self.features.summary["kind"] == "eagle" else laid("hidden_TD")
        target_hidden_RD = None if hidden_BTD is None else ahead(hidden_BTD, paired.rows_R)
        if ids_BTK is not None and logits_BTK is not None:
            top = Top(ahead(ids_BTK, paired.rows_R), ahead(logits_BTK, paired.rows_R).float())
            return TrainBatch(paired, features_BTF[:, :-1], target_hidden_RD, top, top.ids_RK[:, 0].long())
        assert target_hidden_RD is not None
        return TrainBatch(paired, features_BTF[:, :-1], target_hidden_RD, None, self._target_tokens(target_hidden_RD))
