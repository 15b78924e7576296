"""Which entities matter most: PageRank (networkx) over the graph file, and the table that shows it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import networkx as nx

from .graph import GraphFile


class Row(TypedDict):
    """One line of the ranking; `score` is in millionths of the whole."""

    rank: int
    entity: str
    kind: str
    score: int
    mentions: int
    documents: int


@dataclass(frozen=True)
class Ranking:
    """The best entities, best first; prints as a table."""

    rows: list[Row]

    def __str__(self) -> str:
        return render(self.rows)


def rank(path: str | Path, top: int = 20) -> Ranking:
    """The `top` entities of a graph file."""
    with closing(GraphFile(path)) as graph:
        edges = list(graph.edges())
        nodes = {name: (kind, count, documents) for name, kind, count, documents in graph.nodes() if kind != "document"}
    scores = pagerank(edges)
    # Equal scores stand in the order of their names; rounding first keeps the last bits of a float out of the order.
    best = sorted(((-round(scores[name] * 1e6), name) for name in nodes if name in scores))[:top]
    return Ranking(
        [
            {"rank": place, "entity": name, "kind": nodes[name][0], "score": -score, "mentions": nodes[name][1], "documents": nodes[name][2]}
            for place, (score, name) in enumerate(best, start=1)
        ]
    )


def pagerank(edges: Iterable[tuple[str, str, str, int]]) -> dict[str, float]:
    """The scores of the entities, from (source, target, relation, weight) edges in sorted order."""
    graph: nx.Graph[tuple[str, str]] = nx.Graph()
    for source, target, relation, weight in edges:
        origin = "document" if relation == "mentions" else "entity"
        # The hundredth mention says less than the first: the bits of a count grow like its logarithm, and stay integers.
        graph.add_edge((origin, source), ("entity", target), weight=weight.bit_length())
    if not graph:
        return {}
    return {name: score for (origin, name), score in nx.pagerank(graph).items() if origin == "entity"}


def render(rows: list[Row]) -> str:
    """The rows as a table for a terminal."""
    if not rows:
        return "(no entities)"
    width = max(len("entity"), *(len(row["entity"]) for row in rows))
    lines = [f"{'':>3}  {'entity':<{width}}  {'kind':<8}  {'score':>8}  {'mentions':>8}  {'documents':>9}"]
    lines += [
        f"{row['rank']:>3}  {row['entity']:<{width}}  {row['kind']:<8}  {row['score'] / 1e6:>8.4%}"
        f"  {row['mentions']:>8,}  {row['documents']:>9,}"
        for row in rows
    ]
    return "\n".join(lines)
