"""`eagle eval`."""

import click
from click.shell_completion import CompletionItem

from eagle.commands import options
from eagle.commands.help import Section
from eagle.commands.line import CommandLine, Several
from eagle.evaluation.question_sets import SETS


def _sets(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    names = [CompletionItem(name) for name in SETS if name.startswith(incomplete)]
    return names or [CompletionItem(incomplete, type="file")]


COMMAND = CommandLine(
    "eval",
    "eagle.evaluation.evaluate",
    "Evaluate a pair on sets of questions, with a report.\n\n"
    "Speed-ups, acceptance and equal ids, with intervals and pictures. Every question is asked of every method, one "
    "after the other, before the next one. What is finished is kept in OUT, and the same command goes on where it was; "
    "more questions, sets and temperatures may be asked for later.\n\n"
    "Writes report.md, report.json, report.csv and pictures into OUT. Exit code 1 where ids differ that must be equal.",
    options.model_options(options.assistant()),
    Section(
        "What is asked",
        (
            Several(
                ["--questions"],
                metavar="SET",
                shell_complete=_sets,
                help=f"names of sets ({', '.join(SETS)}), or files of JSON lines",
            ),
            options.file("--questions-folder", "where files of named sets are, data if not given"),
            options.number("--num-questions", "of every set, spread evenly over it; all if not given"),
            options.word("--template", "one of FastChat's, where the tokenizer has none, or another than its own"),
            options.switch("--as-text", "continue first turns as plain text, without a template"),
        ),
    ),
    Section(
        "What is run",
        (
            options.methods(),
            options.trees([26, -1]),
            *options.tree_limits(5, 8),
            Several(["--temperature"], type=float, default=[0.0, 1.0], help="0: greedy"),
            options.number("--max-new-token --max-new-tokens", "per turn", 512),
            options.number("--rounds", "how often every question is asked; the median counts", 1),
            options.number("--seed", "before every answer, for sampling", 0),
        ),
    ),
    Section(
        "What comes out",
        (
            options.file("--out", "folder of the report, and of what is finished", required=True),
            options.json_file(),
            options.quiet(),
        ),
    ),
    examples=(
        "eagle eval --base-model-path TARGET --ea-model-path HEAD --questions mt_bench gsm8k --out OUT",
        "eagle eval --base-model-path TARGET --ea-model-path HEAD HEAD --questions FILE --temperature 0 --out OUT",
    ),
    fixed=options.NO_SYNTHETIC_PAIR,
)
