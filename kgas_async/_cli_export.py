"""``kgas-async evidence export``: evidence in formats that other programs read."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import typer

from ._cli_lineage import say_lacks
from ._cli_text import AS_JSON, FORCE, exists, fail, file_of, out_json, say
from ._leaving import hush

if TYPE_CHECKING:
    from ._reading import EvidenceFile

__all__ = ["add_export"]

FORMATS: Final = ("prov", "trace")


def add_export(app: typer.Typer) -> None:
    """Give the group of evidence commands this one."""
    app.command("export")(_export)


def _export(
    path: str = typer.Argument(metavar="EVIDENCE", help="The file that --evidence named; its segments are read too"),
    format: str = typer.Option(..., metavar="|".join(FORMATS), help="What to make of it"),  # noqa: A002
    output: str | None = typer.Option(None, "--output", "-o", metavar="FILE", help="Else, or by -, standard output"),
    run: str | None = typer.Option(
        None, metavar="RUN_ID", help="Only this run; unless given, prov takes the latest, trace takes all"
    ),
    force: bool = FORCE,
    as_json: bool = AS_JSON,
) -> None:
    """Export evidence for other programs.

    prov is W3C PROV-JSON; trace opens in https://ui.perfetto.dev and in
    chrome://tracing. Both are JSON. With --json, which needs --output FILE,
    one object says what was written: format, output, bytes, unreadable.

    Exit codes: 0 it was written; 2 the evidence cannot be read, has no such
    run, or the file cannot be written.

    Examples:

    kgas-async evidence export run.jsonl --format trace -o run.trace.json
    """
    from ._errors import EvidenceError
    from ._reading import EvidenceFile
    from ._suggest import nearest

    if format not in FORMATS:
        fail(f"--format {format!r} is not known; use one of {', '.join(FORMATS)}{nearest(format, FORMATS)}")
    output = file_of(output)
    if as_json and output is None:
        fail("--json needs --output FILE: without it the export itself is on standard output, and it is JSON")
    evidence = EvidenceFile(path)
    if output is not None:
        _check(Path(output), Path(path), force=force)
    try:
        _write(evidence, path, format, output, run)
    except EvidenceError as error:
        fail(str(error))
    except BrokenPipeError:  # nobody reads it any more
        hush(sys.stdout)
    except OSError as error:
        code = 1 if output is None else 2  # as `out` has it
        fail(f"{output or 'standard output'} cannot be written: {error.strerror}", code)
    say_lacks(path, evidence.lacks)
    if output is not None:
        say(f"written: {output}")
    if as_json and output is not None:
        size = Path(output).stat().st_size
        out_json({"format": format, "output": output, "bytes": size, "unreadable": evidence.unreadable})


def _write(evidence: EvidenceFile, path: str, format: str, output: str | None, run: str | None) -> None:  # noqa: A002
    from ._reading import runs_of
    from ._suggest import nearest
    from .export.prov import prov_document
    from .export.trace import write_trace

    # All is read before anything is opened for writing: a mistake must not cost an earlier export.
    runs = runs_of(evidence)
    evidence.check_records()
    if run is not None and run not in runs:
        fail(f"no run {run!r} is on record in {path}; there are {', '.join(runs) or 'none'}{nearest(run, runs)}")
    document = prov_document(evidence, run_id=run) if format == "prov" else None
    with ExitStack() as stack:
        file: IO[str] = sys.stdout
        if output is not None:
            file = stack.enter_context(Path(output).open("w", encoding="utf-8"))
        if document is None:
            write_trace(evidence, file, run_id=run)
        else:
            json.dump(document, file, indent=1)
            file.write("\n")


def _check(output: Path, path: Path, *, force: bool) -> None:
    """Before a long reading: that writing there costs nothing that is there. A device or a pipe holds nothing."""
    try:
        if _is_evidence(output, path):
            fail(f"--output {output} is the evidence itself; give another file")
        if output.is_file() and not force:
            fail(exists(output))
    except (OSError, ValueError) as error:
        fail(f"--output {str(output)!r} cannot be used: {error.strerror if isinstance(error, OSError) else error}")


def _is_evidence(output: Path, path: Path) -> bool:
    """Whether it is one of the files of that evidence: a segment, or a head."""
    from ._chain import head_path
    from ._segments import segments_of

    files = [file for segment in segments_of(path) for file in (segment, head_path(segment))]
    return output.exists() and any(file.exists() and output.samefile(file) for file in files)
