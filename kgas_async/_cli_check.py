"""``kgas-async check``: loads and validates a pipeline without data, and prints its plan."""

from __future__ import annotations

import io
import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from ._cli_text import FORCE, TRACEBACK, exists, fail, file_of, out_raw, printable, results_alone, say, tells_tracebacks

if TYPE_CHECKING:
    from rich.text import Text

    from ._pipeline import Pipeline

__all__ = ["Profile", "Settings", "add_check", "find_pipeline", "traceback_hint"]


# Options that `run` has too.
Profile: TypeAlias = Annotated[
    str | None, typer.Option("--profile", metavar="NAME", help="Of a file: the profile that is laid over it")
]
Settings: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Of a file: a value, as phase.embed.policy.timeout=60"),
]


class Graph(StrEnum):
    """How the graph is written."""

    mermaid = "mermaid"
    svg = "svg"


def add_check(app: typer.Typer) -> None:
    """Give the command line this command."""
    app.command("check")(_check)


def _is_file(pipeline: str) -> bool:
    """Whether this names a TOML file, and not ``module:attribute``."""
    return pipeline.endswith(".toml") or (":" not in pipeline and Path(pipeline).is_file())


def find_pipeline(pipeline: str, profile: str | None = None, settings: list[str] | None = None) -> tuple[Pipeline, Any]:
    """The pipeline that is meant; and of a file what else it declares, else None.

    Raises:
        LoadError: With what is wrong, where, and the mend.
    """
    from ._errors import LoadError
    from ._loading import give_of, load
    from ._pipeline import Pipeline
    from ._pipeline_file import built

    if ":" not in pipeline and pipeline.endswith(".py"):
        if not Path(pipeline).is_file():
            raise LoadError(f"there is no file {pipeline!r}; give a TOML file, or Python's module:attribute")
        raise LoadError(f"{pipeline!r} is a Python file; {give_of(pipeline)}")
    if _is_file(pipeline):
        found = built(pipeline, profile, settings or ())
        return found.pipeline, found
    for option, given in (("--profile", profile), ("--set", settings)):
        if given:
            raise LoadError(
                f"{option} is for pipelines in TOML files, and {pipeline!r} is none; it names Python's object"
            )
    if ":" not in pipeline and Path(f"{pipeline}.toml").is_file():
        raise LoadError(f"{pipeline!r} is not of the form module:attribute; did you mean '{pipeline}.toml'?")
    if ":" not in pipeline and Path(f"{pipeline}.py").is_file():
        raise LoadError(f"{pipeline!r} is not of the form module:attribute; {give_of(f'{pipeline}.py')}")
    if ".toml:" in pipeline:
        raise LoadError(f"{pipeline!r}: a TOML file is one pipeline: give {pipeline.partition('.toml:')[0]}.toml")
    loaded = load(pipeline)
    if not isinstance(loaded, Pipeline):
        raise LoadError(f"{pipeline!r} is no Pipeline but {type(loaded).__name__}")
    return loaded, None


def traceback_hint(error: Exception) -> str:
    """Of a module that raised as it was imported: how to see all of where."""
    is_of_user = " cannot be imported: " in str(error) and not tells_tracebacks.wanted
    return "; --traceback shows more" if is_of_user else ""


def _check(
    pipeline: str | None = typer.Argument(None, help="A TOML file, or module:attribute"),
    profile: Profile = None,
    settings: Settings = None,
    as_json: bool = typer.Option(False, "--json", help="For programs: the plan as one JSON object"),
    graph: Annotated[Graph | None, typer.Option(metavar="mermaid|svg", help="The plan as a graph instead")] = None,
    output: str | None = typer.Option(
        None, "--output", "-o", metavar="FILE", help="Written there instead; - is standard output"
    ),
    force: bool = FORCE,
    traceback: bool = TRACEBACK,
    as_schema: bool = typer.Option(False, "--schema", help="Print the JSON schema of pipelines in TOML files, and end"),
) -> None:
    """Load a pipeline, check all that can be checked without data, and print its plan.

    Nothing is run: no source is called, no service is started.

    Exit codes: 0 it is right; 2 it is not, or cannot be loaded.

    Examples:

    kgas-async check papers.toml --profile prod

    kgas-async check examples.knowledge_graph:pipeline --graph svg -o plan.svg
    """
    from ._errors import KgasAsyncError
    from ._leaving import user_code_begins

    tells_tracebacks.wanted |= traceback
    output = file_of(output)
    if as_schema:
        from ._toml_checked import schema

        _write(json.dumps(schema(), indent=2) + "\n", output, force)
        return
    if pipeline is None:
        fail("say which pipeline: a TOML file, or module:attribute")
    if as_json and graph is not None:
        fail("--json and --graph are two forms of one plan; choose one")
    user_code_begins()
    end = results_alone()  # what a module prints as it is imported is no result of ours
    try:
        found, file = find_pipeline(pipeline, profile, settings)
    except KgasAsyncError as error:
        fail(f"{error}{traceback_hint(error)}")
    finally:
        end()
    _show(found, file, pipeline if profile is None else f"{pipeline}, profile {profile}", as_json, graph, output, force)


