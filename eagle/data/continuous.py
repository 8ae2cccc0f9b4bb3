"""Many answers side by side, by the target alone: a row that ends makes room for the next question at once.

Every step is one forward of one token per row, with the rows' own lengths: the root-only tree of plain decoding. Every
answer is what `generate` says to its prompt alone, sampled after `torch.manual_seed` of its question's seed, as far as
kernels give a row the same logits in any company: in fp32 but for near-ties, in half precision nearly always.

Shapes: B places for rows, R new rows, S prompt tokens, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch

from eagle.data.answer_rules import AnswerRules, loops
from eagle.data.answers import Answer, Question
from eagle.model.kv_cache import BLOCK
from eagle.model.sampling import NO_TOKEN, Noise, pick
from eagle.model.target import TargetModel
from eagle.model.tree import root_only

CPU_ROWS = 32
GPU_ROWS = 1024  # at most; fewer where memory is short
PROMPT_TOKENS = 1 << 14  # of new rows that are read together
SHARE = 0.6  # of the memory that is free, for keys and values
UNLIMITED = 1 << 20  # slots of a row where the target names no last position
LOOK = 32  # tokens between looks for a loop


@dataclass
class _Row:
    """An answer on the way."""

    question: Question
    room: int
    temperature: float
    noise: Noise | None
    ids: list[int] = field(default_factory=list)
    looped: bool = False

    def say(self, token: int, ends: Sequence[int]) -> bool:
        """Add a token and tell whether the answer is over."""
        self.ids.append(token)
        said = len(self.ids)
        if self.noise is not None:
            self.noise.forget_before(said)
        self.looped = said % LOOK == 0 and loops(self.ids)
        return token in ends or said >= self.room or self.looped


class ContinuousAuthor:
    """The target as the author of many answers at once.

    Args:
        target: any whose trees can be verified and whose positions do not depend on other rows.
        rules: how it answers.
        rows: answers side by side; None for as many as the device does well.

    Attributes:
        longest, tokens_made: see `eagle.data.answers.Author`.

    Raises:
        NotImplementedError: the target switches its rotary embedding by the longest row of a batch.
    """

    def __init__(self, target: TargetModel, rules: AnswerRules, rows: int | None = None) -> None:
        if target.rope_switch is not None:
            raise NotImplementedError("the target's rotary embedding depends on the longest row of a batch")
        self.target, self.rules, self.rows = target, rules, rows
        self.longest = rules.longest
        self.tokens_made: Callable[[int], None] | None = None

    @torch.no_grad()
    def write(self, take: Callable[[], Question | None]) -> Iterator[Answer]:
        """Yield answers as they end; see `eagle.data.answers.Author`."""
        if (first := take()) is None:
            return
        places = _Places(self.target, self.rules, self.rows or self._fitting(first))
        asked = [first, *islice(iter(take, None), places.free - 1)]
        while asked or places.busy:
            answers = places.admit(asked)
            made = len(asked) + places.busy
            answers += places.step()
            if self.tokens_made is not None:
                self.tokens_made(made)
            yield from answers
            asked = []
            # A few at a time, so that prompts are not read one by one.
            if places.free > len(places.rows) // 16 or not places.busy:
                asked = list(islice(iter(take, None), places.free))
                places.shrink(places.busy + len(asked))

    def _fitting(self, first: Question) -> int:
        """Return how many answers the device writes side by side."""
        if self.target.device.type != "cuda":
            return CPU_ROWS
        cache = self.target.new_cache(1, len(first.prompt), [0])
        self.target.prefill_logits(torch.tensor([first.prompt], device=self.target.device), None, cache)
        held = sum(buffer.numel() * buffer.element_size() for layer in cache.layers for buffer in layer.buffers)
        slots = self.rules.most or len(first.prompt) + self.rules.max_new_tokens + BLOCK
        free, _ = torch.cuda.mem_get_info(self.target.device)
        return max(1, min(GPU_ROWS, int(SHARE * free / (held / len(first.prompt) * slots))))


class _Places:
    """Rows of one cache, each an answer on the way or free.

    Attributes:
        rows: what is in every place; None where it is free.
    """

    def __init__(self, target: TargetModel, rules: AnswerRules, size: int) -> None:
        self.target, self.rules = target, rules
        self.rows: list[_Row | None] = [None] * size
        self._roots = [rules.ends[0]] * size  # every row's last token, which no forward has seen
        self._cache = target.new_cache(size, target.last_position or UNLIMITED, [0] * size)
        self._cache.allocated = BLOCK

    @property
    def busy(self) -> int:
        """Answers on the way."""
        return sum(row is not None for row in self.rows)

    @property
    def free(self) -> int:
        """Places for more."""
        return len(self.rows) - self.busy

    def admit(self, questions: Sequence[Question]) -> list[Answer]:
        """Read prompts into free places; return the answers that end with their first token."""
        free = [place for place, row in enumerate(self.rows) if row is None]
        answers: list[Answer] = []
        for group in _groups(questions):
            places, free = free[: len(group)], free[len(group) :]
            logits_RV = self._read([question.prompt for question in group], places)
            for place, question in zip(places, group, strict=True):
                self.rows[place] = self._row(question)
            answers += self._say(logits_RV, places)
        return answers

    def step(self) -> list[Answer]:
        """Write one more token of every answer; return those that end with it."""
        places = [place for place, row in enumerate(self.rows) if row is not None]
        if not places:
            return []
        tokens_B = torch.tensor(self._roots, device=self.target.device)
        logits_BV = self.target.verify(root_only(tokens_B), self._cache, None).logits_BNV[:, 0]
        self._cache.advance([int(row is not None) for row in self.rows])
        return self._say(logits_BV if len(places) == len(self.rows) else logits_BV[places], places)

    def shrink(self, wanted: int) -> None:
        """Drop free places where fewer than half of all are wanted."""
        if not wanted or 2 * wanted > len(self.rows):
            return
        places = sorted(range(len(self.rows)), key=lambda place: self.rows[place] is None)[:wanted]
        self._cache.keep_rows(places)
        self.rows = [self.rows[place] for place in places]
        self._roots = [self._roots[place] for place in places]

    def _row(self, question: Question) -> _Row:
        temperature = self.rules.temperature(question)
        noise = None
        if temperature:
            generator = torch.Generator(self.target.device).manual_seed(self.rules.noise_seed(question))
            noise = Noise(1, self.target.device, generator)
        return _Row(question, self.rules.room(question), temperature, noise)

    def _read(self, prompts: Sequence[list[int]], places: Sequence[int]) -> torch.Tensor:
        """Run prompts, keep their keys and values in some places, and return their last logits [R, V]."""
        ids_RS, mask_RS = left_padded(prompts, self.rules.ends[0], self.target.device)
        width = ids_RS.shape[1]
        pads = [width - len(prompt) for prompt in prompts]
        new = self.target.new_cache(len(prompts), width, pads)
        logits_RV = self.target.prefill_logits(ids_RS, mask_RS if any(pads) else None, new)
        self._cache.take_in(places, new)
        return logits_RV

    def _say(self, logits_RV: torch.Tensor, places: Sequence[int]) -> list[Answer]:
        """Choose every row's next token; return the answers that are over, their places free again."""
        rows = [row for place in places if (row := self.rows[place]) is not None]
        answers = []
        for place, row, token in zip(places, rows, _chosen(logits_RV, rows), strict=True):
            self._roots[place] = token
            if row.say(token, self.rules.ends):
                answers.append(self.rules.answer(row.question, row.ids, row.looped))
                self.rows[place] = None
                self._cache.lengths[place] = 0
        return answers


