"""``kgas-async evidence lineage``: what an output came from, what an input has reached."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ._errors import EvidenceError, counted
from ._lineage import Lineage, Traced, lineage
from ._reading import EvidenceFile

__all__ = ["add_lineage", "say_lacks"]

ROWS_SHOWN = 50


def add_lineage(app: typer.Typer) -> None:
    """Give the group of evidence commands this one."""
    app.command("lineage")(_lineage)


def _lineage(
    path: str = typer.Argument(help="the file that --evidence named; its segments are read too"),
    item: str | None = typer.Option(None, metavar="KEY", help="of an item, or of an element: parent/index"),
    phase: str | None = typer.Option(None, help="whose output; alone: one that runs once per run"),
    upstream: bool = typer.Option(True, "--upstream/--downstream", help="what it came from, or what it has reached"),
    run: str | None = typer.Option(None, metavar="RUN_ID", help="the run; else the latest that no call has started"),
    as_json: bool = typer.Option(False, "--json", help="all of it, as one JSON object"),
) -> None:
    """Say what an output came from, or what an input has reached.

    Exit codes: 0 it was found; 2 the evidence cannot be read, or knows nothing of it.

    Examples: kgas-async evidence lineage run.jsonl --phase merged --item a.txt;
    kgas-async evidence lineage run.jsonl --item a.txt --downstream
    """
    if item is None and phase is None:
        typer.echo("error: say whose lineage: --item KEY, --phase NAME or both", err=True)
        raise typer.Exit(2)
    evidence = EvidenceFile(path)
    try:
        found = lineage(
            evidence, item=item, phase=phase, run_id=run, direction="upstream" if upstream else "downstream"
        )
    except EvidenceError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    say_lacks(path, found.lacks)
    if as_json:
        typer.echo(json.dumps(as_data(found), indent=2))
    else:
        _show(found)


def say_lacks(path: str, lacks: Iterable[str]) -> None:
    """Warn of what the evidence lacks, on standard error."""
    for one in lacks:
        typer.echo(f"warning: {path}: {one}", err=True)


def as_data(found: Lineage) -> dict[str, object]:
    """As plain data, without what is not there."""
    data = dataclasses.asdict(found)
    data["calls"] = [
        {
            **{name: value for name, value in call.items() if value is not None and name != "sources"},
            "sources": [{name: value for name, value in one.items() if value is not None} for one in call["sources"]],
        }
        for call in data["calls"]
    ]
    return data


def _show(found: Lineage) -> None:
    console = Console(width=None if _is_terminal() else 160)
    what = " of ".join(filter(None, (found.phase, found.item)))
    verb = "came from" if found.direction == "upstream" else "has reached"
    console.print(Text(f"run {found.run_id} of {found.pipeline}: {what} {verb}"))
    for one in found.lacks:
        console.print(Text(f"there may be more: {one}"))
    for key, fields in list(found.items.items())[:ROWS_SHOWN]:
        console.print(Text(f"item {key}: {', '.join(fields)}"))
    if len(found.items) > ROWS_SHOWN:
        console.print(f"... and {counted(len(found.items) - ROWS_SHOWN, 'more item')} (--json has all)")
    table = Table()
    for name in ("phase", "item", "tool", "status", "call", "took"):
        table.add_column(name)
    for call in found.calls[:ROWS_SHOWN]:
        table.add_row(*map(Text, (call.phase, call.item or "", f"{call.tool} {call.version}", call.status)),
                      Text(call.call_id), Text(_taken(call)))  # fmt: skip
    console.print(table)
    if len(found.calls) > ROWS_SHOWN:
        console.print(f"... and {counted(len(found.calls) - ROWS_SHOWN, 'more call')} (--json has all)")
    for run_id in found.runs:
        console.print(Text(f"in it began the run {run_id}: ask with --run {run_id}"))


def _is_terminal() -> bool:
    return Console().is_terminal


def _taken(call: Traced) -> str:
    """What it took, each source once, and how it hangs together with other calls."""
    by_input: dict[str, list[str]] = {}
    for source in call.sources:
        by_input.setdefault(source.input, []).append(source.call_id or f"{source.field} of {source.item}")
    parts = [
        f"{name}: {found[0]}" + (f" and {counted(len(found) - 1, 'more')}" if len(found) > 1 else "")
        for name, found in by_input.items()
    ]
    if call.parent_id is not None:
        parts.append(f"nested in {call.parent_id}")
    if call.batch_id is not None:
        parts.append(f"in batch {call.batch_id}")
    if call.reused_from is not None:
        parts.append(f"its value is that of {call.reused_from}")
    return "; ".join(parts)
