"""Token ids with a loss mask: from conversations and documents, brought to a length, counted.

Shapes: T tokens of a sample, V vocabulary.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eagle.chat import Message, RowError, Template, TokenizerTemplate, marked, to_the_last_answer

PIECE = 1 << 20  # tokens that are counted at once


@dataclass(frozen=True)
class Sample:
    """One document or conversation.

    Attributes:
        ids: int32 [T].
        mask: bool [T]; True where the token is an answer's, so that predicting it counts in the loss.
    """

    ids: NDArray[np.int32]
    mask: NDArray[np.bool_]

    def __post_init__(self) -> None:
        if self.ids.ndim != 1 or self.ids.shape != self.mask.shape:
            raise ValueError(f"ids {self.ids.shape} and mask {self.mask.shape} must be [T] alike")

    def __len__(self) -> int:
        return len(self.ids)


def document_sample(tokenizer: Any, text: str) -> Sample:
    """Tokenise a document as the tokenizer does by itself, with one BOS where it has its own; every token counts."""
    ids = np.asarray(tokenizer(text, verbose=False)["input_ids"], dtype=np.int32)
    twice = ids[:2].tolist() == [tokenizer.bos_token_id] * 2
    return Sample(ids[twice:], np.ones(len(ids) - twice, dtype=bool))


def conversation_samples(tokenizer: Any, template: Template, messages: Sequence[Message]) -> list[Sample]:
    """Tokenise a conversation; the assistant's tokens count, up to the one that ends each turn.

    The ids are those of `apply_chat_template` up to the last answer. A template with `{% generation %}` marks the
    answers itself; for others see `eagle.chat.marked`, which also says when there are several samples.

    Raises:
        RowError: no answer, or the template refuses the messages.
        ValueError: a tokenizer without a fast implementation, which cannot say where its tokens lie.
    """
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} does not say where its tokens lie: use a fast tokenizer")
    if isinstance(template, TokenizerTemplate) and template.marks_answers:
        return [_self_marked(tokenizer, template, messages)]
    return [_tokenised(tokenizer, template, part.text, part.answers) for part in marked(template, messages)]


def _self_marked(tokenizer: Any, template: TokenizerTemplate, messages: Sequence[Message]) -> Sample:
    messages = to_the_last_answer(messages)
    template.render(messages, asks=False)  # its refusals are a reason of this row
    out = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    mask = np.asarray(out["assistant_masks"], dtype=bool)
    if not mask.any():
        raise RowError("the chat template marks no token as the assistant's")
    return Sample(np.asarray(out["input_ids"], dtype=np.int32), mask)


def prompt_ids(tokenizer: Any, template: Template, messages: Sequence[Message]) -> list[int]:
    """Return the ids with which a conversation asks for its next answer.

    Raises:
        RowError: the template refuses the messages.
    """
    text = template.render(messages, asks=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return [*_missing_bos(tokenizer, template, ids), *ids]


def _tokenised(tokenizer: Any, template: Template, text: str, answers: Sequence[tuple[int, int]]) -> Sample:
    out = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = np.asarray(out["input_ids"], dtype=np.int32)
    # A token belongs to where it ends: one that begins with the space before an answer is the answer's.
    ends = np.asarray(out["offset_mapping"]).reshape(-1, 2)[:, 1]
    mask = np.zeros(len(ids), dtype=bool)
    for begin, end in answers:
        places = np.flatnonzero((ends > begin) & (ends <= end))
        mask[places[: _spoken(tokenizer, ids[places])]] = True
    bos = np.asarray(_missing_bos(tokenizer, template, ids[:1].tolist()), dtype=np.int32)
    return Sample(np.concatenate([bos, ids]), np.concatenate([np.zeros(len(bos), dtype=bool), mask]))


def _missing_bos(tokenizer: Any, template: Template, ids: Sequence[int]) -> list[int]:
    """Return the BOS as a list where the tokenizer adds one, the template leaves that to it, and ids have none."""
    bos = [tokenizer.bos_token_id]
    return bos if template.adds_bos and tokenizer("")["input_ids"][:1] == bos != list(ids[:1]) else []


def _spoken(tokenizer: Any, ids: NDArray[np.int32]) -> int:
    """Return how many tokens of a turn the model says: none after the one that ends it.

    Templates write a line break, or the next turn's BOS, after that token. Both are dropped where a token that the
    tokenizer's files add, as all that end turns are, is before them.
    """
    added = {place for text, place in tokenizer.get_added_vocab().items() if not text.isspace()}
    opens = {tokenizer.bos_token_id} - {tokenizer.eos_token_id}
    count = len(ids)
    while count and (int(ids[count - 1]) in opens or not tokenizer.decode([int(ids[count - 1])]).strip()):
        count -= 1
    return count if count and int(ids[count - 1]) in added else len(ids)


def truncated(sample: Sample, length: int) -> Sample:
    """Return the first `length` tokens.

    Raises:
        RowError: no answer is among them.
    """
    short = Sample(sample.ids[:length], sample.mask[:length])
    if not short.mask.any():
        raise RowError(f"no answer within the first {length} tokens")
    return short


def pieces(sample: Sample, length: int) -> list[Sample]:
    """Cut a document into pieces of `length` tokens; the last is what is left."""
    starts = range(0, len(sample), length)
    return [Sample(sample.ids[start : start + length], sample.mask[start : start + length]) for start in starts]


def token_counts(samples: Iterable[Sample], vocabulary: int) -> NDArray[np.int64]:
    """Count, for every id, how often it counts in the loss: int64 [V].

    Raises:
        ValueError: an id is not below `vocabulary`.
    """
    return counted_tokens(samples, vocabulary)[0]


def counted_tokens(samples: Iterable[Sample], vocabulary: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count, for every id, how often it counts in the loss, and is there at all: int64 [V] each.

    Raises:
        ValueError: an id is not below `vocabulary`.
    """
    answers_V, all_V = np.zeros(vocabulary, dtype=np.int64), np.zeros(vocabulary, dtype=np.int64)
    held, tokens = list[Sample](), 0

    def add() -> None:
        ids, mask = np.concatenate([each.ids for each in held]), np.concatenate([each.mask for each in held])
        if ids.size and ids.max() >= vocabulary:
            raise ValueError(f"token id {ids.max()} is outside a vocabulary of {vocabulary}")
        all_V[:] += np.bincount(ids, minlength=vocabulary)
        answers_V[:] += np.bincount(ids[mask], minlength=vocabulary)

    for sample in samples:
        held.append(sample)
        tokens += len(sample)
        if tokens >= PIECE:
            add()
            held, tokens = [], 0
    if held:
        add()
    return answers_V, all_V
