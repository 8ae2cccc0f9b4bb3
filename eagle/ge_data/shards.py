"""One shard of features: samples run through the frozen target and written to a file.

Which samples share a forward is a function of the shard alone, so that whoever makes it makes the same bytes.

Shapes: B samples of a batch, S their longest, T tokens of all of them without pads, V vocabulary, D hidden width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eagle.data.batches import gathered
from eagle.data.samples import Sample
from eagle.ge_data.disk import write
from eagle.ge_data.plan import Plan
from eagle.model.target import TargetModel
from eagle.model.target_features import read_features

CHUNK = 1024  # tokens whose logits are held at once


def write_shard(
    plan: Plan, target: TargetModel, samples: Sequence[Sample], shard: int, report: Callable[[int], None]
) -> None:
    """Observe the samples of a shard and write them.

    Args:
        plan: what is to be made.
        target: the frozen target.
        samples: those of the shard, in order.
        shard: its number.
        report: called with the tokens of every batch that is done.

    Raises:
        ValueError: features that the dtype cannot hold.
        OSError: the disk is full.
    """
    lengths = np.array([len(sample) for sample in samples], dtype=np.int64)
    ends = np.cumsum(lengths)
    tensors = {name: torch.empty(int(ends[-1]), width, dtype=dtype) for name, (width, dtype) in plan.columns.items()}
    for batch in batches(lengths, plan.batch, switch(target)):
        found = said(plan, target, [samples[index] for index in batch])
        for name, values in found.items():
            for index, part in zip(batch, values.split(lengths[batch].tolist()), strict=True):
                _check_finite(part, plan.shards[shard][index], plan.settings["dtype"])
                tensors[name][ends[index] - lengths[index] : ends[index]] = part
        report(int(lengths[batch].sum()))
    tensors["ids"] = torch.from_numpy(np.concatenate([sample.ids for sample in samples]))
    tensors["mask"] = torch.from_numpy(np.concatenate([sample.mask for sample in samples]))
    tensors["ends"] = torch.from_numpy(ends)
    write(plan.path(shard), tensors, {"shard": shard, "settings": plan.settings})


def switch(target: TargetModel) -> int | None:
    """Return the length beyond which what a target says about a sample depends on the others of its batch."""
    return None if target.rope_switch is None else target.rope_switch.position


def batches(lengths: NDArray[np.int64], size: int, alone_beyond: int | None) -> list[list[int]]:
    """Return samples of similar lengths together, the longest first; those beyond a length by themselves."""
    order = np.argsort(-lengths, kind="stable")
    alone = [int(index) for index in order if alone_beyond is not None and lengths[index] > alone_beyond]
    rest = order[len(alone) :].tolist()
    return [[index] for index in alone] + [rest[start : start + size] for start in range(0, len(rest), size)]


@torch.no_grad()
def said(plan: Plan, target: TargetModel, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
    """Return the columns [T, …] of a batch of samples, end to end, on the host."""
    batch = gathered([[sample] for sample in samples])
    ids_BS, kept_BS = batch.ids_BS.to(target.device), (batch.segments_BS > 0).to(target.device)
    seen = read_features(target, ids_BS, plan.taps, batch.positions_BS, batch.segments_BS)
    found = {"features": seen.features_BSF[kept_BS]}
    if plan.top_k is not None:
        found |= top(target, seen.hidden_BSD[kept_BS], plan.top_k)
    elif "hidden" in plan.columns:
        found["hidden"] = seen.hidden_BSD[kept_BS]
    return {name: values.to(plan.columns[name][1]).cpu() for name, values in found.items()}


def top(target: TargetModel, hidden_TD: torch.Tensor, count: int) -> dict[str, torch.Tensor]:
    """Return the ids and logits of the likeliest tokens, likeliest first."""
    parts: list[Any] = [target.output_logits(part).topk(count) for part in hidden_TD.split(CHUNK)]
    return {
        "top_ids": torch.cat([part.indices for part in parts]),
        "top_logits": torch.cat([part.values for part in parts]),
    }


def _check_finite(values: torch.Tensor, sample: int, dtype: str) -> None:
    if values.is_floating_point() and not values.isfinite().all():
        remedy = "use --dtype bfloat16" if dtype == "float16" else "the target itself overflows"
        raise ValueError(f"sample {sample}: the target says what is no finite number in {dtype}: {remedy}")
