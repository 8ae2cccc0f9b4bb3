"""Capture and replay of decode steps: the one file that knows CUDA graphs, and the pool of step buffers.

A graph belongs to the buffers whose addresses are baked into it; the pool keeps both from call to call. It lends them
to one stream at a time; a second one meanwhile gets buffers of its own and runs without graphs. A step that cannot be
captured, or whose first replays differ from running it, is run as it is from then on.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from eagle.model.configs import TreeConfig
from eagle.model.drafter import Drafter
from eagle.model.graphs.device_step import DeviceStep, StepBuffers, room
from eagle.model.graphs.static_cache import StaticKVCache
from eagle.model.graphs.static_draft_state import StaticDraftState
from eagle.model.sampling import Sampler
from eagle.model.step import Stage
from eagle.model.target import Taps, TargetModel

logger = logging.getLogger(__name__)

FIRST_BUCKET = 512
ALIGNMENT = 64  # slots; attention kernels want masks of even widths
KEPT = 8  # step buffers of different shapes
STEPS = 16  # for each of them: four trees times four settings of the sampler
WARM_UPS = 2
READS = (
    torch.ops.aten._local_scalar_dense,
    torch.ops.aten.is_nonzero,
    torch.ops.aten.equal,
    torch.ops.aten.nonzero,
    torch.ops.aten.masked_select,
    torch.ops.aten._unique2,
)
COPIES = (torch.ops.aten._to_copy, torch.ops.aten.copy_)


class NoHostReads(TorchDispatchMode):
    """Raises where this thread would wait for the device, which a capture must not: found before one is begun.

    A capture that fails midway leaves torch's generators unusable.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket
        masks = packet in (torch.ops.aten.index, torch.ops.aten.index_put_) and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if packet in READS or masks:
            raise RuntimeError(f"{func} reads the device")
        output = func(*args, **(kwargs or {}))
        if packet in COPIES and args[packet is torch.ops.aten.copy_].device.type != output.device.type:
            raise RuntimeError(f"{func} copies between host and device")
        return output


class Backend(Protocol):
    """What captures a step."""

    def capture(self, rehearse: Callable[[], None], step: Callable[[], None]) -> Callable[[], None]:
        """Return what replays `step`.

        Args:
            rehearse: restores the step's state and runs it, as often as the backend wants it warmed up.
            step: to capture; the state it leaves, if it runs at all, is restored by the caller.

        Raises:
            RuntimeError: it cannot be captured.
        """


