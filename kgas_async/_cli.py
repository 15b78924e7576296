"""The command line: parses, calls, prints. No logic of its own.

Exit codes of `run`: 0 all items succeeded, 1 some failed, 2 could not start, 130 or 143 interrupted (after draining).
"""

from __future__ import annotations

import inspect
import io
import os
import sys
import traceback
from collections.abc import AsyncIterable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn

import anyio

from ._errors import JournalError, KgasAsyncError, LoadError, counted, text_of
from ._journal import as_journal
from ._limits import check_seconds
from ._manager import ServiceManager
from ._pipeline import Pipeline
from ._report import Progress, RunReport
from ._suggest import extra_hint
from ._threads import would_block_exit

try:
    import typer
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table
except ModuleNotFoundError as missing:  # the extra is not installed
    sys.stderr.write(f"error: kgas-async needs {missing.name}; {extra_hint('cli')}\n")
    sys.exit(2)

from . import _cli_evidence, _cli_journal
from ._cli_check import Profile, Settings, add_check, find_pipeline
from ._cli_export import add_export
from ._cli_lineage import add_lineage
from ._cli_report import add_report

__all__ = ["app", "main"]

FAILURES_SHOWN = 10
ROWS_SHOWN = 50
BACKENDS = {"asyncio": ("asyncio", {}), "uvloop": ("asyncio", {"use_uvloop": True}), "trio": ("trio", {})}

app = typer.Typer(
    name="kgas-async", help="Run tools over many items: bounded, cancellable, on record.", no_args_is_help=True,
    add_completion=True, pretty_exceptions_enable=False,
)  # fmt: skip
add_lineage(_cli_evidence.app)
add_export(_cli_evidence.app)
add_check(app)
app.add_typer(_cli_evidence.app)
add_report(app)
app.add_typer(_cli_journal.app)


def _say_version(wanted: bool) -> None:
    if wanted:
        try:
            typer.echo(f"kgas-async {version('kgas-async')}")
        except PackageNotFoundError:
            typer.echo("kgas-async, from sources that are not installed")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", help="Say the version and end.", callback=_say_version, is_eager=True
    ),
) -> None:
    """Run tools over many items: bounded, cancellable, on record."""


@app.command()
def run(
    pipeline: str = typer.Argument(help="a TOML file, or module:attribute as in examples.knowledge_graph:pipeline"),
    backend: str = typer.Option("asyncio", help="asyncio, uvloop or trio"),
    input: str | None = typer.Option(None, help="given to the pipeline's source"),  # noqa: A002
    evidence: str | None = typer.Option(None, help="a file of JSON lines; an existing one is continued"),
    journal: str | None = typer.Option(
        None, help="a file that finished phases are kept in; those that are in it already are not run again"
    ),
    retry: str = typer.Option(
        "all", help="with --journal: all runs what failed and what is new, failed or none only one of them"
    ),
    profile: Profile = None,
    settings: Settings = None,
    grace: float = typer.Option(
        10.0, metavar="SECONDS", help="what is in flight at Ctrl-C has so long to end; then it is cancelled"
    ),
) -> None:
    """Run a pipeline over its source.

    Ctrl-C drains: no further items are begun, those in flight have --grace seconds to end, then they are cancelled. A
    second one cancels them at once, a third ends the process.

    Example: kgas-async run examples.knowledge_graph:pipeline --evidence run.jsonl
    """
    if backend not in BACKENDS:
        _fail(f"--backend {backend!r} is not known; use one of {', '.join(BACKENDS)}")
    for option, given in (("--input", input), ("--evidence", evidence)):
        if given == "":
            _fail(f"{option} is empty: a variable that is not set, perhaps; give a path, or leave it out")
    try:
        check_seconds("--grace", grace)
        kept = as_journal(journal, retry)
    except (TypeError, ValueError) as error:
        _fail(str(error))
    found = _loaded(pipeline, profile, settings)
    assert found.source is not None
    try:
        items = found.source() if input is None else found.source(input)
    except Exception as error:  # noqa: BLE001  (the user's function)
        given = "" if input is None else f" with --input {input!r}"
        mend = "; give --input" if input is None and _needs_argument(found.source) else ""
        _fail(f"the source of {pipeline!r} could not be called{given}: {type(error).__name__}: {text_of(error)}{mend}")
    if not isinstance(items, (Iterable, AsyncIterable)):
        if inspect.iscoroutine(items):
            items.close()
        _fail(
            f"the source of {pipeline!r} gives no items but {type(items).__name__}: a source is a plain function that "
            f"returns an iterable, or a generator function, also an async one"
        )
    raise typer.Exit(_run(found, items, backend, evidence, grace, journal=kept, retry=retry))


def _loaded(pipeline: str, profile: str | None, settings: list[str] | None) -> Pipeline:
    try:
        found, file = find_pipeline(pipeline, profile, settings)
        if found.source is None and file is not None:
            raise LoadError(
                f'{pipeline}: pipeline.source is missing: a function that gives the items, as in "papers:find"'
            )
        if found.source is None:
            raise LoadError(f"{pipeline!r} has no source=: a function that gives the items")
    except KgasAsyncError as error:
        _fail(str(error))
    return found


def _needs_argument(source: Any) -> bool:
    try:
        inspect.signature(source).bind()
    except TypeError:
        return True
    except ValueError:  # a builtin, say
        pass
    return False


class _Session:
    """What came of running: whether the manager opened, and what the run gave."""

    opened = False
    ended = False  # the run came to its end, if only since it was drained
    report: RunReport | None = None


