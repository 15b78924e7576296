"""The example's graph: what a document contributes, what the file holds, which order does not matter, the ranking."""

from __future__ import annotations

import random
import sqlite3
import threading
from pathlib import Path

import pytest

from examples.knowledge_graph.facts import LINKED_PER_SECTION, Entity, Facts, merge, subject
from examples.knowledge_graph.graph_file import GraphError, GraphFile, Summary
from examples.knowledge_graph.rank import pagerank, rank

CORPUS = [
    merge("a.txt", "utf-8", [[Entity("Linux", "name", 3), Entity("GPIO", "name", 1)], [Entity("Linux", "code", 1)]]),
    merge("b/c.py", "latin-1", [[Entity("Linux", "name", 1), Entity("DMA", "name", 1), Entity("b.c", "code", 1)]]),
    merge("d.md", "utf-8", [[Entity("GPIO", "name", 2), Entity("Linux", "name", 1)], []]),
]


def content(path: Path) -> tuple[list[object], ...]:
    with sqlite3.connect(path) as connection:
        tables = ("documents", "names", "mentions", "links", "nodes", "edges")
        result = tuple(sorted(connection.execute(f"SELECT * FROM {table}")) for table in tables)
    connection.close()
    return result


def build(path: Path, corpus: list[Facts]) -> Summary:
    with GraphFile(path) as graph:
        for facts in corpus:
            graph.add(facts)
        return graph.keep_only([facts.document for facts in corpus])


def test_facts_add_up_the_sections_and_link_what_stands_together() -> None:
    assert CORPUS[0] == Facts(
        "a.txt",
        "utf-8",
        sections=2,
        mentions=[("GPIO", "name", 1), ("Linux", "code", 1), ("Linux", "name", 3), ("a", "path", 1)],
        links=[("GPIO", "Linux", 1)],
    )


def test_links_of_a_section_are_bounded() -> None:
    crowd = [Entity(f"e{number}", "code", 1) for number in range(200)]
    assert len(merge("a.txt", "utf-8", [crowd]).links) == LINKED_PER_SECTION * (LINKED_PER_SECTION - 1) // 2


@pytest.mark.parametrize(
    ("document", "name", "kind"),
    [
        ("asyncio/events.py", "asyncio.events", "code"),
        ("json/__init__.py.gz", "json", "code"),
        ("networking/ip-sysctl.rst.gz", "networking/ip-sysctl", "path"),
        ("topics/with", "topics/with", "path"),
    ],
)
def test_a_document_is_what_others_call_it(document: str, name: str, kind: str) -> None:
    assert subject(document) == (name, kind)


def test_the_graph_counts_what_documents_say(tmp_path: Path) -> None:
    path = tmp_path / "graph.db"
    assert build(path, CORPUS) == Summary(str(path), documents=3, entities=6, edges=13, guessed=1)
    with GraphFile(path) as graph:
        assert ("Linux", "name", 6, 3) in list(graph.nodes())
        assert ("GPIO", "Linux", "together", 2) in list(graph.edges())
        assert ("a.txt", "Linux", "mentions", 4) in list(graph.edges())


def test_neither_order_nor_repetition_changes_the_content(tmp_path: Path) -> None:
    build(tmp_path / "a.db", CORPUS)
    shuffled = CORPUS * 2
    random.Random(1).shuffle(shuffled)
    build(tmp_path / "b.db", shuffled)
    assert content(tmp_path / "a.db") == content(tmp_path / "b.db")
    assert rank(tmp_path / "a.db") == rank(tmp_path / "b.db")


def test_a_second_run_replaces_the_first(tmp_path: Path) -> None:
    build(tmp_path / "a.db", CORPUS)
    changed = merge("a.txt", "utf-8", [[Entity("USB", "name", 1)]])
    build(tmp_path / "a.db", [changed, CORPUS[1]])
    build(tmp_path / "b.db", [changed, CORPUS[1]])
    assert content(tmp_path / "a.db") == content(tmp_path / "b.db")


def test_a_failed_addition_leaves_the_document_as_it_was(tmp_path: Path) -> None:
    build(tmp_path / "a.db", CORPUS)
    before = content(tmp_path / "a.db")
    broken = Facts("a.txt", "utf-8", 1, [("New", "name", 1), ("New", "name", 1)], [])  # a duplicate row
    with GraphFile(tmp_path / "a.db") as graph:
        with pytest.raises(sqlite3.IntegrityError):
            graph.add(broken)
        graph.add(CORPUS[0])
    assert content(tmp_path / "a.db") == before


def test_a_foreign_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "foreign.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(GraphError, match="something else"):
        GraphFile(path)
    assert path.read_bytes() == before


def test_another_format_and_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "newer.db"
    build(path, CORPUS)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(GraphError, match="format 99"):
        GraphFile(path)
    text = tmp_path / "notes.txt"
    text.write_text("no database at all" * 100)
    with pytest.raises(GraphError, match="not a database"):
        GraphFile(text)
    with pytest.raises(GraphError, match="cannot open"):
        GraphFile(tmp_path / "absent" / "graph.db")


def test_two_connections_may_create_the_file_at_once(tmp_path: Path) -> None:
    start = threading.Barrier(4)
    errors: list[Exception] = []

    def add(facts: Facts) -> None:
        start.wait()
        try:
            with GraphFile(tmp_path / "graph.db") as graph:
                graph.add(facts)
        except Exception as error:  # noqa: BLE001  (shown by the assertion)
            errors.append(error)

    threads = [threading.Thread(target=add, args=(facts,)) for facts in [*CORPUS, CORPUS[0]]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    build(tmp_path / "other.db", CORPUS)
    assert content(tmp_path / "graph.db") == content(tmp_path / "other.db")


def test_the_connection_answers_only_in_its_own_thread(tmp_path: Path) -> None:
    # What makes the tool that writes "dedicated".
    errors: list[BaseException] = []

    def elsewhere(graph: GraphFile) -> None:
        try:
            graph.summary()
        except sqlite3.ProgrammingError as error:
            errors.append(error)

    with GraphFile(tmp_path / "graph.db") as graph:
        thread = threading.Thread(target=elsewhere, args=(graph,))
        thread.start()
        thread.join()
    assert "thread" in str(errors[0])


def test_the_ranking_is_by_score_and_then_by_name(tmp_path: Path) -> None:
    build(tmp_path / "graph.db", CORPUS)
    rows = rank(tmp_path / "graph.db", top=2)
    assert [(row["rank"], row["entity"], row["mentions"], row["documents"]) for row in rows] == [
        (1, "Linux", 6, 3),
        (2, "GPIO", 3, 2),
    ]
    scores = pagerank([("d", "b", "mentions", 1), ("d", "a", "mentions", 1), ("d", "c", "mentions", 1)])
    assert round(scores["a"], 9) == round(scores["b"], 9)


def test_an_empty_graph_has_an_empty_ranking(tmp_path: Path) -> None:
    build(tmp_path / "graph.db", [])
    assert rank(tmp_path / "graph.db") == []
