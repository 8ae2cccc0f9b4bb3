"""Rows into samples: parsed, answered anew where that is asked for, tokenised, brought to length, counted."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from eagle.chat import RowError, Template, check_roles, turn_marks
from eagle.data.folder import Writer
from eagle.data.regenerate import AnswerGenerator, Dialogue
from eagle.data.rows import Conversation, Document
from eagle.data.samples import Sample, conversation_samples, document_sample, pieces, truncated
from eagle.data.sources import Raw

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Maker:
    """What makes samples of rows.

    Attributes:
        tokenizer: the target's.
        template: of the conversations; None where the tokenizer has none.
        author: who answers; None where the answers stay as they are.
        max_length: conversations are cut to this many tokens, documents into pieces of as many.
        strict: raise at the first row that cannot be used.
    """

    tokenizer: Any
    template: Template | None
    author: AnswerGenerator | None
    max_length: int | None
    strict: bool

    def add(self, group: Sequence[Raw], writer: Writer) -> None:
        """Add the samples of some rows to a folder, and count the rows without any.

        Raises:
            ValueError: a conversation and no template, or a bad row where all must be good.
        """
        counts = writer.counts
        rows = [self._parsed(raw) for raw in group]
        answered = self._answered(rows, counts.rows)
        for raw, row in zip(group, rows, strict=True):
            counts.rows += 1
            try:
                made = self._samples(row, answered)
                cut = made if self.max_length is None else _cut(made, self.max_length)
            except RowError as reason:
                self._refuse(raw, reason)
                counts.skip(raw.where, reason)
                continue
            counts.truncated += sum(map(len, cut)) < sum(map(len, made))
            for sample in cut:
                writer.add(sample)

    def _parsed(self, raw: Raw) -> Document | Conversation | RowError:
        try:
            row = raw.parsed()
            if isinstance(row, Conversation) and self.template is None:
                raise ValueError(
                    f"{raw.where} is a conversation and the tokenizer has no chat template: "
                    "name one of FastChat's, as vicuna_v1.1 or llama-2, with --template"
                )
            self._check(row)
        except RowError as reason:
            self._refuse(raw, reason)  # before anything is answered
            return reason
        return row

    def _check(self, row: Document | Conversation) -> None:
        """See that the template leaves out no turn, and that a document is none that it has rendered already."""
        if isinstance(row, Conversation) and self.template is not None:
            check_roles(self.template, row.messages)
        if isinstance(row, Document) and (mark := next((m for m in self._turn_marks if m in row.text), None)):
            raise RowError(f"a text that a chat template has rendered already ({mark!r} in it): give its turns instead")

    @cached_property
    def _turn_marks(self) -> tuple[str, ...]:
        return turn_marks(self.tokenizer, self.template) if self.template is not None else ()

    def _refuse(self, raw: Raw, reason: RowError) -> None:
        if self.strict:
            raise ValueError(f"{raw.where}: {reason}") from reason

    def _answered(self, rows: Sequence[Document | Conversation | RowError], place: int) -> Iterator[Dialogue] | None:
        if self.author is None:
            return None
        if any(isinstance(row, Document) for row in rows):
            _tell_of_documents()
        talks = [row.messages for row in rows if isinstance(row, Conversation)]
        return iter(self.author.answered(talks, place))

    def _samples(self, row: Document | Conversation | RowError, answered: Iterator[Dialogue] | None) -> list[Sample]:
        if isinstance(row, RowError):
            raise row
        if isinstance(row, Document):
            return [document_sample(self.tokenizer, row.text)]
        if answered is not None:
            return next(answered).said()
        assert self.template is not None
        return conversation_samples(self.tokenizer, self.template, row.messages)


@cache
def _tell_of_documents() -> None:
    logger.info("documents stay as they are: the target answers conversations")


def _cut(samples: list[Sample], length: int) -> list[Sample]:
    """Cut conversations to a length; documents, where every token counts, into pieces."""
    return [
        part
        for sample in samples
        for part in (pieces(sample, length) if sample.mask.all() else [truncated(sample, length)])
    ]
