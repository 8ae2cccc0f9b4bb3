"""A command line: its options in sections, lists separated by spaces, and the module that does the work.

Nothing here, or in the commands declared beside it, loads torch: help and completion wait for nothing. A command's
module has `check(args)`, which judges options before anything is loaded, and `work(args)`, which returns the exit code;
with `saved(args)` it says what an interrupted run has left.
"""

import logging
import shlex
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from difflib import get_close_matches
from importlib import import_module
from itertools import takewhile
from types import ModuleType, SimpleNamespace
from typing import Any

import click
from click.shell_completion import CompletionItem

from eagle import interrupts, progress
from eagle.commands.help import Section, help_of, help_of_all

OWN_LOG = "eagle"
WORDS, EMPTY = "eagle words", "eagle empty"  # of a context: all words of the line, and options that were given no value
# What these say while they are loaded is nothing that anybody could act on.
NOISY = ("torchao", "torch.utils._pytree")


class Several(click.Option):
    """An option of several values, separated by spaces or given again: `--rows 1 2` or `--rows 1 --rows 2`.

    Args:
        names: of the option.
        least: 0 allows it without a value, for an empty list.
        settings: click's.
    """

    def __init__(self, names: Sequence[str], *, least: int = 1, **settings: Any) -> None:
        super().__init__(names, multiple=True, **settings)
        self.least = least

    def consume_value(self, ctx: click.Context, opts: Any) -> tuple[Any, Any]:
        """Return what was given; an empty list where the option stands alone."""
        if self.name in ctx.meta.get(EMPTY, ()):
            return (), click.core.ParameterSource.COMMANDLINE
        return super().consume_value(ctx, opts)


class CommandLine(click.Command):
    """A command whose work is in another module.

    Args:
        name: the command's.
        home: the module with `check` and `work`.
        about: what it does, the first line short.
        sections: its options.
        arguments: positional ones.
        examples: command lines for the help.
        fixed: values of the namespace that no option of this command sets.
        level: from which messages of the log are shown.
    """

    def __init__(
        self,
        name: str,
        home: str,
        about: str,
        *sections: Section,
        arguments: Sequence[click.Argument] = (),
        examples: Sequence[str] = (),
        fixed: dict[str, Any] | None = None,
        level: int = logging.WARNING,
    ) -> None:
        everywhere = Section("Everywhere", (debug_option(),))
        self.sections, self.home, self.examples = (*sections, everywhere), home, tuple(examples)
        self.fixed, self.level, self.title = dict(fixed or {}), level, f"eagle {name}"
        options = [option for section in self.sections for option in section.options]
        super().__init__(name, params=[*arguments, *options], help=about)

    def arguments(self, words: Sequence[str]) -> SimpleNamespace:
        """Return what a command line says.

        Raises:
            click.UsageError: it is none of this command.
        """
        with self.make_context(self.title, list(words)) as ctx:
            return self.namespace(ctx)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse words, of which lists may be separated by spaces."""
        ctx.meta[WORDS] = list(args)
        several = {name: one for one in self.params if isinstance(one, Several) for name in one.opts}
        words, empty = repeated(args, several)
        if not ctx.resilient_parsing:
            for option in (several[name] for name in empty):
                if option.least:
                    raise click.BadOptionUsage(option.opts[0], f"{option.opts[0]} wants a value", ctx)
        ctx.meta[EMPTY] = {several[name].name for name in empty}
        return super().parse_args(ctx, words)

    def namespace(self, ctx: click.Context) -> SimpleNamespace:
        """Return the values by name, lists as lists, and `command_line`, the words they come from."""
        values: dict[str, Any] = dict(self.fixed)
        for param in self.params:
            if not param.expose_value or param.name is None:
                continue
            value = ctx.params[param.name]
            if isinstance(value, tuple):
                is_given = ctx.get_parameter_source(param.name) is click.core.ParameterSource.COMMANDLINE
                value = list(value) if value or is_given or isinstance(param.default, list) else None
            values[param.name] = value
        return SimpleNamespace(**values, command_line=["eagle", str(self.name), *ctx.meta[WORDS]])

    def invoke(self, ctx: click.Context) -> int:
        """Check the options, do the work and return the exit code."""
        args = self.namespace(ctx)
        is_quiet = getattr(args, "quiet", False)
        show_log(logging.WARNING if is_quiet else self.level)
        with progress.hidden() if is_quiet else nullcontext():
            return self._work(args, ctx)

    def _work(self, args: SimpleNamespace, ctx: click.Context) -> int:
        home = loaded(self.home)
        try:
            _checked(home, args, ctx)
            return int(home.work(args))
        except KeyboardInterrupt:
            if not hasattr(home, "saved"):
                raise
            again = shlex.join(args.command_line)
            return interrupts.say_again(home.saved(args), again, own_process=bool(ctx.find_root().obj))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete a further value of a list, or an option."""
        before = ctx.meta.get(WORDS, [])
        last = next((word for word in reversed(before) if not is_value(word)), None)
        for option in self.params:
            if isinstance(option, Several) and last in option.opts and is_value(incomplete):
                return option.shell_complete(ctx, incomplete)
        return super().shell_complete(ctx, incomplete)

    def get_help(self, ctx: click.Context) -> str:
        """Return the help."""
        return help_of(ctx, self.sections, self.examples)


