"""Which linear products are faster packed on this processor: timed once per shape and dtype, for several row counts.

Neither way is faster everywhere: packing saves laying out the weight anew, and costs a longer call. A decode step
multiplies few rows (one of a plain step, the nodes of a tree, the beam of a draft level), so each is decided by itself.
"""

import time
from collections.abc import Callable, Sequence

import torch

# A verdict for 1 row, 2 or 3, 4 to 7, …, 128 or more; each from one number of rows in the middle.
ROWS = (1, 3, 6, 12, 24, 48, 96, 192)
# Of them those that decoding multiplies, and how many of those must be faster before a layer takes twice its memory.
DECODING, ENOUGH = 7, 2
NEVER, ALWAYS = (False,) * len(ROWS), (True,) * len(ROWS)
# Packed must take at most this share of the time; less is noise.
FASTER = 0.95
LEAST_ROUNDS, ROUNDS, SECONDS = 3, 25, 0.4
# Bytes of weights that one pass goes over, so that they are not all in the processor's nearest cache.
PASS = 1 << 26

Product = Callable[[torch.Tensor], torch.Tensor]


def place(rows: int) -> int:
    """Return which verdict holds for so many rows."""
    return min(max(rows, 1).bit_length(), len(ROWS)) - 1


def faster_packed(
    stock: Sequence[Product], packed: Sequence[Product], inputs: int, dtype: torch.dtype
) -> tuple[bool, ...]:
    """Time both ways in alternating rounds, and return for each of `ROWS` whether packed is faster.

    The least disturbed round of either counts, so that other work on the machine decides little.

    Args:
        stock, packed: the same products of one shape, unpacked and packed; a pass goes over all of them.
        inputs: width of what is multiplied.
        dtype: of it.
    """
    began, verdicts = time.perf_counter(), list[bool]()
    for number, rows in enumerate(ROWS):
        # Small sizes come first: where time runs out, more rows are taken to be as the last ones.
        if verdicts and time.perf_counter() - began > SECONDS:
            verdicts.append(verdicts[-1])
            continue
        x_RE = torch.randn(rows, inputs).to(dtype)
        _seconds(stock, x_RE)
        _seconds(packed, x_RE)
        least = [float("inf")] * 2
        deadline = began + SECONDS * (number + 1) / len(ROWS)
        for turn in range(ROUNDS):
            if turn >= LEAST_ROUNDS and time.perf_counter() > deadline:
                break
            least = [min(best, _seconds(way, x_RE)) for best, way in zip(least, (stock, packed), strict=True)]
        verdicts.append(least[1] <= FASTER * least[0])
    return tuple(verdicts)


def pays(faster: tuple[bool, ...]) -> bool:
    """Tell whether a layer with these verdicts is worth a packed copy."""
    return sum(faster[:DECODING]) >= ENOUGH


def _seconds(products: Sequence[Product], x_RE: torch.Tensor) -> float:
    started = time.perf_counter()
    for product in products:
        product(x_RE)
    return time.perf_counter() - started
