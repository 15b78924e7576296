"""`kgas-async report`: exit codes, what is said, what is never written over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from kgas_async import JsonlSink
from kgas_async._chain import head_path
from kgas_async._cli import app

FRAME = {"schema": 2, "session_id": "s", "time": "2026-01-01T00:00:00.000000Z"}
RUN = {**FRAME, "run_id": "s-run1", "pipeline": "papers"}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    sink = JsonlSink(tmp_path / "run.jsonl")
    sink.write([
        {**FRAME, "event": "session.started", "seq": 1},
        {**RUN, "event": "run.started", "seq": 2, "plan": []},
        {**RUN, "event": "run.ended", "seq": 3, "items": 0, "failed": 0, "skipped": 0},
        {**FRAME, "event": "session.ended", "seq": 4, "status": "succeeded"},
    ])  # fmt: skip
    sink.close()
    return sink.path


def report(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def test_a_page_is_made(log: Path, tmp_path: Path) -> None:
    result = report(log, "-o", tmp_path / "report.html")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"written: {tmp_path / 'report.html'}\n"
    assert "<h1>papers</h1>" in (tmp_path / "report.html").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "run.jsonl", "run.jsonl.head"]


def test_a_page_that_is_there_stays_unless_forced(log: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("mine")
    result = report(log, "-o", page)
    assert result.exit_code == 2
    assert result.stderr.endswith(" exists; --force writes over it, or give another name\n")
    assert page.read_text() == "mine"
    assert report(log, "-o", page, "--force").exit_code == 0
    assert page.read_text() != "mine"


@pytest.mark.parametrize("other", ["run.jsonl", "run.jsonl.head"])
def test_the_evidence_is_never_written_over(log: Path, tmp_path: Path, other: str) -> None:
    before = (tmp_path / other).read_bytes()
    result = report(log, "-o", tmp_path / other, "--force")
    assert result.exit_code == 2
    assert "is the evidence itself" in result.stderr
    assert (tmp_path / other).read_bytes() == before


def test_json_has_the_figures(log: Path) -> None:
    result = report(log, "--json")
    assert result.exit_code == 0
    figures = json.loads(result.stdout)
    assert (figures["run"]["run_id"], figures["is_complete"], figures["verified"]["records"]) == ("s-run1", True, 4)


def test_half_a_run_is_said(log: Path, tmp_path: Path) -> None:
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:2]))
    head_path(log).unlink()
    result = report(log, "-o", tmp_path / "report.html")
    assert result.exit_code == 0
    assert "half a run: its end is not on record, and 0 calls were in flight" in result.stderr
    assert "Half a run" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run.jsonl"], "say where the page goes: -o report.html"),
        (["missing.jsonl", "-o", "x.html"], "'missing.jsonl': No such file or directory; give a file of it"),
        (["folder", "-o", "x.html"], "'folder': Is a directory"),
        (["other.txt", "-o", "x.html"], "'other.txt' has no record of evidence in it: give a file that evidence="),
        (["empty.jsonl", "-o", "x.html"], "'empty.jsonl' has no record of evidence in it"),
        (["old.jsonl", "-o", "x.html"], "evidence of schema 1, and this reads schema 2"),
        (["run.jsonl", "-o", "folder"], "is a folder; give a file in it: folder/report.html"),
        (["run.jsonl", "-o", "no/x.html"], "there is no folder no; make it first"),
        (
            ["run.jsonl", "-o", "x.html", "--run", "s-run2"],
            "no run 's-run2' is on record in 'run.jsonl'; there are s-run1",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_is_one_line_with_its_mend(
    log: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(log.parent)
    Path("folder").mkdir()
    Path("other.txt").write_text("a letter\n\x00\xff")
    Path("empty.jsonl").write_text("")
    Path("old.jsonl").write_text('{"schema":1,"event":"session.started","seq":1,"session_id":"s"}\n')
    result = report(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert says in result.stderr
    assert result.stderr.count("\n") == 1
    assert not Path("x.html").exists()
