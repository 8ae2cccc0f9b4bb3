"""Linear layers in the block layout that the processor multiplies fastest, for the time of our own forwards.

On a CPU torch's `linear` lays a weight out anew in every call (bf16), or multiplies a few rows at half the speed of one
(fp32). oneDNN can keep the blocked copy; `torch.compile` with freezing does the same behind guards that cost more
than they save on small models. The base model keeps its own weights, so memory for linear layers doubles, and between
our forwards its modules are as they were.
"""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

# Weights of these types are packed where the processor multiplies them natively.
SUPPORTED = {
    torch.float32: lambda: torch.backends.mkldnn.is_available(),
    torch.bfloat16: lambda: torch.ops.mkldnn._is_mkldnn_bf16_supported(),
    torch.float16: lambda: torch.ops.mkldnn._is_mkldnn_fp16_supported(),
}
_PACKED: WeakKeyDictionary[nn.Module, "Packed"] = WeakKeyDictionary()
# Elements per weight that are compared to notice a change behind our back.
SAMPLE = 64


class PackedLinear:
    """A linear layer's forward over a packed copy of its weight.

    Args:
        module: the layer; its bias is read at every call, its weight copied here, unless it has since moved to a
            dtype or device that is not packed: then the layer goes on by itself.
    """

    def __init__(self, module: nn.Linear) -> None:
        self.module = module
        self.thread = 0  # the one in which this stands in for the module's forward
        self.pack()

    def pack(self) -> None:
        """Copy the weight as it is now."""
        weight = self.module.weight.detach()
        self.is_packed = weight.device.type == "cpu" and _is_supported(weight.dtype)
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, None) if self.is_packed else None
        self._source, self._made_of, self._sample = self.module.weight, _mark(weight), self._sampled().clone()

    @property
    def is_stale(self) -> bool:
        """Whether the weight has changed since: merged adapters, `load_state_dict`, another dtype."""
        if self.module.weight is not self._source or _mark(self.module.weight) != self._made_of:
            return True
        # A change through `.data` counts no version: a sample tells of those that are not confined to a few numbers.
        return not torch.equal(self._sampled(), self._sample)

    def _sampled(self) -> torch.Tensor:
        flat = self.module.weight.detach().flatten()
        return flat[:: max(1, flat.numel() // SAMPLE)]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return `module(x)`; another thread that meets us here gets the module's own forward."""
        if threading.get_ident() != self.thread or x.dtype != self._sample.dtype:
            return nn.Linear.forward(self.module, x)
        return torch.ops.mkldnn._linear_pointwise.default(x, self._packed, self.module.bias, "none", [], "")

    def __reduce__(self) -> tuple[type["PackedLinear"], tuple[nn.Module]]:
        """Copy and pickle without the packed weight, which torch cannot copy."""
        return PackedLinear, (self.module,)


class Packed:
    """All linear layers of a model that can be packed.

    Args:
        root: any module. Its plain `nn.Linear`s on the CPU are packed; quantised ones, those with hooks of
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
        refused = {m.weight.dtype for m in linears if not _is_supported(m.weight.dtype)}
        if refused or not linears:
            found = f"linear layers in {sorted(map(str, refused))}" if refused else "no plain linear layers"
            raise ValueError(f"compile=True: this processor packs {_names()}, the model has {found}")
        self._linears = {m: PackedLinear(m) for m in linears if "forward" not in m.__dict__}
        self._usable = self._found()

    def refresh(self) -> None:
        """Pack again what has changed."""
        for linear in self._linears.values():
            if linear.is_stale:
                linear.pack()
        self._usable = self._found()

    def _found(self) -> dict[nn.Module, PackedLinear]:
        return {module: linear for module, linear in self._linears.items() if linear.is_packed}

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


def packed(root: nn.Module) -> Packed:
    """Return what is packed of a model, once for all that use it."""
    known = _PACKED.get(root)
    if known is None:
        known = _PACKED[root] = Packed(root)
    return known


def _mark(weight: torch.Tensor) -> tuple[Any, ...]:
    """Return what changes with a weight's place, dtype and, but for tensors of `inference_mode`, contents."""
    version = None if weight.is_inference() else weight._version
    return weight.data_ptr(), weight.device, weight.dtype, version


def _is_supported(dtype: torch.dtype) -> bool:
    return dtype in SUPPORTED and SUPPORTED[dtype]()


def _names() -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in SUPPORTED if _is_supported(dtype)) or "nothing"


def packed_forward(packed: Packed | None, part: nn.Module | None = None) -> AbstractContextManager[None]:
    """Return the context in which what is packed is used; without anything packed it does nothing."""
    return packed.active(part) if packed is not None else nullcontext()
