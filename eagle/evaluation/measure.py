"""Measuring methods in alternating rounds, so that whatever else the machine does falls on all of them.

A method's speed is the median over rounds, its speed-up the median of the rounds' ratios to the faster baseline of the
same round. Counts come from the first round; forwards, time inside the models and memory from a run with a
`ModelMeter` that is not timed.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from eagle import progress
from eagle.evaluation.methods import BASELINES, Method, emitted
from eagle.evaluation.model_meter import ModelMeter, PeakMemory
from eagle.evaluation.prompts import Prompt
from eagle.model.stats import STAGES, GenerationStats

SHORT = 16  # new tokens of a warm-up


@dataclass
class Round:
    """Seconds that one method took for all prompts of one round; the parts are 0 where nobody counts them."""

    total: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    stages: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))


@dataclass
class Row:
    """What one method did on one batch size and prompt length.

    Attributes:
        name: the method's.
        batch_size: rows per batch.
        prompt_length: tokens per prompt; None for prompts as they are.
        batches: how many batches a round has.
        tokens: new tokens of one round, all rows.
        steps: forwards of the target after the first token; None where only a meter could tell and there was none.
        row_steps, accepted: what τ is made of.
        ids_equal: every round gave the ids of the first method.
        rounds: the times.
        ratios: to the faster baseline of the same round, one per round.
        speedup: their median.
        outside_share: part of the time after the first token that is spent outside the two models.
        peak_bytes: highest memory use.
    """

    name: str
    batch_size: int = 1
    prompt_length: int | None = None
    batches: int = 0
    tokens: int = 0
    steps: int | None = None
    row_steps: int = 0
    accepted: int = 0
    ids_equal: bool = True
    rounds: list[Round] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    speedup: float = float("nan")
    outside_share: float = float("nan")
    peak_bytes: int = 0

    @property
    def seconds(self) -> list[float]:
        """One total per round."""
        return [one.total for one in self.rounds]

    @property
    def acceptance_length(self) -> float:
        """τ over all prompts of one round; NaN where nobody counts."""
        return 1 + self.accepted / self.row_steps if self.row_steps else float("nan")

    @property
    def tokens_per_second(self) -> float:
        """New tokens per second of the median round."""
        return self.tokens / statistics.median(self.seconds)

    @property
    def prefill_ms(self) -> float:
        """Milliseconds until the first tokens of a batch, in the median round; NaN where nobody counts."""
        return 1000 * self._middle.prefill / self.batches if self.row_steps else float("nan")

    @property
    def step_ms(self) -> dict[str, float]:
        """Milliseconds per step in the median round: its stages, and the host's work between them; they add up."""
        if not self.row_steps or not self.steps:
            return {}
        middle = self._middle
        if not any(middle.stages.values()):
            return {}
        parts = middle.stages | {"host": middle.decode - sum(middle.stages.values())}
        return {name: 1000 * seconds / self.steps for name, seconds in parts.items()}

    @property
    def _middle(self) -> Round:
        return sorted(self.rounds, key=lambda one: one.total)[(len(self.rounds) - 1) // 2]

    def figures(self) -> dict[str, Any]:
        """Return everything, derived figures too, as JSON knows it."""
        derived = ("seconds", "acceptance_length", "tokens_per_second", "prefill_ms", "step_ms")
        return asdict(self) | {name: getattr(self, name) for name in derived}


def measure(
    chosen: Sequence[Method],
    prompts: Sequence[Prompt],
    new: int,
    rounds: int,
    *,
    seed: int = 0,
    meter: ModelMeter | None = None,
) -> list[Row]:
    """Run all methods on all prompts in alternating rounds, each once unmeasured before.

    Args:
        chosen: the methods; the first one's ids are those the others are held to.
        prompts: the batches of one round, all of one size.
        new: new tokens per row.
        rounds: how often.
        seed: of torch's generators before every run, for sampling.
        meter: also count forwards, time inside the models, and memory, in one more run of every method.
    """
    batch = len(prompts[0].ids_BS)
    rows = [Row(method.name, batch, batches=len(prompts)) for method in chosen]
    wanted: list[torch.Tensor] = []
    for method in chosen:
        method.run(prompts[0], min(new, SHORT))
    with progress.bar(total=rounds * len(chosen) * len(prompts), unit="run", leave=False) as bar:
        for number in range(rounds):
            for method, row in zip(chosen, rows, strict=True):
                row.rounds.append(Round())
                outs = []
                for prompt in prompts:
                    torch.manual_seed(seed)
                    outs.append(_timed(method, prompt, new, row, is_first=number == 0))
                    bar.update()
                wanted = outs if method is chosen[0] else wanted
                row.ids_equal &= all(torch.equal(*pair) for pair in zip(outs, wanted, strict=True))
    _rate(rows)
    if meter is not None:
        for method, row in zip(chosen, rows, strict=True):
            _measure_once(method, prompts, new, row, meter, seed)
    return rows


def _timed(method: Method, prompt: Prompt, new: int, row: Row, is_first: bool) -> torch.Tensor:
    """Run once and add the times to the row's last round, in its first round the counts too."""
    started = time.perf_counter()
    out = method.run(prompt, new)
    out[0, -1].item()
    current, stats = row.rounds[-1], method.stats()
    current.total += time.perf_counter() - started
    if stats is not None:
        current.prefill += stats.prefill_seconds
        current.decode += stats.decode_seconds
        for name, seconds in stats.stage_seconds.items():
            current.stages[name] = current.stages.get(name, 0.0) + seconds
    if is_first:
        _count(row, out[:, prompt.width :], stats, method.ends)
    return out


def _count(row: Row, new_BT: torch.Tensor, stats: GenerationStats | None, ends: frozenset[int]) -> None:
    if stats is None:
        row.tokens += sum(emitted(line, ends) for line in new_BT.tolist())
        return
    row.tokens += stats.new_tokens
    row.steps = (row.steps or 0) + stats.steps
    row.row_steps += stats.row_steps
    row.accepted += sum(stats.accepted_per_step)


def _rate(rows: Sequence[Row]) -> None:
    """Hold every round to the faster baseline of the same round."""
    baselines = [row.seconds for row in rows if row.name in BASELINES]
    fastest = [min(times) for times in zip(*baselines, strict=True)]
    for row in rows:
        row.ratios = [best / own for best, own in zip(fastest, row.seconds, strict=True)]
        row.speedup = statistics.median(row.ratios)


def _measure_once(method: Method, prompts: Sequence[Prompt], new: int, row: Row, meter: ModelMeter, seed: int) -> None:
    """Run once more with hooks, for what a timed run does not show."""
    forwards, inside, decoding = 0, 0.0, 0.0
    with PeakMemory(prompts[0].ids_BS.device) as memory:
        for prompt in prompts:
            begun: list[tuple[int, float, float]] = []

            def told(begun: list[tuple[int, float, float]] = begun) -> None:
                begun.append((meter.forwards, meter.inside_seconds, time.perf_counter()))

            torch.manual_seed(seed)
            with meter.attached():
                method.watch(prompt, new, told)
            ended, stats = time.perf_counter(), method.stats()
            before, inside_before, first = begun[0]
            forwards += meter.forwards - before
            inside += meter.inside_seconds - inside_before
            # Where steps are timed, their own time counts: watching costs something between them.
            decoding += ended - first if stats is None else stats.decode_seconds
    row.steps = forwards if row.steps is None else row.steps
    row.outside_share = 1 - inside / decoding if inside else float("nan")
    row.peak_bytes = memory.bytes
