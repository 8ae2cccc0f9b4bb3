"""`eagle curves`."""

from eagle.commands import options
from eagle.commands.help import Section
from eagle.commands.line import CommandLine, Several


def _values(name: str, default: list[int], help: str = "") -> Several:
    return Several([name], least=0, type=int, default=default, help=help)


COMMAND = CommandLine(
    "curves",
    "eagle.evaluation.curves",
    "Time a step over sizes of trees, batches and contexts.\n\n"
    "One setting is varied at a time, the others stay where they are. Rounds visit every point in turn; a round is its "
    "step of median length, a point its round of median length. A tree of one node is plain decoding.",
    options.pair_options(),
    Section(
        "Where the other settings stay",
        (
            *options.tree(),
            options.number("--batch-size", default=1),
            options.number("--context-length", default=128),
            options.prompts(),
        ),
    ),
    Section(
        "Over which values each is varied (none after the name: not at all)",
        (
            _values("--total-tokens", [1, 4, 8, 16, 32, 60], "1: plain decoding"),
            _values("--depths", [1, 2, 4, 7]),
            _values("--batch-sizes", [1, 2, 4, 8]),
            _values("--context-lengths", [64, 256, 512, 1024]),
        ),
    ),
    Section(
        "How long, and what comes out",
        (
            options.number("--steps", "per point and round", 16),
            options.number("--rounds", default=5),
            options.json_file(),
            options.file("--plots", "also draw curves.png into this folder"),
            options.quiet(),
        ),
    ),
    examples=(
        "eagle curves --base-model-path TARGET --ea-model-path HEAD",
        "eagle curves --synthetic 7b --dtype bfloat16 --plots FOLDER",
    ),
    fixed=options.NO_ASSISTANT,
)
