"""`python -m eagle.data`: the same as `eagle data`."""

from eagle.commands.data import COMMAND
from eagle.commands.running import run


def main() -> int:
    """Run the command; no Ctrl-C at any moment shows a traceback, as nothing that takes time is imported before."""
    return run(COMMAND)


if __name__ == "__main__":
    raise SystemExit(main())
