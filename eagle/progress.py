"""Progress bars on standard error, unless somebody asked for quiet."""

import os
from typing import Any

HIDDEN = "EAGLE_NO_PROGRESS"  # in the environment, so that processes that are started hide theirs, too


def hide() -> None:
    """Show no progress bars from here on, those of transformers and the Hub included."""
    os.environ[HIDDEN] = os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"


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
