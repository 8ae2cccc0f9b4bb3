"""`eagle doctor`."""

from eagle.commands import options
from eagle.commands.help import Section
from eagle.commands.line import CommandLine, Several

COMMAND = CommandLine(
    "doctor",
    "eagle.doctor",
    "Check whether a base model, and a head, are supported.\n\n"
    "Takes seconds. Exit code 0 where every check passed, 1 where one failed.",
    Section(
        "What is checked",
        (
            options.model("--base-model-path --base", "folder or Hub id of the base model", required=True),
            options.model("--ea-model-path --head", "folder or Hub id of its draft head, of any trainer"),
            Several(["--capture-layers"], type=int, help="layers whose inputs the head reads, to try"),
            options.file("--prompts", "file with one beginning of a text per line, of the kind the head was made for"),
        ),
    ),
    Section(
        "How it is loaded",
        (
            options.choice("--dtype", ("auto", *options.DTYPES), default="auto"),
            options.word("--device-map", "auto, cpu, cuda, …"),
            options.choice("--attn-implementation", ("sdpa", "eager")),
            options.switch("--trust-remote-code", "run code that comes with the model"),
        ),
    ),
    Section("What comes out", (options.json_line("the report"),)),
    examples=("eagle doctor --base BASE", "eagle doctor --base BASE --head HEAD --capture-layers 2 16 29"),
)
