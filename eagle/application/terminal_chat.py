"""`eagle chat`: a conversation in the terminal, line by line, with commands that begin with a slash.

Owns what is typed and what follows from it; how it looks is `terminal`'s, what was said `transcript`'s.
"""

import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from types import SimpleNamespace

import torch

from eagle.application import terminal
from eagle.application.generate import reply_of
from eagle.application.loading import check_pair, load_session, paths_of, settings_of
from eagle.application.session import Session, SessionAnswer, SessionSettings, SessionStep, TreeNode
from eagle.application.transcript import Transcript
from eagle.commands.chat import COMMAND
from eagle.commands.running import line_of, run
from eagle.model.stats import GenerationStats

HELP = {
    "/help": "this list",
    "/clear": "begin anew",
    "/regenerate": "answer the last question again",
    "/undo": "take the last question and its answer back",
    "/temperature X": "sample at a temperature; 0 is greedy",
    "/eagle on|off": "draft with the head, or decode plainly",
    "/tree": "the tree of the last step, its accepted path marked",
    "/stats": "what the answers of this conversation took",
    "/save FILE": "write the conversation, with ids and figures, as JSON",
    "/load FILE": "go on with a conversation",
    "/exit": "leave; Ctrl-D does, too",
}
NAMES = tuple(line.split()[0] for line in HELP)
PROMPT = "> "


class Leave(Exception):
    """Somebody wants to leave."""


class TerminalChat:
    """One person's conversation in a terminal.

    Args:
        session: the pair.
        settings: of the answers.
        transcript: what was said before.

    """

    def __init__(self, session: Session, settings: SessionSettings, transcript: Transcript | None = None) -> None:
        self.session, self.settings = session, settings
        self.transcript = transcript or Transcript()
        self._drafted: SessionStep | None = None
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/clear": self._clear,
            "/regenerate": self._regenerate,
            "/undo": self._undo,
            "/temperature": self._temperature,
            "/eagle": self._eagle,
            "/tree": self._tree,
            "/stats": self._stats,
            "/save": self._save,
            "/load": self._load,
            "/exit": self._exit,
        }

    @property
    def nodes(self) -> Sequence[TreeNode]:
        """The tree of the last step that drafted; empty before it."""
        return self._drafted.nodes if self._drafted is not None else ()

    def talk(self, read: Callable[[], str]) -> None:
        """Take lines until somebody leaves.

        Args:
            read: returns a line, or raises EOFError at the end.
        """
        with suppress(Leave, EOFError):
            while True:
                try:
                    self.take(read())
                except KeyboardInterrupt:
                    terminal.write("\n(/exit or Ctrl-D leaves)", dim=True)

    def take(self, line: str) -> None:
        """Do what a line says; what is wrong with it is told in one line."""
        if not line.strip():
            return
        try:
            if line.startswith("/") and not line.startswith("//"):
                self._obey(line)
            else:
                self.transcript.ask(line.removeprefix("/") if line.startswith("//") else line)
                self._answer()
        except (ValueError, OSError, RuntimeError) as refusal:
            terminal.write(line_of(refusal), fg="red")

    def _obey(self, line: str) -> None:
        name, _, rest = line.strip().partition(" ")
        if name not in self._commands:
            close = [one for one in NAMES if one.startswith(name)] or get_close_matches(name, NAMES, n=1)
            meant = f"did you mean {close[0]}?" if close else "/help lists them; // begins a text with a slash"
            raise ValueError(f"no command {name}: {meant}")
        self._commands[name](rest.strip())

    def _answer(self) -> None:
        """Answer the last question; one that cannot be answered is taken back."""
        try:
            answer = self._begun()
        except ValueError:
            self.transcript.undo()
            raise
        self._show(answer)

    def _begun(self) -> SessionAnswer:
        if self.session.template is None:
            return self.session.complete(self.transcript.text, self.settings)
        return self.session.chat(self.transcript.messages, self.settings)

    def _show(self, answer: SessionAnswer) -> None:
        def show(step: SessionStep) -> None:
            terminal.write_step(step)
            self._drafted = step if step.drafted else self._drafted

        reply = reply_of(answer, show)
        ending = {"stopped": ", stopped", "length": ", cut at the limit"}.get(reply.finished, "")
        terminal.write("" if reply.text.endswith("\n") else "\n", end="")
        terminal.write(f"[{terminal.figures(reply.stats)}{ending}]", dim=True)
        self.transcript.answer(reply)

    def _help(self, rest: str) -> None:
        for line, about in HELP.items():
            terminal.write(f"  {line:<16}", end="", fg="cyan")
            terminal.write(about)
        terminal.write("  Ctrl-C stops an answer; a backslash at the end of a line goes on in the next one.", dim=True)

    def _clear(self, rest: str) -> None:
        self.transcript, self._drafted = Transcript(), None
        self.session.free()
        terminal.write("a new conversation", dim=True)

    def _regenerate(self, rest: str) -> None:
        question = self.transcript.undo()
        if question is None:
            raise ValueError("there is no question to answer again")
        if not self.settings.temperature:
            terminal.write("(greedy: the same answer again; /temperature 0.7 gives others)", dim=True)
        self.transcript.ask(question)
        self._answer()

    def _undo(self, rest: str) -> None:
        question = self.transcript.undo()
        if question is None:
            raise ValueError("nothing was said")
        terminal.write(f"taken back: {terminal.safe(question)}", dim=True)

    def _temperature(self, rest: str) -> None:
        if rest:
            try:
                value = float(rest)
            except ValueError as broken:
                raise ValueError(f"/temperature {rest}: a number, 0 for greedy") from broken
            self.settings = replace(self.settings, temperature=value)
        now = self.settings.temperature
        terminal.write(f"temperature {now:g}" if now else "temperature 0: greedy", dim=True)

    def _eagle(self, rest: str) -> None:
        if rest not in ("", "on", "off"):
            raise ValueError(f"/eagle {rest}: on or off")
        if rest:
            self.settings = replace(self.settings, drafts=rest == "on")
        terminal.write("the head drafts" if self.settings.drafts else "plain decoding", dim=True)

    def _tree(self, rest: str) -> None:
        if not self.nodes:
            raise ValueError("no step has drafted yet")
        terminal.write_tree(self.nodes)
        accepted = sum(node.is_accepted for node in self.nodes) - 1
        terminal.write(f"{len(self.nodes) - 1} drafted, {accepted} accepted", dim=True)

    def _stats(self, rest: str) -> None:
        answers = [answer.stats for answer in self.transcript.answers]
        total = GenerationStats()
        for stats in answers:
            total.new_tokens += stats.new_tokens
            total.prefill_seconds += stats.prefill_seconds
            total.decode_seconds += stats.decode_seconds
            if stats.drafted:
                total.row_steps += stats.row_steps
                total.accepted_per_step += stats.accepted_per_step
        accepted = total.accepted_per_step
        noun = "answer" if len(answers) == 1 else "answers"
        terminal.write(f"{len(answers)} {noun}, {total.new_tokens} tokens", end="")
        terminal.write(f", {total.tokens_per_second:.1f} tokens/s" if answers else "")
        if accepted:
            terminal.write(f"τ {total.acceptance_length:.2f} over {total.row_steps} steps; accepted a step:")
            for count in range(max(accepted) + 1):
                share = accepted.count(count) / len(accepted)
                terminal.write(f"  {count:>2} {'█' * round(40 * share)} {share:.0%}")

    def _save(self, rest: str) -> None:
        path = _path_in(rest, "/save")
        self.transcript.save(path)
        terminal.write(f"{path}: {len(self.transcript.messages)} messages", dim=True)

    def _load(self, rest: str) -> None:
        path = _path_in(rest, "/load")
        self.transcript, self._drafted = Transcript.load(path), None
        terminal.write(f"{len(self.transcript.messages)} messages of {path}", dim=True)

    def _exit(self, rest: str) -> None:
        raise Leave


