"""A run that the command line has started: its session, what is said at its end, its exit code."""

from __future__ import annotations

import logging
import shlex
from functools import partial
from typing import Any, Final, NamedTuple

import anyio

from ._cli_results import as_plain, show_result
from ._cli_text import fail, out_json, printable, say, tell_traceback
from ._cli_view import View
from ._errors import JournalError, KgasAsyncError, counted, text_of
from ._journal import Journal
from ._jsonl import JsonlSink
from ._manager import ServiceManager
from ._outcome import place_of
from ._pipeline import Pipeline
from ._records import error_fields
from ._report import RunReport
from ._suggest import extra_hint

__all__ = ["Asked", "run_pipeline"]

FAILURES_SHOWN: Final = 10
PRUNES_SHOWN: Final = 3
LOOPS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "asyncio": ("asyncio", {}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}
SIGNALS: Final = {130: "SIGINT", 143: "SIGTERM", 129: "SIGHUP"}


class Asked(NamedTuple):
    """What is to be run, and how; as the options say."""

    pipeline: Pipeline
    items: Any
    backend: str
    evidence: str | None
    grace: float
    as_json: bool
    on_error: str | float
    journal: Journal | None
    retry: str
    journal_file: str | None  # as it was given


class _Session:
    """What came of running: whether the manager opened, and what the run gave."""

    def __init__(self) -> None:
        self.opened = False
        self.ended = False  # the run came to its end, if only since it was drained
        self.report: RunReport | None = None
        self.error: str | None = None
        self.told: BaseException | None = None  # what that is of
        self.manager: ServiceManager | None = None
        self.changed: list[dict[str, Any]] = []  # phases whose code has changed since the journal has their values

        self.abandoned: dict[str, int] = {}  # threads that were left behind and still run, by whose they are

    def is_ended_by(self, error: BaseException) -> bool:
        """Whether it is what somebody in the session has raised to end that."""
        last = None if self.manager is None else self.manager._last_session
        return last is not None and last.pending is error


def run_pipeline(asked: Asked) -> int:
    """Run it, say what came of it, and give the exit code.

    Raises:
        typer.Exit: It could not start, which was said.
    """
    session = _Session()
    code = _code_of(asked, session)
    report = session.report
    _say_changed(session, asked.journal_file)
    if report is not None:
        if session.ended and not (report.total or report.drained):
            say(f"warning: the source of pipeline {asked.pipeline.name!r} gave no items")
        _show(report, session.told, asked.as_json)
    if session.abandoned:
        _say_abandoned(session.abandoned)
    if code in SIGNALS:
        _say_interrupted(session, asked.grace, SIGNALS[code])
    if asked.evidence is not None:
        say(f"evidence: {asked.evidence}")
    code = code or (0 if report is not None and report.ok else 1)
    if asked.as_json:
        out_json(_document(asked, session, code))
    return code


def _code_of(asked: Asked, session: _Session) -> int:
    """0 where the run came to its end."""
    try:
        _run_in_view(asked, session)
    except (KeyboardInterrupt, SystemExit) as stop:  # a signal's, or a tool's own, which has ended the session
        number = None if session.manager is None else session.manager._signalled()
        if number is not None:
            return 128 + number
        if isinstance(stop, KeyboardInterrupt) and not session.is_ended_by(stop):
            return 130  # of Python's own handler: before the session, or after it
        _say_error(session, f"a tool ended the session by {stop!r}")
        code = getattr(stop, "code", 1)
        # 256 would pass for 0; and what a code of ours means, such as a wrong command or an interrupt, was not so.
        return code if isinstance(code, int) and 0 < code < 256 and code not in (2, *SIGNALS) else 1
    except (LookupError, ModuleNotFoundError) as error:  # the event loop is not installed, if it is not the user's
        if session.opened:
            return _broke_off(session, error)
        mend = f"; {extra_hint('uvloop')}" if asked.backend == "uvloop" else ""
        fail(f"--backend {asked.backend} cannot be used: {text_of(error)}{mend}")
    except (TypeError, ValueError) as error:  # misuse that only a manager can see, such as two tools of one name
        if session.report is not None and session.report.total:
            return _broke_off(session, error)
        fail(text_of(error))
    except KgasAsyncError as error:
        session.report = session.report or getattr(error, "report", None)
        if not session.opened or (isinstance(error, JournalError) and session.report is None):
            fail(_in_our_words(str(error), asked))
        session.told = error
        _say_error(session, _in_our_words(f"{_place(session, asked, error)}{error}", asked))
        return 1
    except Exception as error:  # noqa: BLE001  (of the user's code, on the way to which nobody else has met it)
        return _broke_off(session, error)
    return 0


