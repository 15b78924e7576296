"""``kgas-async evidence lineage``: what an output came from, what an input has reached."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING

import typer

from ._cli_text import AS_JSON, ROWS_SHOWN, fail, out, out_json, out_rich, printable, say

if TYPE_CHECKING:
    from ._lineage import Lineage, Traced

__all__ = ["add_lineage", "say_lacks"]

WIDTH_ELSEWHERE = 160  # its tables are wide


def add_lineage(app: typer.Typer) -> None:
    """Give the group of evidence commands this one."""
    app.command("lineage")(_lineage)


def _lineage(
    path: str = typer.Argument(metavar="EVIDENCE", help="The file that --evidence named; its segments are read too"),
    item: str | None = typer.Option(None, metavar="KEY", help="Of an item, or of an element: parent/index"),
    phase: str | None = typer.Option(
        None, metavar="NAME", help="Of this phase's output; alone: of a phase that runs once per run"
    ),
    upstream: bool = typer.Option(True, "--upstream/--downstream", help="What it came from, or what it has reached"),
    run: str | None = typer.Option(None, metavar="RUN_ID", help="The run; else the latest that no call has started"),
    as_json: bool = AS_JSON,
) -> None:
    """Say what an output came from, or what an input has reached.

    With --json all of it as one object: run_id, pipeline, direction, phase,
    item, items, calls (with their sources), runs.

    Exit codes: 0 it was found; 2 the evidence cannot be read, or knows nothing
    of it.

    Examples:

    kgas-async evidence lineage run.jsonl --phase merged --item a.txt

    kgas-async evidence lineage run.jsonl --item a.txt --downstream
    """
    from ._errors import EvidenceError
    from ._lineage import lineage
    from ._reading import EvidenceFile

    if item is None and phase is None:
        fail("say whose lineage: --item KEY, --phase NAME or both")
    evidence = EvidenceFile(path)
    try:
        found = lineage(
            evidence, item=item, phase=phase, run_id=run, direction="upstream" if upstream else "downstream"
        )
    except EvidenceError as error:
        fail(str(error))
    say_lacks(path, found.lacks)
    if as_json:
        out_json(as_data(found))
    else:
        _show(found)


def say_lacks(path: str, lacks: Iterable[str]) -> None:
    """Warn of what the evidence lacks, on standard error."""
    for one in lacks:
        say(f"warning: {path}: {one}")


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
    from rich.table import Table
    from rich.text import Text

    from ._errors import counted

    what = " of ".join(filter(None, (found.phase, found.item)))
    verb = "came from" if found.direction == "upstream" else "has reached"
    out(printable(f"run {found.run_id} of {found.pipeline}: {what} {verb}"))
    for one in found.lacks:
        out(f"there may be more: {one}")
    for key, fields in list(found.items.items())[:ROWS_SHOWN]:
        out(printable(f"item {key}: {', '.join(fields)}"))
    if len(found.items) > ROWS_SHOWN:
        out(f"... and {counted(len(found.items) - ROWS_SHOWN, 'more item')} (--json has all)")
    table = Table()
    for name in ("phase", "item", "tool", "status", "call", "took"):
        table.add_column(name)
    for call in found.calls[:ROWS_SHOWN]:
        cells = call.phase, call.item or "", f"{call.tool} {call.version}", call.status, call.call_id, _taken(call)
        table.add_row(*(Text(printable(cell)) for cell in cells))
    out_rich(table, usual=WIDTH_ELSEWHERE)
    if len(found.calls) > ROWS_SHOWN:
        out(f"... and {counted(len(found.calls) - ROWS_SHOWN, 'more call')} (--json has all)")
    for run_id in found.runs:
        out(f"in it began the run {run_id}: ask with --run {run_id}")


def _taken(call: Traced) -> str:
    """What it took, each source once, and how it hangs together with other calls."""

    by_input: dict[str, list[str]] = {}
    for source in call.sources:
        by_input.setdefault(source.input, []).append(source.call_id or f"{source.field} of {source.item}")
    parts = [
        f"{name}: {found[0]}" + (f" and {len(found) - 1} more" if len(found) > 1 else "")
        for name, found in by_input.items()
    ]
    if call.parent_id is not None:
        parts.append(f"nested in {call.parent_id}")
    if call.batch_id is not None:
        parts.append(f"in batch {call.batch_id}")
    if call.reused_from is not None:
        parts.append(f"its value is that of {call.reused_from}")
    return "; ".join(parts)
