"""`python -m eagle.data`: see `command`."""

import os
import signal
import sys
from typing import Any


def _leave(*_: Any) -> None:
    """End at once: libraries that are being loaded take an exception for anything but Ctrl-C."""
    os.write(2, b"interrupted before any work: the same command begins anew\n")
    os._exit(130)


def main() -> int:
    """Load what the command needs, then run it."""
    before = signal.signal(signal.SIGINT, _leave)
    from eagle.data.command import main as run

    signal.signal(signal.SIGINT, before)
    code = run()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is written and said
    return code


if __name__ == "__main__":
    sys.exit(main())
