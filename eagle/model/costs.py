"""What the parts of a step cost on this machine: measured once per model, device and batch size, and kept on disk.

Where steps are replayed from graphs, so is what is measured. The file lies under the user's cache directory
(`$XDG_CACHE_HOME/eagle/costs`, `~/.cache/eagle/costs`) and is named after everything that decides about speed: both
models' shapes, dtype, kernels, device, threads, versions, graphs.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from eagle.model.bucket_cache import BucketCache
from eagle.model.configs import TreeConfig
from eagle.model.draft_state import DraftState
from eagle.model.drafter import Drafter
from eagle.model.static_state import StaticDraftState
from eagle.model.support.measurements import device_name, kept_file, progress_bar, read, write
from eagle.model.target import Taps, TargetModel
from eagle.model.tree import DraftTree, from_parents

logger = logging.getLogger(__name__)

NODES = (1, 2, 4, 8, 16, 32, 60)
WIDTHS = (1, 4, 10)
CONTEXTS = (64, 1024)
# Tokens of one forward, over all rows, beyond which nothing is measured; the same for tokens in the cache, which may
# not take more memory than the calls it is measured for. A slope needs contexts that are so many times apart.
MOST_TOKENS, MOST_CACHED, APART = 512, 8192, 4
# Sizes that are measured of a model so slow that all of them would take too long.
FEW_NODES, FEW_WIDTHS = (1, 8, 32), (1, 10)
# Seconds that measuring a batch size may take, and rounds at most. A slow model is measured at fewer sizes, each once
# after a warm-up: about a dozen of its forwards.
SECONDS, ROUNDS = 4.0, 9
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
    path = _file(target, drafter, batch, recorded is not None)
    known = _read(path)
    if known is None:
        started = time.perf_counter()
        known = measure(target, drafter, taps, batch, recorded)
        write(path, asdict(known))
        seconds = time.perf_counter() - started
        logger.info("timed drafting and verifying for %d row(s) in %.1f s, kept in %s", batch, seconds, path.parent)
    return known


@torch.no_grad()
def measure(target: TargetModel, drafter: Drafter, taps: Taps, batch: int, recorded: Recorded | None = None) -> Costs:
    """Time forwards over trees and draft levels, in alternating rounds; the least disturbed one counts.

    Takes `SECONDS`, or about a dozen forwards where that is longer, and shows a bar meanwhile.

    Args:
        recorded: makes graphs of them; None runs them as they are.
    """
    most = drafter.tree.nodes
    contexts = _contexts(target, batch, 2 * most)
    # Two contexts, two kinds of work each: as much time for all.
    clock = _Clock(target.device, recorded, SECONDS / 4)
    is_slow = _plain_seconds(target, taps, batch, contexts[0]) * 2 * len(NODES) > SECONDS / 2
    nodes = tuple(size for size in (FEW_NODES if is_slow else NODES) if size < most and size * batch <= MOST_TOKENS)
    nodes = (*nodes, most) if most * batch <= MOST_TOKENS else nodes or (1,)
    widths = tuple(sorted({min(width, drafter.tree.top_k) for width in (FEW_WIDTHS if is_slow else WIDTHS)}))
    contexts = contexts[:1] if is_slow else contexts
    verify, first, level = [], [], []
    with progress_bar(len(contexts) * (len(nodes) + 2 * len(widths)), "timing draft trees") as clock.bar:
        for context in contexts:
            verify.append(_verify_seconds(target, taps, batch, context, nodes, clock))
            drafts = _draft_seconds(target, drafter, taps, batch, context, widths, clock)
            first.append(tuple(drafts[width, 0] for width in widths))
            level.append(tuple(max(0.0, drafts[width, 2] - drafts[width, 0]) / 2 for width in widths))
    return Costs(contexts, nodes, tuple(verify), widths, tuple(first), tuple(level))


@dataclass
class _Clock:
    """Times alternatives against each other.

    Attributes:
        device: where they run.
        recorded: makes graphs of them, or None.
        seconds: for all rounds of one call, warm-up and first round excepted.
        bar: moves on by one with every alternative.
    """

    device: torch.device
    recorded: Recorded | None
    seconds: float
    bar: Any = None

    def least(self, runs: dict[Any, Callable[[], None]]) -> dict[Any, float]:
        """Return the shortest time of every run over alternating rounds, after one that does not count."""
        if self.recorded is not None:
            runs = {name: self.recorded(run) for name, run in runs.items()}
        began = time.perf_counter()
        best = dict[Any, float]()
        for name, run in runs.items():
            run()
            best[name] = self.once(run)
            self.bar.update()
        for _ in range(ROUNDS - 1):
            if time.perf_counter() - began > self.seconds:
                break
            for name, run in runs.items():
                best[name] = min(best[name], self.once(run))
        return best

    def once(self, run: Callable[[], None]) -> float:
        """Return how long a run takes, the device's work included."""
        started = time.perf_counter()
        run()
        torch.zeros((), device=self.device).item()  # waits until the device has done what was queued
        return time.perf_counter() - started


