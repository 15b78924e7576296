"""``kgas-async evidence show``: records as lines for people, or as they are."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import typer

from ._cli_lineage import say_lacks
from ._cli_text import AS_JSON, fail, out, out_json, printable, say

__all__ = ["add_show"]

# What a line has elsewhere, or what tells nothing to people.
_NOT_SHOWN = frozenset(
    {
        *("event", "time", "seq", "schema", "session_id", "run_id", "call_id", "previous_sha256", "plan"),
        *("tool", "version", "phase", "pipeline", "item", "attempt", "run_us", "wait_us", "status", "error"),
    }
)


def add_show(app: typer.Typer) -> None:
    """Give the group of evidence commands this one."""
    app.command("show")(_show)


def _show(
    path: str = typer.Argument(metavar="EVIDENCE", help="The file that --evidence named; its segments are read too"),
    event: str | None = typer.Option(None, metavar="NAME", help="Only this event (call.failed), or these (call, loop)"),
    tool: str | None = typer.Option(None, metavar="NAME", help="Only of this tool"),
    phase: str | None = typer.Option(None, metavar="NAME", help="Only of this phase"),
    item: str | None = typer.Option(None, metavar="KEY", help="Only of the item with this key, and of its elements"),
    run: str | None = typer.Option(None, metavar="RUN_ID", help="Only of this run"),
    failed: bool = typer.Option(False, "--failed", help="Only what has an error"),
    last: int | None = typer.Option(None, "--last", "-n", min=1, metavar="COUNT", help="Only the last so many of them"),
    as_json: bool = AS_JSON,
) -> None:
    """Show records, a line each: when, what, where, how long, why.

    With --json each line is the record itself, as JSON.

    Exit codes: 0 they were shown, if there are any; 2 the evidence cannot be
    read.

    Examples:

    kgas-async evidence show run.jsonl --failed

    kgas-async evidence show run.jsonl --event call --item a.txt --json

    kgas-async evidence show run.jsonl -n 20
    """
    from ._errors import EvidenceError
    from ._reading import EvidenceFile

    evidence = EvidenceFile(path)
    found: Iterable[Mapping[str, Any]] = (
        record
        for record in evidence
        if _is_wanted(record, event, item, failed=failed, tool=tool, phase=phase, run_id=run)
    )
    shown = 0
    try:
        for record in deque(found, maxlen=last) if last is not None else found:
            shown += 1
            if not (out_json(record, indent=None) if as_json else out(_line(record))):
                return  # nobody reads it any more
    except EvidenceError as error:
        fail(str(error))
    say_lacks(path, evidence.lacks)
    if not shown:
        say("no such records" if any((event, tool, phase, item, run, failed)) else f"{path} has no records")


def _is_wanted(
    record: Mapping[str, Any], event: str | None, item: str | None, *, failed: bool, **wanted: str | None
) -> bool:
    key = str(record.get("item", ""))
    return (
        (event is None or record["event"] == event or record["event"].startswith(f"{event}."))
        and all(value is None or record.get(name) == value for name, value in wanted.items())
        and (item is None or key == item or key.startswith(f"{item}/"))
        and (not failed or "error" in record)
    )


def _line(record: Mapping[str, Any]) -> str:
    where = [str(record[name]) for name in ("phase", "tool") if name in record]
    parts = [record["time"][11:23], record["event"].ljust(16), "/".join(dict.fromkeys(where))]
    if "item" in record:
        parts.append(f"item {record['item']}")
    parts.append(_times(record))
    parts += [f"{name} {_short(value)}" for name, value in record.items() if name not in _NOT_SHOWN]
    error = record.get("error")
    if isinstance(error, Mapping):
        parts.append(f"{error.get('type')}: {error.get('message') or _short(error.get('errors'))}")
    return printable("  ".join(part for part in parts if part))


def _times(record: Mapping[str, Any]) -> str:
    from ._metrics import in_seconds

    times = []
    if isinstance(record.get("run_us"), int) and record.get("attempt", 1):
        times.append(f"ran {in_seconds(record['run_us'] / 1e6)}")
    waits = record.get("wait_us")
    if not isinstance(waits, Mapping) or not all(isinstance(one, int) for one in waits.values()):
        waits = {}  # none, or damaged
    if waited := sum(waits.values()):
        what = max(waits, key=lambda one: waits[one])
        times.append(f"waited {in_seconds(waited / 1e6)} ({what})")
    return ", ".join(times)


def _short(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
