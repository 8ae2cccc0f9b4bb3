"""`eagle generate`: prompts in, answers out, as text that streams or as one JSON document."""

import json
import sys
from collections.abc import Callable
from types import SimpleNamespace

from eagle import interrupts
from eagle.application import terminal
from eagle.application.loading import check_pair, load_session, paths_of, settings_of
from eagle.application.session import Session, SessionAnswer, SessionSettings, SessionStep
from eagle.application.transcript import Reply
from eagle.commands.generate import COMMAND
from eagle.commands.running import run
from eagle.data.rows import Conversation, Document
from eagle.data.sources import json_lines

Prompt = Document | Conversation


def check(args: SimpleNamespace) -> None:
    """Check all options before anything is loaded.

    Raises:
        ValueError: naming the option.
    """
    if args.prompts is not None and args.prompt is not None:
        raise ValueError("PROMPT and --prompts: pass one of them")
    if args.prompts is not None and not args.prompts.is_file():
        raise ValueError(f"--prompts={args.prompts} is not a file")
    if args.prompts is None and args.prompt is None and sys.stdin.isatty():
        raise ValueError("no prompt: pass PROMPT, --prompts FILE, or standard input")
    settings_of(args)
    check_pair(args)


def read_prompts(args: SimpleNamespace) -> list[Prompt]:
    """Return what is asked.

    Raises:
        ValueError: there is no prompt, or a line of the file is none.
        OSError: the file cannot be read.
    """
    if args.prompts is None:
        text = args.prompt if args.prompt is not None else sys.stdin.read().rstrip("\n")
        if not text:
            raise ValueError("the prompt is empty")
        return [Document(text)]
    prompts: list[Prompt] = []
    for raw in json_lines(args.prompts):
        try:
            prompts.append(raw.parsed())
        except ValueError as broken:
            raise ValueError(f"{raw.where}: {broken}") from broken
    if not prompts:
        raise ValueError(f"{args.prompts} holds no prompt")
    return prompts


def start(session: Session, prompt: Prompt, asks: bool, settings: SessionSettings) -> SessionAnswer:
    """Begin an answer.

    Args:
        session: the pair.
        prompt: a conversation is asked.
        asks: whether a text is asked, too, by the template; else it is continued.
        settings: of the answer.

    Raises:
        ValueError: there is no template to ask with, or the prompt leaves no room.
    """
    if isinstance(prompt, Conversation):
        return session.chat(prompt.to_the_first_open_question(), settings)
    if asks:
        return session.chat([{"role": "user", "content": prompt.text}], settings)
    return session.complete(prompt.text, settings)


def reply_of(answer: SessionAnswer, show: Callable[[SessionStep], None] = lambda step: None) -> Reply:
    """Take an answer to its end, or to a Ctrl-C.

    Args:
        answer: the answer.
        show: is handed every step as it comes.
    """
    text, finished = "", "stopped"
    for step in terminal.taken(answer):
        text += "".join(piece.text for piece in step.pieces)
        finished = step.finished or finished
        show(step)
    return Reply(text, list(answer.ids), finished, answer.stats)


def work(args: SimpleNamespace) -> int:
    """Answer every prompt."""
    prompts, settings = read_prompts(args), settings_of(args)
    session = load_session(args)
    asks = session.template is not None if args.chat is None else args.chat
    answers: list[Reply] = []
    for number, prompt in enumerate(prompts):
        answer = start(session, prompt, asks, settings)
        if not args.json:
            if number:
                terminal.write()
            if isinstance(prompt, Document) and not asks and sys.stdout.isatty():
                terminal.write(terminal.safe(prompt.text), end="", dim=True)
        answers.append(reply_of(answer) if args.json else reply_of(answer, terminal.write_step))
        if not args.json:
            terminal.write()
            if not args.quiet:
                terminal.note(terminal.figures(answer.stats))
        if answers[-1].finished == "stopped":
            terminal.note("interrupted: the answer is not whole")
            return interrupts.STATUS
    if args.json:
        base, head = paths_of(args)
        document = {"base_model_path": base, "ea_model_path": head, "answers": [one.to_dict() for one in answers]}
        sys.stdout.write(json.dumps(document) + "\n")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    return run(COMMAND, argv)


if __name__ == "__main__":
    raise SystemExit(main())
