"""A plan as a graph: the text of a Mermaid diagram, or a drawing in SVG. Made of what `_plan_view` gives.

Source: the layers are those of longest paths and the order inside one is by the mean place of what is upstream, as in
Sugiyama, Tagawa and Toda (1981).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple
from xml.sax.saxutils import escape

__all__ = ["mermaid", "svg"]

ITEM: Final = "item"
CHARACTER: Final = 7.2  # pixels of one
PADDING: Final = 12
HEIGHT: Final = 46
GAP_ACROSS: Final = 26
GAP_ALONG: Final = 92
MARGIN: Final = 24
STYLE: Final = """\
text{font:13px ui-monospace,Menlo,Consolas,monospace;fill:#1f2328}
.small{font-size:11px;fill:#59636e}
.phase{fill:#f6f8fa;stroke:#59636e}
.run{fill:#ddf4ff;stroke:#0969da}
.item{fill:#fff8c5;stroke:#9a6700}
.service{fill:#fbefff;stroke:#8250df;stroke-dasharray:4 3}
.edge{fill:none;stroke:#59636e;stroke-width:1.3}
.soft{stroke-dasharray:5 4}
.tip{fill:#59636e}
@media (prefers-color-scheme:dark){text{fill:#f0f6fc}.small{fill:#9198a1}
.phase{fill:#151b23;stroke:#9198a1}.run{fill:#121d2f;stroke:#4493f8}.item{fill:#272115;stroke:#d29922}
.service{fill:#211830;stroke:#ab7df8}.edge{stroke:#9198a1}.tip{fill:#9198a1}}
"""


class Node(NamedTuple):
    """A box: an item, a phase or a service."""

    name: str
    kind: str
    lines: tuple[str, str]


class Edge(NamedTuple):
    """From one box to another; a soft one is order or use, without data."""

    source: str
    target: str
    label: str
    is_soft: bool = False


def _graph(view: Mapping[str, Any]) -> tuple[list[Node], list[Edge]]:
    by_phase = {phase["phase"]: phase for phase in view["phases"]}
    expanding = {phase["expands_into"]: name for name, phase in by_phase.items() if "expands_into" in phase}
    nodes = [Node(ITEM, ITEM, ("item", ", ".join(view["item"] or view["assumed"])))]
    edges: dict[tuple[str, str], dict[str, None]] = {}
    soft: list[Edge] = []
    for name, phase in by_phase.items():
        collects = f", collects {phase['collects']}" if "collects" in phase else ""
        batch = f", batches of {phase['batch']}" if "batch" in phase else ""
        kind = "run" if phase["once"] == "per run" else "phase"
        nodes.append(Node(f"phase {name}", kind, (name, f"{phase['tool']}, {phase['once']}{collects}{batch}")))
        for one in phase["inputs"]:
            source = {"field": ITEM, "result": f"phase {one['name']}"}.get(one["from"])
            source = source or f"phase {expanding[one['name']]}"
            edges.setdefault((source, f"phase {name}"), {})[_label(one)] = None
        soft += [Edge(f"phase {other}", f"phase {name}", "after", True) for other in phase["after"]]
        soft += [Edge(f"service {other}", f"phase {name}", "uses", True) for other in phase["requires"]]
        if not phase["inputs"] and not phase["after"]:
            edges.setdefault((ITEM, f"phase {name}"), {})
    nodes += [Node(f"service {one['service']}", "service", (one["service"], one["class"])) for one in view["services"]]
    for one in view["services"]:
        soft += [
            Edge(f"service {other}", f"service {one['service']}", "required by", True) for other in one["requires"]
        ]
    return nodes, [*(Edge(*ends, ", ".join(labels)) for ends, labels in edges.items()), *soft]


def _label(one: Mapping[str, Any]) -> str:
    """What goes along an edge: the input, and what of the source it is where that is called otherwise."""
    given = "" if one["from"] == "result" else one["name"]
    given += f".{one['path']}" if "path" in one else ""
    if not given:
        return str(one["input"])
    return given if given.rpartition(".")[2] == one["input"] else f"{given} as {one['input']}"


def mermaid(view: Mapping[str, Any]) -> str:
    """The text of a Mermaid flowchart: what takes what from where; dotted lines are order and use."""
    nodes, edges = _graph(view)
    ids = {node.name: f"n{number}" for number, node in enumerate(nodes)}
    shapes = {ITEM: ("([", "])"), "service": ("[(", ")]"), "run": ("[[", "]]"), "phase": ("[", "]")}
    lines = ["flowchart TD"]
    for node in nodes:
        opening, closing = shapes[node.kind]
        text = "<br>".join(_quoted(line) for line in node.lines if line)
        lines.append(f'    {ids[node.name]}{opening}"{text}"{closing}')
    for edge in edges:
        arrow = "-.->" if edge.is_soft else "-->"
        label = f'|"{_quoted(edge.label)}"|' if edge.label else ""
        lines.append(f"    {ids[edge.source]} {arrow}{label} {ids[edge.target]}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """As Mermaid wants what might be its own signs."""
    for sign, name in (("#", "#35;"), ('"', "#quot;"), ("<", "#lt;"), (">", "#gt;")):
        text = text.replace(sign, name)
    return text


# --- the drawing


class _Box(NamedTuple):
    node: Node
    x: float  # of its middle
    y: float  # of its top
    width: float


def svg(view: Mapping[str, Any]) -> str:
    """A drawing that stands alone: no script, no font, no network; dark where the reader's page is."""
    nodes, edges = _graph(view)
    boxes, width, height = _placed(nodes, edges)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" role="img" aria-label="{_xml(view["pipeline"])}">',
        f"<title>{_xml(view['pipeline'])}</title>",
        f"<style>{STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="tip" d="M0 0L8 4L0 8z"/></marker></defs>',
        *_drawn_edges(boxes, edges),
        *(part for box in boxes.values() for part in _drawn_box(box)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _placed(nodes: Iterable[Node], edges: Iterable[Edge]) -> tuple[dict[str, _Box], float, float]:
    """The boxes, and the size of it all."""
    by_name = {node.name: node for node in nodes}
    above: dict[str, list[str]] = {name: [] for name in by_name}
    for edge in edges:
        above[edge.target].append(edge.source)
    depth: dict[str, int] = {}

    def depth_of(name: str) -> int:
        if name not in depth:
            depth[name] = 0  # services that require each other are told when they start
            depth[name] = 1 + max(map(depth_of, above[name]), default=-1)
        return depth[name]

    rows: dict[int, list[str]] = {}
    for name in by_name:
        rows.setdefault(depth_of(name), []).append(name)
    for edge in edges:  # a service stands right above who uses it first, and not at the top of the page
        if edge.source.startswith("service ") and not above[edge.source]:
            users = [depth[one.target] for one in edges if one.source == edge.source]
            rows[depth[edge.source]].remove(edge.source)
            depth[edge.source] = max(min(users) - 1, 0)
            rows.setdefault(depth[edge.source], []).append(edge.source)
    widths = {name: _width(node) for name, node in by_name.items()}
    spans = {row: sum(widths[name] + GAP_ACROSS for name in names) - GAP_ACROSS for row, names in rows.items() if names}
    width = max(spans.values()) + 2 * MARGIN
    boxes: dict[str, _Box] = {}
    for row in sorted(spans):
        names = sorted(
            rows[row], key=lambda name: _mean([boxes[one].x for one in above[name] if one in boxes], width / 2)
        )
        x = (width - spans[row]) / 2
        for name in names:
            boxes[name] = _Box(by_name[name], x + widths[name] / 2, MARGIN + row * (HEIGHT + GAP_ALONG), widths[name])
            x += widths[name] + GAP_ACROSS
    return boxes, width, 2 * MARGIN + (max(spans) + 1) * (HEIGHT + GAP_ALONG) - GAP_ALONG


def _mean(values: list[float], default: float) -> float:
    return sum(values) / len(values) if values else default


def _width(node: Node) -> float:
    return 2 * PADDING + max(len(node.lines[0]) * CHARACTER * 13 / 12, len(node.lines[1]) * CHARACTER * 11 / 12)


def _drawn_box(box: _Box) -> Iterator[str]:
    first, second = box.node.lines
    yield (
        f'<rect class="{box.node.kind}" x="{box.x - box.width / 2:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" '
        f'height="{HEIGHT}" rx="{HEIGHT / 2 if box.node.kind == ITEM else 6}"/>'
    )
    yield f'<text x="{box.x:.1f}" y="{box.y + 20:.1f}" text-anchor="middle">{_xml(first)}</text>'
    if second:
        yield f'<text class="small" x="{box.x:.1f}" y="{box.y + 36:.1f}" text-anchor="middle">{_xml(second)}</text>'


def _drawn_edges(boxes: Mapping[str, _Box], edges: Iterable[Edge]) -> Iterator[str]:
    """Curves from box to box; those that pass further rows leave to the side of what stands between."""
    leaving: dict[str, int] = {}
    entering: dict[str, int] = {}
    out = {name: sum(edge.source == name for edge in edges) for name in boxes}
    into = {name: sum(edge.target == name for edge in edges) for name in boxes}
    by_place = sorted(edges, key=lambda edge: (boxes[edge.target].x, boxes[edge.source].x))
    for edge in by_place:
        source, target = boxes[edge.source], boxes[edge.target]
        x1 = _port(source, leaving, out)
        x2 = _port(target, entering, into)
        y1, y2 = source.y + HEIGHT, target.y - 2
        bend = max(GAP_ALONG * 0.6, (y2 - y1) / 3)
        soft = " soft" if edge.is_soft else ""
        yield (
            f'<path class="edge{soft}" marker-end="url(#tip)" '
            f'd="M{x1:.1f} {y1:.1f}C{x1:.1f} {y1 + bend:.1f} {x2:.1f} {y2 - bend:.1f} {x2:.1f} {y2:.1f}"/>'
        )
        if edge.label and edge.label != "uses":
            # At 0.7 of the curve, where the edges into one box have not met yet and those out of one have parted.
            at = 0.7 if out[edge.source] > into[edge.target] else 0.35
            x = x1 + (x2 - x1) * at * at * (3 - 2 * at)
            y = y1 + (y2 - y1) * at
            yield f'<text class="small" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">{_xml(edge.label)}</text>'


def _port(box: _Box, used: dict[str, int], all_: Mapping[str, int]) -> float:
    """Edges share the side of a box evenly."""
    number = used[box.node.name] = used.get(box.node.name, 0) + 1
    return box.x + box.width * 0.8 * (number / (all_[box.node.name] + 1) - 0.5)


def _xml(text: str) -> str:
    """Escaped; without the signs that XML cannot hold."""
    return escape("".join(sign if sign >= " " else "?" for sign in text), {'"': "&quot;"})
