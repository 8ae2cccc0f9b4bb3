"""The project's command lines, read as far as their arguments: what would run is never begun."""

import argparse
import contextlib
import importlib
import io
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import click

from eagle.commands.line import CommandLine
from eagle.traineagle3.main import parser as of_traineagle3


class Parsed(BaseException):
    """Arguments were taken; no `except` of the command under test may see it."""


def _stopping(original: Callable[..., argparse.Namespace]) -> Callable[..., argparse.Namespace]:
    def parse_args(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> argparse.Namespace:
        raise Parsed(original(self, *args, **kwargs))

    return parse_args


def _stopped(self: CommandLine, ctx: click.Context) -> None:
    raise Parsed(self.namespace(ctx))


def arguments(main: Callable[[list[str]], Any], argv: Sequence[str]) -> Any:
    """Return what a `main` makes of its arguments.

    Raises:
        SystemExit, AssertionError: it refuses them, its words are on standard error; or it takes none.
    """
    with contextlib.ExitStack() as stack:
        stop = _stopping(argparse.ArgumentParser.parse_args)
        stack.enter_context(mock.patch.object(argparse.ArgumentParser, "parse_args", stop))
        stack.enter_context(mock.patch.object(CommandLine, "invoke", _stopped))
        try:
            status = main(list(argv))
        except Parsed as parsed:
            return parsed.args[0]
        if status == 0 and {"--help", "--version"} & set(argv):
            return None
    raise AssertionError(f"{list(argv)} are not taken: {status}")


def help_of(main: Callable[[list[str]], Any], argv: Sequence[str] = ()) -> str:
    """Return what a `main` prints for `--help`."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        main([*argv, "--help"])
    return said.getvalue()


def main_of(name: str) -> Callable[[list[str]], Any]:
    """Return what `python -m NAME` calls."""
    module = {"eagle.data": "eagle.data.command", "eagle.train.main_deepspeed": "eagle.train.main"}.get(name, name)
    return importlib.import_module(module).main


def main_of_file(path: Path) -> Callable[[list[str]], Any]:
    """Return what `python PATH` calls."""
    with mock.patch.object(sys, "path", [str(path.parent), *sys.path]):  # as Python does for a script
        return runpy.run_path(str(path))["main"]


def of_module(name: str, argv: Sequence[str]) -> Any:
    """Return what `python -m NAME` makes of its arguments."""
    if name == "eagle.traineagle3.main":  # the flags that it does not know are those of eagle.train.main
        own, others = of_traineagle3().parse_known_args(list(argv))
        return argparse.Namespace(**{**vars(of_module("eagle.train.main", others)), **vars(own)})
    return arguments(main_of(name), argv)


def of_file(path: Path, argv: Sequence[str]) -> Any:
    """Return what `python PATH` makes of its arguments."""
    return arguments(main_of_file(path), argv)
