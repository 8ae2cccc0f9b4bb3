"""Visitors: who has the page open, what each has asked, the answers as they come, and when all of it is freed.

Knows neither gradio nor HTML. Whoever shows a visitor's turns drives `work` and reads the rest; any thread may call
`stop` and `leave` meanwhile, and the step that is running is then the last.
"""

import itertools
import logging
import random
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace

from eagle.application.session import Session, SessionAnswer, SessionSettings, SessionStep
from eagle.chat import Message
from eagle.model.stats import GenerationStats

logger = logging.getLogger(__name__)
STOPPED = "stopped"
"""Why an answer ended that a visitor has stopped; the other reasons are those of a `SessionStep`."""
KEPT_HISTORIES = 16
"""Visitors whose caches are kept; those longer idle run their whole prompt again."""
KEPT_TREES = 4
"""Answers of a visitor whose trees are kept: a long one has tens of thousands of nodes."""
FAILURES = (ValueError, TypeError, RuntimeError, NotImplementedError, MemoryError, ImportError, OSError)


@dataclass
class TurnRun:
    """One decoding of a turn's prompt.

    Attributes:
        stats: so far.
        ids: new tokens so far.
        steps: what each step added.
        finished: "eos", "length", "criteria" (a stop string) or `STOPPED`; None while it goes on.
    """

    stats: GenerationStats
    ids: list[int]
    steps: list[SessionStep] = field(default_factory=list)
    finished: str | None = None

    @property
    def text(self) -> str:
        """What it says so far."""
        return "".join(piece.text for step in self.steps for piece in step.pieces)

    @property
    def tokens_per_second(self) -> float:
        """Tokens after the first one, by the time since then; 0 before any.

        The first one is left out because an answer may find its history in a cache while the other run does not.
        """
        later = self.stats.new_tokens - sum(self.stats.tokens_per_step[:1])
        return later / self.stats.decode_seconds if self.stats.decode_seconds else 0.0

    @property
    def compression(self) -> float:
        """Tokens per forward of the target, the prompt's included; 1 for plain decoding."""
        return self.stats.new_tokens / max(1, len(self.stats.tokens_per_step))


@dataclass
class Exchange:
    """A question and its answer, or a text and how it goes on.

    Attributes:
        question: what the visitor wrote.
        messages: the conversation up to it, which is the last; empty where a text is continued.
        settings: with a seed where it is sampled, so that the other way can draw the same noise.
        runs: by whether the head drafts; that of `settings.drafts` is the answer, the other one is beside it.
    """

    question: str
    messages: tuple[Message, ...]
    settings: SessionSettings
    runs: dict[bool, TurnRun] = field(default_factory=dict)

    @property
    def answer(self) -> TurnRun | None:
        """The answer as far as it is there."""
        return self.runs.get(self.settings.drafts)

    @property
    def agreement(self) -> tuple[int, int] | None:
        """How many tokens both ways begin with alike, and of how many; None before both have ended."""
        runs = list(self.runs.values())
        if len(runs) < 2 or any(run.finished is None for run in runs):
            return None
        lengths = [len(run.ids) for run in runs]
        was_stopped = any(run.finished == STOPPED for run in runs)
        pairs = zip(runs[0].ids, runs[1].ids, strict=False)
        alike = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        return alike, min(lengths) if was_stopped else max(lengths)


