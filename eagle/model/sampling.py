"""From logits to a token, in the order and with the random numbers of `transformers.generate`.

One `Sampler` serves plain and speculative decoding, so the two cannot drift. Noise belongs to the position: the t-th
new token uses the t-th exponential tensor [B, V] drawn from the generator, whichever tree proposes it. And
`argmax(p / noise)` is what `torch.multinomial(p, 1)` computes. So in fp32 a seed gives the ids `generate` gives.

Shapes: B rows of the running batch, R rows it began with, V vocabulary.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    ExponentialDecayLengthPenalty,
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    InfNanRemoveLogitsProcessor,
    LogitNormalization,
    LogitsProcessor,
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

NO_TOKEN = -1
# Processors that read nothing but the scores: they can run on any node, any number of times, in any order.
STATELESS = frozenset(
    {
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
        MinPLogitsWarper,
        TypicalLogitsWarper,
        EpsilonLogitsWarper,
        EtaLogitsWarper,
        SuppressTokensLogitsProcessor,
        InfNanRemoveLogitsProcessor,
        LogitNormalization,
    }
)
# Processors that treat every row of [B, L] alike, so that a batch may be walked row by row.
ROW_PROCESSORS = STATELESS | {
    RepetitionPenaltyLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    NoBadWordsLogitsProcessor,
    SequenceBiasLogitsProcessor,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    ForcedBOSTokenLogitsProcessor,
    ForcedEOSTokenLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    ExponentialDecayLengthPenalty,
}


class Noise:
    """Exponential noise by position, drawn in order from one generator and kept until every row has passed.

    Args:
        rows: rows R the call began with; finished rows keep their share, as in `generate`.
        device: where the logits are.
        generator: the caller's, or None for torch's global one of that device.
    """

    def __init__(self, rows: int, device: torch.device, generator: torch.Generator | None = None) -> None:
        self._rows = rows
        self._device = device
        self._generator = generator
        self._drawn: OrderedDict[int, torch.Tensor] = OrderedDict()
        self._states: OrderedDict[int, torch.Tensor] = OrderedDict()
        self._next = 0

    def at(
        self, positions: Sequence[int], rows: Sequence[int], width: int, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """Return [B, V]: for each running row its noise at the given new-token number (0 is the first).

        `width` is V: that of the scores, which processors may have made wider or narrower. `dtype` is theirs too,
        because `multinomial` draws in that of the probabilities, whatever torch's default is.
        """
        while self._next <= max(positions):
            noise_RV = torch.empty(self._rows, width, dtype=dtype, device=self._device)
            self._drawn[self._next] = noise_RV.exponential_(1, generator=self._generator)
            self._states[self._next] = self._state()
            self._next += 1
        if len(rows) == self._rows and len(set(positions)) == 1:
            return self._drawn[positions[0]]
        return torch.stack([self._drawn[t][row] for t, row in zip(positions, rows, strict=True)])

    @property
    def width(self) -> int:
        """V of what was drawn last."""
        return next(reversed(self._drawn.values())).shape[-1]

    def forget_before(self, position: int) -> None:
        """Drop the noise of new tokens that all rows have passed."""
        while self._drawn and next(iter(self._drawn)) < position:
            self._drawn.popitem(last=False)
            self._states.popitem(last=False)

    def rewind(self, used: int) -> None:
        """Leave the generator where `generate` would after `used` tokens, unless someone else has drawn since."""
        if 0 < used < self._next and torch.equal(self._state(), self._states[self._next - 1]):
            self._source().set_state(self._states[used - 1])
            self._next = used

    def _source(self) -> torch.Generator:
        if self._generator is not None:
            return self._generator
        if self._device.type == "cpu":
            return torch.default_generator
        module = torch.get_device_module(self._device)
        index = self._device.index if self._device.index is not None else module.current_device()
        return module.default_generators[index]

    def _state(self) -> torch.Tensor:
        return self._source().get_state()


def pick(scores_BV: torch.Tensor, noise_BV: torch.Tensor | None) -> torch.Tensor:
    """Return one token [B] per row: the likeliest, or with noise the one `multinomial` would draw.

    `NO_TOKEN` stands where the scores are no distribution.
    """
    if noise_BV is None:
        return scores_BV.argmax(-1)
    ratio_BV = scores_BV.softmax(-1) / noise_BV
    token_B = ratio_BV.argmax(-1)
    # NaN counts as largest, so no distribution shows at the picked token; the host reads -1 and raises.
    return torch.where(ratio_BV.gather(-1, token_B[:, None])[:, 0].isnan(), NO_TOKEN, token_B)


class Sampler:
    """Picks the next token from target logits.

    Args:
        processors: stock or user-written logits processors, applied in fp32 in this order.
        noise: random numbers for sampling, or None for greedy.

    Attributes:
        is_stateless: every processor reads nothing but the scores.
        is_row_by_row: every processor may be shown the rows of a batch one at a time.
    """

    def __init__(self, processors: LogitsProcessorList, noise: Noise | None) -> None:
        self.processors = processors
        self.noise = noise
        self.is_stateless = all(type(processor) in STATELESS for processor in processors)
        self.is_row_by_row = all(type(processor) in ROW_PROCESSORS for processor in processors)
        self._of_row: dict[int, LogitsProcessorList] = {}

    @property
    def is_plain_greedy(self) -> bool:
        """Whether every token is the likeliest, whatever came before."""
        return self.noise is None and not len(self.processors)

    def scores(
        self, logits_BV: torch.Tensor, prefix_BL: torch.Tensor | None = None, row: int | None = None
    ) -> torch.Tensor:
        """Return processed scores [B, V] in fp32.

        Args:
            logits_BV: raw logits.
            prefix_BL: all ids so far, prompt and pads included; None when every processor is stateless.
            row: number of the single row shown, where a batch is walked row by row.
        """
        scores_BV = logits_BV.to(torch.float32)
        if not len(self.processors):
            return scores_BV
        processors = self.processors if row is None else self._processors_of(row)
        # A copy, because user-written processors may work in place.
        return processors(prefix_BL, scores_BV.clone())

    def choose(self, scores_BV: torch.Tensor, positions: Sequence[int], rows: Sequence[int]) -> torch.Tensor:
        """Return one token [B] per row, `NO_TOKEN` where the scores are no distribution.

        Args:
            scores_BV: processed scores.
            positions: number of each row's next new token.
            rows: the rows' numbers in the batch the call began with.
        """
        if self.noise is None:
            return pick(scores_BV, None)
        return pick(scores_BV, self.noise.at(positions, rows, scores_BV.shape[-1], scores_BV.dtype))

    def picker(self, positions: Sequence[int], rows: Sequence[int]) -> Callable[[torch.Tensor, int], torch.Tensor]:
        """Return what picks the tokens [B] of new-token numbers `positions` + level from their logits [B, V]."""
        return lambda logits_BV, level: self.choose(self.scores(logits_BV), [t + level for t in positions], rows)

    @property
    def settings(self) -> Hashable:
        """What a step with these stateless processors depends on: equal settings pick equal tokens."""
        return (self.noise is not None, *((type(p), _frozen(vars(p))) for p in self.processors))

    def _processors_of(self, row: int) -> LogitsProcessorList:
        """Return the processors with what they hold per row of the batch cut down to one row."""
        if row not in self._of_row:
            self._of_row[row] = LogitsProcessorList(_cut(processor, row) for processor in self.processors)
        return self._of_row[row]


def _frozen(value: Any) -> Hashable:
    """Return a hashable stand-in for a processor's attribute, equal where the attribute is."""
    if isinstance(value, torch.Tensor):
        return (value.device, value.dtype, tuple(value.shape), tuple(value.flatten().tolist()))
    if isinstance(value, dict):
        return tuple((key, _frozen(item)) for key, item in sorted(value.items()))
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _cut(processor: LogitsProcessor, row: int) -> LogitsProcessor:
    # `generate` hands its repetition penalty the left pads of every row, so that they count as no repetition.
    ignored = getattr(processor, "prompt_ignore_length", None)
    if isinstance(ignored, torch.Tensor):
        return RepetitionPenaltyLogitsProcessor(processor.penalty, prompt_ignore_length=int(ignored[row]))
    return processor
