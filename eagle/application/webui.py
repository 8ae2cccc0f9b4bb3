"""The web page: talk to a pair in a browser and see what the head drafts.

    python -m eagle.application.webui --base-model-path TARGET --ea-model-path HEAD

Owns the command line, and what of it is refused: nothing is offered to other machines without a password.
"""

import ipaddress
import logging
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from eagle import interrupts

EXAMPLES = Path("examples")
CHAT_PAIR = (Path("build/chat_pair/target"), EXAMPLES / "chat_pair/eagle3_head")
TINY_PAIR = (EXAMPLES / "tiny_pair/target", EXAMPLES / "tiny_pair/eagle3_head")
TO_SEE = 26
"""Nodes of the examples' trees. On a CPU no tree may pay for them, and the fastest then shows nothing."""
OWN = "own"
# What the reference calls templates; other names are FastChat's own. Models of the later families bring theirs along.
TEMPLATES = {
    "vicuna": "vicuna_v1.1",
    "llama2": "llama-2",
    "llama-2-chat": "llama-2",
    "mixtral": "mistral",
    "llama3": OWN,
    "llama-3-instruct": OWN,
    "qwen3": OWN,
}
LOCAL = "127.0.0.1"
FAILURES = (ImportError, ValueError, TypeError, OSError, RuntimeError, NotImplementedError)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--base-model-path", "--base", metavar="TARGET", help="Folder or Hub id of the target.")
@click.option("--ea-model-path", "--head", metavar="HEAD", help="Folder or Hub id of its draft head.")
@click.option(
    "--model-type",
    default=OWN,
    show_default=True,
    help="How a conversation becomes text: own (the tokenizer's), vicuna, llama2, llama3 or another of FastChat's.",
)
@click.option(
    "--total-token",
    type=int,
    help="Nodes of the draft tree, root included. Default: -1, which chooses before every step whatever is fastest "
    "here; 26 for the examples, so that there are trees to see.",
)
@click.option(
    "--max-new-token",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    help="Most tokens of an answer; visitors may ask for fewer.",
)
@click.option("--load-in-8bit", is_flag=True, help="Quantise the target with bitsandbytes.")
@click.option("--load-in-4bit", is_flag=True, help="Likewise.")
@click.option("--no-eagle3", is_flag=True, help="Insist on an EAGLE-1/2 head.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    help="Default: float32 on a CPU, elsewhere auto, as the weights are stored.",
)
@click.option("--port", type=click.IntRange(1, 65535), help="Default: the first free one from 7860 on.")
@click.option(
    "--host",
    default=LOCAL,
    show_default=True,
    help="Address to listen at; another than this machine's own needs --auth.",
)
@click.option("--share", is_flag=True, help="Also open a public gradio.live address; needs --auth.")
@click.option(
    "--auth",
    metavar="USER:PASSWORD",
    envvar="EAGLE_WEBUI_AUTH",
    show_envvar=True,
    help="What visitors must enter.",
)
def command(**options: Any) -> int:
    """Talk to a model with its draft head in a browser.

    Without arguments it takes the chat pair of the examples where its target is installed, else the tiny pair. The
    page is served to this machine alone.
    """
    try:
        auth = checked_auth(options["auth"], options["host"], share=options["share"])
        named = (options["base_model_path"], options["ea_model_path"])
        base, head = chosen_pair(*named)
        if options["total_token"] is None:
            options["total_token"] = TO_SEE if named == (None, None) else -1
        if options["load_in_8bit"] and options["load_in_4bit"]:
            raise ValueError("--load-in-8bit and --load-in-4bit exclude each other")
    except ValueError as refusal:
        raise click.UsageError(str(refusal)) from None
    try:
        page = load(base, head, options)
        local, public = page.launch(options["host"], options["port"], share=options["share"], auth=auth)
    except FAILURES as failure:
        raise click.ClickException(str(failure)) from failure
    click.echo(f"{base} with {head}")
    click.echo(f"open {local} in a browser{'' if auth else ' on this machine'}; Ctrl-C ends it")
    if public:
        click.echo(f"for everybody who has the password: {public}")
    wait(page)
    return 0


def checked_auth(words: str | None, host: str, *, share: bool) -> tuple[str, str] | None:
    """Return user and password.

    Raises:
        ValueError: they are malformed, or missing where other machines can reach the page.
    """
    if words is None:
        if share or not is_own(host):
            way = (
                "--share opens the page to the internet" if share else f"--host {host} opens the page to other machines"
            )
            raise ValueError(f"{way}: give --auth USER:PASSWORD, which visitors must then enter")
        return None
    user, _, password = words.partition(":")
    if not user or not password:
        raise ValueError("--auth must be USER:PASSWORD, neither of them empty")
    return user, password


def is_own(host: str) -> bool:
    """Tell whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name may mean anything


def chosen_pair(base: str | None, head: str | None) -> tuple[str, str]:
    """Return the pair that is named, else one of the examples'.

    Raises:
        ValueError: one of two is named, or none and there are no examples here.
    """
    if base is not None and head is not None:
        return base, head
    if base is not None or head is not None:
        missing = "--ea-model-path" if head is None else "--base-model-path"
        raise ValueError(f"{missing} is missing: a target and its head go together")
    for target, own in (CHAT_PAIR, TINY_PAIR):
        if (target / "config.json").is_file() and own.is_dir():
            return str(target), str(own)
    raise ValueError("name a pair with --base-model-path and --ea-model-path: there are no examples here")


def load(base: str, head: str, options: dict[str, Any]) -> Any:
    """Load a pair and make its page.

    Raises:
        ImportError: gradio or FastChat is missing; the message says what to install.
        ValueError: the pair cannot be loaded, or there is no such template.
    """
    try:
        import gradio
    except ImportError as missing:
        raise ImportError("the page needs gradio: pip install 'eagle-decoding[webui]'") from missing
    import torch

    from eagle.application.page import Page, PageOptions
    from eagle.application.session import Session
    from eagle.model.ea_model import EaModel

    logging.getLogger(gradio.__name__).setLevel(logging.WARNING)
    loading: dict[str, Any] = {name: True for name in ("load_in_8bit", "load_in_4bit") if options[name]}
    if torch.accelerator.is_available():
        loading["device_map"] = "auto"
    model = EaModel.from_pretrained(
        False if options["no_eagle3"] else None,
        base,
        head,
        total_token=options["total_token"],
        dtype=options["dtype"] or ("auto" if torch.accelerator.is_available() else "float32"),
        **loading,
    ).eval()
    asked = options["model_type"]
    name = TEMPLATES.get(asked, asked)
    template = None if name == OWN else name
    chats = Session(model, template).template is not None
    if asked != OWN and not chats:
        raise ValueError(f"--model-type {asked} means the tokenizer's own chat template, and that of {base!r} has none")
    rounds = model.base_model.dtype != torch.float32
    shown = PageOptions(base, head, chats, options["max_new_token"], rounds)
    return Page(lambda: Session(model, template), shown)


def wait(page: Any) -> None:
    """Serve until Ctrl-C."""
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        click.echo("closed")
    finally:
        page.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    if argv is None:
        interrupts.expect()
        return interrupts.run(lambda: _run(sys.argv[1:]))
    return _run(argv)


def _run(argv: Sequence[str]) -> int:
    try:
        return int(command.main(list(argv), prog_name="python -m eagle.application.webui", standalone_mode=False) or 0)
    except click.ClickException as refusal:
        refusal.show()
        return refusal.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
