"""What one document contributes to the graph: which entities it mentions, and which of them stand together.

Pure functions over plain values; the same document gives the same facts, whoever else is processed before or beside it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

LINKED_PER_SECTION = 10  # the most frequent of a section; all pairs of 200 would be 19,900 links that mean nothing

_SUFFIXES = re.compile(r"\.(?:txt|md|rst|html?|py)(?:\.gz)?$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Entity:
    """One entity of one section, and how often it stands there."""

    name: str
    kind: str
    count: int


@dataclass(frozen=True)
class Facts:
    """A document's contribution, sorted, so that equal contents are equal values.

    `mentions` holds (name, kind, count); `links` (name, greater name, number of sections in which both stand).
    """

    document: str
    encoding: str
    sections: int
    mentions: list[tuple[str, str, int]]
    links: list[tuple[str, str, int]]


def merge(document: str, encoding: str, sections: Iterable[list[Entity]]) -> Facts:
    """The facts of a document from the entities of its sections."""
    mentions: Counter[tuple[str, str]] = Counter()
    links: Counter[tuple[str, str]] = Counter()
    count = 0
    for entities in sections:
        count += 1
        for entity in entities:
            mentions[entity.name, entity.kind] += entity.count
        names = sorted({entity.name for entity in entities[:LINKED_PER_SECTION]})
        links.update(combinations(names, 2))
    # A document also is the thing that others refer to: "asyncio.events", "networking/ip-sysctl".
    mentions[subject(document)] += 1
    return Facts(
        document,
        encoding,
        count,
        sorted((name, kind, times) for (name, kind), times in mentions.items()),
        sorted((first, second, times) for (first, second), times in links.items()),
    )


def subject(document: str) -> tuple[str, str]:
    """(name, kind) under which other documents refer to this one."""
    stem = _SUFFIXES.sub("", document)
    if re.search(r"\.py(?:\.gz)?$", document, re.IGNORECASE):
        return stem.removesuffix("/__init__").replace("/", "."), "code"
    return stem, "path"