class Visitor:
    """One open page.

    Args:
        session: its own.
        anew: makes a session without history, for comparisons.

    Attributes:
        turns: what was asked and answered.
        problem: why the last wish failed, in words; empty where it did not.
        returned: the text of a wish that came to nothing, for the visitor to change.
        editing: number of the turn whose question is being edited.
        shown: turn and step whose tree is drawn; None is the newest.
        gone: whether the page was closed.
    """

    def __init__(self, session: Session, anew: Callable[[], Session]) -> None:
        self.session, self._anew = session, anew
        self.turns: list[Exchange] = []
        self.problem = self.returned = ""
        self.editing: int | None = None
        self.shown: tuple[int, int] | None = None
        self.gone = False
        self._before: list[Exchange] = []
        self._wishes: list[tuple[Exchange, bool]] = []
        self._runs = self._stops = False
        self._lock = threading.Lock()

    @property
    def is_busy(self) -> bool:
        """Whether something is being answered or waits for that."""
        return self._runs or bool(self._wishes)

    @property
    def is_waiting(self) -> bool:
        """Whether somebody else's answer comes first."""
        return bool(self._wishes) and not self._runs

    def ask(self, text: str, settings: SessionSettings, *, chats: bool, compares: bool = False) -> None:
        """Wish for an answer; after `edit` it takes the place of that turn and all after it.

        Args:
            text: a question, or a text to continue.
            settings: how; a seed is drawn where it is sampled without one.
            chats: answer in a conversation.
            compares: decode the other way too, afterwards.

        Raises:
            ValueError: the text cannot be encoded, or an earlier wish is not done.
        """
        if self.is_busy:
            raise ValueError("the answer before is not done: stop it first")
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError("the text holds half a character (a lone surrogate)")
        if not text.strip() and (chats or not text):
            raise ValueError("there is no text yet")
        self._before = list(self.turns)
        kept = self.turns if self.editing is None else self.turns[: self.editing]
        messages = (*_conversation(kept), {"role": "user", "content": text}) if chats else ()
        if settings.temperature > 0 and settings.seed is None:
            settings = replace(settings, seed=random.SystemRandom().randrange(2**31))
        turn = Exchange(text, messages, settings)
        self.turns = [*kept, turn]
        self.problem, self.returned, self.editing, self.shown = "", "", None, None
        ways = (settings.drafts, not settings.drafts) if compares else (settings.drafts,)
        self._wishes = [(turn, drafts) for drafts in ways]

    def ask_again(self, settings: SessionSettings, *, compares: bool = False) -> None:
        """Wish for another answer to the last question.

        Raises:
            ValueError: there is none, or an earlier wish is not done.
        """
        if not self.turns:
            raise ValueError("nothing was asked yet")
        if not self.is_busy:
            self.editing = len(self.turns) - 1
        last = self.turns[-1]
        self.ask(last.question, settings, chats=bool(last.messages), compares=compares)

    def compare(self) -> None:
        """Wish for the last answer decoded the other way: plainly, or with the head where that was plain.

        Raises:
            ValueError: there is no answer, or an earlier wish is not done.
        """
        if self.is_busy:
            raise ValueError("the answer before is not done: stop it first")
        if not self.turns or self.turns[-1].answer is None:
            raise ValueError("there is no answer to compare with")
        self.problem, self._before = "", list(self.turns)
        self._wishes = [(self.turns[-1], not self.turns[-1].settings.drafts)]

    def edit(self, number: int) -> str:
        """Begin to edit a turn's question; return it. The next `ask` replaces it and what follows.

        Raises:
            ValueError: no such turn, or an answer is not done.
        """
        if self.is_busy or not 0 <= number < len(self.turns):
            raise ValueError("the answer is not done: stop it first" if self.is_busy else "there is no such question")
        self.editing = number
        return self.turns[number].question

    def clear(self) -> None:
        """Forget everything, also what is being answered."""
        self.stop()
        self.turns, self._before = [], []
        self.problem, self.returned, self.editing, self.shown = "", "", None, None
        with self._lock:
            if not self._runs:
                self.session.free()

    def stop(self) -> None:
        """End what is being answered after the step that is running, and forget what waits."""
        with self._lock:
            self._stops = True
            if not self._runs and self._wishes:
                self._take_back()
            self._wishes = []

    def leave(self) -> None:
        """Stop, and free the caches: the page is closed."""
        self.gone = True
        self.stop()
        with self._lock:
            if not self._runs:
                self.session.free()

    def work(self) -> Generator[None, None, None]:
        """Do what was wished for; yield whenever there is something new to show."""
        with self._lock:
            if self._runs or not self._wishes or self.gone:
                return
            self._runs, self._stops = True, False
        try:
            yield
            while (wish := self._next()) is not None:
                yield from self._run(*wish)
        except FAILURES as failure:
            if not isinstance(failure, ValueError):
                logger.exception("an answer failed")
            self.problem = str(failure) or type(failure).__name__
            self._take_back()
        finally:
            with self._lock:
                self._wishes, self._runs = [], False
                if self.gone or not self.turns:
                    self.session.free()
        for turn in self.turns[:-KEPT_TREES]:
            for run in turn.runs.values():
                run.steps = [replace(step, drafted=0, look=tuple) for step in run.steps]

    def _next(self) -> tuple[Exchange, bool] | None:
        with self._lock:
            return self._wishes.pop(0) if self._wishes else None

    def _run(self, turn: Exchange, drafts: bool) -> Iterator[None]:
        is_answer = drafts == turn.settings.drafts
        session = self.session if is_answer else self._anew()
        settings = replace(turn.settings, drafts=drafts)
        if turn.answer is not None and turn.answer.finished == STOPPED:
            settings = replace(settings, max_new_tokens=max(1, len(turn.answer.ids)))
        answer = _answer(session, turn, settings)
        run = turn.runs[drafts] = TurnRun(answer.stats, answer.ids)
        try:
            with closing(answer):
                for step in answer:
                    run.steps.append(step)
                    if self._stops and step.finished is None:
                        break
                    yield
        finally:
            run.finished = (run.steps[-1].finished if run.steps else None) or STOPPED
            if not is_answer:
                session.free()

    def _take_back(self) -> None:
        """Undo a wish that came to nothing."""
        last = self.turns[-1] if self.turns else None
        if last is not None and (last.answer is None or not last.answer.ids):
            self.turns, self.returned = self._before, last.question
        elif last is not None:
            last.runs = {drafts: run for drafts, run in last.runs.items() if drafts == last.settings.drafts}


