"""Arguments by kind: whole numbers, numbers, switches. What is of another kind is refused in one sentence.

`True` is no number here, and text that reads as one is none: whoever passes them meant something else. Knows nothing of
what the arguments are for.
"""

import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from reprlib import Repr
from typing import Any

_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 60


def shown(value: Any) -> str:
    """Return a value as a message can show it: one line, not long."""
    return " ".join(_SHORT.repr(value).split())


def is_whole(value: Any) -> bool:
    """Tell whether a value is a whole number, of Python or numpy."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Tell whether a value is a real number that a float can hold, infinity included and NaN not."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return not math.isnan(value)
    except OverflowError:
        return False


def are_whole(values: Any) -> bool:
    """Tell whether values are a list of whole numbers."""
    return isinstance(values, Iterable) and not isinstance(values, str | bytes | Mapping) and all(map(is_whole, values))


def whole(name: str, value: Any, least: int | None = None) -> int:
    """Return a whole number.

    Raises:
        ValueError: it is none, or less than `least`.
    """
    if not is_whole(value):
        raise ValueError(f"{name}={shown(value)} must be a whole number" + _from(least))
    if least is not None and value < least:
        raise ValueError(f"{name}={shown(value)} must be {least} or more")
    return int(value)


def number(name: str, value: Any, least: int | None = None) -> float:
    """Return a number.

    Raises:
        ValueError: it is none, or less than `least`.
    """
    if not is_number(value):
        raise ValueError(f"{name}={shown(value)} must be a number" + _from(least))
    if least is not None and value < least:
        raise ValueError(f"{name}={shown(value)} must be {least} or more")
    return float(value)


def switch(name: str, value: Any) -> bool:
    """Return True or False.

    Raises:
        ValueError: it is neither.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name}={shown(value)} must be True or False")
    return value


def _from(least: int | None) -> str:
    return "" if least is None else f", {least} or more"
