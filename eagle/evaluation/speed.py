"""Compare two files of answers: speed-up, both definitions of τ, acceptance by depth, equal ids.

    python -m eagle.evaluation.speed ANSWERS.jsonl BASELINE.jsonl

Reads what `gen_ea_answer_*` and `gen_baseline_answer_*` write, and files of FastChat's form made elsewhere. The
speed-up is the papers': the mean over questions of new tokens per second, over the baseline's mean. Only first choices
count, as in the reference's file of this name; but tokens are those that were counted as ids, on both sides.
"""

import argparse
import json
import math
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eagle import interrupts
from eagle.evaluation.eval_report import ranged
from eagle.evaluation.intervals import Estimate, estimate, ratio_of_means, ratio_of_sums
from eagle.evaluation.questions import refused_at
from eagle.evaluation.record_file import read_records
from eagle.evaluation.scores import acceptance_by_depth

SHOWN = 9  # questions that are named at most


@dataclass(frozen=True)
class AnswerSpeed:
    """The first answer to one question.

    Attributes:
        tokens: new tokens of all turns.
        seconds: of all turns.
        accepted: drafted tokens that every draft had accepted; None where the file does not say.
        ids: new tokens of every turn; None likewise.
    """

    tokens: int
    seconds: float
    accepted: list[int] | None
    ids: list[list[int]] | None

    @property
    def tokens_per_second(self) -> float:
        """New tokens per second."""
        return self.tokens / self.seconds


