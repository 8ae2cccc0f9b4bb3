"""`eagle processor`: linear products on this CPU, stock and packed, by dtype, shape and number of rows.

    eagle processor
    eagle processor --base-model-path BASE      # the shapes of a model's own layers

Says what `compile=True` will pack here, and which dtype multiplies faster. Every shape is timed over several layers, so
that not all of their weights stay in the nearest cache; the least disturbed of alternating rounds counts.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from types import SimpleNamespace

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from eagle import progress
from eagle.commands.processor import COMMAND, SHAPES
from eagle.commands.running import run
from eagle.evaluation.pairs import at_least
from eagle.evaluation.report import aligned, check_json, write_json
from eagle.model.support.measurements import processor_name
from eagle.model.support.prepack import PackedLinear, packable
from eagle.model.support.products import FASTER, PASS

# The rows of a tree of usual size, at which dtypes are compared.
TREE = 12


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one product, stock and packed (None where this dtype is not packed here), per number of rows."""

    inputs: int
    outputs: int
    dtype: str
    rows: tuple[int, ...]
    stock: tuple[float, ...]
    packed: tuple[float, ...] | None

    @property
    def name(self) -> str:
        """The shape in words."""
        return f"{self.inputs} → {self.outputs}"

    @property
    def faster(self) -> list[int]:
        """The numbers of rows at which packed is faster."""
        pairs = zip(self.rows, self.stock, self.packed or (), strict=False)
        return [rows for rows, stock, packed in pairs if packed <= FASTER * stock]

    @property
    def best(self) -> dict[int, float]:
        """Milliseconds of the faster way, by rows."""
        return {rows: min(both) for rows, *both in zip(self.rows, self.stock, self.packed or self.stock, strict=True)}


@torch.no_grad()
def time_products(inputs: int, outputs: int, dtype: torch.dtype, rows: Sequence[int], rounds: int) -> Timing:
    """Time products of one shape, both ways in alternating rounds."""
    layer = nn.Linear(inputs, outputs, bias=False, dtype=dtype)
    count = max(1, min(8, PASS // (layer.weight.numel() * layer.weight.element_size())))
    layers = [layer, *(nn.Linear(inputs, outputs, bias=False, dtype=dtype) for _ in range(count - 1))]
    ways: list[Sequence[Callable[[torch.Tensor], torch.Tensor]]] = [layers]
    if packable(dtype):
        copies = [PackedLinear(one) for one in layers]
        for copy in copies:
            copy.pack()
        ways.append([copy.product for copy in copies])
    least: list[list[float]] = [[] for _ in ways]
    for number in rows:
        x_RE = torch.randn(1, number, inputs).to(dtype)
        seconds: list[list[float]] = [[] for _ in ways]
        for _ in range(rounds + 1):
            for way, kept in zip(ways, seconds, strict=True):
                started = time.perf_counter()
                for product in way:
                    product(x_RE)
                kept.append(time.perf_counter() - started)
        for kept, found in zip(seconds, least, strict=True):
            found.append(1000 * min(kept[1:]) / count)  # the first round warms up
    name = str(dtype).removeprefix("torch.")
    return Timing(inputs, outputs, name, tuple(rows), tuple(least[0]), tuple(least[1]) if len(ways) > 1 else None)


def shapes_of(path: str) -> list[tuple[int, int]]:
    """Return the shapes of a model's linear layers, most numbers last, from its configuration alone."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
    found = {(m.in_features, m.out_features) for m in model.modules() if type(m) is nn.Linear}
    return sorted(found, key=lambda shape: shape[0] * shape[1])


def abilities() -> str:
    """Return threads and instruction sets of this processor."""
    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    words = [f"{torch.get_num_threads()} threads", torch.backends.cpu.get_cpu_capability()]
    return ", ".join([*words, "bf16" if packable(torch.bfloat16) else "no bf16", "AMX" if amx else "no AMX"])


def table(timings: Sequence[Timing]) -> str:
    """Return all times as aligned text, stock → packed."""
    header = ["ms, stock → packed", "dtype", *(f"{rows} rows" for rows in timings[0].rows)]
    lines = []
    for one in timings:
        pairs = zip(one.stock, one.packed or [None] * len(one.stock), strict=True)
        cells = [f"{stock:.2f}" + (f" → {packed:.2f}" if packed is not None else "") for stock, packed in pairs]
        lines.append([one.name, one.dtype, *cells])
    return aligned(header, lines)


def advice(timings: Sequence[Timing]) -> list[str]:
    """Return what follows for `compile=True` and for the dtype, a line each."""
    lines = []
    for dtype in dict.fromkeys(one.dtype for one in timings):
        found = [
            f"{one.name} at {', '.join(map(str, one.faster))} rows"
            for one in timings
            if one.dtype == dtype and one.faster
        ]
        lines.append(
            f"compile=True in {dtype}: " + (f"faster for {'; '.join(found)}" if found else "nothing is faster packed")
        )
    rows = min(timings[0].rows, key=lambda rows: abs(rows - TREE))
    for name in dict.fromkeys(one.name for one in timings):
        best = {one.dtype: one.best[rows] for one in timings if one.name == name}
        if len(best) > 1:
            first, second = sorted(best, key=best.__getitem__)[:2]
            lines.append(f"{name} at {rows} rows: {first} takes {best[first] / best[second]:.2f} of {second}'s time")
    return lines


def check(args: SimpleNamespace) -> None:
    """Check all options before anything is loaded.

    Raises:
        ValueError: rows or rounds are less than 1, or a shape is not two numbers.
    """
    at_least(1, args, "rows", "rounds")
    if args.base_model_path is not None and args.shapes:
        raise ValueError("--shapes and --base-model-path name the same thing: pass one of them")
    for shape in args.shapes or ():
        sides = shape.split("x")
        if len(sides) != 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
            raise ValueError(f"--shapes {shape} must be two numbers as in {SHAPES[0]}")
    check_json(args)


def chosen_shapes(args: SimpleNamespace) -> list[tuple[int, int]]:
    """Return the shapes that were asked for."""
    if args.base_model_path is not None:
        return shapes_of(args.base_model_path)
    return [(int(inputs), int(outputs)) for inputs, outputs in (shape.split("x") for shape in args.shapes or SHAPES)]


def work(args: SimpleNamespace) -> int:
    """Measure and report."""
    asked = [(*shape, dtype) for shape in chosen_shapes(args) for dtype in args.dtypes]
    timings = [
        time_products(inputs, outputs, getattr(torch, dtype), args.rows, args.rounds)
        for inputs, outputs, dtype in progress.bar(asked, unit="shape", leave=False)
    ]
    lines = [f"{processor_name()}: {abilities()}", "", table(timings), "", *advice(timings)]
    sys.stdout.write("\n".join(lines) + "\n")
    write_json(args, {"timings": [asdict(one) for one in timings]})
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    return run(COMMAND, argv)


if __name__ == "__main__":
    raise SystemExit(main())
