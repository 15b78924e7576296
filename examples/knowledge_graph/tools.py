"""Where plain code meets kgas_async: each function of this example as a tool, the graph file as a service.

All that the job knows of threads, limits and lifetimes is declared here; the other modules know nothing of it.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from anyio import to_thread

from kgas_async import KGASTool, Policy, Service, ToolAdapter, current, tool

from . import documents, facts, rank, sections
from .extractor import LegacyExtractor
from .facts import Entity, Facts
from .graph_file import GraphFile, Summary

DEFAULT_GRAPH = "knowledge_graph.db"


# Reading is bounded: a hundred documents of 64 MB would fit through the pipeline, but not all at once into memory.
@tool(policy=Policy(concurrency=8))
def load(path: Path) -> documents.Text:
    """Read and decode one document."""
    return documents.read(path)


@tool
def split(text: documents.Text) -> list[sections.Section]:
    """Cut a document into sections."""
    return sections.split(text)


@tool
def merge(document: str, encoding: str, entities: list[list[Entity]]) -> Facts:
    """One document's facts from its sections' entities."""
    return facts.merge(document, encoding, entities)


@tool(name="rank")
def rank_entities(path: str, top: int = 20) -> list[rank.Row]:
    """PageRank over the finished graph."""
    return rank.rank(path, top)


def entities_of(raw: dict[str, Any]) -> list[Entity]:
    """The good part of a legacy result, with names and types."""
    return [Entity(**entity) for entity in raw["entities"]]


def error_of(raw: dict[str, Any]) -> str | None:
    """The legacy way of failing: a dict that says so."""
    return raw["message"] if raw["status"] != "ok" else None


# It keeps state in `self`, so one thread at a time may use it: hence an instance per worker thread. It takes **kwargs:
# hence the names of its inputs. It returns its errors: here they become raised ones. The class stays as it is.
extract = ToolAdapter(
    factory=LegacyExtractor,
    instances="per_thread",
    params=["text", "title"],
    error_when=error_of,
    returns=entities_of,
    name="extract",
    policy=Policy(timeout=60.0),
)


class GraphStore(Service):
    """The graph file, for as long as a session lasts.

    Args:
        path: Where it is; unless given, `$KGAS_GRAPH`, else `knowledge_graph.db` in the working directory.
    """

    def __init__(self, path: str | None = None) -> None:
        self._path = path
        # sqlite3 refuses a connection in any thread but the one that made it: one thread makes it and does all writing.
        self._add = ToolAdapter(factory=self.open, method="add", instances="dedicated", name="graph.add")
        # Once per run, so it may open a connection of its own, in whichever thread it is.
        self._keep_only = ToolAdapter(self._open_and_keep, name="graph.keep_only")

    @property
    def path(self) -> str:
        return self._path or os.environ.get("KGAS_GRAPH") or DEFAULT_GRAPH

    def open(self) -> GraphFile:
        """A connection for the thread that asks."""
        return GraphFile(self.path)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """A file that cannot be written, or is something else, is an error before the first document is read."""
        await to_thread.run_sync(lambda: self.open().close())
        yield

    async def add(self, facts: Facts) -> str:
        self.ensure_running()
        name: str = await current().execute(self._add, facts=facts)
        return name

    async def keep_only(self, documents: list[str]) -> Summary:
        self.ensure_running()
        summary: Summary = await current().execute(self._keep_only, documents=documents)
        return summary

    def _open_and_keep(self, documents: list[str]) -> Summary:
        with self.open() as graph:
            return graph.keep_only(documents)


class Link(KGASTool):
    """Write a document's facts into the graph; gives the document's name."""

    def __init__(self, graph: GraphStore) -> None:
        self.graph = graph

    async def execute_async(self, *, facts: Facts) -> str:
        return await self.graph.add(facts)


class Finish(KGASTool):
    """Leave in the graph what this run has written, and nothing older."""

    def __init__(self, graph: GraphStore) -> None:
        self.graph = graph

    async def execute_async(self, *, documents: list[str]) -> Summary:
        return await self.graph.keep_only(documents)
