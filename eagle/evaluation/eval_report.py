"""The report of an evaluation: tables for a person, as text and as Markdown, and every figure for a program.

The two definitions of τ stand side by side: "τ" is 1 + accepted / drafts, "tokens/forward" is new tokens / verify
forwards.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from eagle.evaluation.intervals import Estimate
from eagle.evaluation.methods import HEADLESS
from eagle.evaluation.report import PARTS, UNKNOWN, aligned, at, number
from eagle.evaluation.scores import FEW, Comparison, FoundDifference, MethodScore, SetScore

HEADER = ("method", "speed-up", "tokens/s", "τ", "tokens/forward", "0-α 1-α …", "ids equal")
SHOWN_DIFFERENCES = 20
LEGEND = f"""\
EAGLE-1 is the static tree of an EAGLE-1/2 head, EAGLE-2 the dynamic tree of the same head; in brackets stand the
nodes of the tree, or auto where a tree is chosen at every step. Intervals are of 95 %, by the bootstrap over
questions, paired where methods are compared. A speed is the mean over questions of new tokens over seconds, prefill
included. τ is 1 + accepted / drafts, as in the papers and in vLLM; tokens/forward is new tokens / verify forwards, as
in SGLang and SpecForge, which counts the prefill's token too: plain decoding has a little more than 1. n-α is the share
of drafts with n tokens accepted so far that accept one more, where at least {FEW} drafts came so far. The mean over
sets counts every set alike. Assistant model and prompt lookup are transformers' own; sampling, they draw other random
numbers than generate, so their ids are not compared then."""


def ranged(found: Estimate | None, digits: int = 2, unit: str = "") -> str:
    """Return a figure and its 95 % interval."""
    if found is None:
        return UNKNOWN
    return f"{number(found.value, digits, unit)} [{number(found.low, digits)}, {number(found.high, digits)}]"


def score_lines(score: SetScore) -> list[list[str]]:
    """Return the cells of a table, a line a method."""
    return [
        [
            one.name,
            ranged(one.speedup, unit="x"),
            number(one.tokens_per_second.value, 1),
            ranged(one.acceptance_length),
            ranged(one.tokens_per_forward),
            " ".join(f"{share.value:.2f}" for share in one.acceptance_by_depth) or UNKNOWN,
            UNKNOWN if place == 0 or one.equal is None else f"{one.equal} of {one.answers}",
        ]
        for place, one in enumerate(score.methods)
    ]


def title(score: SetScore) -> str:
    """Return what a table is about."""
    name = "Mean over all sets" if score.is_mean else score.questions
    first = score.methods[0]
    left_out = f", {score.too_long} too long for the base left out" if score.too_long else ""
    asked = f"{score.asked} questions, {first.answers} answers ({first.cut} cut at the limit){left_out}"
    return f"{name}, {at(score.temperature)}: {asked}; speed-up over {score.baseline}"


def compared(one: Comparison, questions: int) -> str:
    """Say how two methods compare, and whether beyond the interval."""
    if questions < FEW:
        said = f"too few questions ({questions}) to say more"
    elif one.speed.low > 1:
        said = "faster"
    elif one.speed.high < 1:
        said = "slower"
    else:
        said = "no faster and no slower beyond the interval"
    gain = (
        ""
        if one.acceptance is None
        else f"; τ differs by {one.acceptance.value:+.2f} [{_ends(one.acceptance, '+.2f')}]"
    )
    return f"{one.better} beside {one.worse}: {ranged(one.speed, unit='x')} the speed, {said}{gain}"


def _ends(found: Estimate, form: str) -> str:
    return f"{found.low:{form}}, {found.high:{form}}"


def verdict(score: SetScore) -> str:
    """Say whether drafting pays here, and with what."""
    drafting = [one for one in score.methods if one.name not in HEADLESS[:2]]
    if not drafting:
        return f"{at(score.temperature)}: nothing that drafts was measured"
    best = max(drafting, key=lambda one: one.speedup.value)
    found = f"{best.name}, {ranged(best.speedup, unit='x')} the speed of {score.baseline}"
    if score.asked < FEW:
        return (
            f"{at(score.temperature)}: too few questions ({score.asked}) to say whether drafting pays: best is {found}"
        )
    if best.speedup.low > 1:
        return f"{at(score.temperature)}: drafting pays here, best with {found}"
    if best.speedup.high < 1:
        return f"{at(score.temperature)}: drafting does not pay here: the best is {found}"
    return f"{at(score.temperature)}: drafting neither pays nor costs beyond the interval: the best is {found}"


def difference_line(found: FoundDifference) -> str:
    """Say where ids first differ, with the two logits and the noise floor."""
    one = found.difference
    place = (
        f"{found.questions}, {at(found.temperature)}, question {found.question_id}, turn {found.turn}: {found.method}"
    )
    if one.gap is None or one.floor is None or one.wanted_logit is None or one.got_logit is None:
        return f"{place} has {one.got} where generate has {one.wanted}, at new token {one.position}"
    words = "a near-tie" if one.is_near_tie else "NOT a near-tie"
    return (
        f"{place} has token {one.got} (logit {one.got_logit:.4f}) where generate has {one.wanted} "
        f"({one.wanted_logit:.4f}), at new token {one.position}: what decides differs by {abs(one.gap):.2g}, "
        f"the noise floor is {one.floor:.2g}: {words}"
    )


def lossless_lines(scores: Sequence[SetScore], found: Sequence[FoundDifference], dtype: str) -> list[str]:
    """Say whether ids are equal, and list what differs."""
    checked = [one for score in scores if not score.is_mean for one in score.methods[1:] if one.equal is not None]
    equal, answers = sum(one.equal or 0 for one in checked), sum(one.answers for one in checked)
    lines = [f"{equal} of {answers} answers have the ids of generate ({dtype})"]
    if found:
        near = sum(one.difference.is_near_tie for one in found)
        lines[0] += f"; of {len(found)} first differences {near} are near-ties, within twice the noise floor"
    lines += [difference_line(one) for one in found[:SHOWN_DIFFERENCES]]
    if len(found) > SHOWN_DIFFERENCES:
        lines.append(f"… and {len(found) - SHOWN_DIFFERENCES} more in report.json")
    return lines


def text(scores: Sequence[SetScore], lines: Sequence[str]) -> str:
    """Return all tables as aligned text, and lines below them."""
    tables = [f"{title(score)}\n{aligned(HEADER, score_lines(score))}" for score in scores]
    return "\n\n".join([*tables, "\n".join(lines)]) + "\n"


def markdown(
    heading: str, about: Sequence[str], scores: Sequence[SetScore], lossless: Sequence[str], pictures: Sequence[str]
) -> str:
    """Return the report as a page."""
    parts = [f"# {heading}", "\n".join(f"- {line}" for line in about)]
    for score in scores:
        parts += [f"## {title(score)}", _markdown_table(HEADER, score_lines(score))]
        if score.comparisons:
            parts.append("\n".join(f"- {compared(one, score.asked)}" for one in score.comparisons))
        parts.append(_lengths(score.methods))
        if any(one.step_ms for one in score.methods):
            parts.append(_split(score.methods))
    parts += ["## Are the ids equal?", "\n".join(f"- {line}" for line in lossless)]
    parts += [f"![{name}]({name})" for name in pictures]
    parts.append(LEGEND)
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---", *("---:" for _ in header[1:])], *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _lengths(methods: Sequence[MethodScore]) -> str:
    """Return the histogram of accepted lengths, in percent of the drafts."""
    counted = [one for one in methods if sum(one.accepted_lengths) and len(one.accepted_lengths) > 1]
    if not counted:
        return ""
    longest = max(len(one.accepted_lengths) for one in counted)
    lines = []
    for one in counted:
        total = sum(one.accepted_lengths)
        shares = [f"{100 * count / total:.0f} %" for count in one.accepted_lengths]
        lines.append([one.name, str(total), *shares, *[""] * (longest - len(shares))])
    return _markdown_table(["drafts with so many tokens accepted", "drafts", *map(str, range(longest))], lines)


def _split(methods: Sequence[MethodScore]) -> str:
    """Return where a step's time goes."""
    timed = [one for one in methods if one.step_ms]
    names = [name for name in PARTS if any(name in one.step_ms for one in timed)]
    lines = [
        [one.name, *(number(one.step_ms.get(name), 1) for name in names), number(sum(one.step_ms.values()), 1)]
        for one in timed
    ]
    return _markdown_table(["milliseconds per step", *names, "step"], lines)


