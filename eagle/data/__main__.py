"""`python -m eagle.data`: see `command`."""

from eagle import interrupts


def main() -> int:
    """Load what the command needs, then run it; no Ctrl-C at any moment shows a traceback."""
    interrupts.expect()
    from eagle.data.command import main as command

    return interrupts.run(command)


if __name__ == "__main__":
    raise SystemExit(main())