class CudaBackend:
    """CUDA graphs that share one memory pool.

    They may: replays never overlap (the base model's lock is held until the outcome is read), and outcomes lie outside.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pool: Any = None

    def capture(self, rehearse: Callable[[], None], step: Callable[[], None]) -> Callable[[], None]:
        """Warm up on a side stream and capture there."""
        with torch.cuda.device(self.device):
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            outer, side = torch.cuda.current_stream(), torch.cuda.Stream()
            side.wait_stream(outer)
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    rehearse()
            outer.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Other threads may go on using the device meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, stream=side, capture_error_mode="thread_local"):
                step()
        return graph.replay


class GraphPool:
    """Lends buffers and runs steps on them.

    Args:
        backend: captures steps.
        first_bucket: slots of the smallest buffers; each next ones have twice as many.
    """

    def __init__(self, backend: Backend, first_bucket: int = FIRST_BUCKET) -> None:
        self.backend, self.first_bucket = backend, first_bucket
        self._kept: OrderedDict[Hashable, StepBuffers] = OrderedDict()
        self._refused: set[Hashable] = set()
        self._is_lent = False
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> "GraphPool":
        return GraphPool(self.backend, self.first_bucket)

    def take(
        self, target: TargetModel, drafter: Drafter | None, batch: int, length: int, *, adapts: bool
    ) -> StepBuffers:
        """Lend step buffers for rows of `length` slots; steps on them may be captured if no others are lent."""
        with self._lock:
            is_first, self._is_lent = not self._is_lent, True
        return self._buffers_for(target, drafter, batch, length, captures=is_first, adapts=adapts)

    def grown(self, buffers: StepBuffers, length: int) -> StepBuffers:
        """Return larger buffers that go on where these stand, and keep these for another call."""
        buffers.make_ready(drafts=True)
        batch = len(buffers.roots_B)
        kinds = {"captures": buffers.captures, "adapts": buffers.adapts}
        larger = self._buffers_for(buffers.target, buffers.drafter, batch, length, **kinds)
        larger.load(buffers.cache, buffers.draft_state, buffers.roots_B)
        self._keep(buffers)
        return larger

    def bucket(self, buffers: StepBuffers, length: int) -> int:
        """Return the slots of the buffers on which the step after `length` slots runs: these, or what they grow to."""
        slots = length + room(buffers.drafter)
        return buffers.bucket if buffers.holds(length) else self._bucket(slots, buffers.target, buffers.drafter)

    def give(self, buffers: StepBuffers) -> None:
        """Take step buffers back."""
        self._keep(buffers)
        if buffers.captures:
            self._is_lent = False

    def _buffers_for(
        self, target: TargetModel, drafter: Drafter | None, batch: int, length: int, *, captures: bool, adapts: bool
    ) -> StepBuffers:
        bucket = self._bucket(length + room(drafter), target, drafter)
        modules = (target.model,) if drafter is None else (target.model, drafter)
        key = (batch, bucket, drafter.tree if drafter is not None else None, adapts, fingerprint(*modules))
        with self._lock:
            kept = self._kept.pop(key, None) if captures else None
        if kept is not None:
            return kept
        return StepBuffers(target, drafter, batch, bucket, captures=captures, adapts=adapts, key=key)

    def _keep(self, buffers: StepBuffers) -> None:
        if not buffers.captures:
            return
        with self._lock:
            self._kept[buffers.key] = buffers
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)[1].steps.clear()

    def _bucket(self, slots: int, target: TargetModel, drafter: Drafter | None) -> int:
        """Return the smallest bucket of enough slots, and no more than the target has positions for."""
        bucket = self.first_bucket
        while bucket < slots:
            bucket *= 2
        if target.last_position is None:
            return bucket
        most = target.last_position + room(drafter)
        return min(bucket, max(slots, -(-most // ALIGNMENT) * ALIGNMENT))

    def step(self, buffers: StepBuffers, taps: Taps, sampler: Sampler, shape: TreeConfig | None) -> DeviceStep:
        """Return the step with this tree for these settings on step buffers, with its graph if it has one."""
        kind = step_key(buffers.drafter, sampler)
        key = (shape, kind)
        if key not in buffers.steps:
            buffers.steps[key] = DeviceStep(buffers, taps, sampler, shape=shape, key=kind)
            while len(buffers.steps) > STEPS:
                del buffers.steps[next(iter(buffers.steps))]
        return buffers.steps[key]

    def refuses(self, drafter: Drafter | None, sampler: Sampler) -> bool:
        """Tell whether such a step has turned out to be no graph."""
        return step_key(drafter, sampler) in self._refused

    def run(self, step: DeviceStep, stage: Stage) -> bool:
        """Take a step, by replaying its graph where that can be trusted; tell whether later ones will take as long."""
        is_refused = step.key in self._refused
        if is_refused or not step.buffers.captures:
            step(stage)
            return is_refused
        if step.unchecked:
            with stage("capture"):
                self._rehearsed(step)
            return False
        assert step.replay is not None
        with stage("replay"):
            step.replay()
        return True

    def recorded(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return what replays work on tensors that stay, or the work itself where it cannot be captured."""
        try:
            with NoHostReads():
                work()
            return self.backend.capture(work, work)
        except RuntimeError:
            return work

    def new_cache(self, target: TargetModel, batch: int, slots: int) -> StaticKVCache:
        """Return an empty cache of the target's whose counts are on the device."""
        return StaticKVCache(target.cached_layers, batch, slots, None, target.device)

    def new_draft_state(
        self, drafter: Drafter, batch: int, context: int, features_B1F: torch.Tensor
    ) -> StaticDraftState:
        """Return a state of which a draft reads as many entries as a step's, with `context` cached; it keeps none."""
        head, tree = drafter.head, drafter.tree
        slots = context + tree.levels + max(tree.scratch, 2 * tree.top_k)
        cache = StaticKVCache(head.layers_count, batch, slots, None, head.device)
        zeros_BTF = features_B1F.new_zeros(batch, tree.levels, features_B1F.shape[-1])
        return StaticDraftState(tree, cache, tree.levels, zeros_BTF)

    def _rehearsed(self, step: DeviceStep) -> None:
        """Take a step twice, as it is and by its graph, and keep what the graph did if both agree."""
        buffers, saved = step.buffers, step.buffers.saved()

        def rehearse() -> None:
            buffers.restore(saved)
            step()

        try:
            with NoHostReads():
                step()
            wanted = [tensor.clone() for tensor in step.effects]
            if step.replay is None:
                step.replay = self._captured(step, rehearse)
        except RuntimeError as error:
            return self._refuse(step, rehearse, str(error))
        buffers.restore(saved)
        step.outcome_BX.fill_(-1)  # what it holds is right already
        step.replay()
        step.unchecked -= 1
        if not all(torch.equal(a, b) for a, b in zip(wanted, step.effects, strict=True)):
            self._refuse(step, rehearse, "its replay differs from the step itself")

    def _captured(self, step: DeviceStep, rehearse: Callable[[], None]) -> Callable[[], None]:
        started = time.perf_counter()
        replay = self.backend.capture(rehearse, step)
        seconds = time.perf_counter() - started
        logger.info(
            "captured the step on %d slots for %d rows in %.2f s",
            step.buffers.bucket,
            len(step.buffers.roots_B),
            seconds,
        )
        return replay

    def _refuse(self, step: DeviceStep, rehearse: Callable[[], None], reason: str) -> None:
        """Take the step as it is, now and from then on."""
        self._refused.add(step.key)
        step.replay = None
        logger.warning("decoding without CUDA graphs: %s", reason.splitlines()[0] if reason else "capture failed")
        rehearse()


def step_key(drafter: Drafter | None, sampler: Sampler) -> Hashable:
    """Return what steps are refused by: the largest tree and the sampler's settings."""
    return (drafter.tree if drafter is not None else None, sampler.settings)


def fingerprint(*modules: nn.Module) -> Hashable:
    """Return what a graph has baked in of modules: where their tensors are and which adapters are on."""
    tensors = [t.data_ptr() for module in modules for t in (*module.parameters(), *module.buffers())]
    names = ("_active_adapter", "_disable_adapters", "merged_adapters", "scaling")
    tuned = [part for module in modules for part in module.modules() if hasattr(part, "_active_adapter")]
    return (*tensors, *(repr(getattr(part, name, None)) for part in tuned for name in names))


def graph_pool(wanted: bool, target: TargetModel) -> GraphPool | None:
    """Return a pool for a model that is to use CUDA graphs, None for one that is not.

    Raises:
        ValueError: the model is not on one CUDA device.
    """
    if not wanted:
        return None
    devices = {str(parameter.device) for parameter in target.model.parameters()}
    # Weights that lie elsewhere for now (offload) count as elsewhere.
    if len(devices) != 1 or target.device.type != "cuda":
        raise ValueError(f"cuda_graphs=True needs the base model on one CUDA device, it is on {sorted(devices)}")
    return GraphPool(CudaBackend(target.device))
