"""``kgas-async report``: the page of a run, made from its evidence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ._cli_text import FORCE, exists, fail, file_of, out, out_raw, say

if TYPE_CHECKING:
    from .export.report import Figures

__all__ = ["add_report"]


def add_report(app: typer.Typer) -> None:
    """Give the command line this command."""
    app.command("report")(_report)


def _report(
    path: str = typer.Argument(help="The file that --evidence named; its segments are read too"),
    output: str | None = typer.Option(None, "--output", "-o", metavar="FILE", help="The page; - is standard output"),
    run: str | None = typer.Option(
        None, metavar="RUN_ID", help="Only this run; unless given, the latest session with all its runs"
    ),
    force: bool = FORCE,
    as_json: bool = typer.Option(False, "--json", help="The figures as one JSON object on standard output"),
) -> None:
    """Make one HTML file of a run: timeline, throughput, latency, waits, the critical path, what to do, failures.

    It needs no network and no JavaScript. Of a run that was killed, or whose evidence is not intact, it says so.

    Exit codes: 0 it was made; 2 the evidence cannot be read or has no such run, or the file cannot be written.

    Examples:

    kgas-async report run.jsonl -o report.html

    kgas-async report run.jsonl -o - | gzip > report.html.gz

    kgas-async report run.jsonl --json
    """
    from ._errors import EvidenceError
    from ._suggest import extra_hint

    if output is None and not as_json:
        fail("say where the page goes: -o report.html; or --json for the figures alone")
    is_printed = output is not None and file_of(output) is None
    if is_printed and as_json:
        fail("--json and --output - would both be on standard output; give a file for the page, or leave one out")
    output = file_of(output)
    if output is not None:
        _check(Path(output), Path(path), force=force)
    try:
        from .export.report import render_report, report_figures, write_report
    except ModuleNotFoundError as missing:
        fail(f"a report needs {missing.name}; {extra_hint('report')}")
    try:
        figures = report_figures(path, run_id=run) if output is None else write_report(path, output, run_id=run)
    except EvidenceError as error:
        fail(str(error))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        fail(f"{output} cannot be written: {why}")
    if as_json:
        out(json.dumps(figures.to_dict(), indent=1))
    elif is_printed:
        out_raw(render_report(figures))
    _say(figures, path, output)


def _check(output: Path, path: Path, *, force: bool) -> None:
    """Before a long reading: that the page can be written there, and costs nothing that is there."""
    from ._chain import head_path
    from ._segments import segments_of

    try:
        files = [file for segment in segments_of(path) for file in (segment, head_path(segment))]
        if output.exists() and any(file.exists() and output.samefile(file) for file in files):
            fail(f"--output {output} is the evidence itself; give another file")
        if output.is_dir():
            fail(f"--output {output} is a folder; give a file in it: {output / 'report.html'}")
        if output.exists() and not force:
            fail(exists(output))
        if not output.parent.is_dir():
            fail(f"--output {output}: there is no folder {output.parent}; make it first")
    except (OSError, ValueError) as error:
        fail(f"--output {str(output)!r} cannot be used: {error.strerror if isinstance(error, OSError) else error}")


def _say(figures: Figures, path: str, output: str | None) -> None:
    from ._errors import counted

    if output is not None:
        say(f"written: {output}")
    verified = figures.verified
    if verified is not None and verified.problem is not None:
        say(f"the evidence is not intact: {verified}")
    if not figures.is_complete:
        flight = counted(figures.open_in_all, "call")
        say(f"half a run: its end is not on record, and {flight} were in flight at the last record")
    elif figures.unreadable:
        lines = counted(figures.unreadable, "line")
        say(f"{lines} of {path} could not be read and left out; a crash may have torn one")
