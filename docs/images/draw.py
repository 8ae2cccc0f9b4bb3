"""Draws the pictures of docs/how_it_works.md: `python docs/images/draw.py` writes them beside this file.

They stand on a light card of their own, so that they read the same on a light and on a dark page. The tree is a real
one: the second step of the shipped EAGLE-3 head after `def read_lines(path):`, ten nodes, depth 3, top-k 3, greedy.
"""

import argparse
from html import escape
from pathlib import Path

HERE = Path(__file__).resolve().parent
INK, SOFT, LINE, CARD = "#1f2328", "#59636e", "#c4ccd4", "#fbfcfd"
GREEN, GREEN_FILL = "#1a7f37", "#dafbe1"
BLUE, BLUE_FILL = "#0a58ca", "#ddeeff"
AMBER, AMBER_FILL = "#9a6700", "#fff4d0"
GREY_FILL = "#eef1f4"
SANS, MONO = "system-ui, 'Segoe UI', Helvetica, Arial, sans-serif", "ui-monospace, Menlo, Consolas, monospace"
# Token, parent, the head's probability given the parent; node 0 is the root.
NODES = [
    ('"""', -1, 1.0),
    ("Return", 0, 0.185),
    ("Read", 0, 0.070),
    ("En", 0, 0.053),
    ("a", 1, 0.421),
    ("the", 1, 0.255),
    ("a", 2, 0.346),
    ("sure", 3, 0.357),
    ("code", 3, 0.230),
    ("list", 4, 0.140),
]
PATH, BONUS = [0, 1, 5], "number"


