"""What the parts of a step cost on this machine: measured once per model, device and batch size, and kept on disk.

Where steps are replayed from graphs, so is what is measured. The file lies under the user's cache directory
(`$XDG_CACHE_HOME/eagle/costs`, `~/.cache/eagle/costs`) and is named after everything that decides about speed: both
models' shapes, dtype, kernels, device, threads, versions, graphs.
"""

import hashlib
import json
import logging
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import eagle
from eagle.model.bucket_cache import BucketCache
from eagle.model.configs import TreeConfig
from eagle.model.draft_state import DraftState
from eagle.model.drafter import Drafter
from eagle.model.static_state import StaticDraftState
from eagle.model.target import Taps, TargetModel
from eagle.model.tree import DraftTree, from_parents

logger = logging.getLogger(__name__)

NODES = (1, 2, 4, 8, 16, 32, 60)
WIDTHS = (1, 4, 10)
CONTEXTS = (64, 1024)
# Tokens of one forward, over all rows, beyond which nothing is measured; the same for tokens in the cache, which may
# not take more memory than the calls it is measured for. A slope needs contexts that are so many times apart.
MOST_TOKENS, MOST_CACHED, APART = 512, 8192, 4
ROUNDS, SECONDS = 3, 1.0
# Work on tensors that stay where they are -> what replays it.
Recorded = Callable[[Callable[[], None]], Callable[[], None]]


@dataclass(frozen=True)
class Costs:
    """Seconds of a step's parts for one batch size, at each of `contexts`; between measured sizes it is linear.

    Attributes:
        contexts: tokens in the cache.
        nodes, verify: tree sizes, the root alone first, and the forward over such a tree, [contexts][nodes].
        widths, first, level: nodes expanded per level; feeding the accepted tokens and drafting the first level;
            drafting one further level, [contexts][widths].

    Raises:
        ValueError: sizes that do not rise, tables of another shape, seconds that are none.
    """

    contexts: tuple[int, ...]
    nodes: tuple[int, ...]
    verify: tuple[tuple[float, ...], ...]
    widths: tuple[int, ...]
    first: tuple[tuple[float, ...], ...]
    level: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        for sizes in (self.contexts, self.nodes, self.widths):
            if not sizes or list(sizes) != sorted({int(size) for size in sizes}) or sizes[0] < 1:
                raise ValueError(f"sizes {sizes} must be rising numbers of 1 or more")
        for table, sizes in ((self.verify, self.nodes), (self.first, self.widths), (self.level, self.widths)):
            seconds = np.array(table, dtype=float)
            if seconds.shape != (len(self.contexts), len(sizes)) or not (np.isfinite(seconds) & (seconds >= 0)).all():
                raise ValueError(f"seconds {table} must be finite, 0 or more, for every context and size")
        if min(map(min, self.verify)) == 0:
            raise ValueError(f"seconds {self.verify} of a forward must be more than 0")

    def plain(self, context: int) -> float:
        """Return the seconds of a step without drafting."""
        return float(self._at(context, self.nodes, self.verify, np.ones(1))[0])

    def steps(self, context: int, nodes: np.ndarray, depths: np.ndarray, widths: np.ndarray) -> np.ndarray:
        """Return the seconds of a step for each of S trees, given as three arrays [S]."""
        drafting = self._at(context, self.widths, self.first, widths)
        drafting = drafting + depths * self._at(context, self.widths, self.level, widths)
        return self._at(context, self.nodes, self.verify, nodes) + drafting

    def _at(
        self, context: int, sizes: tuple[int, ...], table: tuple[tuple[float, ...], ...], wanted: np.ndarray
    ) -> np.ndarray:
        low, *high = (_line(wanted, sizes, row) for row in table)
        if not high:
            return low
        share = (context - self.contexts[0]) / (self.contexts[1] - self.contexts[0])
        return np.maximum(low + max(0.0, share) * (high[0] - low), 1e-9)


