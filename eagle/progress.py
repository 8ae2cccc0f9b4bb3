"""Progress bars on standard error, unless somebody asked for quiet."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

HIDDEN = "EAGLE_NO_PROGRESS"  # in the environment, so that processes that are started hide theirs, too


@contextmanager
def hidden() -> Iterator[None]:
    """Show no progress bars meanwhile; nor do transformers and the Hub's client, if they are imported meanwhile."""
    names = (HIDDEN, "HF_HUB_DISABLE_PROGRESS_BARS")
    before = {name: os.environ.get(name) for name in names}
    os.environ |= dict.fromkeys(names, "1")
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def bar(*iterable: Any, always: bool = False, **options: Any) -> Any:
    """Return a bar of tqdm's.

    Args:
        iterable: what it goes over, if anything.
        always: show it outside of terminals, too, as in a log of a long run.
        options: tqdm's.
    """
    from tqdm import tqdm  # the command line imports this file, and waits for nothing

    is_hidden = bool(os.environ.get(HIDDEN))
    return tqdm(*iterable, disable=True if is_hidden else False if always else None, **options)
