"""A plan as a graph: boxes and what goes between them, and the text of a Mermaid diagram. Made of `_plan_view`'s."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

__all__ = ["ITEM", "Edge", "Node", "graph_of", "mermaid"]

ITEM: Final = "item"
FIELDS: Final = 48  # characters


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


def graph_of(view: Mapping[str, Any]) -> tuple[list[Node], list[Edge]]:
    """Item, phases and services, and what goes from where to where."""
    by_phase = {phase["phase"]: phase for phase in view["phases"]}
    expanding = {phase["expands_into"]: name for name, phase in by_phase.items() if "expands_into" in phase}
    fields = ", ".join(view["item"] or view["assumed"])
    nodes = [Node(ITEM, ITEM, ("item", fields if len(fields) <= FIELDS else f"{fields[: FIELDS - 3]}..."))]
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
        if not phase["inputs"] and not phase["after"]:
            edges.setdefault((ITEM, f"phase {name}"), {})
    nodes += [Node(f"service {one['service']}", "service", (one["service"], one["class"])) for one in view["services"]]
    for one in view["services"]:
        name = f"service {one['service']}"
        above = [
            *one["requires"],
            *(user["service"] for user in view["services"] if f"${one['service']}" in user["used_by"]),
        ]
        soft += [Edge(f"service {other}", name, "required by", True) for other in dict.fromkeys(above)]
        soft += [Edge(name, f"phase {user}", "uses", True) for user in one["used_by"] if not user.startswith("$")]
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
    nodes, edges = graph_of(view)
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
    return "".join(one if one.isprintable() else "?" for one in text)
