"""Linear layers in the block layout that the processor multiplies fastest, for the time of our own forwards.

On a CPU torch's `linear` lays a weight out anew in every call (bf16), or multiplies a few rows at half the speed of one
(fp32). oneDNN can keep the blocked copy; `torch.compile` with freezing does the same behind guards that cost more
than they save on small models. Which layers that makes faster, and for how many rows, is timed (`products`); the others
stay as they are. The base model keeps its own weights, so memory for packed layers doubles, and between our forwards
its modules are as they were.
"""

import logging
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from eagle.model.support.measurements import kept_file, processor_name, progress_bar, read, write
from eagle.model.support.products import ALWAYS, NEVER, PASS, ROWS, faster_packed, pays, place

logger = logging.getLogger(__name__)

# Weights of these types are packed where the processor multiplies them natively.
SUPPORTED = {
    torch.float32: lambda: torch.backends.mkldnn.is_available(),
    torch.bfloat16: lambda: torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    torch.float16: lambda: torch.ops.mkldnn._is_mkldnn_fp16_supported(),
}
_PACKED: WeakKeyDictionary[nn.Module, "PrepackedLinears"] = WeakKeyDictionary()
# Elements per weight that are compared to notice a change behind our back.
SAMPLE = 64


class PackedLinear:
    """A linear layer's forward over a packed copy of its weight, for numbers of rows at which that is faster.

    Args:
        module: the layer; its bias is read at every call, its weight copied by `pack`.

    Attributes:
        faster: for which numbers of rows the packed copy is used, see `products.place`.
    """

    _packed: torch.Tensor | None
    _source: torch.Tensor | None

    def __init__(self, module: nn.Linear) -> None:
        self.module = module
        self.thread = 0  # the one in which this stands in for the module's forward
        self.unpack()

    @property
    def can_be_packed(self) -> bool:
        """Whether the weight is on the CPU, in a dtype that the processor packs."""
        return self.module.weight.device.type == "cpu" and packable(self.module.weight.dtype)

    @property
    def shape(self) -> tuple[int, int, str]:
        """Width in, width out and dtype: what decides whether packing is faster."""
        module = self.module
        return module.in_features, module.out_features, str(module.weight.dtype).removeprefix("torch.")

    @property
    def is_packed(self) -> bool:
        """Whether there is a packed copy."""
        return self._packed is not None

    def pack(self, faster: tuple[bool, ...] = ALWAYS) -> None:
        """Copy the weight as it is now, to be used at these numbers of rows."""
        self.faster = faster
        weight = self.module.weight.detach()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self._source, self._made_of, self._sample = self.module.weight, _mark(weight), self._sampled().clone()

    def unpack(self) -> None:
        """Drop the copy."""
        weight = self.module.weight
        self._packed = None
        self.faster, self._source = NEVER, None
        self._made_of, self._sample = (weight.device, weight.dtype), weight.new_empty(0)

    @property
    def is_stale(self) -> bool:
        """Whether the weight has changed since: merged adapters, `load_state_dict`, another dtype."""
        weight = self.module.weight
        if not self.is_packed:
            return bool(self._made_of != (weight.device, weight.dtype))
        if weight is not self._source or _mark(weight) != self._made_of:
            return True
        # A change through `.data` counts no version: a sample tells of those that are not confined to a few numbers.
        return not torch.equal(self._sampled(), self._sample)

    def _sampled(self) -> torch.Tensor:
        flat = self.module.weight.detach().flatten()
        return flat[:: max(1, flat.numel() // SAMPLE)]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return `module(x)`; another thread that meets us here gets the module's own forward."""
        rows = x.numel() // x.shape[-1]
        if not self.faster[place(rows)] or threading.get_ident() != self.thread or x.dtype != self._sample.dtype:
            return nn.Linear.forward(self.module, x)
        return self.product(x)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply with the packed copy."""
        return torch.ops.mkldnn._linear_pointwise.default(x, self._packed, self.module.bias, "none", [], "")

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy and pickle without the packed weight, which torch cannot copy."""
        return _remade, (self.module, self.faster if self.is_packed else None)


def _remade(module: nn.Linear, faster: tuple[bool, ...] | None) -> PackedLinear:
    linear = PackedLinear(module)
    if faster is not None:
        linear.pack(faster)
    return linear


class PrepackedLinears:
    """The linear layers of a model, packed where that is faster here.

    Args:
        root: any module. Its plain `nn.Linear`s on the CPU may be packed; quantised ones, those with hooks of
            accelerate, and those inside an adapter, which merges weights in place, stay as they are.

    Raises:
        ValueError: nothing can be packed here, and why.
    """

    def __init__(self, root: nn.Module) -> None:
        wrapped = {
            id(child) for module in root.modules() if hasattr(module, "base_layer") for child in module.modules()
        }
        linears = [m for m in root.modules() if type(m) is nn.Linear and id(m) not in wrapped]
        places = {m.weight.device.type for m in linears}
        if places - {"cpu"}:
            raise ValueError(f"compile=True packs linear layers on a CPU; these are on {sorted(places)}")
        refused = {m.weight.dtype for m in linears if not packable(m.weight.dtype)}
        if refused or not linears:
            found = f"linear layers in {sorted(map(str, refused))}" if refused else "no plain linear layers"
            raise ValueError(f"compile=True: this processor packs {_names()}, the model has {found}")
        self._linears = {m: PackedLinear(m) for m in linears if "forward" not in m.__dict__}
        self._pack(list(self._linears.values()))

    @property
    def settings(self) -> list[Any]:
        """What is packed and when it is used: [shape, verdicts] of every shape, for whom speed depends on it."""
        return sorted({(linear.shape, linear.faster) for linear in self._linears.values()})

    def refresh(self) -> None:
        """Pack again what has changed."""
        stale = [linear for linear in self._linears.values() if linear.is_stale]
        if stale:
            self._pack(stale)

    def _pack(self, linears: list[PackedLinear]) -> None:
        """Pack those of the layers whose shape is faster packed."""
        groups = defaultdict[tuple[int, int, str], list[PackedLinear]](list)
        for linear in linears:
            linear.unpack()
            if linear.can_be_packed:
                groups[linear.shape].append(linear)
        with progress_bar(len(groups), "packing linear layers") as bar:
            for group in groups.values():
                faster = _verdict(group)
                for linear in group:
                    if not pays(faster):
                        linear.unpack()
                    elif linear.is_packed:  # for the timing
                        linear.faster = faster
                    else:
                        linear.pack(faster)
                bar.update()
        self._usable = {module: linear for module, linear in self._linears.items() if linear.is_packed}
        logger.info(
            "compile=True: %d of %d linear layers are faster packed on this processor, and are",
            len(self._usable),
            len(self._linears),
        )

    @contextmanager
    def active(self, part: nn.Module | None = None) -> Iterator[None]:
        """Multiply with the packed weights inside the `with` block, of one module where `part` names it."""
        chosen = self._usable
        if part is not None:
            chosen = {part: chosen[part]} if part in chosen else {}
        # Autocast would have changed the dtype of every product.
        if torch.is_autocast_enabled("cpu"):
            chosen = {}
        thread = threading.get_ident()
        try:
            for module, linear in chosen.items():
                linear.thread = thread
                module.__dict__["forward"] = linear
            yield
        finally:
            for module in chosen:
                module.__dict__.pop("forward", None)


def packed(root: nn.Module) -> PrepackedLinears:
    """Return what is packed of a model, once for all that use it."""
    known = _PACKED.get(root)
    if known is None:
        known = _PACKED[root] = PrepackedLinears(root)
    return known


def _verdict(group: Sequence[PackedLinear]) -> tuple[bool, ...]:
    """Return at which numbers of rows layers of one shape are faster packed; timed if it is not known."""
    shape = group[0].shape
    path = kept_file("products", {"processor": processor_name(), "shape": shape})
    known = read(path)
    if isinstance(known, list) and len(known) == len(ROWS) and all(isinstance(verdict, bool) for verdict in known):
        return tuple(known)
    weight = group[0].module.weight
    some = group[: max(1, PASS // (weight.numel() * weight.element_size()))]
    for linear in some:
        linear.pack()
    with torch.no_grad():
        stock = [partial(nn.Linear.forward, linear.module) for linear in some]
        faster = faster_packed(stock, [linear.product for linear in some], shape[0], weight.dtype)
    write(path, list(faster))
    return faster


def _mark(weight: torch.Tensor) -> tuple[Any, ...]:
    """Return what changes with a weight's place, dtype and, but for tensors of `inference_mode`, contents."""
    version = None if weight.is_inference() else weight._version
    return weight.data_ptr(), weight.device, weight.dtype, version


def packable(dtype: torch.dtype) -> bool:
    """Tell whether this processor multiplies packed weights of a dtype natively."""
    return dtype in SUPPORTED and SUPPORTED[dtype]()


def _names() -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in SUPPORTED if packable(dtype)) or "nothing"


def packed_forward(packed: PrepackedLinears | None, part: nn.Module | None = None) -> AbstractContextManager[None]:
    """Return the context in which what is packed is used; without anything packed it does nothing."""
    return packed.active(part) if packed is not None else nullcontext()
