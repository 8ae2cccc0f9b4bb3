"""The profiler: what verifying and drafting cost on this machine, timed in seconds at load.

Where steps are replayed from graphs, so is what is timed; a `Recorder` makes them, without this file knowing graphs.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from eagle.model.adaptive.costs import Costs
from eagle.model.configs import TreeConfig
from eagle.model.draft_state import BaseDraftState
from eagle.model.drafter import Drafter
from eagle.model.kv_cache import BaseKVCache
from eagle.model.support.measurements import progress_bar
from eagle.model.target import Taps, TargetModel
from eagle.model.tree import DraftTree, from_parents

NODES = (1, 2, 3, 4, 6, 8, 16, 32, 60)
WIDTHS = (1, 4, 10)
CONTEXTS = (64, 1024)
# Tokens of one forward, over all rows, beyond which nothing is measured; the same for tokens in the cache, which may
# not take more memory than the calls it is measured for. A slope needs contexts that are so many times apart.
MOST_TOKENS, MOST_CACHED, APART = 512, 8192, 4
# Sizes that are measured of a model so slow that all of them would take too long.
FEW_NODES, FEW_WIDTHS = (1, 2, 4, 8, 32), (1, 10)
# Seconds that measuring a batch size may take, and rounds at most. A slow model is measured at fewer sizes, each once
# after a warm-up: about a dozen of its forwards.
SECONDS, ROUNDS = 4.0, 9


class Recorder(Protocol):
    """What makes graphs of work, and the tensors that stay where they are for it."""

    def recorded(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return what replays work on tensors that stay, or the work itself where it cannot be captured."""

    def new_cache(self, target: TargetModel, batch: int, slots: int) -> BaseKVCache:
        """Return an empty cache of the target's for such work."""

    def new_draft_state(self, drafter: Drafter, batch: int, context: int, features_B1F: torch.Tensor) -> BaseDraftState:
        """Return a state of which a draft reads as many entries as a step's, with `context` cached; it keeps none."""


@torch.no_grad()
def measure(target: TargetModel, drafter: Drafter, taps: Taps, batch: int, recorder: Recorder | None = None) -> Costs:
    """Time forwards over trees and draft levels, in alternating rounds; the least disturbed one counts.

    Takes `SECONDS`, or about a dozen forwards where that is longer, and shows a bar meanwhile.

    Args:
        recorder: makes graphs of them; None runs them as they are.
    """
    most = drafter.tree.nodes
    contexts = _contexts(target, batch, 2 * most)
    # Two contexts, two kinds of work each: as much time for all.
    clock = _Clock(target.device, recorder, SECONDS / 4)
    is_slow = _plain_seconds(target, taps, batch, contexts[0]) * 2 * len(NODES) > SECONDS / 2
    nodes = tuple(size for size in (FEW_NODES if is_slow else NODES) if size < most and size * batch <= MOST_TOKENS)
    nodes = (*nodes, most) if most * batch <= MOST_TOKENS else nodes or (1,)
    widths = tuple(sorted({min(width, drafter.tree.top_k) for width in (FEW_WIDTHS if is_slow else WIDTHS)}))
    contexts = contexts[:1] if is_slow else contexts
    verify, first, level = [], [], []
    timings = len(contexts) * (len(nodes) + 2 * len(widths))
    with progress_bar(timings, "timing draft trees, once on this machine") as clock.bar:
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
        recorder: makes graphs of them, or None.
        seconds: for all rounds of one call, warm-up and first round excepted.
        bar: moves on by one with every alternative.
    """

    device: torch.device
    recorder: Recorder | None
    seconds: float
    bar: Any = None

    def least(self, runs: dict[Any, Callable[[], None]]) -> dict[Any, float]:
        """Return the shortest time of every run over alternating rounds, after one that does not count."""
        if self.recorder is not None:
            runs = {name: self.recorder.recorded(run) for name, run in runs.items()}
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
    slots = context + max(nodes)
    if clock.recorder is None:
        cache = target.new_cache(batch, slots, [0] * batch)
    else:
        cache = clock.recorder.new_cache(target, batch, slots)
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
    own = drafter.start(batch, context + 2, [0] * batch)
    state: BaseDraftState = own
    scratch = target.new_cache(batch, 2, [0] * batch)
    features_B1F = target.verify(_star(batch, 1, target.device), scratch, taps).features_BNF
    assert features_B1F is not None
    roots_B = torch.zeros(batch, dtype=torch.int64, device=target.device)
    if clock.recorder is not None:
        state = clock.recorder.new_draft_state(drafter, batch, context, features_B1F)
    state.cache.advance([context] * batch)

    def run(width: int, depth: int) -> Callable[[], None]:
        def draft() -> None:
            state.tree = TreeConfig(total_token=2, depth=depth, top_k=width)
            if state is own:
                own.cache.rewind(context, own.cache.capacity)
                drafter.observe(own, features_B1F, roots_B[:, None], [1] * batch)
            drafter.draft(state, roots_B)

        return draft

    return clock.least({(w, d): run(w, d) for w in widths for d in (0, 2)})


def _star(batch: int, nodes: int, device: torch.device) -> DraftTree:
    """Return a tree whose drafted nodes are all children of the root."""
    zeros_BN = torch.zeros(batch, nodes, dtype=torch.int64, device=device)
    parents_BN = zeros_BN.clone()
    parents_BN[:, 0] = -1
    return from_parents(zeros_BN, parents_BN, zeros_BN.float(), min(nodes, 2))
