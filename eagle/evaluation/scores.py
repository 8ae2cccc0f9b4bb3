"""Figures of records: speeds, acceptance, how methods compare; with 95 % intervals over questions.

Speeds are as in the papers: every question's new tokens over its seconds, the mean over questions, and its ratio to the
faster baseline's mean. Tokens are counted as ids, up to each answer's end, on both sides.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from eagle.evaluation.intervals import Estimate, estimate, mean, ratio_of_means, ratio_of_sums
from eagle.evaluation.methods import BASELINES
from eagle.evaluation.near_ties import IdDifference
from eagle.evaluation.question_runs import MethodRun, QuestionRecord

DEPTHS = 7  # 0-α … 6-α; the papers stop at 4-α
FEW = 10  # drafts that reached a depth, or questions, with which nothing is said of it


@dataclass(frozen=True)
class MethodScore:
    """What one method did on one set at one temperature, or in the mean of several.

    Attributes:
        name: the method's.
        speedup: ratio to the faster of `generate` and plain decoding.
        tokens_per_second: mean over questions.
        acceptance_length: τ, 1 + accepted / drafts; None where nobody counts.
        tokens_per_forward: new tokens / verify forwards; likewise.
        acceptance_by_depth: n-α, the share of drafts that go on of those accepted so far, for n = 0, 1, … as long as
            `FEW` drafts came so far; of a mean, the mean over the sets that have it.
        accepted_lengths: how many drafts had 0, 1, 2, … tokens accepted; of a mean none.
        step_ms: milliseconds of a step by stage; empty where nobody counts.
        answers: turns asked.
        equal: turns whose ids are `generate`'s; None where they need not be.
        cut: turns that ended at the limit.
        tokens: new tokens.
    """

    name: str
    speedup: Estimate
    tokens_per_second: Estimate
    acceptance_length: Estimate | None
    tokens_per_forward: Estimate | None
    acceptance_by_depth: tuple[Estimate, ...]
    accepted_lengths: tuple[int, ...]
    step_ms: dict[str, float]
    answers: int
    equal: int | None
    cut: int
    tokens: int


@dataclass(frozen=True)
class Comparison:
    """How a method does beside another one on the same questions.

    Attributes:
        better, worse: names, by what the papers claim.
        speed: ratio of the mean tokens per second.
        acceptance: difference of τ; None where nobody counts.
    """

    better: str
    worse: str
    speed: Estimate
    acceptance: Estimate | None


@dataclass(frozen=True)
class SetScore:
    """One set of questions at one temperature, or the mean of several.

    Attributes:
        questions: name of the set; "mean" of several.
        temperature: 0 is greedy.
        baseline: the faster of `generate` and plain decoding.
        asked, too_long: how many questions.
        methods: in their order.
        comparisons: see `claims`.
        is_mean: whether it is of several sets.
    """

    questions: str
    temperature: float
    baseline: str
    asked: int
    too_long: int
    methods: tuple[MethodScore, ...]
    comparisons: tuple[Comparison, ...]
    is_mean: bool = False


@dataclass(frozen=True)
class FoundDifference:
    """Where a method's ids first leave `generate`'s: of which answer, and what decided."""

    questions: str
    temperature: float
    question_id: int | str
    turn: int
    method: str
    difference: IdDifference


def score_set(records: Sequence[QuestionRecord], seeded: Sequence[str], limit: int | None = None) -> SetScore | None:
    """Return the figures of one set at one temperature; None where all its questions are too long.

    Args:
        records: all of one set and temperature.
        seeded: methods whose sampled ids must be `generate`'s too.
        limit: most new tokens of a turn.
    """
    asked = [record for record in records if not record.is_too_long]
    if not asked:
        return None
    names = list(asked[0].turns[0])
    by_name = {name: [[turn[name] for turn in record.turns] for record in asked] for name in names}
    speeds = {name: [_speed(runs) for runs in by_name[name]] for name in names}
    baseline = max((name for name in names if name in BASELINES), key=lambda name: float(np.mean(speeds[name])))
    is_greedy = not records[0].temperature
    methods = tuple(
        _score(
            name, by_name[name], speeds[name], speeds[baseline], is_compared=is_greedy or name in seeded, limit=limit
        )
        for name in names
    )
    comparisons = tuple(_compare(better, worse, by_name, speeds) for worse, better in claims(names))
    first = records[0]
    return SetScore(
        first.questions, first.temperature, baseline, len(asked), len(records) - len(asked), methods, comparisons
    )


def mean_score(scores: Sequence[SetScore]) -> SetScore:
    """Return the mean over sets at one temperature: every set counts alike, however many questions it has."""
    methods = tuple(_mean_method([score.methods[place] for score in scores]) for place in range(len(scores[0].methods)))
    comparisons = tuple(
        Comparison(
            first.better,
            first.worse,
            mean([score.comparisons[place].speed for score in scores]),
            _mean([score.comparisons[place].acceptance for score in scores]),
        )
        for place, first in enumerate(scores[0].comparisons)
    )
    baselines = Counter(score.baseline for score in scores)
    return SetScore(
        "mean",
        scores[0].temperature,
        " or ".join(sorted(baselines)),
        sum(score.asked for score in scores),
        sum(score.too_long for score in scores),
        methods,
        comparisons,
        is_mean=True,
    )


def score_all(records: Sequence[QuestionRecord], seeded: Sequence[str], limit: int | None = None) -> list[SetScore]:
    """Return the figures of every set, temperature by temperature, and after each of several sets their mean.

    Arguments as in `score_set`.
    """
    scores: list[SetScore] = []
    for temperature in dict.fromkeys(record.temperature for record in records):
        of_one = [record for record in records if record.temperature == temperature]
        names = dict.fromkeys(record.questions for record in of_one)
        by_set = [score_set([record for record in of_one if record.questions == name], seeded, limit) for name in names]
        known = [score for score in by_set if score is not None]
        scores += known
        if len(known) > 1:
            scores.append(mean_score(known))
    return scores


def differences(records: Sequence[QuestionRecord]) -> list[FoundDifference]:
    """Return every first difference from `generate`."""
    return [
        FoundDifference(record.questions, record.temperature, record.question_id, number, name, run.difference)
        for record in records
        for number, turn in enumerate(record.turns, start=1)
        for name, run in turn.items()
        if run.difference is not None
    ]


def _speed(runs: Sequence[MethodRun]) -> float:
    return sum(len(run.ids) for run in runs) / sum(median(run.seconds) for run in runs)


def claims(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return pairs (worse, better) of drafting methods, by what the papers claim.

    Each method is held to the one before it, EAGLE of one tree size to EAGLE of the same; and every automatic or
    larger tree to the size before it, with the same head.
    """
    drafting = [name for name in names if name not in BASELINES]
    sizes = {name: name.partition(" [")[2] for name in drafting}
    pairs = []
    for place, name in enumerate(drafting):
        before = [one for one in drafting[:place] if not sizes[one] or sizes[one] == sizes[name]]
        first_of_its_kind = next(one for one in drafting if one.partition(" [")[0] == name.partition(" [")[0])
        if before and (name == first_of_its_kind or sizes[before[-1]]):
            pairs.append((before[-1], name))
        if name != first_of_its_kind:
            pairs.append((drafting[place - 1], name))
    return pairs


