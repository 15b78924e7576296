"""``kgas-async evidence``: look at evidence that was written."""

from __future__ import annotations

import dataclasses
import json

import typer

from ._errors import EvidenceError
from ._verify import verify_evidence

__all__ = ["app"]

app = typer.Typer(name="evidence", help="Check what was recorded, trace it, export it.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    """Check what was recorded, trace it, export it."""


@app.command()
def verify(
    path: str = typer.Argument(help="the file that --evidence named; its segments and heads are beside it"),
    as_json: bool = typer.Option(False, "--json", help="say what was found as one JSON object"),
    last: str | None = typer.Option(
        None, metavar="SHA256", help="the last record's hash, as it was noted in another place; it must be that"
    ),
) -> None:
    """Check that evidence is as it was written: nothing edited, lost, reordered, duplicated, or broken off.

    Exit codes: 0 intact, and closed by a session that has ended; 1 not intact: the first bad record is named; 2 it
    could not be read; 3 intact, but a session still writes, or was killed, or the head file is missing, so that records
    may be missing at the end; or it was one segment alone, so that the others were not looked at.

    Example: kgas-async evidence verify run.jsonl
    """
    try:
        report = verify_evidence(path)
    except EvidenceError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    if report.problem is None and last is not None and last.strip().lower() != report.last_sha256:
        reason = f"the last record's hash is {report.last_sha256}, and --last says {last}"
        report = dataclasses.replace(report, problem="edited", file=path, line=report.records, reason=reason)
    typer.echo(json.dumps({"ok": report.ok, **dataclasses.asdict(report)}, indent=2) if as_json else str(report))
    raise typer.Exit(0 if report.ok else 1 if report.problem is not None else 3)
