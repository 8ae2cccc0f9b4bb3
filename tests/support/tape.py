"""CUDA graphs on a CPU: a tape of operations with a graph's rules.

Capturing records every operation with its arguments and undoes what it wrote, because a real capture runs nothing.
Replaying runs the same operations again: tensors made while capturing are made anew from the recorded arguments,
tensors from before are used where they lie, and every number the host knew then is baked in. Whatever reads a tensor
on the host while capturing raises, which on a GPU would wait for the device.
"""

from contextlib import ExitStack
from unittest.mock import patch

import torch
from torch.utils._pytree import tree_leaves, tree_map

from eagle.model.graphs.pool import NoHostReads

HOST_READS = ("tolist", "numpy", "item", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__")


class Made:
    """Stands for a tensor made while capturing: output `place` of operation `number`."""

    def __init__(self, number: int, place: int) -> None:
        self.number, self.place = number, place


class Recorder(NoHostReads):
    """Records; `operations` are (function, arguments, how many results)."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = []
        self.made: dict[int, Made] = {}
        self.alive = []  # so that no id is used twice
        self.storages: set[int] = set()
        self.before: dict[int, tuple] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if packet is torch.ops.aten.lift_fresh and args[0].ndim > 0:
            raise RuntimeError("a tensor is copied from the host")  # one without dimensions is a number, baked in
        self._save_written(func, args, kwargs)
        recorded = tree_map(self._reference, (args, kwargs))
        output = super().__torch_dispatch__(func, types, args, kwargs)
        inputs = {id(leaf) for leaf in tree_leaves((args, kwargs))}
        old = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        for place, result in enumerate(tree_leaves(output)):
            if isinstance(result, torch.Tensor) and id(result) not in inputs:
                self.made[id(result)] = Made(len(self.operations), place)
                self.alive.append(result)
                if _storage(result) not in old:
                    self.storages.add(_storage(result))
        self.operations.append((func, *recorded))
        return output

    def _reference(self, leaf):
        return self.made.get(id(leaf), leaf) if isinstance(leaf, torch.Tensor) else leaf

    def _save_written(self, func, args, kwargs) -> None:
        for number, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = args[number] if number < len(args) else kwargs.get(argument.name)
            for tensor in tree_leaves(value):
                place = _storage(tensor)
                if place not in self.storages and place not in self.before:
                    storage = tensor.untyped_storage()
                    self.before[place] = (storage, storage.clone())

    def undo(self) -> None:
        for storage, content in self.before.values():
            storage.copy_(content)


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class TapeBackend:
    """Captures on a tape. Counts `captures` and `replays`."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def capture(self, rehearse, step):
        rehearse()
        recorder = Recorder()
        with ExitStack() as stack:
            for name in HOST_READS:
                stack.enter_context(patch.object(torch.Tensor, name, _raising(name)))
            stack.enter_context(recorder)
            step()
        recorder.undo()
        self.captures += 1
        operations = recorder.operations

        @torch.no_grad()
        def replay() -> None:
            self.replays += 1
            results = []
            for func, args, kwargs in operations:
                args, kwargs = tree_map(lambda x: _remade(x, results), (args, kwargs))
                results.append(tree_leaves(func(*args, **kwargs)))

        return replay


def _remade(leaf, results):
    return results[leaf.number][leaf.place] if isinstance(leaf, Made) else leaf


def _raising(name: str):
    def read(self, *args, **kwargs):
        raise RuntimeError(f"Tensor.{name} reads the device")

    return read
