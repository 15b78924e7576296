"""``kgas-async evidence``: look at evidence that was written."""

from __future__ import annotations

import typer

from ._cli_export import add_export
from ._cli_lineage import add_lineage
from ._cli_show import add_show
from ._cli_text import AS_JSON, fail, out, out_json, printable

__all__ = ["add_evidence"]


def add_evidence(app: typer.Typer) -> None:
    """Give the app this group of commands."""
    group = typer.Typer(name="evidence", no_args_is_help=True, pretty_exceptions_enable=False)
    group.callback()(_root)
    add_show(group)
    group.command("verify")(_verify)
    add_export(group)
    add_lineage(group)
    app.add_typer(group)


def _root() -> None:
    """Show what was recorded, check it, trace it, export it."""


def _verify(
    path: str = typer.Argument(
        metavar="EVIDENCE", help="The file that --evidence named; its segments and heads are beside it"
    ),
    as_json: bool = AS_JSON,
    last: str | None = typer.Option(
        None, metavar="SHA256", help="The last record's hash, as it was noted in another place; it must be that"
    ),
) -> None:
    """Check that evidence is as it was written.

    Finds what was edited, lost, reordered, duplicated, or broken off. With
    --json one object: ok, state, records, sessions, segments, recovered,
    last_sha256, problem, file, line, reason.

    Exit codes: 0 intact, and closed by a session that has ended; 1 not intact:
    the first bad record is named; 2 it could not be read; 3 intact, but a
    session still writes, or was killed, or the head file is missing, so that
    records may be missing at the end; or it was one segment alone, so that the
    others were not looked at.

    Examples:

    kgas-async evidence verify run.jsonl
    """
    import dataclasses

    from ._errors import EvidenceError
    from ._verify import verify_evidence

    try:
        report = verify_evidence(path)
    except EvidenceError as error:
        fail(str(error))
    if report.problem is None and last is not None and last.strip().lower() != report.last_sha256:
        reason = f"the last record's hash is {report.last_sha256}, and --last says {last}"
        report = dataclasses.replace(report, problem="edited", file=path, line=report.records, reason=reason)
    if as_json:
        out_json({"ok": report.ok, **dataclasses.asdict(report)})
    else:
        out(printable(str(report)))
    raise typer.Exit(0 if report.ok else 1 if report.problem is not None else 3)
