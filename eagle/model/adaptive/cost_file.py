"""Costs kept on disk, by everything that decides about them: both models' shapes, kernels, device, versions, graphs."""

import logging
import time
from dataclasses import asdict, replace
from pathlib import Path

import transformers

from eagle.model.adaptive.costs import Costs
from eagle.model.adaptive.profile import Recorder, measure
from eagle.model.drafter import Drafter
from eagle.model.support.measurements import device_name, kept_file, read, write
from eagle.model.target import Taps, TargetModel

logger = logging.getLogger(__name__)


def costs_of(target: TargetModel, drafter: Drafter, taps: Taps, batch: int, recorder: Recorder | None = None) -> Costs:
    """Return the costs for a batch, from disk where they were measured before; see `measure`."""
    path = _file(target, drafter, batch, recorder is not None)
    known = _read(path)
    if known is None:
        started = time.perf_counter()
        known = measure(target, drafter, taps, batch, recorder)
        write(path, asdict(known))
        seconds = time.perf_counter() - started
        logger.info("timed drafting and verifying for %d row(s) in %.1f s, kept in %s", batch, seconds, path.parent)
    return known


def _file(target: TargetModel, drafter: Drafter, batch: int, are_graphs: bool) -> Path:
    device = target.device
    own = {"_name_or_path", "transformers_version", "architectures"}
    made_of = {
        "transformers": transformers.__version__,
        "device": device_name(device),
        "dtypes": [str(target.model.dtype), str(drafter.head.dtype)],
        "packed": [part.settings if part is not None else None for part in (target.packed, drafter.packed)],
        "attention": target.model.config._attn_implementation,
        "target": {k: v for k, v in target.model.config.to_dict().items() if k not in own},
        "head": {k: v for k, v in drafter.head.config.to_dict().items() if k not in own},
        "draft_size": drafter.head.draft_size,
        "tree": asdict(replace(drafter.tree, threshold=1.0)),
        "batch": batch,
        **({"graphs": True} if are_graphs else {}),
    }
    return kept_file("costs", made_of)


def _read(path: Path) -> Costs | None:
    fields = read(path)
    try:
        sizes = [tuple(fields[name]) for name in ("contexts", "nodes", "widths")]
        verify, first, level = (tuple(map(tuple, fields[name])) for name in ("verify", "first", "level"))
        return Costs(sizes[0], sizes[1], verify, sizes[2], first, level)
    except (ValueError, LookupError, TypeError, OverflowError):
        return None  # none yet, or unreadable: it is measured anew
