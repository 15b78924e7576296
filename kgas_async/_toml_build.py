"""From the checked tables of a TOML file to a `Pipeline`. Errors of phases and pipeline are told with their lines."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ._adapter import ToolAdapter
from ._errors import KgasAsyncError, text_of
from ._phase import Phase
from ._pipeline import Pipeline, pipeline_mistakes
from ._toml_arguments import references_in
from ._toml_checked import checked
from ._toml_lines import KeyPath
from ._toml_objects import Objects
from ._toml_tables import FileTables, PhaseTable
from ._toml_text import Document
from ._toml_words import Place
from ._tool import KGASTool

__all__ = ["Built", "build"]

# In an order in which each may be added to those before it.
_PHASE_KEYS: Final = (
    "bind", "after", "expand", "collect", "missing", "when", "batch", "batch_wait", "policy", "journal",
)  # fmt: skip
_NEEDS: Final = {"batch_wait": "batch", "missing": "collect"}  # the first says nothing without the second
_PLANNED: Final = ("bind", "after", "expand", "collect", "when", "batch")  # what says where a phase stands in a plan
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
        LoadError: Each mistake on a line of its own, with file, line, key and mend.
    """
    tables = checked(document)
    objects = Objects(document, tables)
    phases = [_phase(objects, table, ("phase", index)) for index, table in enumerate(tables.phase)]
    pipeline = _pipeline(objects, tables, phases)
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
    return Built(pipeline, objects.services, objects.limits, places, users)


def _phase(objects: Objects, table: PhaseTable, at: KeyPath) -> tuple[Phase, bool]:
    """A phase, made key by key without those that are wrong; and whether it can be put into a plan like that."""
    telling, is_told = objects.mistakes.telling, objects.mistakes.is_told
    found: KGASTool | None = None
    with telling():
        found = objects.tool(table.tool, table.with_, table.adapter, at)
    name = table.name if table.name.isidentifier() else f"phase_{at[-1]}"
    phase = Phase(name, found or _unknown_tool(table))
    given = table.given()
    options: dict[str, Any] = {}
    for key in _PHASE_KEYS:
        place: KeyPath = (*at, key)
        if key not in given or (key in _NEEDS and is_told((*at, _NEEDS[key]))):
            continue
        with telling():
            option = _option(objects, phase, key, given[key], place, is_known=found is not None)
            if found is None and key in ("when", "policy"):
                continue
            if not is_told(place):
                objects.at(place, Phase, name, phase.tool, **options, **{key: option})
            elif key != "bind":
                continue
            options[key] = option
    is_known = found is not None and not any(is_told((*at, key)) for key in _PLANNED)
    return Phase(name, phase.tool, **options), is_known


def _unknown_tool(table: PhaseTable) -> KGASTool:
    """What stands for a tool that cannot be had, so that the phase's other keys can be checked; nothing ever runs it,
    since a file with such a phase is refused.
    """

    def unknown(**inputs: Any) -> Any:
        """With the inputs that the phase binds."""

    def unknown_alone() -> Any:
        """Where it binds none."""

    names = [one for one in table.bind if one.isidentifier()]
    name = table.tool.rpartition(":")[2] or "unknown"
    return ToolAdapter(unknown, params=names, name=name) if names else ToolAdapter(unknown_alone, name=name)


def _option(objects: Objects, phase: Phase, key: str, value: Any, place: KeyPath, *, is_known: bool) -> Any:
    """What a phase takes for a key; each input that is bound, and each field of a policy, is told by itself."""
    if key == "when" or (key == "journal" and ":" in str(value)):
        return objects.load(value, place)
    if key == "bind":
        kept = {}
        for one, source in value.items():
            with objects.mistakes.telling():
                objects.at((*place, one), Phase, phase.name, phase.tool, bind={one: source})
                kept[one] = source
        return kept
    if key == "policy":
        policy = objects.policy(value, place)
        for field in policy.given if is_known else ():
            with objects.mistakes.telling():
                alone = type(policy)(**{field: policy.given[field]})
                objects.at((*place, field), Phase, phase.name, phase.tool, policy=alone)
        return policy
    return value


def _pipeline(objects: Objects, tables: FileTables, made: list[tuple[Phase, bool]]) -> Pipeline:
    """The pipeline, or all that is wrong with the file."""
    table, mistakes = tables.pipeline, objects.mistakes
    phases = [phase for phase, _ in made]
    options = _pipeline_options(objects, tables)
    refused: Exception | None = None
    if not mistakes:
        try:
            return Pipeline(table.name, *phases, services=tuple(objects.services.values()), **options)
        except (TypeError, ValueError, KgasAsyncError) as error:
            refused = error
    if all(one.name for one in tables.phase):  # else nobody knows what names mean
        unknown = {phase.name for phase, is_known in made if not is_known}
        for one in pipeline_mistakes(table.name, phases, unknown, options.get("item"), options.get("key")):
            _tell(objects, tables, one)
    if refused is not None and not mistakes:
        _tell(objects, tables, refused)
    mistakes.raise_all()
    raise AssertionError("there was a mistake")


def _tell(objects: Objects, tables: FileTables, error: Exception) -> None:
    said = text_of(error)
    told = objects.places.error(_place(tables, said), said)
    told.__cause__ = error
    objects.mistakes.tell(told)


def _pipeline_options(objects: Objects, tables: FileTables) -> dict[str, Any]:
    table, telling = tables.pipeline, objects.mistakes.telling
    at: KeyPath = ("pipeline",)
    options: dict[str, Any] = {}
    if table.item is not None:
        with telling():
            is_list = isinstance(table.item, list)
            options["item"] = table.item if is_list else objects.load(table.item, (*at, "item"))
    if table.key is not None:
        with telling():
            options["key"] = objects.load(table.key, (*at, "key")) if ":" in table.key else table.key
    if table.source is not None:
        with telling():
            source = objects.load_with(table.source, (*at, "source"), table.with_, (*at, "with"))
            if not callable(source):
                said = f"{table.source} is no function but {type(source).__name__}"
                raise objects.places.error((*at, "source"), said)
            if table.with_:
                source = _source(objects, table.source, source, table.with_, (*at, "with"))
            options["source"] = source
    elif table.with_ and not objects.mistakes.is_told((*at, "source")):
        said = 'holds the arguments of a source, and there is none; add source = "..."'
        objects.mistakes.tell(objects.places.error((*at, "with"), said))
    return options


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
