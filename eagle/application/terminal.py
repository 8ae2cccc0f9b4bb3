"""Answers in a terminal: text as it comes, accepted tokens in green, trees, figures; Ctrl-C that ends an answer.

Knows no conversation. What a model says may hold any character: none but line breaks and tabs steers the terminal.
"""

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from types import FrameType

import click
from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from eagle.application.session import SessionAnswer, SessionStep, TreeNode
from eagle.commands.help import is_coloured
from eagle.model.stats import GenerationStats

CONTROLS = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"}
CONTROLS |= dict.fromkeys(range(0x7F, 0xA0), "\N{REPLACEMENT CHARACTER}") | {0x7F: "␡"}


def safe(text: str) -> str:
    """Return text in which control characters are shown instead of obeyed."""
    return text.translate(CONTROLS)


def write(text: str = "", *, end: str = "\n", **style: bool | str) -> None:
    """Write text in a style of click's, if colours are taken, at once."""
    styled = click.style(text, **style) if style else text  # type: ignore[arg-type]
    click.echo(styled + end, nl=False, color=is_coloured(sys.stdout))


def note(text: str) -> None:
    """Write a line about an answer to standard error, dim."""
    click.echo(click.style(text, dim=True), err=True, color=is_coloured(sys.stderr))


def write_step(step: SessionStep) -> None:
    """Write what a step added, drafted tokens in green."""
    for is_drafted, run in groupby(step.pieces, key=lambda piece: piece.is_drafted):
        if text := safe("".join(piece.text for piece in run)):
            write(text, end="", **({"fg": "green"} if is_drafted else {}))


def write_tree(nodes: Sequence[TreeNode]) -> None:
    """Draw a step's tree: every node under its parent with its probability, the accepted path marked."""
    branches = [Tree(_label(nodes[0]), guide_style="dim")]
    for node in nodes[1:]:
        branches.append(branches[node.parent].add(_label(node)))
    colours = is_coloured(sys.stdout)
    console = Console(force_terminal=colours, no_color=not colours, highlight=False, soft_wrap=True)
    console.print(branches[0])


def _label(node: TreeNode) -> Text:
    if node.parent < 0:
        return Text(safe(repr(node.text)), "bold")
    label = Text(f"{safe(repr(node.text))} ", "bold green" if node.is_accepted else "")
    label.append(f"{node.probability:.2f}", "dim")
    return label.append(" ✓", "green") if node.is_accepted else label


def figures(stats: GenerationStats) -> str:
    """Return what one answer took, in one line."""
    tau = f"τ {stats.acceptance_length:.2f}, " if stats.drafted else ""
    return f"{stats.new_tokens} tokens, {tau}{stats.tokens_per_second:.1f} tokens/s"


class Stop:
    """Whether Ctrl-C was pressed."""

    is_asked = False


@contextmanager
def stopping() -> Iterator[Stop]:
    """Let a first Ctrl-C only be noted, so that a step is never cut in two; a second one ends whatever is done."""
    stop = Stop()

    def note(number: int, frame: FrameType | None) -> None:
        if stop.is_asked:
            raise KeyboardInterrupt
        stop.is_asked = True

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield stop
        return
    former = signal.signal(signal.SIGINT, note)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, former)


def taken(answer: SessionAnswer) -> Iterator[SessionStep]:
    """Take an answer's steps until it ends or Ctrl-C ends it; it is closed then, and its session as good as before."""
    try:
        with stopping() as stop:
            for step in answer:
                yield step
                if stop.is_asked:
                    break
    except KeyboardInterrupt:
        pass
    finally:
        answer.close()
