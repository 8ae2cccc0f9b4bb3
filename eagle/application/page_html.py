"""What the page shows of a visitor, as HTML text; everything that a model or a person wrote is escaped here.

Drafted-and-accepted tokens are `<mark>`ed, a step's tokens share an element that names turn and step, for clicks.
"""

import html

from eagle.application.session import SessionStep
from eagle.application.tree_drawing import draw
from eagle.application.visitors import STOPPED, Exchange, TurnRun, Visitor

ENDS = {"eos": "complete", "length": "cut at the most tokens", "criteria": "met a stop string", STOPPED: "stopped"}
WAYS = {True: "EAGLE", False: "plain"}


def past_html(visitor: Visitor) -> str:
    """Return the questions and answers of all turns but the newest."""
    return "".join(_turn(visitor, number) for number in range(len(visitor.turns) - 1))


def newest_html(visitor: Visitor) -> str:
    """Return the newest turn, its answer as far as it is there."""
    if not visitor.turns:
        return '<p class="hint">Nothing yet. What the head drafts and the target accepts will be green.</p>'
    return _turn(visitor, len(visitor.turns) - 1)


def _turn(visitor: Visitor, number: int) -> str:
    turn = visitor.turns[number]
    run = turn.answer
    looked = visitor.shown[1] if visitor.shown is not None and visitor.shown[0] == number else None
    said = _pieces(run, number, looked) if run is not None else ""
    writing = visitor.is_busy and turn is visitor.turns[-1] and (run is None or run.finished is None)
    said += '<span class="cursor" aria-hidden="true"></span>' if writing else ""
    edit = f'<button type="button" class="edit" data-edit="{number}" aria-label="edit this text">edit</button>'
    note = f'<div class="note">{_note(turn, run)}</div>' if run is not None and run.finished is not None else ""
    given = html.escape(turn.question)
    if not turn.messages:
        text = f'<div class="text" dir="auto"><span class="given">{given}</span>{said}</div>'
        foot = f'<div class="foot">{edit}{note}</div>'
        return f'<article class="turn completion" aria-label="text {number + 1}">{text}{foot}</article>'
    question = f'<div class="question"><div class="text" dir="auto">{given}</div>{edit}</div>'
    answer = f'<div class="answer"><div class="text" dir="auto">{said}</div>{note}</div>'
    return f'<article class="turn" aria-label="turn {number + 1}">{question}{answer}</article>'


def _pieces(run: TurnRun, turn: int, looked: int | None) -> str:
    if not any(step.drafted for step in run.steps):
        return "".join(_words(step) for step in run.steps)
    return "".join(
        f'<span class="step{" shown" if number == looked else ""}" data-turn="{turn}" data-step="{number}">'
        f"{_words(step)}</span>"
        for number, step in enumerate(run.steps)
    )


def _words(step: SessionStep) -> str:
    return "".join(
        f"<mark>{html.escape(piece.text)}</mark>" if piece.is_drafted else html.escape(piece.text)
        for piece in step.pieces
        if piece.text
    )


def _note(turn: Exchange, run: TurnRun) -> str:
    words = [ENDS.get(run.finished or "", ""), f"{len(run.ids)} tokens", f"{run.tokens_per_second:.1f} tokens/s"]
    if turn.settings.drafts:
        words.append(f"τ {run.stats.acceptance_length:.2f}" if run.stats.steps else "no draft")
    if turn.settings.seed is not None and turn.settings.temperature > 0:
        words.append(f"seed {turn.settings.seed}")
    return html.escape(" · ".join(words))


def figures_html(turn: Exchange | None, rounds: bool = False) -> str:
    """Return the table of speeds, one column for drafting and one for plain decoding of the same prompt.

    Args:
        turn: the turn whose speeds they are; None before any.
        rounds: the model computes in half precision.
    """
    runs = turn.runs if turn is not None else {}
    head = "".join(f'<th scope="col">{words}</th>' for words in WAYS.values())
    rows = "".join(
        f'<tr><th scope="row" title="{about}">{name}</th><td>{"</td><td>".join(cells)}</td></tr>'
        for name, about, cells in _rows(runs)
    )
    table = f'<table class="figures"><thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return f'{table}<p class="verdict" role="status">{_verdict(turn, rounds)}</p>'


