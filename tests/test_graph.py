"""The lineage graph: edges go down, boxes of a layer do not touch, what other edges imply is left out, equal bytes."""

import re

from tasks.graph import Node, graph, reduced

EDGES = [
    ("base", "sft"), ("data", "sft"), ("sft", "dpo"), ("data", "dpo"), ("dpo", "merge"), ("base", "answers-base"),
    ("sft", "answers-parent"), ("merge", "answers"), ("answers", "rewards"), ("answers-base", "rewards"),
    ("answers-parent", "rewards"), ("reward", "rewards"),
    ("sft", "reward"), ("rewards", "verdict"), ("verdict", "release"), ("merge", "release"), ("base", "release"),
]  # fmt: skip
NODES = [
    Node(key, key, f"{key} <1>", f"about {key} & more", "model") for key in dict.fromkeys(end for edge in EDGES for end in edge)
]


def boxes(svg):
    """Name -> left, top."""
    found = re.findall(r'<rect x="([-\d.]+)" y="([-\d.]+)" width="(\d+)" height="(\d+)".*?class="name">([^<]*)<', svg)
    return {name: (float(x), float(y), float(wide), float(tall)) for x, y, wide, tall, name in found}


def test_everything_is_above_what_reads_it_and_no_boxes_touch():
    svg = graph(NODES, EDGES)
    found = boxes(svg)
    assert found.keys() == {node.key for node in NODES}
    assert all(found[one][1] + found[one][3] < found[two][1] for one, two in EDGES)
    placed = list(found.values())
    for i, (x, y, wide, _) in enumerate(placed):
        assert x >= 0
        assert not [other for other in placed[:i] if other[1] == y and abs(other[0] - x) < wide + 10]
    right = float(re.search(r'width="(\d+)"', svg)[1])
    assert max(x + wide for x, _, wide, _ in placed) <= right
    assert svg == graph(NODES, EDGES)
    assert "base &lt;1&gt;" in svg


def test_what_a_longer_way_implies_is_not_drawn():
    kept = reduced(EDGES)
    assert ("data", "dpo") not in kept  # through sft
    assert ("merge", "release") not in kept
    assert ("base", "release") not in kept
    assert set(EDGES) - set(kept) == {("data", "dpo"), ("merge", "release"), ("base", "release")}
    assert graph(NODES, EDGES).count('class="edge"') == len(kept)


def test_one_box_and_none():
    assert boxes(graph(NODES[:1], [])).keys() == {"base"}
    assert graph([], []) == ""
