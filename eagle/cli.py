"""The `eagle` command: all commands of the package, under titles.

What stands here loads no torch; every command imports the module of its work when it is called.
"""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

import click
from click.shell_completion import shell_complete

import eagle
from eagle.commands import (
    bench,
    chat,
    conversation,
    convert,
    curves,
    data,
    doctor,
    evaluate,
    generate,
    memory,
    processor,
    webui,
)
from eagle.commands.line import CommandGroup, ForwardedCommand, debug_option
from eagle.commands.running import run

COMPLETE = "_EAGLE_COMPLETE"
TRAIN = ForwardedCommand("train", "eagle.train.main", "Train a draft head, or take one out of a checkpoint.")
SECTIONS = {
    "Use a pair": (generate.COMMAND, chat.COMMAND, webui.COMMAND),
    "Make a head": (data.COMMAND, TRAIN, convert.COMMAND),
    "Check": (doctor.COMMAND,),
    "Measure": (
        *(evaluate.COMMAND, bench.COMMAND, curves.COMMAND),
        *(processor.COMMAND, memory.COMMAND, conversation.COMMAND),
    ),
}


def versions() -> str:
    """Return this package's version and those it stands on, without loading them."""
    found = []
    for name in ("torch", "transformers"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return f"eagle {eagle.__version__} ({', '.join(found)}, Python {platform.python_version()})"


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(versions())
        ctx.exit()


VERSION = click.Option(
    ["--version"],
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="show the versions of eagle, torch and transformers",
)
COMMAND = CommandGroup(
    "eagle",
    "Speculative decoding with EAGLE draft heads: the same tokens in fewer steps of the model.",
    SECTIONS,
    params=[VERSION, debug_option()],
)


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code; asked by a shell, complete a line."""
    if argv is None and COMPLETE in os.environ:
        return shell_complete(COMMAND, {}, "eagle", COMPLETE, os.environ[COMPLETE])
    return run(COMMAND, argv)


if __name__ == "__main__":
    sys.exit(main())
