"""`python -m eagle.data`: see `command`."""

import os
import signal
import sys
from typing import Any


def leave(*_: Any) -> None:
    """End at once: libraries that are being loaded take an exception for anything but Ctrl-C."""
    os.write(2, b"interrupted before any work: the same command begins anew\n")
    os._exit(130)


def main() -> int:
    """Load what the command needs, then run it; no Ctrl-C at any moment shows a traceback."""
    heard = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN  # as it is in the background of a shell
    if heard:
        signal.signal(signal.SIGINT, leave)
    from eagle.data.command import main as run

    try:
        if heard:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = run()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is written and said
    except KeyboardInterrupt:
        leave()
    return code


if __name__ == "__main__":
    sys.exit(main())