def _counts(questions: Sequence[Sequence[MethodRun]]) -> tuple[list[int], list[int], list[int]]:
    """Return accepted tokens, drafts and new tokens of every question."""
    accepted = [sum(sum(run.accepted or ()) for run in runs) for runs in questions]
    drafts = [sum(len(run.accepted or ()) for run in runs) for runs in questions]
    return accepted, drafts, [sum(len(run.ids) for run in runs) for runs in questions]


def _tau(accepted: np.ndarray, drafts: np.ndarray) -> np.ndarray:
    return 1 + ratio_of_sums(accepted, drafts)


def _score(
    name: str,
    questions: Sequence[Sequence[MethodRun]],
    speeds: Sequence[float],
    baseline: Sequence[float],
    *,
    is_compared: bool,
    limit: int | None,
) -> MethodScore:
    runs = [run for of_question in questions for run in of_question]
    accepted, drafts, tokens = _counts(questions)
    steps = [count for run in runs for count in run.accepted or ()]
    counted = bool(sum(drafts))
    return MethodScore(
        name,
        estimate(ratio_of_means, speeds, baseline),
        estimate(lambda speed: speed.mean(-1), speeds),
        estimate(_tau, accepted, drafts) if counted else None,
        estimate(ratio_of_sums, tokens, drafts) if counted else None,
        acceptance_by_depth([[count for run in runs for count in run.accepted or ()] for runs in questions]),
        tuple(np.bincount(steps).tolist()) if steps else (),
        _step_ms(runs, len(steps)),
        len(runs),
        sum(run.difference is None for run in runs) if is_compared else None,
        sum(len(run.ids) == limit for run in runs),
        sum(tokens),
    )