def _rows(runs: dict[bool, TurnRun]) -> list[tuple[str, str, list[str]]]:
    def cells(show: "dict[bool, str]") -> list[str]:
        return [show.get(drafts, "–") for drafts in WAYS]

    begun = {drafts: run for drafts, run in runs.items() if run.ids}
    stepped = {drafts: run for drafts, run in begun.items() if run.stats.steps}
    return [
        (
            "tokens/s",
            "after the first token",
            cells({drafts: f"<b>{run.tokens_per_second:.1f}</b>" for drafts, run in stepped.items()}),
        ),
        (
            "τ",
            "tokens per verify forward: accepted drafts and the target's own",
            cells({drafts: f"{run.stats.acceptance_length:.2f}" for drafts, run in stepped.items()}),
        ),
        (
            "compression ratio",
            "new tokens per forward of the target, the prompt's included",
            cells({drafts: f"{run.compression:.2f}" for drafts, run in begun.items()}),
        ),
        ("new tokens", "so far", cells({drafts: str(len(run.ids)) for drafts, run in begun.items()})),
        (
            "first token",
            "time until it was there",
            cells({drafts: f"{1000 * run.stats.prefill_seconds:.0f} ms" for drafts, run in begun.items()}),
        ),
        (
            "prompt run",
            "prompt tokens that had to be run, of all; the others were in the cache",
            cells(
                {d: f"{run.stats.prefilled_tokens} of {run.stats.prompt_tokens}" for d, run in begun.items()},
            ),
        ),
    ]


def _verdict(turn: Exchange | None, rounds: bool) -> str:
    found = turn.agreement if turn is not None else None
    if turn is None or found is None:
        return ""
    alike, of = found
    speeds = {drafts: run.tokens_per_second for drafts, run in turn.runs.items()}
    speedup = f"<b>{speeds[True] / speeds[False]:.2f}×</b> the speed of plain decoding, " if speeds[False] else ""
    if alike == of:
        return f'{speedup}<span class="same">the same {of} tokens</span>'
    why = ": half precision may round a near-tie either way" if rounds else ""
    return f'{speedup}<span class="differs">other tokens from number {alike + 1} of {of} on{why}</span>'


def tree_html(visitor: Visitor) -> str:
    """Return the tree of the step that a visitor looks at, under a sentence on it."""
    chosen = shown_step(visitor)
    if chosen is None:
        return '<p class="caption">The draft tree of every step appears here.</p>'
    turn, number = chosen
    steps = drafted_steps(visitor.turns[turn])
    step, name = steps[number], f"step {number + 1} of {len(steps)}"
    if not step.nodes:
        why = "the prompt's own step: nothing is drafted before the first token" if not number else _treeless(step)
        return f'<p class="caption">{name.capitalize()}: {why}.</p>'
    accepted = [piece.text for piece in step.pieces if piece.is_drafted]
    own = next((piece.text for piece in step.pieces if not piece.is_drafted), None)
    words = f"{len(step.nodes) - 1} tokens drafted, {len(accepted)} accepted"
    tail = f", then the target's own <code>{html.escape(repr(own))}</code>" if own is not None else ""
    said = f" <code>{html.escape(repr(''.join(accepted)))}</code>" if accepted else ""
    caption = f'<p class="caption">{name.capitalize()}: {words}{said}{tail}.</p>'
    # It can be scrolled with the keyboard too.
    drawing = draw(step.nodes, own, f"draft tree of {name}: {words}")
    return f'{caption}<div class="canvas" tabindex="0" role="region" aria-label="draft tree">{drawing}</div>'


def _treeless(step: SessionStep) -> str:
    return "no tree is kept of it, or none was drafted" if len(step.pieces) > 1 else "nothing was drafted in it"


def drafted_steps(turn: Exchange) -> list[SessionStep]:
    """Return the steps of a turn that the head drafted for."""
    run = turn.runs.get(True)
    return run.steps if run is not None else []


def shown_step(visitor: Visitor) -> tuple[int, int] | None:
    """Return the turn and the step that a visitor looks at: the chosen one, or the newest with a tree."""
    if visitor.shown is not None:
        turn, step = visitor.shown
        if 0 <= turn < len(visitor.turns) and 0 <= step < len(drafted_steps(visitor.turns[turn])):
            return visitor.shown
    if not visitor.turns:
        return None
    steps = drafted_steps(visitor.turns[-1])
    newest = max((number for number, step in enumerate(steps) if step.drafted), default=0)
    return (len(visitor.turns) - 1, newest) if steps else None


def problem_html(visitor: Visitor) -> str:
    """Return what went wrong, or what is being edited, or nothing."""
    if visitor.problem:
        return f'<p class="problem" role="alert">{html.escape(visitor.problem)}</p>'
    if visitor.editing is not None:
        after = " and what follows it" if visitor.editing < len(visitor.turns) - 1 else ""
        return f'<p class="hint">Sending replaces text {visitor.editing + 1}{after}.</p>'
    if visitor.is_waiting:
        return '<p class="hint" role="status">Waiting: somebody else’s answer comes first.</p>'
    return ""
