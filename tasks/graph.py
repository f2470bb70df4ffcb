"""A graph of what is made from what, as SVG: layers from the top down; edges that follow from others are left out.

The usual four steps (Sugiyama, Tagawa, Toda 1981): layers, places held for edges that pass a layer, an order with few crossings,
then horizontal places near the neighbours.  Equal input gives equal text; colours are classes, as in `tasks.charts`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.sax.saxutils import escape

_WIDE, _TALL, _GAP = 150, 40, 14
"""of a node, and between two of a layer"""
_DOWN = 74
"""from layer to layer"""
_PASS = 10
"""width held for an edge that passes a layer"""
_SWEEPS = 24
Edge = tuple[str, str]
"""(what is read, what reads it)"""


@dataclass(frozen=True)
class Node:
    """What is drawn as one box."""

    key: str
    title: str
    below: str
    """a smaller second line"""
    about: str
    """shown where a pointer rests on it"""
    style: str
    """its class"""


def graph(nodes: Sequence[Node], edges: Sequence[Edge]) -> str:
    """The picture; empty without a node.  `edges` form no circle and name only `nodes`."""
    if not nodes:
        return ""
    kept = reduced(edges)
    layers, chains = _layered([node.key for node in nodes], kept)
    places = _placed(layers, chains)
    right = max(x + _half(key) for key, (x, _) in places.items())
    wide, tall = right + 6, len(layers) * _DOWN - (_DOWN - _TALL) + 12
    drawn = [line for chain in chains.values() for line in _edge(chain, places)]
    drawn += [_box(node, *places[node.key]) for node in nodes]
    size = f'width="{wide:.0f}" height="{tall}" viewBox="0 0 {wide:.0f} {tall}"'
    return f'<svg {size} role="img" aria-label="what was made from what">{"".join(drawn)}</svg>'


def reduced(edges: Sequence[Edge]) -> list[Edge]:
    """Without the edges that a longer way implies.

    >>> reduced([("a", "b"), ("b", "c"), ("a", "c")])
    [('a', 'b'), ('b', 'c')]
    """
    below = _readers(edges)
    known: dict[str, set[str]] = {}

    def reach(key: str) -> set[str]:
        if key not in known:
            known[key] = {end for reader in below.get(key, ()) for end in (reader, *reach(reader))}
        return known[key]

    unique = dict.fromkeys(edges)
    return [(one, two) for one, two in unique if not any(two in reach(other) for other in below[one] if other != two)]


def _readers(edges: Sequence[Edge]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for one, two in edges:
        found.setdefault(one, []).append(two)
    return found


Chains = Mapping[Edge, Sequence[str]]
"""edge -> what it passes from end to end, a place in each layer"""


def _layered(keys: Sequence[str], edges: Sequence[Edge]) -> tuple[list[list[str]], dict[Edge, list[str]]]:
    """Keys by layer, with the places that edges hold in the layers they pass."""
    sources = {two: [one for one, other in edges if other == two] for two in keys}
    depth: dict[str, int] = {}

    def deep(key: str) -> int:
        if key not in depth:
            depth[key] = max((deep(source) + 1 for source in sources[key]), default=0)
        return depth[key]

    for key in keys:
        deep(key)
    below = _readers(edges)
    for key in keys:  # what reads nothing stands right above its first reader
        if not sources[key] and key in below:
            depth[key] = min(depth[reader] for reader in below[key]) - 1
    layers: list[list[str]] = [[] for _ in range(max(depth.values()) + 1)]
    for key in keys:
        layers[depth[key]].append(key)
    chains: dict[Edge, list[str]] = {}
    for one, two in edges:
        passed = [f"{one}\0{two}\0{layer}" for layer in range(depth[one] + 1, depth[two])]
        chains[one, two] = [one, *passed, two]
        for layer, place in enumerate(passed, start=depth[one] + 1):
            layers[layer].append(place)
    return layers, chains


def _placed(layers: list[list[str]], chains: Chains) -> dict[str, tuple[float, float]]:
    """Key -> middle of its box."""
    pairs = [pair for chain in chains.values() for pair in pairwise(chain)]
    above: dict[str, list[str]] = {}
    below: dict[str, list[str]] = {}
    for one, two in pairs:
        below.setdefault(one, []).append(two)
        above.setdefault(two, []).append(one)
    _order(layers, pairs, above, below)
    x: dict[str, float] = {}
    for layer in layers:
        x |= dict(zip(layer, _apart(layer, [0.0] * len(layer)), strict=True))
    for sweep in range(_SWEEPS):
        near = (above, below) if sweep % 2 else (below, above)
        for layer in layers if sweep % 2 else layers[::-1]:
            wanted = [_mean([x[other] for other in near[0].get(key, near[1].get(key, [key]))]) for key in layer]
            x |= dict(zip(layer, _apart(layer, wanted), strict=True))
    left = min(x[key] - _half(key) for key in x)
    return {key: (x[key] - left + 6, number * _DOWN + _TALL / 2 + 6) for number, layer in enumerate(layers) for key in layer}


def _order(
    layers: list[list[str]], pairs: Sequence[Edge], above: Mapping[str, list[str]], below: Mapping[str, list[str]]
) -> None:
    """Order each layer by the mean place of its neighbours, down and up again, and keep the order with the fewest crossings."""
    best = [list(layer) for layer in layers]
    fewest = _crossings(layers, pairs)
    for sweep in range(_SWEEPS):
        near = below if sweep % 2 else above
        for layer in layers[::-1] if sweep % 2 else layers:
            at = {key: number / max(1, len(line) - 1) for line in layers for number, key in enumerate(line)}
            wanted = {key: _mean([at[other] for other in near.get(key, [key])]) for key in layer}
            layer.sort(key=lambda key: wanted[key])
        if (found := _crossings(layers, pairs)) < fewest:
            best, fewest = [list(layer) for layer in layers], found
    layers[:] = best


def _crossings(layers: Sequence[Sequence[str]], pairs: Sequence[Edge]) -> int:
    at = {key: (number, place) for number, layer in enumerate(layers) for place, key in enumerate(layer)}
    by_layer: dict[int, list[tuple[int, int]]] = {}
    for one, two in pairs:
        by_layer.setdefault(at[one][0], []).append((at[one][1], at[two][1]))
    return sum(
        (a < c and b > d) or (a > c and b < d)
        for found in by_layer.values()
        for i, (a, b) in enumerate(found)
        for c, d in found[:i]
    )


def _apart(layer: Sequence[str], wanted: Sequence[float]) -> list[float]:
    """The places nearest to `wanted`, in squares, at which nothing of `layer` overlaps (pool adjacent violators)."""
    offsets = [0.0]
    for one, two in pairwise(layer):
        offsets.append(offsets[-1] + _half(one) + _GAP + _half(two))
    pools: list[tuple[float, int]] = []
    for want, offset in zip(wanted, offsets, strict=True):
        pools.append((want - offset, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, n), (b, m) = pools[-2:]
            pools[-2:] = [((a * n + b * m) / (n + m), n + m)]
    flat = [mean for mean, count in pools for _ in range(count)]
    return [mean + offset for mean, offset in zip(flat, offsets, strict=True)]


def _half(key: str) -> float:
    return (_PASS if "\0" in key else _WIDE) / 2


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _edge(chain: Sequence[str], places: Mapping[str, tuple[float, float]]) -> Iterator[str]:
    """Straight down through the layers it passes, bent between them."""
    (x, y), *rest = (places[key] for key in chain)
    path = [f"M{x:.1f} {y + _TALL / 2:.1f}"]
    for number, (right, down) in enumerate(rest, start=1):
        start = y + _TALL / 2
        end = down - _TALL / 2 - (6 if number == len(rest) else 0)
        middle = (start + end) / 2
        path.append(f"C{x:.1f} {middle:.1f} {right:.1f} {middle:.1f} {right:.1f} {end:.1f}")
        if number < len(rest):
            path.append(f"V{down + _TALL / 2:.1f}")
        x, y = right, down
    yield f'<path d="{"".join(path)}" class="edge"/>'
    yield f'<path d="M{x:.1f} {y - _TALL / 2:.1f}l-4 -7h8z" class="head"/>'


def _box(node: Node, x: float, y: float) -> str:
    left, top = x - _WIDE / 2, y - _TALL / 2
    return (
        f'<g class="node {node.style}"><title>{escape(node.about)}</title>'
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{_WIDE}" height="{_TALL}" rx="7"/>'
        f'<text x="{x:.1f}" y="{y - 3:.1f}" class="name">{escape(node.title)}</text>'
        f'<text x="{x:.1f}" y="{y + 12:.1f}">{escape(node.below)}</text></g>'
    )
