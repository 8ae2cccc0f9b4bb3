"""Conversations on their way to new answers: what an author is asked, and rows handed on in their order.

Every answer is saved as it comes and asked for once, however often its question stands in the rows. Rows are read as
the author takes questions, so that hardly more of them are held than it is busy with.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from eagle.chat import RowError, Template
from eagle.data.answer_file import AnswerFile
from eagle.data.answers import Answer, Author, Question
from eagle.data.dialogues import Dialogue
from eagle.data.rows import Conversation, Document
from eagle.data.sources import Raw

LOOPED = "the answer repeats itself without end"


@dataclass
class Entry:
    """A row that is not handed on yet.

    Attributes:
        place: its number among all rows.
        raw: as it was found.
        row: what it says.
        dialogue: what becomes of a conversation; None for any other row.
        answers: that the dialogue has.
        looped: those of them that repeat themselves without end.
    """

    place: int
    raw: Raw
    row: Document | Conversation | RowError
    dialogue: Dialogue | None = None
    answers: int = 0
    looped: int = 0

    @property
    def finished(self) -> bool:
        """Whether no answer is wanted any more."""
        return self.dialogue is None or self.dialogue.reason is not None


class Interview:
    """An author's answers to all that rows ask.

    Args:
        author: who answers.
        answers: where answers are saved, and found again.
        tokenizer, template: of the conversations.
        drop_loops: leave out answers that repeat themselves; the conversation ends before.
        bar: a progress bar of rows.
    """

    def __init__(
        self, author: Author, answers: AnswerFile, tokenizer: Any, template: Template, *, drop_loops: bool, bar: Any
    ) -> None:
        self.author, self.answers, self.tokenizer, self.template = author, answers, tokenizer, template
        self.drop_loops, self.bar = drop_loops, bar
        self._entries: deque[Entry] = deque()
        self._ready: deque[Question] = deque()
        self._asked: dict[tuple[str, int], list[Entry]] = {}
        self._began, self._heard, self._told = time.perf_counter(), 0, 0

    def run(self, rows: Iterator[Entry], hand_on: Callable[[Entry], None]) -> None:
        """Ask for every answer that is wanted.

        Args:
            rows: in order.
            hand_on: is given each of them in the same order, as soon as it and all before it are finished.
        """

        def take() -> Question | None:
            while not self._ready:
                if (entry := next(rows, None)) is None:
                    return None
                self._receive(entry)
                self._hand_on(hand_on)
            return self._ready.popleft()

        self.author.tokens_made = self._tokens_made
        for answer in self.author.write(take):
            self.answers.add(answer)
            self._heard += len(answer.ids)
            for entry in self._asked.pop((answer.question.key, answer.question.turn)):
                self._tell(entry, answer)
                self._advance(entry)
            self._hand_on(hand_on)
            self._show()
        assert not self._entries, "an author that has not answered every question"

    def _receive(self, entry: Entry) -> None:
        self._entries.append(entry)
        if isinstance(entry.row, Conversation):
            entry.dialogue = Dialogue(entry.place, entry.row.messages)
        self._advance(entry)

    def _advance(self, entry: Entry) -> None:
        """Go on with a row until an answer is wanted that is not there."""
        dialogue = entry.dialogue
        while dialogue is not None:
            question = dialogue.question(self.tokenizer, self.template, self.author.longest)
            if question is None:
                break
            known = question.key, question.turn
            if known in self._asked:
                self._asked[known].append(entry)
                return
            if (answer := self.answers.find(question)) is None:
                self._asked[known] = [entry]
                self._ready.append(question)
                return
            self._tell(entry, answer)
        self.bar.update(1)

    def _tell(self, entry: Entry, answer: Answer) -> None:
        dialogue = entry.dialogue
        assert dialogue is not None
        entry.answers, entry.looped = entry.answers + 1, entry.looped + answer.looped
        if answer.looped and self.drop_loops:
            dialogue.reason = LOOPED
        else:
            dialogue.add(answer)

    def _hand_on(self, hand_on: Callable[[Entry], None]) -> None:
        while self._entries and self._entries[0].finished:
            hand_on(self._entries.popleft())

    def _tokens_made(self, count: int) -> None:
        self._told += count
        self._show()

    def _show(self) -> None:
        rate = max(self._told, self._heard) / (time.perf_counter() - self._began)
        self.bar.set_postfix_str(f"{len(self.answers):,} answers, {rate:,.0f} tokens/s", refresh=False)
        self.bar.update(0)