class ForwardedCommand(click.Command):
    """A command with a parser of its own, of the reference's flags: `main` of its module gets its words as they are."""

    def __init__(self, name: str, home: str, about: str) -> None:
        words = click.Argument(["words"], nargs=-1, type=click.UNPROCESSED)
        settings = {"ignore_unknown_options": True, "allow_interspersed_args": False}
        super().__init__(name, params=[words], help=about, add_help_option=False, context_settings=settings)
        self.home = home

    def invoke(self, ctx: click.Context) -> int:
        """Hand the words on and return the exit code."""
        words = [word for word in ctx.params["words"] if word != "--debug"]
        return int(loaded(self.home).main(words))


class CommandGroup(click.Group):
    """All commands, under titles."""

    def __init__(self, name: str, about: str, sections: Mapping[str, Sequence[click.Command]], **settings: Any) -> None:
        commands = {str(one.name): one for section in sections.values() for one in section}
        super().__init__(name, commands, help=about, no_args_is_help=True, **settings)
        self.sections, self.title = sections, name

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the help."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command; of one that does not exist say which are spelled like it."""
        if not ctx.resilient_parsing and args[0] not in self.commands and not args[0].startswith("-"):
            close = get_close_matches(args[0], self.commands, cutoff=0.5)
            meant = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(self.commands)}"
            ctx.fail(f"no command {args[0]!r}: {meant}")
        return super().resolve_command(ctx, args)

    def get_help(self, ctx: click.Context) -> str:
        """Return the help."""
        return help_of_all(ctx, self.sections)


def show_log(level: int) -> None:
    """Show this package's log as it is, unless whoever calls has a way of their own; other libraries show theirs."""
    logger = logging.getLogger("eagle")
    if not (logger.handlers or logging.getLogger().handlers):
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        handler.set_name(OWN_LOG)
        logger.addHandler(handler)
    if any(handler.get_name() == OWN_LOG for handler in logger.handlers):
        logger.setLevel(level)


def loaded(home: str) -> ModuleType:
    """Import the module of a command's work."""
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    return import_module(home)


def debug_option() -> click.Option:
    """Return `--debug`, which is looked for in the words, wherever it stands."""
    return click.Option(["--debug"], is_flag=True, expose_value=False, help="show the traceback of an error")


def is_value(word: str) -> bool:
    """Tell whether a word is a value, not an option: negative numbers are values."""
    if not word.startswith("-") or word == "-":
        return True
    try:
        float(word)
    except ValueError:
        return False
    return True


def repeated(words: Sequence[str], several: dict[str, Several]) -> tuple[list[str], set[str]]:
    """Write `--opt a b` as `--opt a --opt b`.

    Returns:
        the words, and the options that stand without a value.
    """
    out: list[str] = []
    empty: set[str] = set()
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return [*out, word, *rest], empty
        if word not in several:
            out.append(word)
            continue
        values = list(takewhile(is_value, rest))
        del rest[: len(values)]
        out += [part for value in values for part in (word, value)]
        if not values:
            empty.add(word)
    return out, empty


def _checked(home: ModuleType, args: SimpleNamespace, ctx: click.Context) -> None:
    """Let a module judge its options; what it refuses is wrong usage."""
    try:
        home.check(args)
    except (ValueError, ImportError) as refusal:
        raise click.UsageError(str(refusal).partition("\n")[0], ctx) from refusal
