"""What packing a linear layer is worth on this processor: milliseconds of one product, as torch does it and packed.

python examples/benchmarks/products.py [--inputs 2048 --outputs 5632 --dtype bfloat16]
"""

import argparse
import statistics
import time

import torch
from torch import nn

from eagle.model.packing import Packed

LAYERS = 8  # so many that their weights do not stay in the processor's cache


def milliseconds(layers: nn.Sequential, x: torch.Tensor, rounds: int) -> float:
    """Return the median time of one product over rounds that visit every layer."""
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        for layer in layers:
            layer(x)
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds) / len(layers)


def main() -> None:
    """Measure both in alternating order and print a line per number of rows."""
    parser = argparse.ArgumentParser(description="milliseconds of one linear product, stock and packed")
    parser.add_argument("--inputs", type=int, default=2048)
    parser.add_argument("--outputs", type=int, default=5632)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 12, 26, 60])
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    dtype = getattr(torch, args.dtype)
    layers = nn.Sequential(*(nn.Linear(args.inputs, args.outputs, bias=False, dtype=dtype) for _ in range(LAYERS)))
    packed = Packed(layers)
    print(f"{'rows':>4}{'stock':>9}{'packed':>9}  ms")
    with torch.no_grad():
        for rows in args.rows:
            x = torch.randn(1, rows, args.inputs, dtype=dtype)
            milliseconds(layers, x, 2)
            stock = milliseconds(layers, x, args.rounds)
            with packed.active():
                milliseconds(layers, x, 2)
                print(f"{rows:>4}{stock:>9.2f}{milliseconds(layers, x, args.rounds):>9.2f}")


if __name__ == "__main__":
    main()
