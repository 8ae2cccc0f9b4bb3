"""`eagle bench`."""

from eagle.commands import options
from eagle.commands.help import Section
from eagle.commands.line import CommandLine, Several

COMMAND = CommandLine(
    "bench",
    "eagle.evaluation.bench",
    "Measure a pair against generate and plain decoding.\n\n"
    "Every round runs every method once, so that whatever else the machine does falls on all of them; a method's speed "
    "is the median over rounds, its speed-up the median of the rounds' ratios to the faster baseline.",
    options.pair_options(options.assistant()),
    Section(
        "What is run",
        (
            options.methods(),
            options.trees([12]),
            *options.tree_limits(),
            options.prompts(),
            options.number("--num-prompts", "per round", 8),
            Several(["--batch-sizes"], type=int, default=[1]),
            Several(["--prompt-lengths"], type=int, help="tokens; prompts as they are if not given"),
            options.number("--max-new-token --max-new-tokens", default=128),
            options.number("--rounds", default=5),
            options.real("--temperature", "0: greedy", 0.0),
            options.number("--seed", "before every run, for sampling", 0),
        ),
    ),
    Section(
        "What comes out",
        (
            options.switch("--split", "also print where the time goes"),
            options.json_file(),
            options.file("--plots", "also draw PNG files into this folder"),
            options.quiet(),
        ),
    ),
    examples=(
        "eagle bench --base-model-path TARGET --ea-model-path HEAD --split",
        "eagle bench --synthetic 7b --dtype bfloat16 --batch-sizes 1 8",
    ),
)
