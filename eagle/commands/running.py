"""Running a command line: exit codes, and errors as one line on standard error.

0: done. 1: a check failed, or something was refused or could not be done. 2: the command line is wrong. 130: Ctrl-C.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches

import click

from eagle import interrupts
from eagle.commands.help import is_coloured

DEBUG = "EAGLE_DEBUG"
# What users and their files do wrong; anything else is a fault of this package, and is said to be one.
EXPECTED = (ValueError, OSError, ImportError, NotImplementedError, RuntimeError, AssertionError)


def run(command: click.Command, argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    Args:
        command: a `CommandLine` or a `CommandGroup`.
        argv: its words; None takes the process's own, which then ends in words at any Ctrl-C.
    """
    if argv is None:
        interrupts.expect()
        return interrupts.run(lambda: _run(command, sys.argv[1:], own_process=True))
    return _run(command, list(argv), own_process=False)


def _run(command: click.Command, words: list[str], *, own_process: bool) -> int:
    title = str(getattr(command, "title", command.name))
    try:
        with command.make_context(title, list(words), obj=own_process) as ctx:
            return int(command.invoke(ctx) or 0)
    except click.exceptions.Exit as done:
        return done.exit_code
    except BrokenPipeError:  # whoever read has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        if not own_process:
            raise
        click.echo("\ninterrupted: nothing is kept", err=True)
        return interrupts.STATUS
    except SystemExit:
        trace(words)
        raise
    except click.exceptions.NoArgsIsHelpError as lost:
        click.echo(lost.format_message())
        return 2
    except click.ClickException as wrong:
        where = getattr(wrong, "ctx", None)
        _say(where.command_path if where is not None else title, line_of(wrong), words)
        return wrong.exit_code
    except Exception as refusal:  # noqa: BLE001 -- a person asked for this, and reads one line
        _say(_path(command, words), line_of(refusal), words)
        return 1


def _say(path: str, line: str, words: Sequence[str]) -> None:
    """Write the line, behind the traceback where that was asked for."""
    trace(words)
    click.echo(f"{click.style(f'{path}: error:', fg='red')} {line}", err=True, color=is_coloured(sys.stderr))


def trace(words: Sequence[str]) -> None:
    """Write the traceback of the error at hand, where `--debug` or EAGLE_DEBUG asks for it."""
    if "--debug" in words or os.environ.get(DEBUG):
        traceback.print_exc()


def _path(command: click.Command, words: Sequence[str]) -> str:
    """Return what was called: `eagle bench`."""
    title = str(getattr(command, "title", command.name))
    name = next((word for word in words if not word.startswith("-")), "")
    return f"{title} {name}" if isinstance(command, click.Group) and name in command.commands else title


def is_expected(error: Exception) -> bool:
    """Tell whether an error is of a kind that users and their files bring about."""
    return isinstance(error, EXPECTED) or type(error).__module__.startswith("safetensors")


def line_of(error: Exception) -> str:
    """Return an error as one line."""
    if isinstance(error, click.NoSuchOption):
        known = [flag for param in error.ctx.command.params for flag in param.opts] if error.ctx is not None else []
        close = get_close_matches(error.option_name, known, n=2, cutoff=0.75)
        return f"no option {error.option_name}" + (f": did you mean {' or '.join(close)}?" if close else "")
    if isinstance(error, click.ClickException):
        return " ".join(error.format_message().split())
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "") or type(error).__name__
    return line if is_expected(error) else f"{type(error).__name__}: {line} (a fault of eagle; --debug shows where)"
