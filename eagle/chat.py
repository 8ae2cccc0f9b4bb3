"""Conversations as text: a tokenizer's own chat template or one of FastChat's, and which characters are answers.

A template is whatever renders messages, with or without the words that ask the assistant to speak. Where an answer
begins and ends is found by rendering prefixes of the conversation, never by splitting at one model's marks.
"""

import difflib
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jinja2 import TemplateError

Message = dict[str, str]
"""One turn: `role` (system, user, assistant, or what else a template knows) and `content`."""

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
LONGEST_REASON = 400
ANEW = "with --regenerate the target itself answers after the prompt"


class RowError(ValueError):
    """One row cannot be used; the message is the reason, without its place.

    It may quote a row and is still one line of text that any file takes, of at most `LONGEST_REASON` characters.
    """

    def __init__(self, reason: str) -> None:
        line = " ".join(reason.encode(errors="backslashreplace").decode().split())
        super().__init__(line if len(line) <= LONGEST_REASON else line[: LONGEST_REASON - 1] + "…")


class Template(Protocol):
    """What renders a conversation.

    Attributes:
        name: how prepared data remembers it.
        adds_bos: whether the tokenizer puts its BOS in front, where the template does not.
    """

    name: str
    adds_bos: bool

    def render(self, messages: Sequence[Message], *, asks: bool) -> str:
        """Return the text; with `asks`, up to where the assistant is to speak.

        Raises:
            RowError: the template refuses these messages.
        """
        ...


class TokenizerTemplate:
    """The chat template that a tokenizer brings along."""

    adds_bos = False  # apply_chat_template takes the template's word for it

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        source = tokenizer.get_chat_template()
        self.marks_answers = GENERATION.search(source) is not None
        self.name = f"chat template {hashlib.sha256(source.encode()).hexdigest()[:16]}"

    def render(self, messages: Sequence[Message], *, asks: bool) -> str:
        """Return `apply_chat_template`'s text."""
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks)
        except TemplateError as refusal:
            raise RowError(f"the chat template refuses it: {refusal}") from refusal
        except ImportError:
            raise  # jinja2 is missing or too old: nothing of this row
        except Exception as failure:  # a template is a program, which may fail in any way at what a row says
            raise RowError(f"the chat template fails: {type(failure).__name__}: {failure}") from failure


class FastChatTemplate:
    """A conversation template of FastChat's, by name.

    Raises:
        ImportError: fschat is not installed.
        ValueError: FastChat has no template of that name.
    """

    adds_bos = True

    def __init__(self, name: str) -> None:
        try:
            from fastchat.conversation import conv_templates, get_conv_template
        except ImportError as missing:
            raise ImportError("FastChat templates need fschat: pip install 'eagle-decoding[chat]'") from missing
        if name not in conv_templates:
            close = difflib.get_close_matches(name, conv_templates, n=3, cutoff=0.4)
            raise ValueError(f"FastChat has no template {name!r}; its closest names are {', '.join(close) or 'none'}")
        self.name, self._new = f"fastchat {name}", lambda: get_conv_template(name)

    def render(self, messages: Sequence[Message], *, asks: bool) -> str:
        """Return FastChat's prompt; user and assistant must alternate, after at most one system message."""
        conversation = self._new()
        turns = list(messages)
        if turns and turns[0]["role"] == "system":
            conversation.set_system_message(turns.pop(0)["content"])
        for index, turn in enumerate(turns):
            if turn["role"] != ("user", "assistant")[index % 2]:
                raise RowError("FastChat templates need user and assistant in turn, the user first")
            conversation.append_message(conversation.roles[index % 2], turn["content"])
        if asks:
            conversation.append_message(conversation.roles[1], None)
        return conversation.get_prompt()


def choose_template(tokenizer: Any, name: str | None = None) -> Template | None:
    """Return FastChat's template `name`, without a name the tokenizer's own, None where it has none.

    Raises:
        ImportError: a name was given and fschat is not installed.
        ValueError: FastChat has no template of that name.
    """
    if name is not None:
        return FastChatTemplate(name)
    return TokenizerTemplate(tokenizer) if tokenizer.chat_template else None


@dataclass(frozen=True)
class Marked:
    """A rendered conversation and its answers as ranges of characters [begin, end), ascending."""

    text: str
    answers: tuple[tuple[int, int], ...]


def marked(template: Template, messages: Sequence[Message]) -> list[Marked]:
    """Render a conversation so that every answer stands exactly where the model is asked for it.

    That is one text for most templates, and it ends with the last answer. A template that renders earlier turns anew
    (dropping their thoughts, say) gives one text for every answer it would change: what the model sees as it speaks.

    Raises:
        RowError: no answer, or the template refuses the messages or does not put answers after its own prompt.
    """
    messages = to_the_last_answer(messages)
    places = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    texts: list[Marked] = []
    for place in places:
        text, begin = _answered(template, messages[: place + 1])
        whole = bool(texts) and text.startswith(texts[-1].text)
        known = texts.pop().answers if whole else ()
        texts.append(Marked(text, (*known, (begin, len(text)))))
    return texts


