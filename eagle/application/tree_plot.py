"""Pictures of a step for notebooks and papers: its tree, the walk through it, its attention mask, its tokens.

Draws on axes that are handed in, so that matplotlib is the caller's own and nothing here imports it.
"""

import re
from collections.abc import Sequence
from typing import Any

from eagle.application.session import SessionStep, TreeNode

ROOT, ACCEPTED, REFUSED, BONUS = "#BBBBBB", "#228833", "#EE6677", "#4477AA"
OPEN = "#333333"


def depths(nodes: Sequence[TreeNode]) -> list[int]:
    """Return every node's distance from the root."""
    found: list[int] = []
    for node in nodes:
        found.append(0 if node.parent < 0 else found[node.parent] + 1)
    return found


def sees(nodes: Sequence[TreeNode]) -> list[list[bool]]:
    """Return the tree's attention mask: row i is True for node i and its ancestors."""
    rows: list[list[bool]] = []
    for number, node in enumerate(nodes):
        row = list(rows[node.parent]) if node.parent >= 0 else [False] * len(nodes)
        row[number] = True
        rows.append(row)
    return rows


def draw_tree(axis: Any, nodes: Sequence[TreeNode], *, depth: int | None = None, walk: bool = True) -> None:
    """Draw a tree from left to right: what a node says, and on its edge how likely the head holds it there.

    Args:
        axis: of matplotlib.
        nodes: of a `SessionStep`.
        depth: levels below the root that are shown, the rest is left white; None shows all.
        walk: colours what the target agreed with, and what else stood beside it.
    """
    levels, rows = depths(nodes), _rows(nodes)
    for number, node in enumerate(nodes):
        if depth is not None and levels[number] > depth:
            continue
        x, y = levels[number], rows[number]
        colour = OPEN
        if walk:
            colour = ACCEPTED if node.is_accepted else REFUSED
        if number == 0:
            colour = ROOT
        else:
            left, above = levels[node.parent], rows[node.parent]
            bold = walk and node.is_accepted
            axis.plot([left, x], [above, y], color=ACCEPTED if bold else ROOT, linewidth=3 if bold else 1, zorder=1)
            middle = (left + 2 * x) / 3, (above + 2 * y) / 3
            axis.text(*middle, f"{node.probability:.2f}", **_CENTRE, fontsize=6, color="#777777", zorder=2, bbox=_BLANK)
        box = {"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": colour, "linewidth": 1.5}
        axis.text(x, y, shown(node.text), **_CENTRE, fontsize=7, family="monospace", zorder=3, bbox=box)
    axis.set_xlim(-0.5, max(levels) + 0.5)
    axis.set_ylim(max(rows) + 0.7, min(rows) - 0.7)
    axis.axis("off")


def draw_mask(axis: Any, nodes: Sequence[TreeNode]) -> None:
    """Draw the attention mask: a row a node, dark where it sees another one."""
    axis.imshow(sees(nodes), cmap="Blues", vmin=0, vmax=1.3)
    words = [shown(node.text) for node in nodes]
    axis.set_xticks(range(len(words)), words, rotation=90, fontsize=6, family="monospace")
    axis.set_yticks(range(len(words)), words, fontsize=6, family="monospace")
    axis.tick_params(length=0)
    for number, node in enumerate(nodes):
        for labels in (axis.get_xticklabels(), axis.get_yticklabels()):
            labels[number].set_color(ACCEPTED if node.is_accepted else "#777777")


def draw_tokens(axis: Any, step: SessionStep) -> None:
    """Draw what a step added: accepted drafts, then the token that the target picked itself."""
    x = 0.0
    for piece in step.pieces:
        words = shown(piece.text)
        box = {"boxstyle": "round,pad=0.25", "facecolor": "white", "linewidth": 1.5}
        box["edgecolor"] = ACCEPTED if piece.is_drafted else BONUS
        axis.text(x, 0, words, ha="left", va="center", fontsize=8, family="monospace", bbox=box)
        x += len(words) + 2
    axis.set_xlim(-1, max(x, 100))
    axis.set_ylim(-0.5, 0.5)
    axis.axis("off")


def shown(text: str) -> str:
    """Return a token's text, short, with spaces and line ends visible; `8·` are eight spaces."""
    text = re.sub(" {3,}", lambda spaces: f"{len(spaces[0])}·", text)
    for hidden, sign in ((" ", "·"), ("\n", "⏎"), ("\t", "⇥")):
        text = text.replace(hidden, sign)
    text = text if len(text) <= 10 else f"{text[:4]}…{text[-4:]}"
    return text.replace("$", r"\$")  # not mathematics


_CENTRE = {"ha": "center", "va": "center"}
_BLANK = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}


def _rows(nodes: Sequence[TreeNode]) -> list[float]:
    """Return where nodes stand: leaves one below the other, parents in the middle of their children."""
    children: list[list[int]] = [[] for _ in nodes]
    for number, node in enumerate(nodes):
        if node.parent >= 0:
            children[node.parent].append(number)
    rows, leaves = [0.0] * len(nodes), 0
    pending = [(0, False)] if nodes else []
    while pending:
        number, is_placed = pending.pop()
        if not children[number]:
            rows[number], leaves = float(leaves), leaves + 1
        elif is_placed:
            rows[number] = sum(rows[child] for child in children[number]) / len(children[number])
        else:
            pending.append((number, True))
            pending += [(child, False) for child in reversed(children[number])]
    return rows
