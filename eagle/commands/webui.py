"""`eagle webui`."""

import click

from eagle.commands import options
from eagle.commands.help import Section
from eagle.commands.line import CommandLine

LOCAL = "127.0.0.1"
COMMAND = CommandLine(
    "webui",
    "eagle.application.webui",
    "Talk to a pair on a page in the browser.\n\n"
    "Without arguments it takes the chat pair of the examples where its target is made, else the tiny pair. The page "
    "is served to this machine alone.",
    Section(
        "The pair (default: the chat pair once its target is made, else the tiny one)",
        (
            options.model("--base-model-path --base", "folder or Hub id of the base model"),
            options.model("--ea-model-path --head", "folder or Hub id of its draft head"),
            options.choice("--dtype", ("auto", *options.DTYPES), "float32 on a CPU, elsewhere auto: as it was saved"),
            options.number("--total-token", "nodes of the tree, root included; -1: what is fastest at every step", -1),
            options.switch("--load-in-8bit", "quantise the base with bitsandbytes"),
            options.switch("--load-in-4bit", "likewise"),
            options.switch("--no-eagle3", "insist on an EAGLE-1/2 head"),
        ),
    ),
    Section(
        "The answer",
        (
            options.word(
                "--model-type",
                "how a conversation becomes text: own (the tokenizer's), vicuna, llama2, llama3, or one of FastChat's",
                default="own",
            ),
            options.number("--max-new-token --max-new-tokens", "most tokens of an answer", 512),
        ),
    ),
    Section(
        "The page",
        (
            options.number("--port", "the first free one from 7860 on, if not given"),
            options.word("--host", "address to listen at; another than this machine's own needs --auth", default=LOCAL),
            options.switch("--share", "also open a public gradio.live address; needs --auth"),
            click.Option(
                ["--auth"],
                metavar="USER:PASSWORD",
                envvar="EAGLE_WEBUI_AUTH",
                help="what visitors must enter; also read from EAGLE_WEBUI_AUTH",
            ),
        ),
    ),
    fixed={"depth": 7, "top_k": 10},
    examples=("eagle webui", "eagle webui --base-model-path BASE --ea-model-path HEAD --port 8000"),
)
