"""Rows into samples: parsed, tokenised, brought to length, counted."""

import logging
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from eagle.chat import RowError, Template, check_roles, turn_marks
from eagle.data.interview import Entry
from eagle.data.rows import Conversation, Document
from eagle.data.samples import Sample, conversation_samples, document_sample, pieces, truncated
from eagle.data.sources import Raw
from eagle.data.writer import Writer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Maker:
    """What makes samples of rows.

    Attributes:
        tokenizer: the target's.
        template: of the conversations; None where the tokenizer has none.
        answered: whether conversations are answered anew.
        max_length: conversations are cut to this many tokens, documents into pieces of as many.
        strict: raise at the first row that cannot be used.
    """

    tokenizer: Any
    template: Template | None
    answered: bool
    max_length: int | None
    strict: bool

    def entry(self, place: int, raw: Raw) -> Entry:
        """Check a row, before anything of it is answered.

        Raises:
            ValueError: a conversation and no template, or a bad row where all must be good.
        """
        try:
            row = raw.parsed()
            if isinstance(row, Conversation) and self.template is None:
                raise ValueError(
                    f"{raw.where} is a conversation and the tokenizer has no chat template: "
                    "name one of FastChat's, as vicuna_v1.1 or llama-2, with --template"
                )
            self._check(row)
        except RowError as reason:
            self._refuse(raw, reason)
            return Entry(place, raw, reason)
        return Entry(place, raw, row)

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

    def add(self, entry: Entry, writer: Writer) -> None:
        """Add the samples of a row to a folder, or count it as one without any.

        Raises:
            ValueError: a bad row where all must be good.
        """
        writer.counts.answers += entry.answers
        writer.counts.looped += entry.looped
        try:
            made = self._samples(entry)
            cut = made if self.max_length is None else _cut(made, self.max_length)
        except RowError as reason:
            self._refuse(entry.raw, reason)
            writer.skip(entry.raw, reason)
            return
        writer.counts.truncated += sum(map(len, cut)) < sum(map(len, made))
        writer.add(entry.raw, cut)

    def _samples(self, entry: Entry) -> list[Sample]:
        row = entry.row
        if isinstance(row, RowError):
            raise row
        if isinstance(row, Document):
            if self.answered:
                _tell_of_documents()
            return [document_sample(self.tokenizer, row.text)]
        if entry.dialogue is not None:
            return entry.dialogue.said()
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
