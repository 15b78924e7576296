"""Which entities matter most: PageRank (networkx does it) over the graph file, as rows of a table."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import networkx as nx

from .graph_file import GraphFile

Row = dict[
    str, str | int | float
]  # rank, entity, kind, score, mentions, documents; all scores, of documents too, make 1


def rank(path: str | Path, top: int = 20) -> list[Row]:
    """The `top` entities of a graph file, best first."""
    with closing(GraphFile(path)) as graph:
        edges = list(graph.edges())
        nodes = {name: (kind, count, documents) for name, kind, count, documents in graph.nodes() if kind != "document"}
    scores = pagerank(edges)
    # Rounded before they are compared: the last bits of a float must not decide the order, the name does.
    best = sorted((-round(scores[name], 6), name) for name in nodes if name in scores)[:top]
    rows: list[Row] = []
    for place, (score, name) in enumerate(best, start=1):
        kind, count, documents = nodes[name]
        row: Row = {"rank": place, "entity": name, "kind": kind, "score": -score, "mentions": count}
        rows.append(row | {"documents": documents})
    return rows


def pagerank(edges: Iterable[tuple[str, str, str, int]]) -> dict[str, float]:
    """The scores of the entities, from (source, target, relation, weight) edges in sorted order."""
    graph: nx.Graph[tuple[str, str]] = nx.Graph()
    for source, target, relation, weight in edges:
        origin = "document" if relation == "mentions" else "entity"
        # The hundredth mention says less than the first: a count's bits grow like its logarithm, and are integers.
        graph.add_edge((origin, source), ("entity", target), weight=weight.bit_length())
    if not graph:
        return {}
    return {name: score for (origin, name), score in nx.pagerank(graph).items() if origin == "entity"}
