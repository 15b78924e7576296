"""The main job as a TOML file: the same plan, graph and ranking as the Python form, on every event loop."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from examples.knowledge_graph import documents, pipeline
from kgas_async import Pipeline, RunReport, ServiceManager, load_pipeline

from .programs import LOOPS
from .test_example_pipeline import ROOT, content

FILE = ROOT / "examples" / "knowledge_graph.toml"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for number in range(30):
        parts = [f"Part {part}\n======\n\nThe Linux kernel uses GPIO_{part} and D{number}_x().\n" for part in range(5)]
        (folder / f"{number}.rst").write_text("\n".join(parts))
    (folder / "broken.txt").write_bytes(b"\0\1")
    return folder


async def run(one: Pipeline, folder: Path) -> RunReport:
    async with ServiceManager() as manager:
        return await manager.run(one, documents.find_documents(folder))


async def test_the_file_gives_the_graph_and_the_ranking_of_the_python_form(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents, reports = [], []
    for name in ("python", "file", "gentle"):
        monkeypatch.setenv("KGAS_GRAPH", str(tmp_path / f"{name}.db"))
        one = pipeline if name == "python" else load_pipeline(FILE, profile="gentle" if name == "gentle" else None)
        reports.append(await run(one, corpus))
        contents.append(content(tmp_path / f"{name}.db"))
    assert contents[0] == contents[1] == contents[2]
    assert contents[0][0]
    for report in reports:
        assert (report.succeeded, report.failed) == (30, 1)
        assert report.results["ranking"] == reports[0].results["ranking"]


def test_the_file_declares_the_plan_of_the_python_form() -> None:
    assert load_pipeline(FILE).plan.on_record() == pipeline.plan.on_record()


@pytest.mark.parametrize("backend", LOOPS)
def test_the_command_line_gives_the_same_table_for_both_forms(corpus: Path, tmp_path: Path, backend: str) -> None:
    tables, contents = [], []
    for name in ("examples.knowledge_graph:pipeline", str(FILE)):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "KGAS_GRAPH": "graph.db", "PYTHONWARNINGS": "error"}
        done = subprocess.run(
            [sys.executable, "-m", "kgas_async", "run", name, "--input", str(corpus), "--backend", backend],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100,
        )  # fmt: skip
        assert done.returncode == 1, done.stderr
        assert "30 succeeded, 1 failed" in done.stderr
        tables.append(done.stdout)
        contents.append(content(tmp_path / "graph.db"))
        (tmp_path / "graph.db").unlink()
    assert tables[0] == tables[1]
    assert "Linux" in tables[0]
    assert contents[0] == contents[1]
