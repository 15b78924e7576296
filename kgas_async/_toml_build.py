"""From the checked tables of a TOML file to a `Pipeline`. Errors of phases and pipeline are told with their lines."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ._errors import KgasAsyncError, text_of
from ._phase import Phase
from ._pipeline import Pipeline
from ._toml_checked import checked
from ._toml_lines import KeyPath
from ._toml_objects import Objects, references_in
from ._toml_tables import FileTables, PhaseTable
from ._toml_text import Document
from ._toml_words import Place

__all__ = ["Built", "build"]

# In an order in which each may be added to those before it.
_PHASE_KEYS: Final = (
    "bind", "after", "expand", "collect", "missing", "when", "batch", "batch_wait", "policy", "journal",
)  # fmt: skip
_PIPELINE: Final = r"""pipeline (?:'[^']*'|"[^"]*")"""
_INPUT: Final = re.compile(r"\binput '(\w+)'")


@dataclass(frozen=True, slots=True)
class Built:
    """A pipeline of a file.

    Attributes:
        pipeline: It.
        services: By their names in the file.
        limits: By their names in the file: limits, breakers and budgets.
        places: Where each field of a phase's policy is from, by phase and field.
        users: The phases, and the services with a dollar sign, that refer to a service or limit, by its name.
    """

    pipeline: Pipeline
    services: Mapping[str, Any]
    limits: Mapping[str, Any]
    places: Mapping[tuple[str, str], Place]
    users: Mapping[str, Sequence[str]]


def build(document: Document) -> Built:
    """Make what the file declares.

    Raises:
        LoadError: With file, line, key and mend.
    """
    tables = checked(document)
    objects = Objects(document, tables)
    phases = [_phase(objects, table, ("phase", index)) for index, table in enumerate(tables.phase)]
    places = {
        (table.name, field): objects.places.place(("phase", index, "policy", field))
        for index, table in enumerate(tables.phase)
        if table.policy is not None
        for field in table.policy.given()
    }
    users: dict[str, list[str]] = {}
    named = [(phase["name"], phase) for phase in document.values["phase"]]
    named += [(f"${name}", table) for name, table in document.values.get("services", {}).items()]
    for user, table in named:
        for name in dict.fromkeys(references_in(table)):
            users.setdefault(name, []).append(user)
    return Built(_pipeline(objects, tables, phases), objects.services, objects.limits, places, users)


def _phase(objects: Objects, table: PhaseTable, at: KeyPath) -> Phase:
    """A phase, key by key: the first with which it cannot be made is the one that is told."""
    tool = objects.tool(table.tool, table.with_, (*at, "tool"), (*at, "with"))
    given = table.given()
    options: dict[str, Any] = {}
    phase = objects.at((*at, "name"), Phase, table.name, tool)
    for key in _PHASE_KEYS:
        if key not in given:
            continue
        value, place = given[key], (*at, key)
        if key == "when" or (key == "journal" and isinstance(value, str) and ":" in value):
            value = objects.load(value, place)
        elif key == "policy":
            value = objects.policy(table.policy, place)
        options[key] = value
        place = _place_of(objects, tool, key, value, place)
        phase = objects.at(place, Phase, table.name, tool, **options)
    return phase


def _place_of(objects: Objects, tool: Any, key: str, value: Any, place: KeyPath) -> KeyPath:
    """Deeper where it is clear: at the input that the tool does not have."""
    if key == "bind":
        wrong = [one for one in value if one not in tool.signature.types]
        return (*place, wrong[0]) if wrong else place
    if key == "policy":
        for field in value.given:
            try:
                Phase("alone", tool, policy=type(value)(**{field: value.given[field]}))
            except (TypeError, ValueError):
                return (*place, field)
    return place


def _pipeline(objects: Objects, tables: FileTables, phases: list[Phase]) -> Pipeline:
    table = tables.pipeline
    at: KeyPath = ("pipeline",)
    options: dict[str, Any] = {}
    if table.item is not None:
        options["item"] = table.item if isinstance(table.item, list) else objects.load(table.item, (*at, "item"))
    if table.key is not None:
        options["key"] = objects.load(table.key, (*at, "key")) if ":" in table.key else table.key
    if table.source is not None:
        source = objects.load(table.source, (*at, "source"))
        if not callable(source):
            raise objects.places.error((*at, "source"), f"{table.source} is no function but {type(source).__name__}")
        options["source"] = (
            _source(objects, table.source, source, table.with_, (*at, "with")) if table.with_ else source
        )
    elif table.with_:
        raise objects.places.error(
            (*at, "with"), 'holds the arguments of a source, and there is none; add source = "..."'
        )
    try:
        return Pipeline(table.name, *phases, services=tuple(objects.services.values()), **options)
    except (TypeError, ValueError, KgasAsyncError) as error:
        said = text_of(error)
        raise objects.places.error(_place(tables, said), said) from error


def _place(tables: FileTables, said: str) -> KeyPath:
    """What a message of the whole is about: a phase that it names, and there the key."""
    for index, table in enumerate(tables.phase):
        if not re.match(rf"{_PIPELINE}(?:, |: (?:the element that )?)phase '{re.escape(table.name)}'", said):
            continue
        at: KeyPath = ("phase", index)
        found = _INPUT.search(said)
        if found is not None and found[1] in table.bind:
            return (*at, "bind", found[1])
        for key in ("after", "collect", "expand", "batch", "when", "bind"):
            if re.search(rf"\b{key}=", said) and key in table.given():
                return (*at, key)
        if "expand" in table.given() and "expan" in said:
            return (*at, "expand")
        return (*at, "tool") if found is not None or " tool " in said else at
    for key in ("key", "item"):
        if re.match(rf"{_PIPELINE}: {key}\b", said):
            return ("pipeline", key)
    circle = re.search(r"circle: (\w+) ->", said)
    names = [table.name for table in tables.phase]
    return ("phase", names.index(circle[1])) if circle is not None and circle[1] in names else ("pipeline",)


def _source(objects: Objects, target: str, source: Callable[..., Any], given: Mapping[str, Any], at: KeyPath) -> Any:
    """A source with arguments; one that is given for it all the same (``--input``) takes the place of the first."""
    arguments = objects.checked_arguments(target, source, given, at, is_all=False)
    try:
        names = list(inspect.signature(source).parameters)
    except (TypeError, ValueError):  # a builtin, say
        names = []

    def with_arguments(*positional: Any) -> Any:
        over = dict(zip(names, positional, strict=False))
        return source(*positional, **{key: value for key, value in arguments.items() if key not in over})

    # Its name in messages, and whose annotations count; but not its signature: what is missing may stand in the file.
    own = inspect.signature(with_arguments)
    for name in ("__module__", "__name__", "__qualname__"):
        setattr(with_arguments, name, getattr(source, name, target))
    setattr(with_arguments, "__wrapped__", source)  # noqa: B010  (functions have no such attribute, for mypy)
    setattr(with_arguments, "__signature__", own)  # noqa: B010
    return with_arguments
