"""What a generation did: steps, acceptance, times. The acceptance length τ is defined here and nowhere else.

Two definitions are in use. Ours is that of the papers and of vLLM, accepted tokens per draft and the target's own.
SGLang and SpecForge divide all new tokens by the verify forwards, which counts the prefill's token too and leaves out
what a limit or an end cuts. Both are given, under names of their own.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

STAGES = ("draft", "verify", "accept", "commit")
REPLAY_STAGES = ("capture", "replay", "read")  # of steps on buffers: a replay is one piece to the host


@dataclass
class GenerationStats:
    """Counts of one generation, filled while it runs.

    Attributes:
        prompt_tokens: prompt tokens of all rows, pads excluded.
        prefilled_tokens: prompt tokens run through the target, pads included; fewer than the prompt's with a prefix.
        new_tokens: emitted tokens of all rows, after cutting at EOS or a limit.
        tokens_per_step: emitted tokens of the prefill and of every step, all rows together; they sum to `new_tokens`.
        steps: verify forwards.
        row_steps: verify forwards summed over the rows active in them.
        drafted: drafted nodes verified, summed over row steps.
        accepted_per_step: accepted drafted tokens of every row step, in order, before any cut.
        accepted_per_row: the same by row, each one's steps in order; rows that took none are missing.
        prefill_seconds: wall time until the first token.
        decode_seconds: wall time of the steps.
        stage_seconds: wall time of the steps' stages, by name; what is missing to `decode_seconds` is the host's
            bookkeeping. Steps on buffers add those of `REPLAY_STAGES`. On an accelerator stages only launch work,
            unless CUDA_LAUNCH_BLOCKING=1 makes them wait.
    """

    prompt_tokens: int = 0
    prefilled_tokens: int = 0
    new_tokens: int = 0
    tokens_per_step: list[int] = field(default_factory=list)
    steps: int = 0
    row_steps: int = 0
    drafted: int = 0
    accepted_per_step: list[int] = field(default_factory=list)
    accepted_per_row: dict[int, list[int]] = field(default_factory=dict)
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    stage_seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of a `with` block to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.stage_seconds[name] = self.stage_seconds.get(name, 0.0) + time.perf_counter() - started

    @property
    def acceptance_length(self) -> float:
        """The acceptance length τ, Σ(accepted + 1) / row steps; NaN before the first step."""
        return 1 + sum(self.accepted_per_step) / self.row_steps if self.row_steps else float("nan")

    @property
    def tokens_per_forward(self) -> float:
        """New tokens over verify forwards, as SGLang and SpecForge count; NaN before the first step."""
        return self.new_tokens / self.row_steps if self.row_steps else float("nan")

    @property
    def accepted_per_depth(self) -> list[int]:
        """How many row steps accepted at least 1, 2, 3, … drafted tokens."""
        deepest = max(self.accepted_per_step, default=0)
        return [sum(n >= depth for n in self.accepted_per_step) for depth in range(1, deepest + 1)]

    @property
    def tokens_per_second(self) -> float:
        """Emitted tokens over prefill and decode time; 0 before anything ran."""
        seconds = self.prefill_seconds + self.decode_seconds
        return self.new_tokens / seconds if seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return all counts and what follows from them, as JSON knows it; vLLM's counters under vLLM's names too."""
        derived = ("acceptance_length", "tokens_per_forward", "accepted_per_depth", "tokens_per_second")
        vllm = {
            "num_drafts": self.row_steps,
            "num_draft_tokens": self.drafted,
            "num_accepted_tokens": sum(self.accepted_per_step),
            "num_accepted_tokens_per_pos": self.accepted_per_depth,
        }
        found = asdict(self) | {name: getattr(self, name) for name in derived} | vllm
        return {name: None if value != value else value for name, value in found.items()}  # JSON knows no NaN

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> "GenerationStats":
        """Return what `to_dict` has told, also after JSON; what follows from the counts is worked out anew.

        Raises:
            ValueError: a count is missing or of another kind.
        """
        counts, empty = {}, asdict(cls())
        for name, default in empty.items():
            kind = int | float if isinstance(default, float) else type(default)
            if not isinstance(found.get(name), kind):
                raise ValueError(f"{name} of the stats is missing, or no {type(default).__name__}")
            counts[name] = found[name]
        rows = {int(row): accepted for row, accepted in counts["accepted_per_row"].items()}  # JSON knows no other keys
        return cls(**counts | {"accepted_per_row": rows})

    def record_tokens(self, count: int) -> None:
        """Add what the prefill or a step emitted."""
        self.new_tokens += count
        self.tokens_per_step.append(count)

    def record_step(self, drafted: int, accepted: dict[int, int], seconds: float) -> None:
        """Add one verify forward: nodes drafted per row, tokens accepted by the active rows of these numbers, time."""
        self.steps += 1
        self.row_steps += len(accepted)
        self.drafted += drafted * len(accepted)
        self.accepted_per_step += accepted.values()
        for row, count in accepted.items():
            self.accepted_per_row.setdefault(row, []).append(count)
        self.decode_seconds += seconds
