"""The example as a whole: the same graph on every event loop, failures that stay alone, the command line."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kgas_async
from examples.knowledge_graph import documents, graph, pipeline
from examples.knowledge_graph.extractor import LegacyExtractor
from examples.knowledge_graph.facts import Entity, merge
from examples.knowledge_graph.graph_file import GraphFile
from examples.knowledge_graph.rank import rank
from examples.knowledge_graph.sections import split
from kgas_async import CallFailed, MemorySink, RunReport, ServiceManager, ServiceStartFailed

ROOT = Path(__file__).resolve().parent.parent
BROKEN = ["broken/binary.txt", "broken/empty.md", "broken/garbage.txt", "broken/markup.html", "broken/torn.txt.gz"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    for number in range(40):
        sections = [
            f"Part {part}\n======\n\nThe Linux kernel uses GPIO_{part} and D{number}_x().\n" for part in range(7)
        ]
        path = folder / f"{number % 4}" / f"{number}.rst.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress("\n".join(sections).encode()))
    (folder / "latin.txt").write_bytes("about Café Müller and Linux".encode("latin-1"))
    return folder


@pytest.fixture
def broken_corpus(corpus: Path) -> Path:
    (corpus / "broken").mkdir()
    contents = [b"\0\1", b"", b"\x01\x02" * 100, b"<p></p>", gzip.compress(os.urandom(3000))[:1000]]
    for name, content in zip(BROKEN, contents, strict=True):
        (corpus / name).write_bytes(content)
    return corpus


@pytest.fixture
def graph_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KGAS_GRAPH", str(tmp_path / "graph.db"))
    return tmp_path / "graph.db"


def content(path: Path) -> tuple[list[object], ...]:
    connection = sqlite3.connect(path)
    try:
        tables = ("documents", "names", "mentions", "links", "nodes", "edges")
        return tuple(sorted(connection.execute(f"SELECT * FROM {table}")) for table in tables)
    finally:
        connection.close()


def expected(folder: Path, path: Path) -> tuple[list[object], ...]:
    """The same job without the package: one loop, one thread, in reverse."""
    extractor = LegacyExtractor()
    with GraphFile(path) as file:
        for document in reversed(list(documents.find_documents(folder))):
            text = documents.read(document["path"])
            results = [extractor.execute(text=section.text, title=section.title) for section in split(text)]
            entities = [[Entity(**entity) for entity in result["entities"]] for result in results]
            file.add(merge(document["document"], text.encoding, entities))
    return content(path)


async def run(folder: Path, **options: object) -> RunReport:
    async with ServiceManager(**options) as manager:  # type: ignore[arg-type]
        return await manager.run(pipeline, documents.find_documents(folder))


async def test_the_graph_is_that_of_a_plain_loop(corpus: Path, graph_path: Path, tmp_path: Path) -> None:
    report = await run(corpus)
    report.raise_for_failures()
    assert report.succeeded == 41
    assert content(graph_path) == expected(corpus, tmp_path / "expected.db")
    assert report.results["ranking"] == rank(tmp_path / "expected.db")
    assert report.results["ranking"][0]["entity"] == "Linux"
    assert report.results["graph"].guessed == 1


async def test_a_second_run_changes_nothing(corpus: Path, graph_path: Path) -> None:
    await run(corpus)
    first = content(graph_path)
    await run(corpus)
    assert content(graph_path) == first


async def test_broken_documents_fail_alone_each_with_its_reason(
    broken_corpus: Path, graph_path: Path, tmp_path: Path
) -> None:
    report = await run(broken_corpus)
    assert (report.succeeded, report.failed) == (41, 5)
    failures = {outcome.key: outcome for outcome in report.failures}
    assert sorted(failures) == BROKEN
    causes = {key: type(outcome.error.__cause__) for key, outcome in failures.items() if outcome.error is not None}
    assert causes["broken/binary.txt"] is documents.BinaryDocument
    assert causes["broken/empty.md"] is documents.EmptyDocument
    assert causes["broken/markup.html"] is documents.EmptyDocument
    assert causes["broken/torn.txt.gz"] is documents.UnreadableDocument
    assert "does not look like text" in str(failures["broken/garbage.txt"].error)
    assert not [row for row in content(graph_path)[4] if "broken" in str(row)]


async def test_an_error_that_the_legacy_class_returns_is_kept(broken_corpus: Path, graph_path: Path) -> None:
    report = await run(broken_corpus)
    (failure,) = [outcome for outcome in report.failures if outcome.key == "broken/garbage.txt"]
    errors = []
    error: BaseException | None = failure.error
    while error is not None:
        errors.append(error)
        error = error.__cause__
    assert any(isinstance(one, CallFailed) and (one.result or {}).get("status") == "error" for one in errors)


async def test_all_writing_happens_in_one_thread(
    corpus: Path, graph_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    initialise = GraphFile.__init__

    def counting(self: GraphFile, path: str) -> None:
        opened.append(path)
        initialise(self, path)

    monkeypatch.setattr(GraphFile, "__init__", counting)
    await run(corpus)
    assert len(opened) == 4  # the check at the start, the writer, keep_only, the ranking


async def test_each_call_is_on_record_once(corpus: Path, graph_path: Path) -> None:
    sink = MemorySink()
    await run(corpus, evidence=sink)
    succeeded = [record for record in sink.records if record["event"] == "call.succeeded"]
    by_tool = {tool: sum(record["tool"] == tool for record in succeeded) for tool in ("load", "extract", "graph.add")}
    assert by_tool == {"load": 41, "extract": 40 * 7 + 1, "graph.add": 41}


@pytest.fixture
def foreign_file(graph_path: Path) -> Iterator[None]:
    graph_path.write_text("somebody's notes")
    yield
    assert graph_path.read_text() == "somebody's notes"


@pytest.mark.usefixtures("foreign_file")
async def test_a_graph_that_cannot_be_written_is_an_error_before_the_first_document(corpus: Path) -> None:
    with pytest.raises(ServiceStartFailed, match="not a database"):
        await run(corpus)


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "KGAS_GRAPH": "graph.db", "PYTHONWARNINGS": "error"}
    return subprocess.run(
        [sys.executable, "-m", "kgas_async", "run", "examples.knowledge_graph:pipeline", *arguments],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=100,
    )  # fmt: skip


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_command_line_prints_the_ranking_and_leaves_graph_and_evidence(
    broken_corpus: Path, tmp_path: Path, backend: str
) -> None:
    done = command("--input", str(broken_corpus), "--backend", backend, "--evidence", "run.jsonl", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "Linux" in done.stdout
    assert "broken/binary.txt" in done.stderr
    for path in broken_corpus.glob("broken/*"):
        path.unlink()
    shutil.copy(tmp_path / "graph.db", tmp_path / "copy.db")  # alone: nothing is left in a file beside it
    assert content(tmp_path / "copy.db") == expected(broken_corpus, tmp_path / "expected.db")
    events = [json.loads(line)["event"] for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert events[-1] == "session.ended"


def test_the_command_line_does_not_start_on_a_wrong_folder(tmp_path: Path) -> None:
    done = command("--input", str(tmp_path / "absent"), cwd=tmp_path)
    assert done.returncode == 2
    assert "no such folder" in done.stderr
    assert not (tmp_path / "graph.db").exists()


@pytest.mark.slow
def test_the_default_corpus_gives_one_graph_on_both_event_loops(tmp_path: Path) -> None:
    contents = []
    for backend in ("asyncio", "trio"):
        done = command("--backend", backend, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "ValueError" in done.stdout
        contents.append(content(tmp_path / "graph.db"))
        (tmp_path / "graph.db").unlink()
    assert contents[0] == contents[1]
    assert len(contents[0][0]) >= 500


def test_the_pipeline_is_declared_without_touching_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KGAS_GRAPH", raising=False)
    assert graph.path == "knowledge_graph.db"
    assert isinstance(pipeline, kgas_async.Pipeline)
    assert list(tmp_path.iterdir()) == []