def _contexts(target: TargetModel, batch: int, room: int) -> tuple[int, ...]:
    """Return the numbers of cached tokens to measure at, with `room` for what follows them."""
    last, switch = target.last_position or max(CONTEXTS) * 2, target.rope_switch
    if switch is not None and switch.plain_beyond:
        # No tree is verified beyond it, and a dynamic embedding remembers longer sequences than a call's.
        last = min(last, switch.position)
    near, far = CONTEXTS[0], min(CONTEXTS[-1], MOST_CACHED // batch)
    wanted = (near, far) if far >= APART * near else (near,)
    return tuple(context for context in wanted if context + room < last) or (max(1, min(near, last - room)),)


def _plain_seconds(target: TargetModel, taps: Taps, batch: int, context: int) -> float:
    """Return how long a forward over the root alone takes, once warm."""
    cache = target.new_cache(batch, context + 1, [0] * batch)
    cache.advance([context] * batch)
    root = _star(batch, 1, target.device)
    clock = _Clock(target.device, None, 0.0)

    def verify() -> None:
        target.verify(root, cache, taps)

    return min(clock.once(verify), clock.once(verify))


def _verify_seconds(
    target: TargetModel, taps: Taps, batch: int, context: int, nodes: tuple[int, ...], clock: _Clock
) -> tuple[float, ...]:
    # Keys and values of zeros cost what others cost: nothing is prefilled.
    new_cache = target.new_cache if clock.recorded is None else target.new_bucket
    cache = new_cache(batch, context + max(nodes), [0] * batch)
    cache.advance([context] * batch)
    trees = {size: _star(batch, size, target.device) for size in nodes}

    def run(size: int) -> Callable[[], None]:
        def verify() -> None:
            with target.lock:
                target.verify(trees[size], cache, taps)

        return verify

    best = clock.least({size: run(size) for size in nodes})
    return tuple(best[size] for size in nodes)


def _draft_seconds(
    target: TargetModel,
    drafter: Drafter,
    taps: Taps,
    batch: int,
    context: int,
    widths: tuple[int, ...],
    clock: _Clock,
) -> dict[tuple[int, int], float]:
    state = drafter.start(batch, context + 2, [0] * batch)
    scratch = target.new_cache(batch, 2, [0] * batch)
    features_B1F = target.verify(_star(batch, 1, target.device), scratch, taps).features_BNF
    assert features_B1F is not None
    roots_B = torch.zeros(batch, dtype=torch.int64, device=target.device)
    if clock.recorded is not None:
        state = _static_state(drafter, batch, context, features_B1F)
    state.cache.advance([context] * batch)

    def run(width: int, depth: int) -> Callable[[], None]:
        def draft() -> None:
            state.tree = TreeConfig(total_token=2, depth=depth, top_k=width)
            if clock.recorded is None:
                state.cache.rewind(context, state.cache.capacity)
                drafter.observe(state, features_B1F, roots_B[:, None], [1] * batch)
            drafter.draft(state, roots_B)

        return draft

    return clock.least({(w, d): run(w, d) for w in widths for d in (0, 2)})


def _static_state(drafter: Drafter, batch: int, context: int, features_B1F: torch.Tensor) -> DraftState:
    """Return a state of which a draft reads as many entries as a step's, and keeps none."""
    head, tree = drafter.head, drafter.tree
    cache = BucketCache(
        head.layers_count, batch, context + tree.levels + max(tree.scratch, 2 * tree.top_k), None, head.device
    )
    return StaticDraftState(
        tree, cache, tree.levels, features_B1F.new_zeros(batch, tree.levels, features_B1F.shape[-1])
    )


def _star(batch: int, nodes: int, device: torch.device) -> DraftTree:
    """Return a tree whose drafted nodes are all children of the root."""
    zeros_BN = torch.zeros(batch, nodes, dtype=torch.int64, device=device)
    parents_BN = zeros_BN.clone()
    parents_BN[:, 0] = -1
    return from_parents(zeros_BN, parents_BN, zeros_BN.float(), min(nodes, 2))


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
    except (ValueError, KeyError, TypeError):
        return None  # none yet, or unreadable: it is measured anew