class Drawing:
    """Lines of one SVG file.

    Args:
        width, height: of the card, in pixels.
        title: said by screen readers.
    """

    def __init__(self, width: int, height: int, title: str) -> None:
        self.lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
            f'viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">',
            f"<title>{escape(title)}</title>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto-start-reverse"><path d="M0 0L8 4L0 8z" fill="{SOFT}"/></marker></defs>',
            f'<rect x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="10" fill="{CARD}" stroke="{LINE}"/>',
        ]

    def box(self, x: float, y: float, w: float, h: float, fill: str = CARD, stroke: str = LINE, **more: object) -> None:
        """Add a rectangle."""
        width, dash, rx = more.get("width", 1), more.get("dash"), more.get("rx", 6)
        extra = f' stroke-dasharray="{dash}"' if dash else ""
        self.lines.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{rx}" fill="{fill}" stroke="{stroke}" '
            f'stroke-width="{width}"{extra}/>'
        )

    def text(self, x: float, y: float, words: str, size: float = 13, color: str = INK, **more: object) -> None:
        """Add one line of text around or beside a point."""
        family, anchor, weight = more.get("family", SANS), more.get("anchor", "middle"), more.get("weight", 400)
        self.lines.append(
            f'<text x="{x:g}" y="{y:g}" font-family="{escape(str(family))}" font-size="{size:g}" fill="{color}" '
            f'text-anchor="{anchor}" font-weight="{weight}">{escape(words)}</text>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, color: str = LINE, **more: object) -> None:
        """Add a line, with a tip where `arrow` asks for one."""
        tip = ' marker-end="url(#tip)"' if more.get("arrow") else ""
        dash = f' stroke-dasharray="{more["dash"]}"' if more.get("dash") else ""
        self.lines.append(
            f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{color}" '
            f'stroke-width="{more.get("width", 1.5)}"{dash}{tip}/>'
        )

    def token(self, x: float, y: float, words: str, fill: str = CARD, stroke: str = LINE, **more: object) -> None:
        """Add a token in a box around a point."""
        w = max(34.0, 9 * len(words) + 14)
        self.box(x - w / 2, y - 14, w, 28, fill, stroke, width=more.get("width", 1.2), dash=more.get("dash"))
        self.text(x, y + 4.5, words, 13, family=MONO)

    def svg(self) -> str:
        """Return the file."""
        return "\n".join([*self.lines, "</svg>"]) + "\n"


def depth(node: int) -> int:
    """Return how far a node is from the root."""
    return 0 if node == 0 else 1 + depth(NODES[node][1])


def score(node: int) -> float:
    """Return a node's cumulative probability."""
    return 1.0 if node == 0 else NODES[node][2] * score(NODES[node][1])


# Where nodes stand, by number: columns are depths.
ROWS = [3.0, 1.1, 3.3, 5.2, 0.4, 1.8, 3.3, 4.7, 6.0, 0.4]


def tree(draw: Drawing, left: float, top: float, step: float, path: bool) -> None:
    """Draw the nodes, with the accepted path where it is asked for."""
    at = [(left + depth(node) * step, top + ROWS[node] * 40) for node in range(len(NODES))]
    for node, (words, parent, chance) in enumerate(NODES):
        on_path = path and node in PATH
        if parent >= 0:
            (x1, y1), (x2, y2) = at[parent], at[node]
            half = max(34.0, 9 * len(NODES[parent][0]) + 14) / 2
            draw.line(
                x1 + half,
                y1,
                x2 - max(34.0, 9 * len(words) + 14) / 2,
                y2,
                GREEN if on_path else LINE,
                width=2.4 if on_path else 1.4,
            )
            if not path:
                draw.text(
                    x2, y2 + 27, f"{chance:.3f}" + (f" → {score(node):.3f}" if depth(node) > 1 else ""), 10.5, SOFT
                )
        fill, stroke = (GREEN_FILL, GREEN) if on_path else (CARD, LINE)
        if node == 0:
            fill, stroke = BLUE_FILL, BLUE
        draw.token(*at[node], words, fill, stroke)


def draft_tree() -> str:
    """Draw how a tree grows: levels, probabilities, what is kept."""
    draw = Drawing(760, 376, "A draft tree grown level by level by the head's confidence")
    tree(draw, 90, 62, 190, path=False)
    for level, words in enumerate(("root: chosen, not yet run", "level 1", "level 2", "level 3")):
        draw.text(90 + level * 190, 34, words, 12.5, SOFT)
    draw.text(
        380,
        360,
        "probability given the parent → of the whole path; the likeliest paths go on, the best nine nodes stay",
        12,
        SOFT,
    )
    return draw.svg()


def tree_mask() -> str:
    """Draw which node sees which, and their positions."""
    size, cell, left, top = len(NODES), 27, 208, 74
    draw = Drawing(760, 392, "One forward verifies the whole tree: every node sees the text, its ancestors and itself")
    draw.text(380, 30, "one forward over all ten nodes: each sees the text before, its ancestors and itself", 14)
    seen_from = left + 92
    draw.text(left + 40, top - 10, "text so far", 11.5, SOFT)
    for column in range(size):
        draw.text(seen_from + column * cell + cell / 2, top - 10, str(column), 11, SOFT, family=MONO)
    for row in range(size):
        y = top + row * cell
        draw.text(left - 62, y + 18, NODES[row][0], 12.5, family=MONO, anchor="end")
        draw.text(left - 50, y + 18, str(row), 11, SOFT, family=MONO)
        draw.text(left - 16, y + 18, f"+{depth(row)}", 11, AMBER, family=MONO)
        draw.box(left, y + 2, 80, cell - 4, GREY_FILL, LINE, rx=3)
        ancestors, node = set(), row
        while node >= 0:
            ancestors.add(node)
            node = NODES[node][1]
        for column in range(size):
            sees = column in ancestors
            fill = (BLUE_FILL if column != row else GREEN_FILL) if sees else CARD
            draw.box(seen_from + column * cell + 1.5, y + 2, cell - 3, cell - 4, fill, BLUE if sees else LINE, rx=3)
    draw.text(left - 16, top - 10, "position", 11, AMBER)
    x = seen_from + size * cell + 18
    for line, words in enumerate(
        ("blue: an ancestor", "green: itself", "white: hidden", "", "siblings share", "a position,", "never a slot")
    ):
        draw.text(x, top + 40 + 20 * line, words, 12, SOFT, anchor="start")
    draw.text(
        380,
        374,
        "ten rows of logits come back: what the target itself would say after each of these ten prefixes",
        12,
        SOFT,
    )
    return draw.svg()


def accept_commit() -> str:
    """Draw the walk through the tree, and what becomes of the cache."""
    draw = Drawing(
        760, 430, "The walk keeps the path that the target agrees with; its keys move to the front of the cache"
    )
    draw.text(
        40,
        30,
        "accept: at every node the target picks its token; a child that carries it is taken",
        13.5,
        anchor="start",
    )
    tree(draw, 90, 44, 150, path=True)
    draw.token(470, 44 + ROWS[5] * 40, BONUS, AMBER_FILL, AMBER)
    draw.line(420, 44 + ROWS[5] * 40, 434, 44 + ROWS[5] * 40, AMBER, width=2.2)
    for line, (words, color) in enumerate(
        (
            ("green: drafted and accepted", GREEN),
            ("amber: the target's own pick, which", AMBER),
            ("no child carries: the next root", AMBER),
            ("3 tokens out of one forward", INK),
        )
    ):
        draw.text(548, 118 + 21 * line, words, 11.5, color, anchor="start")
    top = 340
    draw.text(
        40,
        top - 12,
        "commit: the path's keys and values move together, the rest is overwritten by the next step",
        13.5,
        anchor="start",
    )
    for row, (label, slots) in enumerate((("before", list(range(10))), ("after", PATH))):
        y = top + row * 46
        draw.text(84, y + 19, label, 12, SOFT, anchor="end")
        draw.box(96, y, 130, 28, GREY_FILL, LINE, rx=3)
        draw.text(161, y + 19, "text so far", 12, SOFT)
        for place in range(10):
            node = slots[place] if place < len(slots) else None
            kept = node is not None and node in PATH
            x = 230 + place * 50
            draw.box(
                x,
                y,
                46,
                28,
                GREEN_FILL if kept else CARD,
                GREEN if kept else LINE,
                rx=3,
                dash=None if node is not None else "3 3",
            )
            if node is not None:
                draw.text(x + 23, y + 18, NODES[node][0], 11, INK if kept else SOFT, family=MONO)
    return draw.svg()


def call_flow() -> str:
    """Draw the way of one call."""
    draw = Drawing(
        760, 400, "The way of a call: prefill once, then draft, verify, accept, commit, emit, again and again"
    )
    stages = [
        ("draft", "the head grows a tree", "drafter.py"),
        ("verify", "one forward of the target", "target.py"),
        ("accept", "walk along its picks", "verify.py"),
        ("commit", "caches keep the path", "kv_cache.py"),
    ]
    draw.box(30, 40, 170, 76, BLUE_FILL, BLUE)
    draw.text(115, 66, "prompt ids", 14, weight=600)
    draw.text(115, 86, "generate's arguments,", 11.5, SOFT)
    draw.text(115, 102, "prepared by transformers", 11.5, SOFT)
    draw.line(200, 78, 256, 78, SOFT, arrow=True)
    draw.box(260, 40, 220, 76, GREY_FILL, LINE)
    draw.text(370, 66, "prefill", 14, weight=600)
    draw.text(370, 86, "the target reads the prompt,", 11.5, SOFT)
    draw.text(370, 102, "the head its features", 11.5, SOFT)
    draw.line(480, 78, 546, 78, SOFT, arrow=True)
    draw.box(550, 40, 180, 76, AMBER_FILL, AMBER)
    draw.text(640, 66, "first token", 14, weight=600)
    draw.text(640, 86, "picked by the target: the root", 11.5, SOFT)
    draw.line(640, 116, 640, 140, SOFT)
    draw.line(640, 140, 107, 140, SOFT)
    draw.line(107, 140, 107, 176, SOFT, arrow=True)
    for place, (name, words, file) in enumerate(stages):
        x = 30 + place * 178
        draw.box(x, 180, 154, 82, GREEN_FILL if name != "verify" else BLUE_FILL, GREEN if name != "verify" else BLUE)
        draw.text(x + 77, 206, name, 15, weight=600)
        draw.text(x + 77, 227, words, 11.5, SOFT)
        draw.text(x + 77, 246, file, 10.5, SOFT, family=MONO)
        if place < 3:
            draw.line(x + 154, 221, x + 174, 221, SOFT, arrow=True)
    for place, words in enumerate(("DraftTree", "logits, features", "path, bonus token")):
        draw.text(30 + place * 178 + 166, 280, words, 10.5, SOFT, family=MONO)
    draw.line(641, 262, 641, 312, SOFT)
    draw.line(641, 312, 107, 312, SOFT)
    draw.line(107, 312, 107, 266, SOFT, arrow=True)
    draw.text(374, 306, "the bonus token is the next root; the accepted path's features feed the head", 11.5, SOFT)
    draw.line(641, 312, 641, 340, SOFT, arrow=True)
    draw.box(540, 344, 190, 40, CARD, LINE)
    draw.text(635, 368, "DecodeStep: tokens out", 12.5)
    draw.text(30, 368, "plain decoding is the same loop with a tree of its root alone", 12, SOFT, anchor="start")
    return draw.svg()


def three_eagles() -> str:
    """Draw what the three papers' heads read and how their trees grow."""
    draw = Drawing(760, 430, "EAGLE-1, EAGLE-2 and EAGLE-3: what the head reads of the target, and how its tree grows")
    columns = [
        ("EAGLE-1", "2401.15077", [4], "fixed tree", "one shape for every step"),
        ("EAGLE-2", "2406.16858", [4], "grown tree", "wide where the head is unsure,"),
        ("EAGLE-3", "2503.01840", [0, 2, 3], "grown tree", "the same way"),
    ]
    for place, (name, paper, taps, kind, words) in enumerate(columns):
        x = 30 + place * 240
        draw.text(x + 105, 32, name, 16, weight=600)
        draw.text(x + 105, 50, f"arXiv {paper}", 11, SOFT, family=MONO)
        for layer in range(5):
            y = 188 - layer * 28
            tapped = layer in taps
            label = (
                "final norm"
                if layer == 4
                else (
                    "layer n − 3" if layer == 3 else "layer n / 2" if layer == 2 else "…" if layer == 1 else "layer 2"
                )
            )
            draw.box(x, y, 104, 24, BLUE_FILL if tapped else GREY_FILL, BLUE if tapped else LINE, rx=4)
            draw.text(x + 52, y + 16, label, 11.5, INK if tapped else SOFT)
            if tapped:
                draw.line(x + 104, y + 12, x + 126, y + 12, BLUE)
                draw.line(x + 126, y + 12, x + 126, 246, BLUE)
        draw.line(x + 126, 246, x + 126, 252, BLUE, arrow=True)
        draw.text(x + 134, 140, "features", 11, BLUE, anchor="start")
        draw.text(x + 52, 230, "target, frozen", 11, SOFT)
        draw.box(x, 256, 210, 66, GREEN_FILL, GREEN)
        draw.text(x + 105, 278, "fc + one decoder layer", 12.5)
        draw.text(x + 105, 296, "predicts the next feature" if place < 2 else "predicts the next token", 11.5, SOFT)
        draw.text(x + 105, 312, "the target's lm_head" if place < 2 else "its own lm_head, frequent tokens", 11.5, SOFT)
        draw.text(x + 105, 346, kind, 13, weight=600)
        draw.text(x + 105, 364, words, 11.5, SOFT)
        draw.text(x + 105, 380, ("", "deep where it is sure", "trained on its own drafts")[place], 11.5, SOFT)
    draw.text(380, 412, "EAGLE-1 and EAGLE-2 share their weights: one head, two ways to draft with it", 12, SOFT)
    return draw.svg()


DRAWINGS = {
    "draft_tree.svg": draft_tree,
    "tree_mask.svg": tree_mask,
    "accept_commit.svg": accept_commit,
    "call_flow.svg": call_flow,
    "three_eagles.svg": three_eagles,
}


def main(argv: list[str] | None = None) -> int:
    """Write the files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=HERE, help="folder (default: beside this file)")
    args = parser.parse_args(argv)
    for name, draw in DRAWINGS.items():
        (args.out / name).write_text(draw(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
