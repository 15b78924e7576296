"""``kgas-async evidence export``: evidence in formats that other programs read."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import IO, NoReturn

import typer

from ._chain import head_path
from ._cli_lineage import say_lacks
from ._errors import EvidenceError
from ._reading import EvidenceFile, runs_of
from ._segments import segments_of
from ._suggest import nearest
from .export.prov import prov_document
from .export.trace import write_trace

__all__ = ["add_export"]

FORMATS = ("prov", "trace")


def add_export(app: typer.Typer) -> None:
    """Give the group of evidence commands this one."""
    app.command("export")(_export)


def _export(
    path: str = typer.Argument(help="the file that --evidence named; its segments are read too"),
    format: str = typer.Option(..., metavar="|".join(FORMATS), help="what to make of it"),  # noqa: A002
    output: str | None = typer.Option(None, "--output", "-o", metavar="FILE", help="where to; else standard output"),
    run: str | None = typer.Option(
        None, metavar="RUN_ID", help="only this run; unless given, prov takes the latest, trace takes all"
    ),
) -> None:
    """Export evidence: prov is W3C PROV-JSON, trace opens in https://ui.perfetto.dev and in chrome://tracing.

    Exit codes: 0 it was written; 2 the evidence cannot be read, has no such run, or the file cannot be written.

    Example: kgas-async evidence export run.jsonl --format trace -o run.trace.json
    """
    if format not in FORMATS:
        _fail(f"--format {format!r} is not known; use one of {', '.join(FORMATS)}{nearest(format, FORMATS)}")
    evidence = EvidenceFile(path)
    try:
        # All is read before anything is opened for writing: a mistake must not cost an earlier export.
        runs = runs_of(evidence)
        if run is not None and run not in runs:
            _fail(f"no run {run!r} is on record in {path}; there are {', '.join(runs) or 'none'}{nearest(run, runs)}")
        document = prov_document(evidence, run_id=run) if format == "prov" else None
        if output is not None and _is_evidence(Path(output), Path(path)):
            _fail(f"--output {output} is the evidence itself; give another file")
        with ExitStack() as stack:
            file: IO[str] = sys.stdout
            if output is not None:
                file = stack.enter_context(Path(output).open("w", encoding="utf-8"))
            if document is None:
                write_trace(evidence, file, run_id=run)
            else:
                json.dump(document, file, indent=1)
                file.write("\n")
    except EvidenceError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{output or 'standard output'} cannot be written: {error.strerror}")
    say_lacks(path, evidence.lacks)


def _is_evidence(output: Path, path: Path) -> bool:
    """Whether it is one of the files of that evidence: a segment, or a head."""
    files = [file for segment in segments_of(path) for file in (segment, head_path(segment))]
    return output.exists() and any(file.exists() and output.samefile(file) for file in files)


def _fail(message: str) -> NoReturn:
    typer.echo(f"error: {message}", err=True)
    raise typer.Exit(2)
