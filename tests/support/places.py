"""Where things of this project lie, for tests and for processes that they start."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAIR = ROOT / "examples" / "tiny_pair"


def environment(**more: str) -> dict[str, str]:
    """Return the variables of a process that imports eagle from here and all else from where this one does."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, **more}
