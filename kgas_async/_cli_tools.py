"""``kgas-async tools``: the tools that installed packages offer by entry points of the group ``kgas_async.tools``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any, Final

import typer

from ._cli_text import AS_JSON, out, out_json, printable, say

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["GROUP", "add_tools"]

GROUP: Final = "kgas_async.tools"


def add_tools(app: typer.Typer) -> None:
    """Give the app this command."""
    app.command("tools")(_tools)


def _tools(as_json: bool = AS_JSON) -> None:
    """List the tools that installed packages offer.

    A package offers tools by entry points of the group kgas_async.tools; each
    names a tool, or a Toolbox of several. They are imported to be listed.

    With --json one object: tools, each with name, version, description, its
    inputs as a JSON Schema, entry_point, package; and broken, those that could
    not be imported, with the error.

    Exit codes: 0 all could be listed; 1 some entry points are broken.

    Examples:

    kgas-async tools

    kgas-async tools --json
    """
    from importlib.metadata import entry_points

    from ._leaving import user_code_begins

    user_code_begins()
    tools: list[dict[str, Any]] = []
    broken: list[dict[str, Any]] = []
    for point in sorted(entry_points(group=GROUP), key=lambda one: (one.name, one.value)):
        place = {"entry_point": f"{point.name} = {point.value}", "package": _package_of(point)}
        try:
            with redirect_stdout(sys.stderr):  # what a module prints as it is imported is no result of ours
                tools += [_described(tool) | place for tool in _tools_of(point)]
        except (Exception, SystemExit) as error:  # noqa: BLE001  (importing it runs anybody's code)
            from ._cli_text import tell_traceback
            from ._errors import text_of

            tell_traceback()
            broken.append({**place, "error": f"{type(error).__name__}: {text_of(error)}"})
    if as_json:
        out_json({"tools": tools, "broken": broken})
    else:
        _show(tools)
    for one in broken:
        say(f"error: entry point {one['entry_point']} of {one['package']} is broken: {printable(one['error'])}")
    raise typer.Exit(1 if broken else 0)


def _show(tools: list[dict[str, Any]]) -> None:
    if not tools:
        say(f"no tools are offered: a package offers them by entry points of the group {GROUP}")
    for one in tools:
        summary = one["description"].strip().split("\n\n")[0].replace("\n", " ")
        out(printable(f"{one['name']}({_short(one['inputs'])})"))
        out(printable(f"    {summary or 'no description'}"))
        out(printable(f"    version {one['version']}, {one['entry_point']}, {one['package']}"))


def _tools_of(point: EntryPoint) -> Iterator[Any]:
    """The tools that an entry point names.

    Raises:
        TypeError: It names something else.
    """
    from ._tool import KGASTool, Toolbox

    found = point.load()
    if isinstance(found, Toolbox):
        yield from found.values()
    elif isinstance(found, KGASTool):
        yield found
    else:
        kind = f"the class {found.__name__}" if isinstance(found, type) else type(found).__name__
        raise TypeError(f"it is no tool but {kind}; name a tool object (@tool, ToolAdapter(...)) or a Toolbox")


def _described(tool: Any) -> dict[str, Any]:
    return {
        "name": tool.name,
        "version": str(tool.version),
        "description": tool.description,
        "inputs": tool.input_schema(),
    }


def _package_of(point: EntryPoint) -> str:
    return "?" if point.dist is None else f"{point.dist.name} {point.dist.version}"


def _short(schema: Mapping[str, Any]) -> str:
    """``path: string, top?: integer``."""
    required = set(schema.get("required", ()))
    return ", ".join(
        f"{name}{'' if name in required else '?'}: {_kind(one)}" for name, one in schema.get("properties", {}).items()
    )


def _kind(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "enum" in schema:
        return "|".join(map(str, schema["enum"]))
    if "anyOf" in schema:
        return "|".join(_kind(one) for one in schema["anyOf"])
    kind = str(schema.get("format") or schema.get("type") or "any")
    items = schema.get("items")
    return f"array of {_kind(items)}" if kind == "array" and items else kind