def _run_in_view(asked: Asked, session: _Session) -> None:
    """Run it; the view is gone before anything is said of the end."""
    name, options = LOOPS[asked.backend]
    view = View(asked.pipeline.name, asked.grace)
    try:
        anyio.run(partial(_execute, asked, session, view), backend=name, backend_options=options)
    finally:
        view.close()
        session.changed = _changed(view)
        last = None if session.manager is None else session.manager._last_session
        session.abandoned = {} if last is None else last.left.by_name()


def _place(session: _Session, asked: Asked, error: BaseException) -> str:
    """Whose error it is that has stopped the run, if that is an item's; and why, where no other one would have."""
    report = session.report
    found = next((one for one in report.failures if one.error is error), None) if report is not None else None
    if found is None:
        return ""
    if asked.on_error == "raise" and session.manager is not None and session.manager._gave_up:
        return f"--on-error raise has stopped the run: {place_of(found)}: "
    return "" if found.failed_phase is None else f"item {found.key!r}: "  # else it says so itself, as it does the phase


def _broke_off(session: _Session, error: BaseException) -> int:
    _say_error(session, f"the run broke off: {type(error).__name__}: {text_of(error)}; --traceback shows where")
    return 1


def _say_error(session: _Session, message: str) -> None:
    tell_traceback()
    session.error = message
    say(f"error: {message}")


def _in_our_words(message: str, asked: Asked) -> str:
    """With the options in the place of the arguments that they stand for."""
    if asked.evidence is not None:
        sink = repr(JsonlSink(asked.evidence))
        message = message.replace(f"evidence sink {sink}", f"--evidence {asked.evidence}")
        message = message.replace(sink, f"--evidence {asked.evidence}")
        message = message.replace("another evidence= path", "--evidence another path")
    message = message.replace(
        f"more than on_error={asked.on_error} allows", f"more than --on-error {asked.on_error} allows"
    )
    for how in ("Journal(..., on_change='run')", "on_change='reuse'"):
        message = message.replace(how, f"--on-change {how.split(chr(39))[1]}")
    return message


async def _execute(asked: Asked, session: _Session, view: View) -> None:
    logging.getLogger("kgas_async").addHandler(logging.NullHandler())  # a sink that fails is said below
    async with ServiceManager(
        *asked.pipeline.services, evidence=asked.evidence, log=None, grace=asked.grace, signals=True,
        monitor=view.monitor,
    ) as manager:  # fmt: skip
        session.opened, session.manager = True, manager
        view.open(manager)
        try:
            session.report = await manager.run(
                asked.pipeline, asked.items, journal=asked.journal, retry=asked.retry,  # type: ignore[arg-type]
                on_error=asked.on_error, on_progress=view.on_progress,  # type: ignore[arg-type]
            )  # fmt: skip
            session.ended = True
        except BaseException:
            session.report = manager._last_report
            raise


# --- what is said at the end


def _changed(view: View) -> list[dict[str, Any]]:
    names = ("phase", "tool", "changed", "reused")
    return [{name: one.get(name) for name in names} for one in view.board.changed.values()]


