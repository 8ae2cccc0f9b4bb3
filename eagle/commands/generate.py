"""`eagle generate`."""

import click

from eagle.commands import options
from eagle.commands.help import Section
from eagle.commands.line import CommandLine

COMMAND = CommandLine(
    "generate",
    "eagle.application.generate",
    "Answer a prompt, or several, with a pair.\n\n"
    "The prompt is PROMPT, a file of them, or standard input. In a terminal the answer appears as it is accepted, "
    "tokens that the head drafted in green (NO_COLOR and FORCE_COLOR are respected); a pipe gets the text alone.",
    options.talking_pair(),
    Section(
        "The prompt",
        (
            options.file("--prompts", "JSON lines with `text`, `messages` or `turns`, instead of PROMPT"),
            click.Option(
                ["--chat/--no-chat"],
                default=None,
                help="ask it by the chat template, or continue it as text; asked where there is a template",
            ),
        ),
    ),
    options.answers(256),
    Section(
        "What comes out",
        (
            options.json_line("texts, ids and statistics"),
            options.switch("--quiet", "no progress bars and no line of statistics"),
        ),
    ),
    arguments=(click.Argument(["prompt"], required=False, metavar="[PROMPT]"),),
    examples=(
        "eagle generate 'What is a draft tree?'",
        "echo 'def main():' | eagle generate --no-chat --max-new-token 64 --json",
    ),
)