def _show(
    found: Pipeline, file: Any, where: str, as_json: bool, graph: Graph | None, output: str | None, force: bool
) -> None:
    from ._plan_drawing import svg
    from ._plan_graph import mermaid
    from ._plan_view import plan_view

    names = (
        {}
        if file is None
        else {"services": file.services, "limits": file.limits, "places": file.places, "users": file.users}
    )
    view = plan_view(found, **names)
    if as_json:
        _write(json.dumps(view, indent=2) + "\n", output, force)
    elif graph is not None:
        _write(svg(view) if graph is Graph.svg else mermaid(view), output, force)
    elif output is not None:
        _write("\n".join(line.plain for line in _lines(view, where)) + "\n", output, force)
    else:
        from rich.console import Console

        console = Console(width=None if sys.stdout.isatty() else 10_000, highlight=False)
        shown = console.file = io.StringIO()  # what cannot be written is for `out` to say
        for line in _lines(view, where):
            console.print(line, soft_wrap=True)
        out_raw(shown.getvalue())


def _write(text: str, output: str | None, force: bool) -> None:
    if output is None:
        out_raw(text)
        return
    try:
        with Path(output).open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        fail(exists(output))
    except OSError as error:
        fail(f"{output} cannot be written: {error.strerror or error}")
    say(f"written: {output}")


# --- the plan as text


def _lines(view: dict[str, Any], where: str) -> list[Text]:
    from rich.text import Text

    from ._errors import counted

    fields = view["item"]
    item = ", ".join(f"{name}: {kind}" for name, kind in fields.items()) if fields is not None else "not declared"
    key = view["key"] or "the index, or with a journal the item's digest"
    lines = [
        _line(("pipeline ", "bold"), (view["pipeline"], "bold cyan"), (f" ({where})", "dim")),
        _line("  source  ", view["source"] or ("none: kgas-async run needs one", "yellow")),
        _line(f"  item    {item}"),
        _line(f"  key     {key}"),
    ]
    if view["assumed"]:
        why = ": taken for item fields, since no phase has these names; verified on the first item. Declare item"
        lines.append(_line("  assumed ", (", ".join(view["assumed"]), "yellow"), why))
    lines += [Text(), _line((counted(len(view["phases"]), "phase"), "bold"), ", in order")]
    for number, phase in enumerate(view["phases"], 1):
        lines += _phase_lines(number, phase)
    if view["limits"]:
        lines += [Text(), _line(("limits", "bold"))]
        lines += [
            _line("  ", (f"${one['limit']}", "cyan"), f"  {one['is']}  ", *_used(one["used_by"]))
            for one in view["limits"]
        ]
    if view["services"]:
        lines += [Text(), _line(("services", "bold"), ", in an order in which they can start")]
    for one in view["services"]:
        requires = f", requires {', '.join(one['requires'])}" if one["requires"] else ""
        lines.append(_line("  ", (one["service"], "cyan"), f"  {one['class']}{requires}  ", *_used(one["used_by"])))
    return lines


def _line(*parts: str | tuple[str, str]) -> Text:
    from rich.text import Text

    return Text.assemble(*(printable(one) if isinstance(one, str) else (printable(one[0]), one[1]) for one in parts))


def _used(phases: list[str]) -> list[str | tuple[str, str]]:
    return [f"used by {', '.join(phases)}"] if phases else [("used by nobody", "yellow")]


def _phase_lines(number: int, phase: dict[str, Any]) -> list[Text]:
    shape = [phase["once"]]
    shape += [f"expands into {phase['expands_into']}"] if "expands_into" in phase else []
    shape += [f"collects {phase['collects']} (missing: {phase['missing']})"] if "collects" in phase else []
    shape += [f"batches of {phase['batch']}"] if "batch" in phase else []
    shape += [f"when {phase['when']}"] if "when" in phase else []
    shape += ["not journaled"] if "journal" in phase else []
    lines = [
        _line(
            f"{number:>3} ",
            (phase["phase"], "bold cyan"),
            f"  {phase['tool']} ({phase['runs']})  ",
            (", ".join(shape), "dim"),
        )
    ]
    lines += [_line(f"      {one['input']} <- {_source(one)}") for one in phase["inputs"]]
    lines += [_line(f"      after {', '.join(phase['after'])}")] if phase["after"] else []
    lines += [_line(f"      uses {', '.join(phase['requires'])}")] if phase["requires"] else []
    for one in phase["policy"]:
        over = "".join(f", over {_shown(below['value'])} of the {below['from']}" for below in one["over"])
        place = f", {one['place']}" if "place" in one else ""
        lines.append(_line(f"      {one['field']} = {_shown(one['value'])}  ", (f"{one['from']}{place}{over}", "dim")))
    return lines


def _source(one: dict[str, Any]) -> str:
    kind = {"field": "item field", "result": "phase", "element": "each"}[one["from"]]
    path = f".{one['path']}" if "path" in one else ""
    shape = f", a {one['as']}" if "as" in one else ""
    optional = ", or its default" if "optional" in one else ""
    return f"{kind} {one['name']}{path}{shape}{optional}"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