def _say_changed(session: _Session, journal: str | None) -> None:
    """That old values were taken from the journal, where what gave them is not what it was."""
    old = [one for one in session.changed if one["reused"]]
    if not old or journal is None:
        return
    names = [str(one["phase"]) for one in old]
    phases, its, it = ("phase", "its", "it") if len(names) == 1 else ("phases", "their", "them")
    what = "code" if any(one["changed"] == "code" for one in old) else "tool's arguments"
    mend = "run with --on-change run"
    if len(names) <= PRUNES_SHOWN:
        file = shlex.quote(journal)
        prune = " && ".join(f"kgas-async journal prune {file} --phase {shlex.quote(name)}" for name in names)
        mend = f"{prune}, or {mend}"
    say(
        f"warning: {phases} {', '.join(map(repr, names))}: {its} {what} changed since {journal} has {its} results, "
        f"and those were used; to have {it} run again: {mend}"
    )


def _show(report: RunReport, told: BaseException | None, as_json: bool) -> None:
    """Results, failures and counts; not again what was told as the error that ended the run."""
    if not as_json:
        for phase, result in report.results.items():
            show_result(phase, result)
    failed = [one for one in report.failures if one.status != "cancelled"]  # those are counted below, and all alike
    failures = [one for one in failed if not _is_same(one.error, told)]
    for outcome in failures[:FAILURES_SHOWN]:
        where = f" in phase {outcome.failed_phase}" if outcome.failed_phase else ""
        say(printable(f"{outcome.status}: {outcome.key}{where}: {outcome.error}"))
    more = report.failed + report.timed_out + report.rejected
    more -= min(len(failures), FAILURES_SHOWN) + len(failed) - len(failures)
    if more > 0:
        say(f"... and {more} more that did not succeed")
    say(printable(str(report)))


def _say_abandoned(threads: dict[str, int]) -> None:
    """Whose threads were left behind, and are cut off as this process ends."""
    whose = ", ".join(f"{count} of {name}" for name, count in threads.items())
    say(
        f"abandoned: {counted(sum(threads.values()), 'thread')} still ran when the run ended: {whose}; "
        f"this process ends without waiting for {'it' if sum(threads.values()) == 1 else 'them'}"
    )


def _is_same(error: BaseException | None, told: BaseException | None) -> bool:
    """Whether it was told; a journal that cannot be used is the same to all items that needed it."""
    alike = isinstance(error, JournalError) and isinstance(told, JournalError)
    return error is not None and (error is told or alike)


def _say_interrupted(session: _Session, grace: float, signal: str) -> None:
    """Why it ended early, once its counts were told."""
    report = session.report
    if report is None:
        say(f"interrupted by {signal} before the first item")
    elif not session.ended:
        say(f"interrupted by {signal}: what was in flight was cancelled")
    else:
        how = f"had {grace:g} s (--grace) to end" if report.cancelled else "has ended"
        rest = "the rest of the source was not begun" if report.drained else "the source was at its end"
        if report.not_begun and not report.drained:
            rest += ", but what runs once per run was not begun"
        say(f"interrupted by {signal}: what was in flight {how}, {rest}")


def _document(asked: Asked, session: _Session, code: int) -> dict[str, Any]:
    """What --json gives."""
    report = session.report or RunReport(asked.pipeline.name, "")
    counts = ("total", "succeeded", "failed", "timed_out", "cancelled", "rejected", "skipped", "reused")
    return {
        "pipeline": report.pipeline,
        "run_id": report.run_id or None,
        "exit_code": code,
        "interrupted": SIGNALS.get(code),
        "error": session.error,
        "items": {name: getattr(report, name) for name in counts},
        "elapsed_s": round(report.elapsed_s, 6),
        "drained": report.drained,
        "not_begun": report.not_begun,
        "results": {phase: as_plain(result) for phase, result in report.results.items()},
        "errors": {phase: error_fields(error) for phase, error in report.errors.items()},
        "missing": report.missing,
        "failures": [
            {
                "key": one.key, "status": one.status, "phase": one.failed_phase, "tool": one.tool,
                "error": None if one.error is None else error_fields(one.error),
            }
            for one in report.failures
        ],
        "more_failures": report.more_failures,
        "abandoned": session.abandoned,
        "code_changed": session.changed,
        "evidence": asked.evidence,
        "journal": None if asked.journal is None else asked.journal.path,
    }  # fmt: skip
