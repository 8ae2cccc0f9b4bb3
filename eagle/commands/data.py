"""`eagle data`."""

import logging

import click

from eagle.commands import options
from eagle.commands.help import Section
from eagle.commands.line import CommandLine, Several

COMMAND = CommandLine(
    "data",
    "eagle.data.command",
    "Make training data of conversations and documents.\n\n"
    "Writes token ids with a mask of what counts in the loss. A source is a .json, .jsonl, .txt or .parquet file, a "
    "folder of them, or a name of `datasets`. With --regenerate the target writes the answers itself. Interrupted, by "
    "any signal, the same command goes on, and ends with what it would have written at once.",
    Section(
        "Options",
        (
            options.model("--base-model-path --tokenizer --base", "folder or Hub id of the target", required=True),
            options.file("--out", "where the data goes", required=True),
            options.word("--template", "FastChat template; the tokenizer's chat template if not given"),
            options.number("--max-length", "tokens at which conversations and documents are cut"),
            options.number("--limit", "rows to read"),
            options.switch("--by-paragraph", "text files: a document ends at a blank line"),
            options.switch("--strict", "stop at the first row that cannot be used"),
            options.json_line("what the folder holds"),
            options.quiet(),
        ),
    ),
    Section(
        "Answers by the target",
        (
            options.switch("--regenerate", "the target writes all answers itself"),
            options.model("--ea-model-path --head", "a head of the target: the same answers in less time"),
            Several(
                ["--temperature", "temperatures"],
                type=float,
                metavar="T",
                help="of the answers, greedy if not given; of several every conversation takes one",
            ),
            options.number("--max-new-tokens --max-new-token", "most tokens of an answer, 512 if not given"),
            options.number("--batch-size", "answers that are written side by side; by device if not given"),
            options.number("--seed", "of sampling, 0 if not given"),
            options.choice("--dtype", ("auto", *options.DTYPES), "of the target, the one it was saved in if not given"),
            options.switch("--drop-loops", "leave out answers that repeat themselves without end"),
            options.number("--processes", "that answer, each with a copy of the target, one per accelerator; else 1"),
            options.word(
                "--endpoint",
                "a server of the target answers instead: vLLM, SGLang, any with OpenAI's chat completions; "
                "OPENAI_API_KEY is its key",
                metavar="URL",
            ),
            options.word("--model", "what the server calls the target"),
            options.number("--concurrency", "questions that the server is asked at once, 32 if not given"),
        ),
    ),
    arguments=(click.Argument(["sources"], nargs=-1, required=True, type=click.Path(), metavar="SOURCE..."),),
    examples=(
        "eagle data chats.jsonl --base-model-path BASE --out DATA",
        "eagle data prompts.jsonl --base-model-path BASE --out DATA --regenerate --temperature 0 1",
    ),
    level=logging.INFO,
)
