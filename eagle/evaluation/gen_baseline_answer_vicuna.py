"""The reference's command of this name; see `answer_command`."""

from collections.abc import Sequence

from eagle import interrupts
from eagle.evaluation.answer_command import command


def main(argv: Sequence[str] | None = None) -> int:
    """Answer questions."""
    return command("baseline_answer", "vicuna", argv)


if __name__ == "__main__":
    raise SystemExit(interrupts.run(main))
