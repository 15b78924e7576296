"""``kgas-async evidence show``: records as lines for people, or as they are."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import typer

from ._cli_lineage import say_lacks
from ._cli_text import AS_JSON, fail, out, out_json, printable, say
from ._suggest import KEYS_KEPT, nearest, nearest_key

__all__ = ["add_show"]

NAMES_SHOWN: Final = 20
_BELOW: Final = {"event": ".", "item": "/"}  # what is below a name of this kind begins with it and that

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

    With --json each line is the record itself, as JSON. Names that nothing on
    record has are told, with the nearest one that there is.

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
    wanted = _Wanted(failed, event=event, tool=tool, phase=phase, item=item, run=run)
    found: Iterable[Mapping[str, Any]] = filter(wanted.takes, evidence)
    shown = 0
    try:
        for record in deque(found, maxlen=last) if last is not None else found:
            shown += 1
            if not (out_json(record, indent=None) if as_json else out(_line(record))):
                return  # nobody reads it any more
        evidence.check_records()
    except EvidenceError as error:
        fail(str(error))
    say_lacks(path, evidence.lacks)
    if not shown:
        wanted.say_nothing_found(path)


class _Wanted:
    """The records that the options ask for, and what names there are of the kinds that they name.

    Args:
        failed: Only those that have an error.
        names: Only those with these; None where that option was not given.
    """

    def __init__(self, failed: bool, **names: str | None) -> None:
        self._failed = failed
        self._names = {kind: name for kind, name in names.items() if name is not None}
        self._there: dict[str, dict[str, None]] = {kind: {} for kind in self._names}  # on record, in order
        self._met: set[str] = set()  # kinds whose name is on record

    def takes(self, record: Mapping[str, Any]) -> bool:
        """Whether it is one of them."""
        takes = not self._failed or "error" in record
        for kind, name in self._names.items():
            own = record.get("run_id" if kind == "run" else kind)
            if own is None:
                takes = False
                continue
            if own == name or (kind in _BELOW and str(own).startswith(name + _BELOW[kind])):
                self._met.add(kind)
                continue
            takes = False
            there = self._there[kind]
            if len(there) < KEYS_KEPT:
                there[str(own)] = None
        return takes

    def say_nothing_found(self, path: str) -> None:
        """Say what it is that no record has."""
        from ._reading import ENDS

        unmet = [kind for kind in self._names if kind not in self._met]
        for kind in unmet:
            there = list(self._there[kind])
            known = there if kind != "event" else [*there, *ENDS, *{one.partition(".")[0] for one in there}]
            names = "" if kind == "item" else f"; there are {_listed(there)}"
            name = self._names[kind]
            hint = nearest_key(name, known) if kind == "item" else nearest(name, known)
            say(f"no {kind} {name!r} is on record in {path}{names}{hint}")
        if not unmet:
            say("no such records")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return (", ".join(names[:NAMES_SHOWN]) or "none") + more


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
