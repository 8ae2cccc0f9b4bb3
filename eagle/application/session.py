"""A session: one person's conversation or text with a model, answered step by step.

Owns the history's caches and how a step's tokens become text. Knows neither terminal nor page: what it yields is data,
and all of the model's text in it is raw.
"""

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

from eagle.chat import Message, Template, choose_template
from eagle.data.samples import prompt_ids
from eagle.model.cache_reuse import Prefix
from eagle.model.call.output import StepStream
from eagle.model.ea_model import EaModel
from eagle.model.request_state import DecodeStep
from eagle.model.stats import GenerationStats


@dataclass(frozen=True, kw_only=True)
class SessionSettings:
    """How one answer is made.

    Attributes:
        temperature: 0 is greedy.
        top_p: 1 is off.
        top_k: 0 is off.
        max_new_tokens: most tokens of the answer.
        stop: strings that end it.
        drafts: False decodes plainly.
        seed: of the sampling; None takes torch's global generator as it stands.

    Raises:
        ValueError: a value out of its range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 512
    stop: tuple[str, ...] = ()
    drafts: bool = True
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature} must be 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must lie in (0, 1]; 1 is off")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} must be 0 (off) or more")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} must be at least 1")
        if "" in self.stop:
            raise ValueError("stop must hold no empty string")


@dataclass(frozen=True)
class Piece:
    """Text that one token added; empty where a character needs further tokens.

    Attributes:
        text: as the tokenizer has it, special tokens left out.
        is_drafted: whether the head drafted the token and the target accepted it.
    """

    text: str
    is_drafted: bool


@dataclass(frozen=True)
class TreeNode:
    """A node of a step's tree.

    Attributes:
        token, text: what it says, alone.
        parent: its parent's number; -1 for the root, which is number 0 and the last token before the step.
        probability: of the node given its parent, under the head; 1 for the root.
        is_accepted: whether the target agreed with it and with all before it.
    """

    token: int
    text: str
    parent: int
    probability: float
    is_accepted: bool


@dataclass(frozen=True)
class SessionStep:
    """What one step added to an answer.

    Attributes:
        pieces: text by token.
        finished: "eos", "length" or "criteria" (a stop string) where the answer has ended.
        drafted: nodes that were drafted and verified; 0 for the prompt's own step and plain decoding.
        look: makes the nodes, once, when somebody asks for them: many answers are read and no tree of them seen.
    """

    pieces: tuple[Piece, ...]
    finished: str | None
    drafted: int = 0
    look: Callable[[], tuple[TreeNode, ...]] = tuple

    @cached_property
    def nodes(self) -> tuple[TreeNode, ...]:
        """The tree that was verified; empty where nothing was drafted."""
        return self.look()


class SessionAnswer(Generator[SessionStep, None, None]):
    """One answer as it comes: iterate over it; `close()` ends it early.

    Attributes:
        stats: steps, acceptance and times so far.
        ids: the answer's token ids so far.
    """

    def __init__(self, stats: GenerationStats, steps: Generator[SessionStep, None, None], ids: list[int]) -> None:
        self.stats, self.ids, self._steps = stats, ids, steps

    def send(self, value: None) -> SessionStep:
        """Return the next step."""
        return self._steps.send(value)

    def throw(self, *error: Any) -> SessionStep:
        """Raise an error in the running step."""
        return self._steps.throw(*error)


class Session:
    """One person's talk with a model; several may share the model, each with an own session.

    Args:
        model: the pair.
        template: name of one of FastChat's templates; None takes the tokenizer's own.

    Attributes:
        template: how conversations become text; None where the model only continues texts.
    """

    def __init__(self, model: EaModel, template: str | None = None) -> None:
        self.model = model
        self.template: Template | None = choose_template(model.tokenizer, template)
        self._prefix = Prefix()

    def chat(self, messages: Sequence[Message], settings: SessionSettings) -> SessionAnswer:
        """Answer the last message of a conversation; only what is new since the last call is run.

        Raises:
            ValueError: the model has no chat template, or it refuses the messages; the prompt leaves no room.
        """
        if self.template is None:
            raise ValueError("the tokenizer has no chat template: complete() continues a text instead")
        return self._answer(prompt_ids(self.model.tokenizer, self.template, messages), settings)

    def complete(self, text: str, settings: SessionSettings) -> SessionAnswer:
        """Continue a text.

        Raises:
            ValueError: the text is empty for the tokenizer, or leaves no room.
        """
        ids: list[int] = self.model.tokenizer(text, verbose=False)["input_ids"]
        if not ids:
            raise ValueError("there is no text to continue")
        return self._answer(ids, settings)

    def free(self) -> None:
        """Free the history's caches; the next call runs its whole prompt."""
        self._prefix.clear()

    def _answer(self, ids: Sequence[int], settings: SessionSettings) -> SessionAnswer:
        model, device = self.model, self.model.device
        sampling: dict[str, Any] = {"do_sample": False}
        if settings.temperature > 0:
            sampling = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p}
            sampling |= {"top_k": settings.top_k}
            if settings.seed is not None:
                sampling["generator"] = torch.Generator(device).manual_seed(settings.seed)
        stream = model.generate_steps(
            torch.tensor([ids], device=device),
            drafts=settings.drafts,
            max_new_tokens=settings.max_new_tokens,
            reuse_prefix=self._prefix,
            **({"stop_strings": list(settings.stop)} if settings.stop else {}),
            **sampling,
        )
        new: list[int] = []
        return SessionAnswer(stream.stats, _session_steps(stream, model.tokenizer, new), new)


