"""A plan as a drawing in SVG, made without anything else. Knows boxes and arrows, nothing of pipelines.

Source: rows by longest paths, places for edges that pass rows, an order by the mean place of neighbours, as in
Sugiyama, Tagawa and Toda (1981); the places inside a row are the nearest to those of neighbours (isotonic regression).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from typing import Any, Final

from ._plan_graph import ITEM, Edge, Node, graph_of

__all__ = ["svg"]

BIG: Final = 7.9  # pixels of a character
SMALL: Final = 6.7
PADDING: Final = 12
HEIGHT: Final = 46
GAP_ACROSS: Final = 24
GAP_ALONG: Final = 84
MARGIN: Final = 24
SWEEPS: Final = 12
STYLE: Final = """\
text{font:13px ui-monospace,Menlo,Consolas,monospace;fill:#1f2328;text-anchor:middle}
.small{font-size:11px;fill:#59636e}
.label{paint-order:stroke;stroke:#fff;stroke-width:5px;stroke-linejoin:round}
.page{fill:#fff}
.phase{fill:#f6f8fa;stroke:#59636e}
.run{fill:#ddf4ff;stroke:#0969da}
.item{fill:#fff8c5;stroke:#9a6700}
.service{fill:#fbefff;stroke:#8250df;stroke-dasharray:4 3}
.edge{fill:none;stroke:#59636e;stroke-width:1.3}
.soft{stroke-dasharray:5 4}
.tip{fill:#59636e}
@media (prefers-color-scheme:dark){text{fill:#f0f6fc}.small{fill:#9198a1}.label{stroke:#0d1117}.page{fill:#0d1117}
.phase{fill:#151b23;stroke:#9198a1}.run{fill:#121d2f;stroke:#4493f8}.item{fill:#272115;stroke:#d29922}
.service{fill:#211830;stroke:#ab7df8}.edge{stroke:#9198a1}.tip{fill:#9198a1}}
"""


@dataclass(slots=True, eq=False)
class _Box:
    """A place in a row: of a node, or where an edge passes."""

    row: int
    width: float
    node: Node | None = None
    x: float = 0.0  # of its middle
    up: list[_Box] = field(default_factory=list)
    down: list[_Box] = field(default_factory=list)

    @property
    def top(self) -> float:
        return MARGIN + self.row * (HEIGHT + GAP_ALONG)


def svg(view: Mapping[str, Any]) -> str:
    """A drawing that stands alone: no script, no font, no network; dark where its reader is."""
    nodes, edges = graph_of(view)
    rows, paths = _in_rows(nodes, edges)
    _order(rows)
    _place(rows)
    ways = _ways(paths)
    labels = [(edge.label, *_label_place(way, path)) for edge, way, path in zip(edges, ways, paths, strict=True)]
    boxes = [box for row in rows for box in row]
    spans = [(box.x, box.width) for box in boxes] + [(x, len(label) * SMALL) for label, x, _ in labels]
    left = min(x - width / 2 for x, width in spans) - MARGIN
    width = max(x + width / 2 for x, width in spans) + MARGIN - left
    height = boxes[-1].top + HEIGHT + MARGIN
    name = _xml(view["pipeline"])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{left:.0f} 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" role="img" aria-label="{name}">',
        f"<title>{name}</title>",
        f"<style>{STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="tip" d="M0 0L8 4L0 8z"/></marker></defs>',
        f'<rect class="page" x="{left:.0f}" width="{width:.0f}" height="{height:.0f}"/>',
        *(_drawn_edge(edge, way) for edge, way in zip(edges, ways, strict=True)),
        *(part for box in boxes for part in _drawn_box(box)),
        *(f'<text class="small label" x="{x:.1f}" y="{y:.1f}">{_xml(label)}</text>' for label, x, y in labels if label),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


# --- rows and places


def _in_rows(nodes: Sequence[Node], edges: Sequence[Edge]) -> tuple[list[list[_Box]], list[list[_Box]]]:
    """The boxes by rows, and for each edge the boxes that it leads through."""
    rows = _rows(nodes, edges)
    boxes = {node.name: _Box(rows[node.name], _width(node), node) for node in nodes}
    made: list[list[_Box]] = [[] for _ in range(max(rows.values()) + 1)]
    for box in boxes.values():
        made[box.row].append(box)
    paths = []
    for edge in edges:
        source, target = boxes[edge.source], boxes[edge.target]
        middle = (source.row + target.row) // 2
        path = [source]
        for row in range(source.row + 1, target.row):
            path.append(_Box(row, len(edge.label) * SMALL if row == middle and edge.label else 4.0))
            made[row].append(path[-1])
        path.append(target)
        for above, below in pairwise(path):
            above.down.append(below)
            below.up.append(above)
        paths.append(path)
    return made, paths


def _rows(nodes: Sequence[Node], edges: Sequence[Edge]) -> dict[str, int]:
    above: dict[str, list[str]] = {node.name: [] for node in nodes}
    for edge in edges:
        above[edge.target].append(edge.source)
    rows: dict[str, int] = {}

    def row_of(name: str) -> int:
        if name not in rows:
            rows[name] = 0  # services that require each other are told when they start
            rows[name] = 1 + max(map(row_of, above[name]), default=-1)
        return rows[name]

    for name in above:
        row_of(name)
    for node in nodes:  # a service stands right above its first user, and not at the top of the page
        users = [rows[edge.target] for edge in edges if edge.source == node.name]
        if node.kind == "service" and users and not above[node.name]:
            rows[node.name] = max(min(users) - 1, 0)
    return rows


def _order(rows: list[list[_Box]]) -> None:
    for sweep in range(SWEEPS):
        for row in rows:
            for place, box in enumerate(row):
                box.x = float(place)
        is_down = sweep % 2 == 0
        for row in rows if is_down else reversed(rows):
            row.sort(key=lambda box: _mean(box.up if is_down else box.down, box.x))
            for place, box in enumerate(row):
                box.x = float(place)


def _place(rows: list[list[_Box]]) -> None:
    for row in rows:
        for box in row:
            box.x = 0.0
    for sweep in range(SWEEPS):
        for row in rows if sweep % 2 == 0 else reversed(rows):
            wanted = [_mean([*box.up, *box.down], box.x) for box in row]
            for box, x in zip(row, _spread(wanted, [box.width for box in row]), strict=True):
                box.x = x


def _mean(boxes: Sequence[_Box], default: float) -> float:
    return sum(box.x for box in boxes) / len(boxes) if boxes else default


def _spread(wanted: Sequence[float], widths: Sequence[float]) -> list[float]:
    """The nearest places to those wanted, in this order and without touching."""
    offsets = [0.0]
    for one, other in pairwise(widths):
        offsets.append(offsets[-1] + (one + other) / 2 + GAP_ACROSS)
    blocks: list[tuple[float, int]] = []  # sum and count of what stands shoulder to shoulder
    for x, offset in zip(wanted, offsets, strict=True):
        total, count = x - offset, 1
        while blocks and blocks[-1][0] / blocks[-1][1] > total / count:
            total, count = total + blocks[-1][0], count + blocks.pop()[1]
        blocks.append((total, count))
    means = [total / count for total, count in blocks for _ in range(count)]
    return [mean + offset for mean, offset in zip(means, offsets, strict=True)]


# --- shapes

_Way = list[tuple[float, float]]


def _ways(paths: Sequence[Sequence[_Box]]) -> list[_Way]:
    """The points of each edge; those that share a side of a box share it evenly."""
    starts: dict[_Box, list[int]] = {}
    ends: dict[_Box, list[int]] = {}
    for number, path in enumerate(paths):
        starts.setdefault(path[0], []).append(number)
        ends.setdefault(path[-1], []).append(number)
    for numbers in starts.values():
        numbers.sort(key=lambda number: paths[number][1].x)
    for numbers in ends.values():
        numbers.sort(key=lambda number: paths[number][-2].x)
    ways = []
    for number, path in enumerate(paths):
        way = [(_port(path[0], starts[path[0]], number), path[0].top + HEIGHT)]
        for box in path[1:-1]:
            way += [(box.x, box.top), (box.x, box.top + HEIGHT)]
        ways.append([*way, (_port(path[-1], ends[path[-1]], number), path[-1].top - 2)])
    return ways


def _port(box: _Box, numbers: Sequence[int], number: int) -> float:
    return box.x + box.width * 0.8 * ((numbers.index(number) + 1) / (len(numbers) + 1) - 0.5)


def _drawn_edge(edge: Edge, way: _Way) -> str:
    parts = [f"M{way[0][0]:.1f} {way[0][1]:.1f}"]
    for number, ((x1, y1), (x2, y2)) in enumerate(pairwise(way)):
        bend = (y2 - y1) / 2
        is_curve = number % 2 == 0
        curve = f"C{x1:.1f} {y1 + bend:.1f} {x2:.1f} {y2 - bend:.1f} " if is_curve else "L"
        parts.append(f"{curve}{x2:.1f} {y2:.1f}")
    soft = " soft" if edge.is_soft else ""
    return f'<path class="edge{soft}" marker-end="url(#tip)" d="{"".join(parts)}"/>'


def _drawn_box(box: _Box) -> Iterator[str]:
    node = box.node
    if node is None:
        return
    yield (
        f'<rect class="{node.kind}" x="{box.x - box.width / 2:.1f}" y="{box.top:.1f}" width="{box.width:.1f}" '
        f'height="{HEIGHT}" rx="{HEIGHT / 2 if node.kind == ITEM else 6}"/>'
    )
    first, second = node.lines
    yield f'<text x="{box.x:.1f}" y="{box.top + (20 if second else 28):.1f}">{_xml(first)}</text>'
    if second:
        yield f'<text class="small" x="{box.x:.1f}" y="{box.top + 36:.1f}">{_xml(second)}</text>'


def _label_place(way: _Way, path: Sequence[_Box]) -> tuple[float, float]:
    if len(path) > 2:  # where room was kept for it
        passed = path[(path[0].row + path[-1].row) // 2 - path[0].row]
        return passed.x, passed.top + HEIGHT / 2 + 4
    (x1, y1), (x2, y2) = way
    return (x1 + x2) / 2, (y1 + y2) / 2 + 4


def _width(node: Node) -> float:
    return 2 * PADDING + max(len(node.lines[0]) * BIG, len(node.lines[1]) * SMALL)


def _xml(text: str) -> str:
    """Escaped; without the signs that XML cannot hold."""
    return escape("".join(sign if sign >= " " else "?" for sign in text))
