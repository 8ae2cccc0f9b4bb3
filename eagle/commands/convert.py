"""`eagle convert`."""

import click

from eagle.commands import options
from eagle.commands.help import Section
from eagle.commands.line import CommandLine, Several

VALUES = {"true": True, "false": False}


class _Change(click.ParamType):
    """NAME=VALUE, a field of a head's configuration."""

    name = "text"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, bool | float]:
        """Return name and value."""
        name, is_there, text = value.partition("=")
        if text in VALUES:
            return name, VALUES[text]
        try:
            return name, float(text)
        except ValueError:
            words = f"{value!r} must be NAME=true, NAME=false or NAME=NUMBER"
            self.fail(words if is_there else f"{words}: = is missing", param, ctx)


COMMAND = CommandLine(
    "convert",
    "eagle.convert",
    "Write a head of any trainer for eagle, vLLM or SGLang.\n\n"
    "The tensors stay as they are, bit by bit; only names and configuration change. What a layout cannot say of a head "
    "is refused rather than left out.",
    Section(
        "What is written",
        (
            options.model("--base-model-path --base", "folder or Hub id of the head's base model", required=True),
            options.model("--ea-model-path --head", "folder or Hub id of the head, of any trainer", required=True),
            click.Option(
                ["--to"], type=click.Choice(options.LAYOUTS), required=True, help="speculators is what vLLM reads"
            ),
            click.Option(["--out"], type=click.Path(), required=True, help="folder to write, empty or not there"),
            options.word("--revision", "of the head"),
        ),
    ),
    Section(
        "What its configuration says wrongly",
        (
            Several(["--capture-layers"], type=int, help="layers whose inputs it reads (eagle doctor)"),
            Several(
                ["--set"],
                type=_Change(),
                default=[],
                metavar="NAME=VALUE",
                help=f"a field of its config.json: {', '.join(options.FLAGS)}=true or false, rope_theta=NUMBER",
            ),
        ),
    ),
    Section(
        "The Hub",
        (
            options.word("--push-to-hub", "upload the folder as well", metavar="OWNER/NAME"),
            options.switch("--private", "the repository that is made is private"),
        ),
    ),
    Section("What comes out", (options.json_line("where it is"),)),
    examples=(
        "eagle convert --base BASE --head HEAD --to speculators --out FOLDER",
        "eagle convert --base BASE --head HEAD --to eagle --out FOLDER --capture-layers 2 16 29 --set norm_output=true",
    ),
)