class TokenText:
    """Text of an answer, token by token."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True) if tokenizer.is_fast else None
        self._ids: list[int] = []
        self._said = ""

    def add(self, token: int) -> str:
        """Return the text that a token adds; nothing while a character is incomplete."""
        self._ids.append(token)
        if self._stream is not None:
            new = self._stream.step(self._tokenizer.backend_tokenizer, token) or ""
        else:
            new = "" if self._text.endswith("\N{REPLACEMENT CHARACTER}") else self._text[len(self._said) :]
        self._said += new
        return new

    def rest(self) -> str:
        """Return what is left to say at the end: a character that no further token completes."""
        return self._text.removeprefix(self._said) if self._text.startswith(self._said) else ""

    @property
    def _text(self) -> str:
        return str(self._tokenizer.decode(self._ids, skip_special_tokens=True))


def _session_steps(
    stream: StepStream, tokenizer: PreTrainedTokenizerBase, new: list[int]
) -> Generator[SessionStep, None, None]:
    """Yield what the steps of a stream add, and add their tokens to `new`."""
    text = TokenText(tokenizer)
    with closing(stream):
        for step in stream:
            tokens, drafted = step.tokens[0], step.accepted[0]
            new.extend(tokens)
            pieces = [Piece(text.add(token), place < drafted) for place, token in enumerate(tokens)]
            if step.finished[0] is not None:
                pieces[-1] = replace(pieces[-1], text=pieces[-1].text + text.rest())
            yield SessionStep(tuple(pieces), step.finished[0], step.drafted, partial(_nodes, step, tokenizer))


def _nodes(step: DecodeStep, tokenizer: PreTrainedTokenizerBase) -> tuple[TreeNode, ...]:
    """Return the tree as numbers and text; a node that the limit cut off (its parent is gone) is left out."""
    if step.tree is None or step.tree.size == 1:
        return ()
    tree = step.tree
    ids, parents, scores = (row_N[0].tolist() for row_N in (tree.tokens_BN, tree.parents_BN, tree.scores_BN))
    path, places = [0], {0: 0}
    for token in step.tokens[0]:
        child = next((n for n in range(1, len(ids)) if parents[n] == path[-1] and ids[n] == token), None)
        if child is None:
            break
        path.append(child)
    nodes = [TreeNode(ids[0], _shown(tokenizer, ids[0]), -1, 1.0, True)]
    for number in range(1, len(ids)):
        if parents[number] in places:
            places[number] = len(nodes)
            probability = min(1.0, math.exp(scores[number] - scores[parents[number]]))
            words = _shown(tokenizer, ids[number])
            nodes.append(TreeNode(ids[number], words, places[parents[number]], probability, number in path))
    return tuple(nodes)


def _shown(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    return str(tokenizer.decode([token]))
