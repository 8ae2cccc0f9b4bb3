"""A drawn tree: every node once, nothing on top of another, the accepted path marked, confidences on the edges."""

import random
import re
import xml.etree.ElementTree as ElementTree

import pytest
from pages import HOSTILE, tree

from eagle.application.session import TreeNode
from eagle.application.tree_drawing import LONGEST, draw, layout, shortened

SVG = "{http://www.w3.org/2000/svg}"


def grown(count, seed):
    """Return a random tree with an accepted path down from the root."""
    chance = random.Random(seed)
    parents = [-1] + [chance.randrange(number) for number in range(1, count)]
    path = {0}
    for number in range(1, count):
        if parents[number] == max(path) and chance.random() < 0.8:
            path.add(number)
    return [
        TreeNode(
            number, f" word{number}" * chance.randint(1, 3), parent, chance.random() if number else 1.0, number in path
        )
        for number, parent in enumerate(parents)
    ]


def boxes(drawing):
    groups = drawing.iter(f"{SVG}g")
    return [
        (group.get("class"), {name: float(group[1].get(name)) for name in ("x", "y", "width", "height")})
        for group in groups
    ]


@pytest.mark.parametrize("count", [1, 2, 9, 60, 200])
def test_every_node_is_drawn_inside_and_none_over_another(count):
    for seed in range(3):
        drawing = ElementTree.fromstring(draw(grown(count, seed), " own"))
        found = boxes(drawing)
        assert len(found) == count + 1
        width, height = float(drawing.get("width")), float(drawing.get("height"))
        for place, (_, box) in enumerate(found):
            assert box["x"] >= 0 and box["y"] >= 0
            assert box["x"] + box["width"] <= width + 0.5 and box["y"] + box["height"] <= height + 0.5
            for _, other in found[:place]:
                apart = box["x"] >= other["x"] + other["width"] or other["x"] >= box["x"] + box["width"]
                assert apart or abs(box["y"] - other["y"]) >= box["height"]


def test_the_accepted_path_is_marked_and_in_one_line_at_the_top():
    nodes = next(nodes for nodes in (grown(60, seed) for seed in range(99)) if sum(n.is_accepted for n in nodes) > 3)
    drawing = ElementTree.fromstring(draw(nodes, " own"))
    accepted = [node for node in nodes if node.is_accepted]
    found = [(kind, box["y"]) for kind, box in boxes(drawing)]
    on_path = [y for kind, y in found if kind in ("node root", "node accepted", "node own")]
    assert len(on_path) == len(accepted) + 1 and set(on_path) == {min(y for _, y in found)}
    edges = [path.get("class") for path in drawing.iter(f"{SVG}path")]
    assert edges.count("edge accepted") == len(accepted) - 1 and edges.count("edge own") == 1


def test_edges_carry_the_head_s_confidence():
    nodes = tree(["a", "b", "c", "d"])
    texts = re.findall(r'class="confidence"[^>]*>([^<]*)<', draw(nodes))
    assert sorted(texts) == ["30%", "45%", "90%"]
    rare = (*nodes[:3], TreeNode(3, "d", 0, 0.001, False))
    assert "&lt;1%" in draw(rare)


def test_siblings_stand_by_their_probability():
    _, *places = layout([-1, 0, 0, 0], [1, 0.2, 0.7, 0.4], ["a", "b", "c", "d"])[0]
    assert places[1].middle < places[2].middle < places[0].middle


@pytest.mark.parametrize("hostile", HOSTILE)
def test_tokens_cannot_leave_their_nodes(hostile):
    drawing = ElementTree.fromstring(draw(tree([hostile] * 5), hostile, hostile))
    assert {element.tag.removeprefix(SVG) for element in drawing.iter()} == {
        "svg",
        "path",
        "text",
        "g",
        "title",
        "rect",
    }
    assert drawing.get("aria-label") == hostile


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" a", "␣a"),
        ("\n\t", "⏎⇥"),
        ("", "∅"),
        ("\x00\u202e", "··"),
        ("x" * 99, "x" * (LONGEST - 1) + "…"),
        ("日本", "日本"),
    ],
)
def test_what_cannot_be_seen_is_made_visible_in_a_node(text, shown):
    assert shortened(text) == shown
