"""`eagle processor`."""

import click

from eagle.commands import options
from eagle.commands.help import Section
from eagle.commands.line import CommandLine, Several

SHAPES = ("256x576", "2048x5632")
ROWS = (1, 4, 12, 26, 60)

COMMAND = CommandLine(
    "processor",
    "eagle.evaluation.processor",
    "Time what compile=True and bf16 bring on this CPU.\n\n"
    "Linear products, stock and packed. Every shape is timed over several layers, so that not all of their weights "
    "stay in the nearest cache; the least disturbed of alternating rounds counts.",
    Section(
        "Options",
        (
            Several(["--shapes"], metavar="INxOUT", help=f"{' '.join(SHAPES)} if not given"),
            options.model(
                "--base-model-path --base", "take the shapes of this model's linear layers; no weights are read"
            ),
            Several(["--dtypes"], type=click.Choice(options.DTYPES), default=["float32", "bfloat16"]),
            Several(["--rows"], type=int, default=list(ROWS), help="rows of a product: nodes of a tree"),
            options.number("--rounds", default=25),
            options.json_file(),
            options.quiet(),
        ),
    ),
    examples=("eagle processor", "eagle processor --base-model-path BASE"),
)