def figures(score: SetScore) -> dict[str, Any]:
    """Return everything about one table as JSON knows it."""
    return {
        "questions": score.questions,
        "temperature": score.temperature,
        "baseline": score.baseline,
        "asked": score.asked,
        "too_long": score.too_long,
        "methods": [
            {
                "name": one.name,
                **{name: found.figures() if found is not None else None for name, found in _estimates(one)},
                "acceptance_by_depth": [share.figures() for share in one.acceptance_by_depth],
                "accepted_lengths": list(one.accepted_lengths),
                "step_ms": one.step_ms,
                "answers": one.answers,
                "equal": one.equal,
                "cut": one.cut,
                "tokens": one.tokens,
            }
            for one in score.methods
        ],
        "comparisons": [
            {
                "better": one.better,
                "worse": one.worse,
                "speed": one.speed.figures(),
                "acceptance": one.acceptance.figures() if one.acceptance is not None else None,
            }
            for one in score.comparisons
        ],
    }


def _estimates(one: MethodScore) -> Iterator[tuple[str, Estimate | None]]:
    for name in ("speedup", "tokens_per_second", "acceptance_length", "tokens_per_forward"):
        yield name, getattr(one, name)


def csv_text(scores: Sequence[SetScore]) -> str:
    """Return one line a figure: set, temperature, method, name of the figure, value and interval."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["questions", "temperature", "method", "figure", "value", "low", "high"])
    for score in scores:
        for one in score.methods:
            place = [score.questions, f"{score.temperature:g}", one.name]
            for name, found in _estimates(one):
                if found is not None:
                    writer.writerow([*place, name, *_cells(found)])
            for depth, share in enumerate(one.acceptance_by_depth):
                writer.writerow([*place, f"{depth}-alpha", *_cells(share)])
    return out.getvalue()


def _cells(found: Estimate) -> list[str]:
    return [f"{number:.6g}" for number in (found.value, found.low, found.high)]
