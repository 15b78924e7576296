"""The report's page in a browser: nothing to complain of, and the figures that the records give."""

from __future__ import annotations

import json
import re
import struct
from collections import Counter
from pathlib import Path

import pytest
import rfc8785

from kgas_async import verify_evidence
from kgas_async._reading import ENDS, EvidenceFile
from kgas_async.export.report import write_report

from . import plain_report as plain
from .browser import opened
from .many_records import write_log
from .programs import Program

LARGEST = 5_000_000  # bytes of a page


def cells(dom: str, name: str) -> list[str]:
    """The cells of a row in the table of latencies, as text."""
    found = re.search(rf'<tr data-row="{re.escape(name)}">(.*?)</tr>', dom, re.DOTALL)
    assert found, name
    found_cells = re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", found[1], re.DOTALL)
    return [re.sub(r"<[^>]+>", " ", cell).strip() for cell in found_cells]


class Expected:
    """What the records give: how many there are, and how many calls of each row ended, and failed."""

    def __init__(self, log: Path) -> None:
        self.records = 0
        self.ended: Counter[str] = Counter()
        self.bad: Counter[str] = Counter()
        for record in EvidenceFile(log):
            self.records += 1
            if record["event"] in ENDS:
                self.ended[plain.place(record)] += 1
                self.bad[plain.place(record)] += record["status"] in plain.BAD

    def check(self, dom: str) -> None:
        for name, count in self.ended.items():
            _, _, calls, _, failed, *_ = cells(dom, name)
            assert (calls, failed) == (f"{count:,}", f"{self.bad[name]:,}"), name
        assert f"{self.records:,} records, each chained to the one before" in dom
        assert f'data-tile="Calls">{sum(self.ended.values()):,}<' in dom


def check_page(page: Path, log: Path, folder: Path) -> None:
    """Light, dark and narrow: no complaints, the whole width used, and the figures in it."""
    assert page.stat().st_size < LARGEST
    expected = Expected(log)
    pictures = {}
    for width, dark in ((1200, False), (1200, True), (500, False)):
        shown = opened(page, folder, width=width, dark=dark)
        assert shown.console == []
        assert struct.unpack(">II", shown.screenshot[16:24])[0] == width
        pictures[width, dark] = shown.screenshot
        expected.check(shown.dom)
    assert len(set(pictures.values())) == 3


def test_made_records_are_evidence_as_it_is_written(tmp_path: Path) -> None:
    log = tmp_path / "run.jsonl"
    written = write_log(log, 2000)
    verified = verify_evidence(log)
    assert verified.ok
    assert verified.records == written == 3 * 2000 - 2 * 3 + 5  # three failed: no more calls of theirs
    lines = log.read_bytes().splitlines()
    assert [rfc8785.dumps(json.loads(line)) for line in lines] == lines


def test_a_complaint_of_the_browser_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<script>nothing.there()</script><p>text</p>")
    shown = opened(page, tmp_path)
    assert "<p>text</p>" in shown.dom
    assert len(shown.console) == 1


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_the_report_of_the_main_job(tmp_path: Path, loop: str) -> None:
    log = tmp_path / "run.jsonl"
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "engine.md").write_text("# The engine\n\nAda Lovelace wrote to Charles Babbage.\n")
    (notes / "loom.txt").write_text("Charles Babbage had a portrait of Joseph Jacquard.\n")
    (notes / "empty.txt").write_text("")
    command = ["-m", "kgas_async", "run", "examples.knowledge_graph:pipeline", "--input", str(notes)]
    with Program(command=[*command, "--backend", loop, "--evidence", str(log)], cwd=tmp_path) as program:
        program.rest()
        assert program.code() == 1, program.errors()
    page = tmp_path / "report.html"
    figures = write_report(log, page)
    assert figures.run is not None
    assert (figures.run.items, figures.run.failed) == (3, 1)
    check_page(page, log, tmp_path)


@pytest.mark.slow
def test_the_report_of_a_million_records(tmp_path: Path) -> None:
    log = tmp_path / "run.jsonl"
    written = write_log(log, 334_000)
    assert written > 1_000_000
    page = tmp_path / "report.html"
    # In a process of its own, whose memory is looked at; not by ru_maxrss, which a child takes over from its parent.
    made = (
        "import json, os, sys; from kgas_async._system import peak_rss_bytes; "
        "from kgas_async.export.report import write_report; "
        "figures = write_report(*sys.argv[1:]); "
        "print(json.dumps([figures.records, peak_rss_bytes(os.getpid())]))"
    )
    with Program(command=["-c", made, str(log), str(page)], patience_s=800) as program:
        (said,) = program.rest()
        records, peak_bytes = json.loads(said)
    assert records == written
    assert peak_bytes is None or peak_bytes < 200 << 20
    check_page(page, log, tmp_path)
