"""Help as text: what a command does, examples, and its options by section, as wide as the terminal up to a limit."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, TextIO

import click
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

WIDEST, NAMES = 110, 34  # columns of the whole, and of the names of options
HELP = click.Option(["--help"], is_flag=True, help="show this and leave")
KINDS = {"integer": "N", "float": "X", "path": "PATH", "choice": "NAME"}


def is_coloured(stream: TextIO) -> bool:
    """Tell whether a stream takes colours: NO_COLOR, then FORCE_COLOR, then whether it is a terminal."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or stream.isatty()


@dataclass(frozen=True)
class Section:
    """Options that belong together, under a title of the help."""

    title: str
    options: tuple[click.Option, ...]


def help_of(ctx: click.Context, sections: Sequence[Section], examples: Sequence[str]) -> str:
    """Return the help of one command."""
    command = ctx.command
    pieces = [" ".join(command.collect_usage_pieces(ctx)[1:])]
    parts = [_usage(f"{ctx.command_path} [OPTIONS] {' '.join(pieces)}".rstrip()), _prose(command.help or "")]
    if examples:
        parts.append(
            _section("Examples", [Text(f"  {line}", "dim", no_wrap=True, overflow="ignore") for line in examples])
        )
    for section in sections:
        options = [*section.options, *([HELP] if section is sections[-1] else [])]
        parts.append(_section(section.title, [_rows([(_names(one), _about(one, ctx)) for one in options])]))
    return _text(parts)


def help_of_all(ctx: click.Context, sections: Mapping[str, Sequence[click.Command]]) -> str:
    """Return the help of the program: its commands by section."""
    group = ctx.command
    parts = [_usage(f"{ctx.command_path} [OPTIONS] COMMAND [ARGUMENTS]"), _prose(group.help or "")]
    for title, commands in sections.items():
        lines = [(Text(str(one.name), "bold cyan"), Text((one.help or "").split("\n")[0])) for one in commands]
        parts.append(_section(title, [_rows(lines, 12)]))
    options = [(_names(one), _about(one, ctx)) for one in [*group.params, HELP]]
    parts.append(_section("Options", [_rows(options, 12)]))
    return _text(parts)


def _text(parts: list[RenderableType]) -> str:
    out = StringIO()
    width = min(Console().width, WIDEST)
    colours = is_coloured(sys.stdout)
    console = Console(
        file=out, width=width, force_terminal=colours, no_color=not colours, highlight=False, legacy_windows=False
    )
    console.print(Group(*parts))
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().split("\n"))


def _usage(line: str) -> RenderableType:
    return Padding(Text.assemble(("Usage: ", "bold"), line), (0, 0, 1, 0))


def _prose(words: str) -> RenderableType:
    return Padding(Text("\n\n".join(" ".join(part.split()) for part in words.split("\n\n"))), (0, 0, 1, 2))


def _section(title: str, parts: list[Any]) -> RenderableType:
    return Padding(Group(Text(f"{title}:", "bold"), *parts), (0, 0, 1, 0))


def _rows(lines: list[tuple[Text, Text]], least: int = NAMES) -> RenderableType:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(min_width=least, max_width=max(least, NAMES))
    table.add_column()
    for names, about in lines:
        table.add_row(names, about)
    return Padding(table, (0, 0, 0, 2))


def _names(option: click.Parameter) -> Text:
    text = Text(", ".join([*option.opts, *option.secondary_opts]), "bold cyan")
    if not getattr(option, "is_flag", False):
        word = option.metavar or KINDS.get(option.type.name, "TEXT")
        text.append(f" {word}{' ...' if option.multiple else ''}", "green")
    return text


def _about(option: click.Parameter, ctx: click.Context) -> Text:
    text = Text(getattr(option, "help", None) or "")
    if isinstance(option.type, click.Choice):
        text.append(f"{': ' if text else ''}{', '.join(map(str, option.type.choices))}")
    default = option.get_default(ctx)
    default = str(default) if isinstance(default, Path) else default
    if option.required:
        text.append(" (required)", "yellow")
    elif (
        not getattr(option, "is_flag", False)
        and isinstance(default, str | int | float | list | tuple)
        and default != ""
    ):
        words = " ".join(map(str, default)) if isinstance(default, list | tuple) else str(default)
        text.append(f"{' ' if text else ''}(default: {words})" if words else "", "dim")
    return text