def _path_in(rest: str, name: str) -> Path:
    parts = shlex.split(rest)
    if len(parts) != 1:
        raise ValueError(f"{name} FILE: name one file")
    return Path(parts[0]).expanduser()


def read_line() -> str:
    """Read a line from the terminal, with those that a backslash at its end joins; from a pipe without a prompt."""
    shown = PROMPT if sys.stdin.isatty() else ""
    line = input(shown)
    while line.endswith("\\"):
        line = line[:-1] + "\n" + input("  " if shown else "")
    return line


def edit_lines() -> None:
    """Let lines be edited and commands completed, where Python has readline."""
    try:
        import readline
    except ImportError:  # Windows, whose console edits by itself
        return

    def complete(text: str, state: int) -> str | None:
        found = [name for name in NAMES if name.startswith(text)] if text.startswith("/") else []
        return found[state] if state < len(found) else None

    readline.set_completer_delims(" ")
    readline.set_completer(complete)
    readline.parse_and_bind("tab: complete")


def check(args: SimpleNamespace) -> None:
    """Check all options before anything is loaded.

    Raises:
        ValueError: naming the option.
    """
    settings_of(args)
    check_pair(args)
    if args.load is not None and not args.load.is_file():
        raise ValueError(f"--load={args.load} is not a file")


def work(args: SimpleNamespace) -> int:
    """Load the pair and talk."""
    transcript = Transcript.load(args.load) if args.load is not None else None
    settings = settings_of(args)
    session = load_session(args)
    if settings.seed is not None:
        torch.manual_seed(settings.seed)
        settings = replace(settings, seed=None)  # once: the same question asked again has another answer
    what = "ask something" if session.template is not None else "it has no chat template, and continues what you type"
    terminal.write(f"{paths_of(args)[0]}: {what}. /help lists commands, Ctrl-D leaves.", dim=True)
    edit_lines()
    TerminalChat(session, settings, transcript).talk(read_line)
    if sys.stdin.isatty():
        terminal.write()
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    return run(COMMAND, argv)


if __name__ == "__main__":
    raise SystemExit(main())
