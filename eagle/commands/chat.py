"""`eagle chat`."""

from eagle.commands import options
from eagle.commands.help import Section
from eagle.commands.line import CommandLine

COMMAND = CommandLine(
    "chat",
    "eagle.application.terminal_chat",
    "Talk to a pair in the terminal.\n\n"
    "Answers appear as they are accepted, tokens that the head drafted in green (NO_COLOR and FORCE_COLOR are "
    "respected). Ctrl-C stops an answer, Ctrl-D leaves, /help lists what else there is. A base without a chat template "
    "continues the text instead.",
    options.talking_pair(),
    options.answers(512),
    Section("What is said before", (options.file("--load", "a conversation that /save wrote"),)),
    examples=("eagle chat", "eagle chat --base-model-path BASE --ea-model-path HEAD --temperature 0.7"),
)
