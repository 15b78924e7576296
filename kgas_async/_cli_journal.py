"""``kgas-async journal``: what is in a journal, and forgetting parts of it. Parses and prints."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime

import typer

from ._errors import JournalError, counted
from ._journal_inspect import Summary, prune, summary

__all__ = ["app"]

RUNS_SHOWN = 10

app = typer.Typer(
    name="journal", help="What is in a journal, and forgetting parts of it.", no_args_is_help=True,
    pretty_exceptions_enable=False,
)  # fmt: skip
JOURNAL = typer.Argument(help="the file that was given as --journal")


@app.command("show")
def show(
    journal: str = JOURNAL, as_json: bool = typer.Option(False, "--json", help="for programs: one JSON object")
) -> None:
    """Tell the runs, the items by how they ended, and what is kept of each phase."""
    try:
        found = summary(journal)
    except JournalError as error:
        raise _failed(error) from None
    if as_json:
        typer.echo(json.dumps(asdict(found)))
        return
    for line in _lines(found):
        typer.echo(line)


def _lines(found: Summary) -> list[str]:
    lines = [f"pipeline {found.pipeline}"]
    if len(found.runs) > RUNS_SHOWN:
        lines.append(f"... {counted(len(found.runs) - RUNS_SHOWN, 'earlier run')}")
    for run in found.runs[-RUNS_SHOWN:]:
        began = datetime.fromtimestamp(run.started, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        how = (
            "was killed, or still runs" if run.ended is None else f"{run.status} after {run.ended - run.started:.1f} s"
        )
        lines.append(f"run {run.run_id}: began {began}, {how}")
    lines.append("items: " + (", ".join(f"{count} {status}" for status, count in found.items.items()) or "none"))
    lines += [
        f"phase {one.phase}: {counted(one.results, 'result')} of tool {one.tool} version {one.version}, "
        f"{one.size:,} bytes of {one.codec}"
        for one in found.phases
    ]
    return lines


@app.command("prune")
def prune_(
    journal: str = JOURNAL,
    phase: str | None = typer.Option(None, help="all results of this phase"),
    item: str | None = typer.Option(None, help="all of the item with this key"),
    failed: bool = typer.Option(False, "--failed", help="all of the items that failed"),
    unseen: bool = typer.Option(False, "--unseen", help="all of the items that did not come in the latest run"),
    stale: bool = typer.Option(False, "--stale", help="what the latest run would not use: other versions, lost phases"),
) -> None:
    """Forget what the options name, so that it runs again.

    Example: kgas-async journal prune run.db --phase embed
    """
    if phase is None and item is None and not (failed or unseen or stale):
        typer.echo("error: say what to forget: --phase, --item, --failed, --unseen or --stale", err=True)
        raise typer.Exit(2)
    try:
        results, items = prune(journal, phase=phase, item=item, failed=failed, unseen=unseen, stale=stale)
    except JournalError as error:
        raise _failed(error) from None
    typer.echo(f"forgot {counted(results, 'result')} and how {counted(items, 'item')} ended")


def _failed(error: JournalError) -> typer.Exit:
    typer.echo(f"error: {error}", err=True)
    return typer.Exit(2)