def _conversation(turns: list[Exchange]) -> list[Message]:
    """Return the messages of turns that were chat."""
    messages: list[Message] = []
    for turn in turns:
        if turn.messages and turn.answer is not None:
            messages += [turn.messages[-1], {"role": "assistant", "content": turn.answer.text}]
    return messages


def _answer(session: Session, turn: Exchange, settings: SessionSettings) -> SessionAnswer:
    return session.chat(turn.messages, settings) if turn.messages else session.complete(turn.question, settings)


class Visitors:
    """All open pages, by the names that the server gives them.

    Args:
        session: makes a session; every visitor gets an own one.
    """

    def __init__(self, session: Callable[[], Session]) -> None:
        self._session = session
        self._visitors: OrderedDict[str, Visitor] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Return how many pages are open."""
        return len(self._visitors)

    def greet(self, name: str) -> Visitor:
        """Return a visitor, a new one where the name is unknown; caches of those longest idle are freed."""
        with self._lock:
            visitor = self._visitors.get(name)
            if visitor is None:
                visitor = self._visitors[name] = Visitor(self._session(), self._session)
            self._visitors.move_to_end(name)
            idle = [other for other in list(self._visitors.values())[:-KEPT_HISTORIES] if not other.is_busy]
        for other in idle:
            other.session.free()
        return visitor

    def known(self, name: str) -> Visitor | None:
        """Return a visitor that is still here."""
        return self._visitors.get(name)

    def leave(self, name: str) -> None:
        """Free what a visitor had; its page is closed."""
        with self._lock:
            visitor = self._visitors.pop(name, None)
        if visitor is not None:
            visitor.leave()

    def close(self) -> None:
        """Let all leave."""
        for name in list(self._visitors):
            self.leave(name)
