"""`eagle memory`."""

from eagle.commands import options
from eagle.commands.help import Section
from eagle.commands.line import CommandLine

COMMAND = CommandLine(
    "memory",
    "eagle.evaluation.memory",
    "Compare what a call should hold with the measured peak.",
    options.pair_options(),
    Section(
        "What is run",
        (
            *options.tree(),
            options.prompts(),
            options.number("--prompt-length", "tokens", 1024),
            options.number("--new-tokens --max-new-tokens", "tokens", 64),
            options.number("--prefill-chunk", f"prompt tokens per forward, {options.PREFILL_CHUNK} if not given"),
        ),
    ),
    Section("What comes out", (options.json_file(), options.quiet())),
    examples=(
        "eagle memory --base-model-path TARGET --ea-model-path HEAD",
        "eagle memory --synthetic 850m --dtype bfloat16",
    ),
    fixed=options.NO_ASSISTANT,
)
