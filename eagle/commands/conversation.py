"""`eagle conversation`."""

from eagle.commands import options
from eagle.commands.help import Section
from eagle.commands.line import CommandLine

COMMAND = CommandLine(
    "conversation",
    "eagle.evaluation.conversation",
    "Measure what reusing a conversation's caches saves.\n\n"
    "One conversation, turn by turn, with and without `reuse_prefix`, in alternating rounds. Both ways must give the "
    "same ids in fp32.",
    Section(
        "The pair (default: the shipped tiny one)",
        (
            options.model("--base-model-path --base", "folder or Hub id of the base model"),
            options.model("--ea-model-path --head", "its head"),
            options.choice("--dtype", options.DTYPES, default="float32"),
        ),
    ),
    Section(
        "What is run",
        (
            *options.tree(),
            options.prompts(),
            options.number("--turns", default=5),
            options.number("--max-new-token --max-new-tokens", default=32),
            options.number("--rounds", default=5),
        ),
    ),
    Section("What comes out", (options.json_file(), options.quiet())),
    examples=("eagle conversation --base-model-path TARGET --ea-model-path HEAD",),
)