@dataclass(frozen=True)
class SpeedReport:
    """How answers do beside a baseline's, on the questions that both have.

    Attributes:
        questions: how many.
        speedup: ratio of the mean tokens per second.
        tokens_per_second, baseline_tokens_per_second: the means.
        acceptance_length: τ, 1 + accepted / drafts; None where the file does not say.
        tokens_per_forward: new tokens / verify forwards; likewise.
        acceptance_by_depth: n-α for n = 0, 1, ….
        equal: questions with equal ids; None where a file has no ids.
    """

    questions: int
    speedup: Estimate
    tokens_per_second: float
    baseline_tokens_per_second: float
    acceptance_length: Estimate | None
    tokens_per_forward: Estimate | None
    acceptance_by_depth: tuple[float, ...]
    equal: int | None

    def figures(self) -> dict[str, Any]:
        """Return everything as JSON knows it."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value.figures() if isinstance(value, Estimate) else value for name, value in found.items()}

    def __str__(self) -> str:
        depths = " ".join(f"{share:.2f}" for share in self.acceptance_by_depth)
        lines = [
            f"{self.questions} questions",
            f"speed-up          {ranged(self.speedup, unit='x')}",
            f"tokens/s          {self.tokens_per_second:.2f}, the baseline's {self.baseline_tokens_per_second:.2f}",
        ]
        if self.acceptance_length is not None:
            lines.append(f"τ                 {ranged(self.acceptance_length)} (1 + accepted / drafts)")
            lines.append(f"tokens/forward    {ranged(self.tokens_per_forward)} (new tokens / verify forwards)")
        if depths:
            lines.append(f"0-α, 1-α, …       {depths}")
        if self.equal is not None:
            lines.append(f"equal ids         {self.equal} of {self.questions}")
        return "\n".join(lines)


def read_answers(path: Path) -> dict[int | str, AnswerSpeed]:
    """Return the first answers of a file, by question.

    Raises:
        ValueError: a line is no answer, answers a question twice, or counts other tokens than its ids.
    """
    found: dict[int | str, AnswerSpeed] = {}
    lines: dict[int | str, int] = {}
    for number, record in read_records(path):
        with refused_at(f"{path} line {number}"):
            question, choices = record.get("question_id"), record.get("choices")
            if not isinstance(question, int | str):
                raise ValueError(f"question_id={question!r} is no number and no text")
            if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
                raise ValueError("it has no choices")
            if question in found:
                raise ValueError(f"question {question} is answered in line {lines[question]} already")
            found[question], lines[question] = _answer(choices[0]), number
    if not found:
        raise ValueError(f"{path} holds no answers")
    return found


def _answer(choice: dict[str, Any]) -> AnswerSpeed:
    tokens, seconds = _counts(choice, "new_tokens"), _counts(choice, "wall_time", float)
    accepted = None if choice.get("accepted") is None else _counts(choice, "accepted")
    ids = choice.get("ids")
    if ids is not None:
        if not isinstance(ids, list) or not all(isinstance(turn, list) for turn in ids):
            raise ValueError("ids must be a list of lists")
        if [len(turn) for turn in ids] != tokens:
            raise ValueError(f"new_tokens={tokens}, and its ids are {[len(turn) for turn in ids]}")
    if len(tokens) != len(seconds) or not sum(tokens) or not sum(seconds) or math.isinf(sum(tokens) / sum(seconds)):
        raise ValueError(f"new_tokens={tokens} in wall_time={seconds} is no speed")
    return AnswerSpeed(sum(tokens), sum(seconds), accepted, ids)


def _counts(choice: dict[str, Any], name: str, kind: type = int) -> list[Any]:
    found = choice.get(name)
    if found is None:
        raise ValueError(f"it has no {name}")
    if not isinstance(found, list) or not all(type(one) in (int, kind) and 0 <= one < math.inf for one in found):
        raise ValueError(f"{name}={found!r} must be a list of numbers of 0 or more")
    return found


def compare(answers: dict[int | str, AnswerSpeed], baseline: dict[int | str, AnswerSpeed]) -> SpeedReport:
    """Compare two sets of answers to the same questions.

    Raises:
        ValueError: one has questions that the other has not.
    """
    if lacks := [
        f"the {name} {_listed(others)}"
        for name, others in (("answers lack", baseline.keys() - answers), ("baseline lacks", answers.keys() - baseline))
        if others
    ]:
        raise ValueError(f"not the same questions: {'; '.join(lacks)}")
    ours, theirs = [answers[one] for one in answers], [baseline[one] for one in answers]
    speeds = [[one.tokens_per_second for one in side] for side in (ours, theirs)]
    lengths = [one.accepted for one in ours if one.accepted is not None]
    drafts, accepted = [len(one) for one in lengths], [sum(one) for one in lengths]
    counted = len(lengths) == len(ours) and sum(drafts) > 0
    has_ids = all(one.ids is not None for one in (*ours, *theirs))
    return SpeedReport(
        len(ours),
        estimate(ratio_of_means, *speeds),
        sum(speeds[0]) / len(ours),
        sum(speeds[1]) / len(ours),
        estimate(lambda *columns: 1 + ratio_of_sums(*columns), accepted, drafts) if counted else None,
        estimate(ratio_of_sums, [one.tokens for one in ours], drafts) if counted else None,
        tuple(one.value for one in acceptance_by_depth(lengths, few=1)),
        sum(one.ids == other.ids for one, other in zip(ours, theirs, strict=True)) if has_ids else None,
    )


def _listed(questions: Collection[int | str]) -> str:
    names = sorted(map(str, questions), key=lambda one: (len(one), one))
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def main(argv: Sequence[str] | None = None) -> int:
    """Compare and print."""
    options = argparse.ArgumentParser(
        prog="python -m eagle.evaluation.speed", description=(__doc__ or "").split("\n")[0]
    )
    options.add_argument("answers", type=Path, help="of gen_ea_answer_*")
    options.add_argument("baseline", type=Path, help="of gen_baseline_answer_*")
    options.add_argument("--json", action="store_true", help="print one JSON document")
    args = options.parse_args(argv)
    try:
        found = compare(read_answers(args.answers), read_answers(args.baseline))
    except (ValueError, OSError) as refusal:
        options.error(str(refusal))
    sys.stdout.write((json.dumps(found.figures(), allow_nan=False) if args.json else str(found)) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(interrupts.run(main))
