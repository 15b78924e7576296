"""``kgas-async run``: its options, and what can be wrong with them. The run itself is in `_cli_running`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import typer

from ._cli_check import Profile, Settings, find_pipeline, traceback_hint
from ._cli_text import AS_JSON, TRACEBACK, fail, results_alone, tell_traceback, tells_tracebacks
from ._leaving import user_code_begins

if TYPE_CHECKING:
    from ._pipeline import Pipeline

__all__ = ["add_run", "loaded"]

BACKENDS: Final = ("asyncio", "uvloop", "trio")
RETRIES: Final = ("all", "failed", "none")
CHANGES: Final = ("reuse", "run", "refuse")
CHOICES: Final = {"backend": BACKENDS, "retry": RETRIES, "on-change": CHANGES}


def add_run(app: typer.Typer) -> None:
    """Give the app this command."""
    app.command("run")(_run)


def _run(
    pipeline: str = typer.Argument(help="A TOML file, or module:attribute as in examples.knowledge_graph:pipeline"),
    backend: str = typer.Option("asyncio", metavar="|".join(BACKENDS), help="The event loop"),
    input: str | None = typer.Option(None, metavar="VALUE", help="Given to the pipeline's source"),  # noqa: A002
    evidence: str | None = typer.Option(
        None, metavar="FILE", help="Write what happens there, as JSON lines; an existing one is continued"
    ),
    journal: str | None = typer.Option(
        None, metavar="FILE", help="Keep finished phases there; those that are in it already are not run again"
    ),
    retry: str = typer.Option(
        "all", metavar="|".join(RETRIES), help="With --journal: run what failed and what is new, or only one of them"
    ),
    on_change: str = typer.Option(
        "reuse", metavar="|".join(CHANGES),
        help="With --journal, of a tool whose code has changed: use what it gave before, and warn; run it again; or "
        "refuse to begin",
    ),
    on_error: str = typer.Option(
        "collect", metavar="collect|raise|SHARE",
        help="When items fail: go on; stop at the first; or stop when more than that share (0.1, say) has failed",
    ),
    profile: Profile = None,
    settings: Settings = None,
    grace: float = typer.Option(
        10.0, metavar="SECONDS", help="What is in flight at Ctrl-C has so long to end; then it is cancelled"
    ),
    as_json: bool = AS_JSON,
    traceback: bool = TRACEBACK,
) -> None:  # fmt: skip
    """Run a pipeline over its source.

    On a terminal a live view shows how it goes; elsewhere a line does, every
    five seconds. Results are printed to standard output, the rest to standard
    error. With --json the results and counts are one JSON object.

    Ctrl-C drains (SIGTERM and SIGHUP do too): no further items are begun, those
    in flight have --grace seconds to end, then they are cancelled. A second one
    cancels them at once, a third ends the process.

    Exit codes: 0 all items succeeded; 1 some failed, or the run broke off; 2 it
    could not start; 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP.

    Examples:

    kgas-async run examples.knowledge_graph:pipeline --evidence run.jsonl

    kgas-async run mine:pipeline --input papers/ --journal run.db --retry failed

    kgas-async run papers.toml --profile prod --set phase.embed.policy.timeout=60

    kgas-async run mine:pipeline --journal run.db --on-change run

    kgas-async run mine:pipeline --backend trio --on-error 0.1 --json
    """
    tells_tracebacks.wanted |= traceback
    _check_choices(("backend", backend), ("retry", retry), ("on-change", on_change))
    _check_files(input=input, evidence=evidence, journal=journal)
    share = _on_error(on_error)
    if retry != "all" and journal is None:
        fail(f"--retry {retry} needs --journal, which says what failed before")
    if on_change != "reuse" and journal is None:
        fail(f"--on-change {on_change} needs --journal, which says what a tool was before")
    from ._journal import Journal
    from ._limits import check_seconds

    try:
        check_seconds("--grace", grace)
        kept = None if journal is None else Journal(journal, on_change=on_change)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        fail(str(error).replace("Journal(path)", "--journal"))
    from ._cli_running import Asked, run_pipeline

    if as_json:
        results_alone()
    user_code_begins()
    try:
        found = loaded(pipeline, profile, settings)
        items = _items_of(found, pipeline, input)
    except KeyboardInterrupt:
        fail("interrupted before the run began", 130)
    asked = Asked(found, items, backend, evidence, grace, as_json, share, kept, retry, journal)
    raise typer.Exit(run_pipeline(asked))


def loaded(pipeline: str, profile: str | None = None, settings: list[str] | None = None) -> Pipeline:
    """The pipeline of that name, one with a source.

    Raises:
        typer.Exit: There is none, which was said.
    """
    from ._errors import KgasAsyncError, LoadError

    try:
        found, file = find_pipeline(pipeline, profile, settings)
        if found.source is None and file is not None:
            raise LoadError(
                f'{pipeline}: pipeline.source is missing: a function that gives the items, as in "papers:find"'
            )
        if found.source is None:
            raise LoadError(f"{pipeline!r} has no source=: a function that gives the items")
    except KgasAsyncError as error:
        more = _pipelines_in(pipeline) if " is no Pipeline but " in str(error) else ""
        fail(f"{error}{more}{traceback_hint(error)}")
    return found


def _pipelines_in(name: str) -> str:
    """The pipelines that the module has, for who has named something else."""
    import sys

    from ._pipeline import Pipeline

    module = name.partition(":")[0]
    there = vars(sys.modules[module]) if module in sys.modules else {}
    found = [f"{module}:{one}" for one, value in there.items() if isinstance(value, Pipeline)]
    return f"; give {' or '.join(found[:5])}" if found else ""


def _check_choices(*given: tuple[str, str]) -> None:
    from ._suggest import nearest

    for option, value in given:
        known = CHOICES[option]
        if value not in known:
            fail(f"--{option} {value!r} is not known; use one of {', '.join(known)}{nearest(value, known)}")


def _on_error(given: str) -> str | float:
    if given in ("collect", "raise"):
        return given
    try:
        share = float(given)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        from ._suggest import nearest

        known = ("collect", "raise")
        fail(
            f"--on-error {given!r} is not known; use collect, raise, or a share of failed items from 0.0 to 1.0"
            f"{nearest(given, known)}"
        )
    return share


def _check_files(**given: str | None) -> None:
    """That files are named, and no two are one: each would spoil the other."""
    from ._chain import head_path

    paths: dict[str, Any] = {}
    for option, value in given.items():
        if value == "-" and option != "input":
            fail(f"--{option} - : it is written to a file, and cannot be to standard output; give a path")
        if value == "":
            fail(f"--{option} is empty: a variable that is not set, perhaps; give a path, or leave it out")
        if value is not None:
            paths[option] = value
    from pathlib import Path

    files = {option: Path(value) for option, value in paths.items() if "\0" not in value}
    if "evidence" not in files:
        return
    evidence = files.pop("evidence")
    for option, path in files.items():
        for ours in (evidence, head_path(evidence)):
            if _is_one(ours, path):
                fail(f"--evidence {evidence} and --{option} {path} are one file; give another for the evidence")


def _is_one(one: Any, other: Any) -> bool:
    try:
        return bool(one.resolve() == other.resolve() or (one.exists() and other.exists() and one.samefile(other)))
    except OSError:  # a name that no file can have: said where it is opened
        return False


def _items_of(found: Pipeline, name: str, given: str | None) -> Any:
    import inspect
    from collections.abc import AsyncIterable, Iterable

    from ._convert import as_first_argument
    from ._errors import text_of

    assert found.source is not None
    try:
        argument = None if given is None else as_first_argument(found.source, given)
    except ValueError as error:
        fail(f"--input {given!r} is nothing that the source of {name!r} takes: {_first_of(error)}")
    try:
        items = found.source() if given is None else found.source(argument)
    except Exception as error:  # noqa: BLE001  (the user's function)
        with_what = "" if given is None else f" with --input {given!r}"
        mend = "; give --input" if given is None and _needs_argument(found.source) else ""
        fail(f"the source of {name!r} could not be called{with_what}: {type(error).__name__}: {text_of(error)}{mend}")
    except SystemExit as stop:
        tell_traceback()
        fail(f"the source of {name!r} could not be called: it ends the process by {stop!r}")
    if not isinstance(items, (Iterable, AsyncIterable)):
        if inspect.iscoroutine(items):
            items.close()
        fail(
            f"the source of {name!r} gives no items but {type(items).__name__}: a source is a plain function that "
            f"returns an iterable, or a generator function, also an async one"
        )
    return items


def _first_of(error: ValueError) -> str:
    """What pydantic has to say of a single value."""
    from pydantic import ValidationError

    return str(error.errors(include_url=False)[0]["msg"]) if isinstance(error, ValidationError) else str(error)


def _needs_argument(source: Any) -> bool:
    import inspect

    try:
        inspect.signature(source).bind()
    except TypeError:
        return True
    except ValueError:  # a builtin, say
        pass
    return False
