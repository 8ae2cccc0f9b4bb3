"""Pages to look at: sessions that say what a test wants, a model that chats, a server, a browser."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from eagle import EaModel
from eagle.application.page import Page, PageOptions
from eagle.application.session import Piece, SessionAnswer, SessionSettings, SessionStep, TreeNode
from eagle.model.stats import GenerationStats

CHROMIUM = "/usr/bin/chromium"
PAIR = "examples/tiny_pair"
TEMPLATE = (
    "{% for message in messages %}{{ '# ' + message['role'] + ': ' + message['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '# assistant: ' }}{% endif %}"
)
HOSTILE = (
    "<script>window.struck = 1</script>",
    '<img src=x onerror="window.struck = 2">',
    "${window.struck = 3}",
    "{{value}} `${window.struck = 4}`",
    "\"><b onmouseover=alert(1)>' </svg></title>&lt;",
)


def chat_model() -> EaModel:
    """Return the tiny pair with a chat template, so that both ways to ask can be tried."""
    paths = {"base_model_path": f"{PAIR}/target", "ea_model_path": f"{PAIR}/eagle3_head"}
    model = EaModel.from_pretrained(**paths, total_token=16, depth=4, top_k=4, dtype="float32").eval()
    model.tokenizer.chat_template = TEMPLATE
    return model


def tree(words: Sequence[str], accepted: int = 1) -> tuple[TreeNode, ...]:
    """Return a tree of these words, every third a child of the node before it, others of the root."""
    nodes = [TreeNode(0, words[0], -1, 1.0, True)]
    for number, word in enumerate(words[1:], start=1):
        parent = number - 1 if number <= accepted or number % 3 == 0 else 0
        nodes.append(TreeNode(number, word, parent, 0.9 / number, number <= accepted))
    return tuple(nodes)


def step(
    words: Sequence[str], drafted: int, nodes: Sequence[TreeNode] = (), finished: str | None = None
) -> SessionStep:
    """Return a step that adds these words, the first few of them drafted."""
    pieces = tuple(Piece(word, n < drafted) for n, word in enumerate(words))
    return SessionStep(pieces, finished, max(0, len(nodes) - 1), lambda: tuple(nodes))


class ScriptedSession:
    """A session that says the same steps whatever is asked, and remembers what happened to it."""

    template = None

    def __init__(self, steps: Sequence[SessionStep], failure: Exception | None = None) -> None:
        self.steps, self.failure = list(steps), failure
        self.asked: list[tuple[Any, SessionSettings]] = []
        self.frees = self.closed = self.taken = 0

    def complete(self, text: Any, settings: SessionSettings) -> SessionAnswer:
        """Answer."""
        if self.failure is not None:
            raise self.failure
        self.asked.append((text, settings))
        stats, ids = GenerationStats(prompt_tokens=5, prefilled_tokens=5), []

        def said() -> Iterator[SessionStep]:
            try:
                for number, one in enumerate(self.steps):
                    ids.extend(range(len(ids), len(ids) + len(one.pieces)))
                    stats.record_tokens(len(one.pieces))
                    if number:
                        accepted = sum(piece.is_drafted for piece in one.pieces)
                        stats.record_step(one.drafted, {0: accepted}, 0.01)
                    self.taken += 1
                    yield one
            finally:
                self.closed += 1

        return SessionAnswer(stats, said(), ids)  # type: ignore[arg-type]

    chat = complete

    def free(self) -> None:
        """Count."""
        self.frees += 1


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def served(session: Any, *, chats: bool = False, most: int = 64, auth: tuple[str, str] | None = None) -> Iterator[Any]:
    """Serve a page; yield it and its address."""
    page = Page(session, PageOptions("a target", "a head", chats, most))
    try:
        yield page, page.launch("127.0.0.1", free_port(), share=False, auth=auth)[0]
    finally:
        page.close()