def _line(wanted: np.ndarray, sizes: tuple[int, ...], seconds: tuple[float, ...]) -> np.ndarray:
    """Interpolate between measured sizes; beyond the last go on as between the last two."""
    inside = np.interp(wanted, sizes, seconds)
    slope = (seconds[-1] - seconds[-2]) / (sizes[-1] - sizes[-2]) if len(sizes) > 1 else seconds[0] / sizes[0]
    return inside + np.maximum(0, wanted - sizes[-1]) * max(0.0, slope)


def costs_of(target: TargetModel, drafter: Drafter, taps: Taps, batch: int, recorded: Recorded | None = None) -> Costs:
    """Return the costs for a batch, from disk where they were measured before; see `measure`."""
    path = _folder() / f"{_key(target, drafter, batch, recorded is not None)}.json"
    known = _read(path)
    if known is None:
        logger.info("measuring the cost of drafting and verifying for %d row(s), once on this machine", batch)
        known = measure(target, drafter, taps, batch, recorded)
        _write(path, known)
    return known


@torch.no_grad()
def measure(target: TargetModel, drafter: Drafter, taps: Taps, batch: int, recorded: Recorded | None = None) -> Costs:
    """Time forwards over trees and draft levels, in alternating rounds; the least disturbed one counts.

    Args:
        recorded: makes graphs of them; None runs them as they are.
    """
    most = drafter.tree.nodes
    contexts = _contexts(target, batch, 2 * most)
    nodes = tuple(size for size in NODES if size < most and size * batch <= MOST_TOKENS)
    nodes += (most,) if most * batch <= MOST_TOKENS else ()
    widths = tuple(sorted({min(width, drafter.tree.top_k) for width in WIDTHS}))
    verify, first, level = [], [], []
    for context in contexts:
        verify.append(_verify_seconds(target, taps, batch, context, nodes or (1,), recorded))
        drafts = _draft_seconds(target, drafter, taps, batch, context, widths, recorded)
        first.append(tuple(drafts[width, 0] for width in widths))
        level.append(tuple(max(0.0, drafts[width, 2] - drafts[width, 0]) / 2 for width in widths))
    return Costs(contexts, nodes or (1,), tuple(verify), widths, tuple(first), tuple(level))