def _chosen(logits_RV: torch.Tensor, rows: Sequence[_Row]) -> list[int]:
    """Return every row's next token.

    Raises:
        RuntimeError: logits are no distribution.
    """
    scores_RV = logits_RV.float()
    tokens_R = scores_RV.argmax(-1)
    for temperature in {row.temperature for row in rows if row.noise is not None}:
        places = [place for place, row in enumerate(rows) if row.temperature == temperature]
        noise_PV = torch.cat([_noise(rows[place], scores_RV.shape[-1]) for place in places])
        tokens_R[places] = pick(scores_RV[places] / temperature, noise_PV)
    tokens = tokens_R.tolist()
    if NO_TOKEN in tokens:
        raise RuntimeError("the target's logits are no distribution (NaN or infinite)")
    return tokens


def _noise(row: _Row, width: int) -> torch.Tensor:
    """Return the noise [1, V] of a row's next token."""
    assert row.noise is not None
    return row.noise.at([len(row.ids)], [0], width)


def _groups(questions: Sequence[Question]) -> Iterator[Sequence[Question]]:
    """Cut questions into groups whose padded prompts have at most `PROMPT_TOKENS` together."""
    begin = 0
    for end in range(1, len(questions) + 1):
        longest = max(len(question.prompt) for question in questions[begin : end + 1])
        if end == len(questions) or longest * (end + 1 - begin) > PROMPT_TOKENS:
            yield questions[begin:end]
            begin = end


def left_padded(prompts: Sequence[list[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask [R, S]."""
    longest = max(map(len, prompts))
    ids_RS = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask_RS = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids_RS.to(device), mask_RS.to(device)
