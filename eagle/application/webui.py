"""The web page: talk to a pair in a browser and see what the head drafts.

    python -m eagle.application.webui --base-model-path TARGET --ea-model-path HEAD

Owns the command line, and what of it is refused: nothing is offered to other machines without a password.
"""

import ipaddress
import logging
import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import click

from eagle.commands.running import run
from eagle.commands.webui import COMMAND

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


def check(args: SimpleNamespace) -> None:
    """Check the options before anything is loaded.

    Raises:
        ValueError: naming the option.
    """
    from eagle.application.loading import check_pair

    checked_auth(args.auth, args.host, share=args.share)
    check_pair(args)
    if args.load_in_8bit and args.load_in_4bit:
        raise ValueError("--load-in-8bit and --load-in-4bit exclude each other")
    if args.max_new_token < 1:
        raise ValueError(f"--max-new-token {args.max_new_token} must be at least 1")
    if args.port is not None and not 0 < args.port < 1 << 16:
        raise ValueError(f"--port {args.port} must lie in 1..65535")


def work(args: SimpleNamespace) -> int:
    """Load the pair and serve its page until Ctrl-C."""
    from eagle.application.loading import paths_of

    base, head = paths_of(args)
    auth = checked_auth(args.auth, args.host, share=args.share)
    page = load(base, head, args)
    local, public = page.launch(args.host, args.port, share=args.share, auth=auth)
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


def load(base: str, head: str, args: SimpleNamespace) -> Any:
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
    loading: dict[str, Any] = {name: True for name in ("load_in_8bit", "load_in_4bit") if getattr(args, name)}
    if torch.accelerator.is_available():
        loading["device_map"] = "auto"
    model = EaModel.from_pretrained(
        False if args.no_eagle3 else None,
        base,
        head,
        total_token=args.total_token,
        dtype=args.dtype or ("auto" if torch.accelerator.is_available() else "float32"),
        **loading,
    ).eval()
    asked = args.model_type
    name = TEMPLATES.get(asked, asked)
    template = None if name == OWN else name
    chats = Session(model, template).template is not None
    if asked != OWN and not chats:
        raise ValueError(f"--model-type {asked} means the tokenizer's own chat template, and that of {base!r} has none")
    rounds = model.base_model.dtype != torch.float32
    shown = PageOptions(base, head, chats, args.max_new_token, rounds)
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
    """Run the command and return its exit code."""
    return run(COMMAND, argv)


if __name__ == "__main__":
    raise SystemExit(main())