def from_the_user(messages: Sequence[Message]) -> list[Message]:
    """Drop answers before the first question, as the reference does: nothing asked for them."""
    first = next((index for index, message in enumerate(messages) if message["role"] == "user"), len(messages))
    return [message for message in messages[:first] if message["role"] != "assistant"] + list(messages[first:])


def to_the_last_answer(messages: Sequence[Message]) -> list[Message]:
    """Keep what lies between the first question and the last answer, and what stands before the question but answers.

    Raises:
        RowError: there is no question, or no answer.
    """
    messages = from_the_user(messages)
    end = max((place for place, message in enumerate(messages, start=1) if message["role"] == "assistant"), default=0)
    if not end:
        asked = any(message["role"] == "user" for message in messages)
        raise RowError(f"no assistant turn after a user's: {ANEW}" if asked else "no user turn")
    return messages[:end]


def _answered(template: Template, messages: Sequence[Message]) -> tuple[str, int]:
    """Return the text up to and including the last message, an answer, and where that begins."""
    before, content = messages[:-1], messages[-1]["content"]
    prompt, asked = template.render(before, asks=True), template.render(before, asks=False)
    text, begin = template.render(messages, asks=False), len(prompt)
    if prompt == asked or not text.startswith(prompt) or not _holds(text[begin:], content):
        text, begin = _answered_otherwise(template, messages, prompt, asked)
    if begin == len(text):
        raise RowError("the template renders nothing for an assistant's turn")
    return text, begin


def _answered_otherwise(template: Template, messages: Sequence[Message], prompt: str, asked: str) -> tuple[str, int]:
    """Do the same where nothing asks for the answer, or where the template does not render it as the model says it.

    DeepSeek-R1's asks with `<think>`, with which its answers do not begin, and leaves out their thoughts. What counts
    is what a template adds for the answer: all but a header, which every answer has. An answer that it does not render
    whole stands as given after the prompt.
    """
    *before, answer = messages
    text, one, other = (
        template.render([*before, {**answer, "content": content}], asks=False)
        for content in (answer["content"], "x", "y")
    )
    begin = _shared(one, other)
    header, end = one[:begin], one[begin + 1 :]
    if not (text.startswith(asked) and text.startswith(header) and header.startswith(asked)):
        raise RowError(f"the template's generation prompt is not how it begins an assistant's turn: {ANEW}")
    if one[begin:].startswith("x") and not _holds(text[begin:], answer["content"]):
        start = prompt if prompt.startswith(header) else header
        said = answer["content"].strip().removeprefix(start[begin:].strip()).lstrip()
        return start + said + end, len(start)
    return text, begin if header[len(asked) :].strip() else len(asked)  # a space is the answer's


def _holds(text: str, part: str) -> bool:
    """Tell whether a text contains another one, whatever the spaces."""
    return "".join(part.split()) in "".join(text.split())


def check_roles(template: Template, messages: Sequence[Message]) -> None:
    """See that a template renders the roles that it may not know, as tool.

    Raises:
        RowError: it leaves one out, or refuses it.
    """
    for place, message in enumerate(messages):
        if message["role"] not in ("system", "user", "assistant"):
            before, other = messages[:place], {**message, "content": message["content"] + "x"}
            if template.render([*before, message], asks=False) == template.render([*before, other], asks=False):
                raise RowError(f"the template leaves out turn {place + 1}, of the role {message['role']!r}")


def turn_marks(tokenizer: Any, template: Template) -> tuple[str, ...]:
    """Return what tells a text that the template has rendered from any other.

    That is the added tokens that it writes around turns, BOS and EOS aside, which documents have too. A template
    without such tokens is known by the words that ask the assistant to speak.
    """
    question, answer = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}
    try:
        text, prompt = template.render([question, answer], asks=False), template.render([question], asks=True)
    except RowError:
        return ()
    turns = text[: _shared(text, prompt)]
    common = {tokenizer.bos_token, tokenizer.eos_token}
    added = [token for token in tokenizer.get_added_vocab() if token in turns and token.strip()]
    asks = turns.rpartition("Hello")[2].strip()
    return tuple(sorted({*added} - common)) or ((asks,) if asks else ())


def _shared(text: str, other: str) -> int:
    """Return how many characters two texts begin with alike."""
    differing = (place for place, pair in enumerate(zip(text, other, strict=False)) if pair[0] != pair[1])
    return next(differing, min(len(text), len(other)))