def _run(
    pipeline: Pipeline, items: Any, backend: str, evidence: str | None, grace: float, **given: Any
) -> int:  # fmt: skip
    name, options = BACKENDS[backend]
    session = _Session()
    code = 0
    try:
        with _progress(pipeline.name) as on_progress:
            anyio.run(
                partial(_execute, pipeline, items, evidence, grace, session, on_progress=on_progress, **given),
                backend=name, backend_options=options,
            )  # fmt: skip
    except KeyboardInterrupt:
        code = 130
    except SystemExit as stop:  # SIGTERM, or a tool's own, which has ended the session
        code = stop.code if isinstance(stop.code, int) and stop.code else 1
        if code != 143:
            _say(f"error: a tool ended the session by {stop!r}")
    except (LookupError, ModuleNotFoundError) as error:  # the event loop is not installed
        if session.opened:
            raise
        mend = f"; {extra_hint('uvloop')}" if backend == "uvloop" else ""
        _fail(f"--backend {backend} cannot be used: {text_of(error)}{mend}")
    except (TypeError, ValueError) as error:  # misuse that only a manager can see, such as two tools of one name
        _fail(text_of(error))
    except KgasAsyncError as error:
        session.report = session.report or getattr(error, "report", None)
        if not session.opened or (isinstance(error, JournalError) and session.report is None):
            _fail(str(error))
        _say(f"error: {error}")
        code = 1
    if session.report is not None:
        _show(session.report)
    if code in (130, 143):
        _say_interrupted(session, grace)
    if evidence is not None:
        _say(f"evidence: {evidence}")
    return code or (0 if session.report is not None and session.report.ok else 1)


async def _execute(
    pipeline: Pipeline, items: Any, evidence: str | None, grace: float, session: _Session, **given: Any
) -> None:  # fmt: skip
    async with ServiceManager(*pipeline.services, evidence=evidence, log=None, grace=grace, signals=True) as manager:
        session.opened = True
        try:
            session.report = await manager.run(pipeline, items, **given)
            session.ended = True
        except BaseException:
            session.report = manager._last_report
            raise


@contextmanager
def _progress(name: str) -> Iterator[Any]:
    """A line that is rewritten on a terminal; elsewhere a line every few seconds."""
    console = Console(stderr=True)
    last = 0.0
    shown = 0

    def line(progress: Progress) -> str:
        failed = f", {progress.failed} failed" if progress.failed else ""
        rate = f", {progress.rate:.0f}/s" if progress.rate is not None else ""
        left = f", {progress.eta_s:.0f} s left" if progress.eta_s is not None else ""
        return f"{name}: {_of_items(progress)}{failed}{rate}, {progress.elapsed_s:.0f} s{left}"

    def on_progress(progress: Progress) -> None:
        nonlocal last, shown
        interval = 0.2 if console.is_terminal else 5.0
        if progress.elapsed_s - last < interval:
            return
        last = progress.elapsed_s
        text = line(progress)
        padding = " " * (shown - len(text) if console.is_terminal else 0)  # over what is left of a longer line
        shown = len(text)
        end = "\r" if console.is_terminal else "\n"
        console.print(text + padding, end=end, highlight=False, markup=False, soft_wrap=True)

    try:
        yield on_progress
    finally:
        if shown and console.is_terminal:
            console.print()


def _of_items(progress: Progress) -> str:
    if progress.total is None:
        return counted(progress.done, "item")
    return f"{progress.done} of {counted(progress.total, 'item')}"


def _show(report: RunReport) -> None:
    console = Console(width=None if sys.stdout.isatty() else 120)
    for phase, result in report.results.items():
        _show_result(console, phase, result)
    for outcome in report.failures[:FAILURES_SHOWN]:
        where = f" in phase {outcome.failed_phase}" if outcome.failed_phase else ""
        _say(f"{outcome.status}: {outcome.key}{where}: {outcome.error}")
    more = len(report.failures) + report.more_failures - FAILURES_SHOWN
    if more > 0:
        _say(f"... and {more} more that did not succeed")
    _say(str(report))


def _say_interrupted(session: _Session, grace: float) -> None:
    report = session.report
    if report is None:
        _say("interrupted before the first item")
    elif not session.ended:
        _say(f"interrupted: {report.counts()}; what was in flight was cancelled")
    else:
        how = f"had {grace:g} s (--grace) to end" if report.cancelled else "has ended"
        rest = ", the rest of the source was not begun" if report.drained else ""
        _say(f"interrupted: {report.counts()}; what was in flight {how}{rest}")


def _show_result(console: Console, phase: str, result: Any) -> None:
    rows = result if isinstance(result, list) else None
    if not rows or not all(isinstance(row, dict) for row in rows):
        console.print(f"{phase}: {result!r}", highlight=False, markup=False)
        return
    table = Table(title=phase, title_justify="left")
    for column, value in rows[0].items():
        table.add_column(escape(str(column)), justify="right" if isinstance(value, (int, float)) else "left")
    for row in rows[:ROWS_SHOWN]:
        table.add_row(*[_cell(row.get(column, "")) for column in rows[0]])
    console.print(table)
    if len(rows) > ROWS_SHOWN:
        console.print(f"... and {counted(len(rows) - ROWS_SHOWN, 'more row')}", highlight=False)


def _cell(value: Any) -> str:
    return f"{value:.6f}" if isinstance(value, float) else escape(str(value))  # no markup: it is the user's text


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _fail(message: str) -> NoReturn:
    _say(f"error: {message}")
    raise typer.Exit(2)


def main() -> None:
    """The entry point: ends the process even where a legacy tool has left threads that would keep it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no reason to fail
    try:
        app()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:  # noqa: BLE001  (a fault of ours: told, and the process ends all the same)
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    if would_block_exit():
        os._exit(code)
    sys.exit(code)
