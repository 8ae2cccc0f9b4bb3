"""A step's draft tree as a drawing: SVG text, the root on the left, a column per depth, all words escaped here.

A node stands in the row of its first child. Of siblings the accepted one comes first, then those that the head thinks
likelier: the accepted path is the straight line at the top, and its end the target's own token, dashed.
"""

import html
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from eagle.application.session import TreeNode

ROW, HEIGHT, GAP, MARGIN = 28, 20, 46, 8
LETTER = 7.3
"""Width of a letter, in pixels of the drawing: of 12 pixels in a font of one width."""
LONGEST = 14
"""Letters of a token that are drawn; the whole of it is in the node's tooltip."""
VISIBLE = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"})


@dataclass(frozen=True)
class NodePlace:
    """Where a node is drawn: left edge, middle, width, in pixels of the drawing."""

    left: float
    middle: float
    width: float


def draw(nodes: Sequence[TreeNode], own: str | None = None, name: str = "draft tree") -> str:
    """Return a tree as an `<svg>` element.

    Args:
        nodes: parents before their children, the root first.
        own: the target's own token after the accepted path; None where there was none.
        name: what a reader who does not see it is told.
    """
    last = max(number for number, node in enumerate(nodes) if node.is_accepted)
    labels = [shortened(node.text) for node in nodes]
    parents = [node.parent for node in nodes]
    order = [node.probability + node.is_accepted for node in nodes]
    if own is not None:
        labels.append(shortened(own))
        parents.append(last)
        order.append(2.0)
    places, width, height = layout(parents, order, labels)
    edges = [_edge(nodes[n], places[nodes[n].parent], places[n]) for n in range(1, len(nodes))]
    boxes = [_box(node, place, label) for node, place, label in zip(nodes, places, labels, strict=False)]
    if own is not None:
        edges.append(f'<path class="edge own" d="{_curve(places[last], places[-1])}"/>')
        boxes.append(_node("own", f"{own!r}: the target's own token", places[-1], labels[-1]))
    edges.sort(key=lambda edge: "accepted" in edge)  # the accepted path over the others
    return (
        f'<svg class="draft-tree" xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{html.escape(name)}" '
        f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}">'
        f"{''.join(edges)}{''.join(boxes)}</svg>"
    )


def shortened(text: str) -> str:
    """Return a token as it is written into its node: spaces and line ends visible, long ones cut."""
    words = text.translate(VISIBLE)
    words = "".join(letter if letter.isprintable() else "·" for letter in words) or "∅"
    return words if len(words) <= LONGEST else words[: LONGEST - 1] + "…"


def layout(
    parents: Sequence[int], order: Sequence[float], labels: Sequence[str]
) -> tuple[list[NodePlace], float, float]:
    """Return the place of every node, and the width and height of all.

    Args:
        parents: every node's, before it; the root's is never looked at.
        order: siblings stand from the highest to the lowest.
        labels: what is written into the nodes.
    """
    children: list[list[int]] = [[] for _ in parents]
    depths = [0] * len(parents)
    for number in range(1, len(parents)):
        children[parents[number]].append(number)
        depths[number] = depths[parents[number]] + 1
    for siblings in children:
        siblings.sort(key=lambda number: -order[number])
    rows, free, stack = [0] * len(parents), 0, [0]
    while stack:
        number = stack.pop()
        is_first = number == 0 or children[parents[number]][0] == number
        if not is_first:
            free += 1
        rows[number] = free
        stack += reversed(children[number])
    widths = [_width(label) for label in labels]
    lefts, left = [], float(MARGIN)
    for depth in range(max(depths) + 1):
        lefts.append(left)
        left += max(width for width, at in zip(widths, depths, strict=True) if at == depth) + GAP
    places = [
        NodePlace(lefts[depth], MARGIN + ROW * row + HEIGHT / 2, width)
        for depth, row, width in zip(depths, rows, widths, strict=True)
    ]
    return places, left - GAP + MARGIN, 2 * MARGIN + ROW * free + HEIGHT


def _width(label: str) -> float:
    letters = sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in label)
    return letters * LETTER + 12


def _curve(begin: NodePlace, end: NodePlace) -> str:
    left, right = begin.left + begin.width, end.left
    bend = min(GAP / 2, (right - left) / 2)
    if begin.middle == end.middle:
        return f"M{left:.1f} {begin.middle:.1f}H{right:.1f}"
    down = f"M{left:.1f} {begin.middle:.1f}C{left + bend:.1f} {begin.middle:.1f}"
    return f"{down} {left:.1f} {end.middle:.1f} {left + bend:.1f} {end.middle:.1f}H{right:.1f}"


def _edge(node: TreeNode, begin: NodePlace, end: NodePlace) -> str:
    kind = "edge accepted" if node.is_accepted else "edge"
    percent = f"{100 * node.probability:.0f}%" if node.probability >= 0.005 else "<1%"
    return (
        f'<path class="{kind}" d="{_curve(begin, end)}"/>'
        f'<text class="confidence" x="{end.left - 3:.1f}" y="{end.middle - 4:.1f}">{html.escape(percent)}</text>'
    )


def _box(node: TreeNode, place: NodePlace, label: str) -> str:
    if node.parent < 0:
        return _node("root", f"{node.text!r}: the last token before this step", place, label)
    end = "accepted" if node.is_accepted else "not accepted"
    words = f"{node.text!r}, token {node.token}: {node.probability:.1%} after its parent, {end}"
    return _node("accepted" if node.is_accepted else "", words, place, label)


def _node(kind: str, words: str, place: NodePlace, label: str) -> str:
    top = place.middle - HEIGHT / 2
    return (
        f'<g class="node {kind}"><title>{html.escape(words)}</title>'
        f'<rect x="{place.left:.1f}" y="{top:.1f}" width="{place.width:.1f}" height="{HEIGHT}" rx="4"/>'
        f'<text x="{place.left + place.width / 2:.1f}" y="{place.middle + 4:.1f}">{html.escape(label)}</text></g>'
    )
