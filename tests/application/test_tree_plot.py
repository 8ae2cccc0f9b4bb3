"""Pictures of trees show every node once, parents between their children, and what was accepted."""

import pytest

from eagle.application.session import Piece, SessionStep, TreeNode
from eagle.application.tree_plot import (
    ACCEPTED,
    BONUS,
    REFUSED,
    ROOT,
    depths,
    draw_mask,
    draw_tokens,
    draw_tree,
    sees,
    shown,
)

figures = pytest.importorskip("matplotlib.figure")
PARENTS = (-1, 0, 0, 1, 1, 2, 3)
GOOD = {0, 1, 4}
NODES = tuple(TreeNode(n, f"t{n}", parent, 0.5, n in GOOD) for n, parent in enumerate(PARENTS))


def drawn(depth=None, walk=True):
    axis = figures.Figure().subplots()
    draw_tree(axis, NODES, depth=depth, walk=walk)
    return {text.get_text(): text for text in axis.texts if text.get_text().startswith("t")}, axis


def colour(text):
    from matplotlib.colors import to_hex

    return to_hex(text.get_bbox_patch().get_edgecolor()).upper()


def test_a_node_sees_what_its_parent_sees_and_itself():
    assert depths(NODES) == [0, 1, 1, 2, 2, 2, 3]
    rows = sees(NODES)
    for number, parent in enumerate(PARENTS):
        above = {i for i, seen in enumerate(rows[parent]) if seen} if parent >= 0 else set()
        assert {i for i, seen in enumerate(rows[number]) if seen} == above | {number}


def test_every_node_stands_once_at_its_depth_and_no_two_at_one_place():
    texts, axis = drawn()
    assert sorted(texts) == [f"t{n}" for n in range(7)] and len(axis.lines) == 6
    places = [texts[f"t{n}"].get_position() for n in range(7)]
    assert [x for x, _ in places] == depths(NODES) and len(set(places)) == 7
    for level in range(1, 4):  # branches never cross
        column = [(y, places[PARENTS[n]][1]) for n, (x, y) in enumerate(places) if x == level]
        assert [above for _, above in sorted(column)] == sorted(above for _, above in column)
    assert places[1][1] < places[2][1]  # as in the tree, likelier ones first
    assert places[1][1] == (places[3][1] + places[4][1]) / 2


def test_the_walk_is_told_from_the_rest_by_colour():
    texts, axis = drawn()
    assert [colour(texts[f"t{n}"]) for n in range(7)] == [
        ROOT if n == 0 else ACCEPTED if n in GOOD else REFUSED for n in range(7)
    ]
    assert sum(line.get_color() == ACCEPTED for line in axis.lines) == 2
    texts, axis = drawn(walk=False)
    assert ACCEPTED not in map(colour, texts.values()) and all(line.get_color() == ROOT for line in axis.lines)


def test_a_tree_that_grows_keeps_its_places():
    whole, axis = drawn()
    limits = axis.get_xlim(), axis.get_ylim()
    for depth, count in enumerate((1, 3, 6, 7)):
        texts, axis = drawn(depth)
        assert len(texts) == count and (axis.get_xlim(), axis.get_ylim()) == limits
        assert all(text.get_position() == whole[name].get_position() for name, text in texts.items())


def test_a_mask_has_a_row_and_a_column_a_node_with_their_words():
    axis = figures.Figure().subplots()
    draw_mask(axis, NODES)
    assert axis.images[0].get_array().tolist() == sees(NODES)
    for labels in (axis.get_xticklabels(), axis.get_yticklabels()):
        assert [label.get_text() for label in labels] == [f"t{n}" for n in range(7)]
        assert [label.get_color() == ACCEPTED for label in labels] == [n in GOOD for n in range(7)]


def test_tokens_stand_in_order_drafted_ones_in_another_colour():
    axis = figures.Figure().subplots()
    draw_tokens(axis, SessionStep((Piece("a", True), Piece(" b", True), Piece("c", False)), None))
    assert [text.get_text() for text in axis.texts] == ["a", "·b", "c"]
    assert [colour(text) for text in axis.texts] == [ACCEPTED, ACCEPTED, BONUS]
    assert sorted(text.get_position() for text in axis.texts) == [text.get_position() for text in axis.texts]


@pytest.mark.parametrize(
    ("text", "words"),
    [(" a\n", "·a⏎"), ("\n        ", "⏎8·"), ("\t", "⇥"), ("$x$", r"\$x\$"), ("abcdefghijkl", "abcd…ijkl")],
)
def test_what_cannot_be_seen_is_shown(text, words):
    assert shown(text) == words