def acceptance_by_depth(questions: Sequence[Sequence[int]], few: int = FEW) -> tuple[Estimate, ...]:
    """Return 0-α, 1-α, …: the share of drafts that accept one token more, of those that accepted so many.

    Args:
        questions: tokens accepted by every draft, question by question.
        few: a depth that fewer drafts reached ends the list.
    """
    found = []
    for depth in range(DEPTHS):
        so_far = [sum(count >= depth for count in drafts) for drafts in questions]
        further = [sum(count > depth for count in drafts) for drafts in questions]
        if sum(so_far) < max(1, few) or not any(map(any, questions)):
            break
        found.append(estimate(ratio_of_sums, further, so_far))
    return tuple(found)


def _step_ms(runs: Sequence[MethodRun], steps: int) -> dict[str, float]:
    """Return the mean time of a step's stages, and of the host between them."""
    names = list(dict.fromkeys(name for run in runs for name in run.stage_seconds))
    found = {name: sum(run.stage_seconds.get(name, 0.0) for run in runs) for name in names}
    if not steps or not any(found.values()):
        return {}
    found["host"] = sum(run.decode_seconds for run in runs) - sum(found.values())
    return {name: 1000 * seconds / steps for name, seconds in found.items()}


def _compare(
    better: str, worse: str, by_name: dict[str, list[list[MethodRun]]], speeds: dict[str, list[float]]
) -> Comparison:
    def gain(accepted: np.ndarray, drafts: np.ndarray, other: np.ndarray, others: np.ndarray) -> np.ndarray:
        return _tau(accepted, drafts) - _tau(other, others)

    sides = [_counts(by_name[name])[:2] for name in (better, worse)]
    columns = [column for side in sides for column in side]
    acceptance = estimate(gain, *columns) if all(sum(drafts) for _, drafts in sides) else None
    return Comparison(better, worse, estimate(ratio_of_means, speeds[better], speeds[worse]), acceptance)


def _mean(estimates: Sequence[Estimate | None]) -> Estimate | None:
    known = [one for one in estimates if one is not None]
    return mean(known) if len(known) == len(estimates) else None


def _mean_method(scores: Sequence[MethodScore]) -> MethodScore:
    deepest = max(len(score.acceptance_by_depth) for score in scores)
    by_depth = [
        [score.acceptance_by_depth[place] for score in scores if place < len(score.acceptance_by_depth)]
        for place in range(deepest)
    ]
    equal = [score.equal for score in scores if score.equal is not None]
    parts = [score.step_ms for score in scores]
    return MethodScore(
        scores[0].name,
        mean([score.speedup for score in scores]),
        mean([score.tokens_per_second for score in scores]),
        _mean([score.acceptance_length for score in scores]),
        _mean([score.tokens_per_forward for score in scores]),
        tuple(mean(depth) for depth in by_depth),
        (),
        {name: float(np.mean([part.get(name, 0.0) for part in parts])) for name in parts[0]},
        sum(score.answers for score in scores),
        sum(equal) if len(equal) == len(scores) else None,
        sum(score.cut for score in scores),
        sum(score.tokens for score in scores),
    )
