"""The knowledge graph in one SQLite file: facts per document, and the graph as two views on them.

Legacy-style and synchronous: a connection of `sqlite3` answers only in the thread that made it. Knows nothing of tools.

The content does not depend on the order in which documents arrive, nor on what an earlier run left: ids are digests of
names, a document's facts replace what it had said before, and counts are sums made when somebody looks.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Self

from .facts import Facts

APPLICATION = 0x6B676173  # "kgas", in the file's header: tells our file from any other SQLite database
VERSION = 1
LOCK_S = 30.0  # seconds that one connection waits for another

SCHEMA = """
CREATE TABLE documents (id INTEGER PRIMARY KEY, name TEXT NOT NULL, encoding TEXT NOT NULL, sections INTEGER NOT NULL);
CREATE TABLE names (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE mentions (document INTEGER, entity INTEGER, kind TEXT, count INTEGER NOT NULL,
    PRIMARY KEY (document, entity, kind)) WITHOUT ROWID;
CREATE TABLE links (document INTEGER, source INTEGER, target INTEGER, count INTEGER NOT NULL,
    PRIMARY KEY (document, source, target)) WITHOUT ROWID;
CREATE INDEX mentioned ON mentions (entity, document);

CREATE VIEW nodes (name, kind, count, documents) AS
    -- One name, several spellings of it (code here, plain there): the most frequent kind names the node.
    SELECT name, kind, total, (SELECT count(DISTINCT document) FROM mentions WHERE entity = id) FROM (
        SELECT entity AS id, kind, sum(times) OVER (PARTITION BY entity) AS total,
               row_number() OVER (PARTITION BY entity ORDER BY times DESC, kind) AS place
        FROM (SELECT entity, kind, sum(count) AS times FROM mentions GROUP BY entity, kind)
    ) JOIN names USING (id) WHERE place = 1
    UNION ALL SELECT name, 'document', sections, 1 FROM documents;
CREATE VIEW edges (source, target, relation, weight) AS
    SELECT documents.name, names.name, 'mentions', sum(count)
        FROM mentions JOIN documents ON documents.id = document JOIN names ON names.id = entity
        GROUP BY document, entity
    UNION ALL
    SELECT one.name, other.name, 'together', sum(count)
        FROM links JOIN names AS one ON one.id = source JOIN names AS other ON other.id = target
        GROUP BY source, target;
"""


class GraphError(Exception):
    """The graph file cannot be used as one."""


@dataclass(frozen=True)
class Summary:
    """What the graph holds. `guessed` counts the documents whose bytes were not UTF-8 and were taken for Latin-1."""

    path: str
    documents: int
    entities: int
    edges: int
    guessed: int


class GraphFile:
    """An open graph file; belongs to the thread that makes it.

    Raises:
        GraphError: when the file is something else; nothing in it is changed then.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        try:
            self._connection = sqlite3.connect(self.path, timeout=LOCK_S, isolation_level=None)
        except sqlite3.Error as error:
            raise GraphError(
                f"cannot open {self.path}: {error}; give a place that can be written to, by the variable KGAS_GRAPH"
            ) from error
        try:
            self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def add(self, facts: Facts) -> str:
        """Store what a document says, instead of what it said before; returns its name."""
        document = identity(facts.document)
        ids = {name: identity(name) for name, _, _ in facts.mentions}
        ids |= {name: identity(name) for link in facts.links for name in link[:2] if name not in ids}
        with self._transaction() as connection:
            connection.execute("DELETE FROM mentions WHERE document = ?", (document,))
            connection.execute("DELETE FROM links WHERE document = ?", (document,))
            connection.execute(
                "INSERT OR REPLACE INTO documents VALUES (?, ?, ?, ?)",
                (document, facts.document, facts.encoding, facts.sections),
            )
            connection.executemany("INSERT OR IGNORE INTO names VALUES (?, ?)", ((ids[name], name) for name in ids))
            connection.executemany(
                "INSERT INTO mentions VALUES (?, ?, ?, ?)",
                ((document, ids[name], kind, count) for name, kind, count in facts.mentions),
            )
            connection.executemany(
                "INSERT INTO links VALUES (?, ?, ?, ?)",
                ((document, ids[source], ids[target], count) for source, target, count in facts.links),
            )
        return facts.document

    def keep_only(self, documents: Iterable[str]) -> Summary:
        """Forget other documents, and names nobody mentions any more: the file mirrors one run, not all there were."""
        with self._transaction() as connection:
            connection.execute("CREATE TEMP TABLE kept (id INTEGER PRIMARY KEY)")
            connection.executemany("INSERT OR IGNORE INTO kept VALUES (?)", ((identity(name),) for name in documents))
            for table, column in (("documents", "id"), ("mentions", "document"), ("links", "document")):
                connection.execute(f"DELETE FROM {table} WHERE {column} NOT IN (SELECT id FROM kept)")
            connection.execute("DELETE FROM names WHERE id NOT IN (SELECT entity FROM mentions)")
            connection.execute("DROP TABLE kept")
        # What is committed may still stand in the file beside this one (-wal); who copies the graph copies one file.
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return self.summary()

    def summary(self) -> Summary:
        queries = (
            "SELECT count(*) FROM documents",
            "SELECT count(*) FROM names",
            "SELECT (SELECT count(*) FROM (SELECT DISTINCT document, entity FROM mentions))"
            " + (SELECT count(*) FROM (SELECT DISTINCT source, target FROM links))",
            "SELECT count(*) FROM documents WHERE encoding = 'latin-1'",
        )
        return Summary(self.path, *(self._connection.execute(query).fetchone()[0] for query in queries))

    def nodes(self) -> Iterator[tuple[str, str, int, int]]:
        """(name, kind, count, documents), sorted."""
        yield from self._connection.execute("SELECT name, kind, count, documents FROM nodes ORDER BY kind, name")

    def edges(self) -> Iterator[tuple[str, str, str, int]]:
        """(source, target, relation, weight), sorted: a document "mentions" an entity, entities stand "together"."""
        yield from self._connection.execute("SELECT * FROM edges ORDER BY relation, source, target")

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        # A thread that ends drops its instance here, in itself; from any other thread sqlite3 refuses to close.
        with suppress(AttributeError, sqlite3.ProgrammingError):
            self._connection.close()

    def _prepare(self) -> None:
        connection = self._connection
        try:
            with self._transaction():
                application, version = (
                    connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
                )
                if application != APPLICATION and connection.execute("SELECT * FROM sqlite_master").fetchone():
                    raise GraphError(f"{self.path} is a database of something else")
                if application == APPLICATION and version != VERSION:
                    raise GraphError(f"{self.path} has format {version}, this program writes {VERSION}: move it away")
                if application != APPLICATION:
                    for statement in SCHEMA.split(";\n"):
                        connection.execute(statement)
                    connection.execute(f"PRAGMA application_id = {APPLICATION}")
                    connection.execute(f"PRAGMA user_version = {VERSION}")
            # Readers and the writer do not block each other, and a commit costs no fsync: a crash loses nothing that
            # was committed, a power cut at most the last documents.
            self._use_wal()
            connection.execute("PRAGMA synchronous = NORMAL")
        except sqlite3.Error as error:
            raise GraphError(f"cannot use {self.path}: {error}") from error

    def _use_wal(self) -> None:
        # SQLite waits for no lock here: two connections that make the file at once get in each other's way.
        until = monotonic() + LOCK_S
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError:
                if monotonic() > until:
                    raise
                sleep(0.01)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        # IMMEDIATE takes the write lock now and waits for it; a later upgrade would fail at once instead.
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")


def identity(name: str) -> int:
    """A 63-bit id made from the name alone, so that no id depends on who came first."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1
