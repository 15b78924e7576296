"""``kgas-async journal``: what is in a journal, and forgetting parts of it. Parses and prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import typer

from ._cli_text import AS_JSON, fail, out, out_json, printable

if TYPE_CHECKING:
    from ._errors import JournalError
    from ._journal_inspect import Summary

__all__ = ["add_journal"]

RUNS_SHOWN: Final = 10
JOURNAL: Final = typer.Argument(help="The file that was given as --journal")


def add_journal(app: typer.Typer) -> None:
    """Give the app this group of commands."""
    group = typer.Typer(name="journal", no_args_is_help=True, pretty_exceptions_enable=False)
    group.callback()(_root)
    group.command("show")(_show)
    group.command("prune")(_prune)
    app.add_typer(group)


def _root() -> None:
    """Show what is in a journal, and forget parts of it."""


def _show(journal: str = JOURNAL, as_json: bool = AS_JSON) -> None:
    """Tell the runs, the items by how they ended, and what is kept of each phase.

    While a run has it open nobody else can look into it; kgas-async status
    shows that run from its evidence. With --json one object: pipeline, runs,
    items, phases.

    Exit codes: 0 it was shown; 2 it cannot be read.

    Examples:

    kgas-async journal show run.db
    """
    from dataclasses import asdict

    from ._errors import JournalError
    from ._journal_inspect import summary

    try:
        found = summary(journal)
    except JournalError as error:
        fail(
            _in_our_words(
                error,
                "and cannot be shown meanwhile; kgas-async status run.jsonl shows that run, if it has"
                " --evidence run.jsonl, or wait for its end",
            )
        )
    if as_json:
        out_json(asdict(found))
        return
    for line in _lines(found):
        out(printable(line))


def _in_our_words(error: JournalError, busy: str) -> str:
    """What is wrong with it; of one that a run is writing, who only wanted to look is told what to do instead."""
    message, is_busy, _ = str(error).partition(" has it open")
    return f"{message}{is_busy}, {busy}" if is_busy else message


def _lines(found: Summary) -> list[str]:
    from datetime import UTC, datetime

    from ._errors import counted

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


def _prune(
    journal: str = JOURNAL,
    phase: str | None = typer.Option(None, metavar="NAME", help="All results of this phase"),
    item: str | None = typer.Option(None, metavar="KEY", help="All of the item with this key"),
    failed: bool = typer.Option(False, "--failed", help="All of the items that failed"),
    unseen: bool = typer.Option(False, "--unseen", help="All of the items that did not come in the latest run"),
    stale: bool = typer.Option(False, "--stale", help="What the latest run would not use: other versions, lost phases"),
    as_json: bool = AS_JSON,
) -> None:
    """Forget what the options name, so that it runs again.

    With --json one object: results and items, how many were forgotten.

    Exit codes: 0 it is forgotten; 2 nothing was said to be, or the journal
    cannot be used.

    Examples:

    kgas-async journal prune run.db --phase embed

    kgas-async journal prune run.db --failed --stale
    """
    from ._errors import JournalError, counted
    from ._journal_inspect import prune

    if phase is None and item is None and not (failed or unseen or stale):
        fail("say what to forget: --phase, --item, --failed, --unseen or --stale")
    try:
        results, items = prune(journal, phase=phase, item=item, failed=failed, unseen=unseen, stale=stale)
    except JournalError as error:
        fail(_in_our_words(error, "and nothing can be forgotten meanwhile; wait for its end"))
    if as_json:
        out_json({"results": results, "items": items})
    else:
        out(f"forgot {counted(results, 'result')} and how {counted(items, 'item')} ended")