def _contexts(target: TargetModel, batch: int, room: int) -> tuple[int, ...]:
    """Return the numbers of cached tokens to measure at, with `room` for what follows them."""
    last, switch = target.last_position or max(CONTEXTS) * 2, target.rope_switch
    if switch is not None and switch.plain_beyond:
        # No tree is verified beyond it, and a dynamic embedding remembers longer sequences than a call's.
        last = min(last, switch.position)
    near, far = CONTEXTS[0], min(CONTEXTS[-1], MOST_CACHED // batch)
    wanted = (near, far) if far >= APART * near else (near,)
    return tuple(context for context in wanted if context + room < last) or (max(1, min(near, last - room)),)


def _verify_seconds(
    target: TargetModel, taps: Taps, batch: int, context: int, nodes: tuple[int, ...], recorded: Recorded | None
) -> tuple[float, ...]:
    # Keys and values of zeros cost what others cost: nothing is prefilled.
    new_cache = target.new_cache if recorded is None else target.new_bucket
    cache = new_cache(batch, context + max(nodes), [0] * batch)
    cache.advance([context] * batch)
    trees = {size: _star(batch, size, target.device) for size in nodes}

    def run(size: int) -> Callable[[], None]:
        def verify() -> None:
            with target.lock:
                target.verify(trees[size], cache, taps)

        return verify

    best = _least({size: run(size) for size in nodes}, target.device, recorded)
    return tuple(best[size] for size in nodes)


def _draft_seconds(
    target: TargetModel,
    drafter: Drafter,
    taps: Taps,
    batch: int,
    context: int,
    widths: tuple[int, ...],
    recorded: Recorded | None,
) -> dict[tuple[int, int], float]:
    state = drafter.start(batch, context + 2, [0] * batch)
    scratch = target.new_cache(batch, 2, [0] * batch)
    features_B1F = target.verify(_star(batch, 1, target.device), scratch, taps).features_BNF
    assert features_B1F is not None
    roots_B = torch.zeros(batch, dtype=torch.int64, device=target.device)
    if recorded is not None:
        state = _static_state(drafter, batch, context, features_B1F)
    state.cache.advance([context] * batch)

    def run(width: int, depth: int) -> Callable[[], None]:
        def draft() -> None:
            state.tree = TreeConfig(total_token=2, depth=depth, top_k=width)
            if recorded is None:
                state.cache.rewind(context, state.cache.capacity)
                drafter.observe(state, features_B1F, roots_B[:, None], [1] * batch)
            drafter.draft(state, roots_B)

        return draft

    return _least({(w, d): run(w, d) for w in widths for d in (0, 2)}, target.device, recorded)


def _static_state(drafter: Drafter, batch: int, context: int, features_B1F: torch.Tensor) -> DraftState:
    """Return a state of which a draft reads as many entries as a step's, and keeps none."""
    head, tree = drafter.head, drafter.tree
    cache = BucketCache(
        head.layers_count, batch, context + tree.levels + max(tree.scratch, 2 * tree.top_k), None, head.device
    )
    return StaticDraftState(
        tree, cache, tree.levels, features_B1F.new_zeros(batch, tree.levels, features_B1F.shape[-1])
    )


def _least(runs: dict[Any, Callable[[], None]], device: torch.device, recorded: Recorded | None) -> dict[Any, float]:
    """Return the shortest time of every run over alternating rounds, after one that does not count."""
    marker = torch.zeros((), device=device)
    if recorded is not None:
        runs = {name: recorded(run) for name, run in runs.items()}
    for run in runs.values():
        run()
    best = dict.fromkeys(runs, float("inf"))
    rounds, began = 0, time.perf_counter()
    while rounds < ROUNDS or (rounds < 3 * ROUNDS and time.perf_counter() - began < SECONDS):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            marker.item()  # waits until the device has done what was queued
            best[name] = min(best[name], time.perf_counter() - started)
        rounds += 1
    return best


def _star(batch: int, nodes: int, device: torch.device) -> DraftTree:
    """Return a tree whose drafted nodes are all children of the root."""
    zeros_BN = torch.zeros(batch, nodes, dtype=torch.int64, device=device)
    parents_BN = zeros_BN.clone()
    parents_BN[:, 0] = -1
    return from_parents(zeros_BN, parents_BN, zeros_BN.float(), min(nodes, 2))


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eagle" / "costs"


def _key(target: TargetModel, drafter: Drafter, batch: int, are_graphs: bool) -> str:
    device = target.device
    own = {"_name_or_path", "transformers_version", "architectures"}
    made_of = {
        "versions": [eagle.__version__, torch.__version__, transformers.__version__],
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "dtypes": [str(target.model.dtype), str(drafter.head.dtype)],
        "packed": target.packed is not None,
        "attention": target.model.config._attn_implementation,
        "target": {k: v for k, v in target.model.config.to_dict().items() if k not in own},
        "head": {k: v for k, v in drafter.head.config.to_dict().items() if k not in own},
        "tree": asdict(replace(drafter.tree, threshold=1.0)),
        "batch": batch,
        **({"graphs": True} if are_graphs else {}),
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True, default=str).encode()).hexdigest()[:24]


def device_name(device: torch.device) -> str:
    """Return what an accelerator calls itself, or the name of the processor."""
    if device.type != "cpu":
        return str(torch.get_device_module(device).get_device_name(device))
    return processor_name()


def processor_name() -> str:
    """Return the name of this machine's processor."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def _read(path: Path) -> Costs | None:
    try:
        fields = json.loads(path.read_text())
        sizes = [tuple(fields[name]) for name in ("contexts", "nodes", "widths")]
        verify, first, level = (tuple(map(tuple, fields[name])) for name in ("verify", "first", "level"))
        return Costs(sizes[0], sizes[1], verify, sizes[2], first, level)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # none yet, or unreadable: it is measured anew


def _write(path: Path, costs: Costs) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(asdict(costs)))
        part.replace(path)
    except OSError as problem:
        logger.info("costs are not kept: %s", problem)
