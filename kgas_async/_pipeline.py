"""`Pipeline`: the declaration of a pipeline. What runs it is `_run`. Knows phases and items, no calls."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from pydantic import BaseModel
from typing_extensions import is_typeddict  # knows its own TypedDict too, which pydantic wants below Python 3.12

from ._errors import shown
from ._offload import gives_coroutine
from ._phase import Phase
from ._planner import Planner
from ._policy_checks import services_of
from ._service import Service
from ._suggest import nearest, suggests

__all__ = ["Pipeline", "pipeline_mistakes"]


class Pipeline:
    """Phases over items, declared and checked; a manager runs it: ``manager.run(pipeline, items)``.

    Args:
        name: Its name.
        phases: What runs, in any order that has no circle; who needs nothing of each other runs in parallel.
        item: The fields of an item: names, a TypedDict, a pydantic model or a dataclass. Unless given, inputs that
            no phase gives are taken for item fields, and verified on the first item before any tool runs.
        key: A field, or a function of the item, that names the item in outcomes and evidence. Unless given, its index.
        source: A function that gives the items, for ``kgas-async run``; its one argument is ``--input``'s value.
        services: Services that are started for a run beside those that its tools require: those that require nothing
            of it but time (`Every`), and plain async context managers.

    Raises:
        ValueError, TypeError: What does not fit, with phase, input and the nearest known name.
    """

    @suggests
    def __init__(
        self,
        name: str,
        *phases: Phase,
        item: Sequence[str] | type | None = None,
        key: str | Callable[[Any], Any] | None = None,
        source: Callable[..., Any] | None = None,
        services: Sequence[Any] = (),
    ) -> None:
        if not isinstance(name, str) or not name:
            raise ValueError(f"the name of a pipeline is a non-empty string, not {name!r}")
        if not phases:
            raise ValueError(f"pipeline {name!r} has no phases")
        for phase in phases:
            if not isinstance(phase, Phase):
                raise TypeError(f"pipeline {name!r} takes phases, not {phase!r}: Phase('name', tool)")
        if key is not None and not isinstance(key, str) and not callable(key):
            raise TypeError(f"pipeline {name!r}: key= is a field or a function of the item, not {key!r}")
        if gives_coroutine(key):
            raise TypeError(f"pipeline {name!r}: key= is a plain function: nobody would await {key!r}")
        if source is not None and not callable(source):
            raise TypeError(f"pipeline {name!r}: source= is a function that gives the items, not {source!r}")
        self.name = name
        self.phases = phases
        self.fields: dict[str, Any] | None = _fields(name, item)
        self.key = key
        self.source = source
        self._services = _checked_services(name, services)
        _check_key(name, key, self.fields)
        first: dict[str, Phase] = {}
        for phase in phases:
            _check_tool(name, phase, first)
        self.plan = Planner(name, self.fields, phases).plan()

    def __repr__(self) -> str:
        return f"Pipeline({self.name!r}, {', '.join(phase.name for phase in self.phases)})"

    @property
    def services(self) -> tuple[Any, ...]:
        """The services that its tools and their fallbacks require, and those that it was given, each once."""
        found = list(self._services)
        for phase in self.phases:
            found.extend(
                service for service in services_of(phase.tool, phase.policy) if not any(service is one for one in found)
            )
        return tuple(found)


def _checked_services(pipeline: str, services: Any) -> tuple[Any, ...]:
    if isinstance(services, (str, bytes)) or not isinstance(services, Iterable):
        raise TypeError(f"pipeline {pipeline!r}: services= is a tuple of services, not {services!r}")
    given: tuple[Any, ...] = ()
    for one in services:
        if not isinstance(one, (Service, AbstractAsyncContextManager)):
            raise TypeError(
                f"pipeline {pipeline!r}: {shown(one)} is no service: neither a Service nor an async context manager"
            )
        given = given if any(one is other for other in given) else (*given, one)
    return given


def pipeline_mistakes(
    name: str, phases: Sequence[Phase], unknown: Container[str], item: Any, key: Any
) -> Iterator[Exception]:
    """What a `Pipeline` of these would refuse, not only the first of it; but nothing that follows from other mistakes.

    Args:
        name: The pipeline's.
        phases: Its phases.
        unknown: The names of those of which only the names are known.
        item: As of a pipeline.
        key: As of a pipeline.
    """
    fields = None
    try:
        fields = _fields(name, item)
        _check_key(name, key, fields)
    except (TypeError, ValueError) as error:
        yield error
    first: dict[str, Phase] = {}
    for phase in phases:
        if phase.name not in unknown:
            try:
                _check_tool(name, phase, first)
            except (TypeError, ValueError) as error:
                yield error
    yield from Planner(name, fields, phases).mistakes(unknown)


def _check_key(pipeline: str, key: Any, fields: Mapping[str, Any] | None) -> None:
    if isinstance(key, str) and fields is not None and key not in fields:
        raise ValueError(
            f"pipeline {pipeline!r}: key {key!r} is no item field; there are {', '.join(fields)}{nearest(key, fields)}"
        )


def _check_tool(pipeline: str, phase: Phase, first: dict[str, Phase]) -> None:
    """What would go wrong at a tool's first call: types without a schema, two tools of one name.

    Args:
        pipeline: Its name.
        phase: Whose tool it is.
        first: The first phase with a tool of each name, to be added to.
    """
    tool = phase.tool
    try:
        tool.signature.checker()
    except TypeError as error:
        raise TypeError(f"pipeline {pipeline!r}, phase {phase.name!r}: {error}") from error
    except Exception as error:  # a class of the user's that makes its schema itself
        raise TypeError(
            f"pipeline {pipeline!r}, phase {phase.name!r}: no schema can be made of the inputs of tool "
            f"{tool.name!r}: {shown(error)}"
        ) from error
    other = first.setdefault(tool.name, phase)
    one, another = tool._origin(), other.tool._origin()
    if one is not another and one != another:
        raise ValueError(
            f"pipeline {pipeline!r}, phase {phase.name!r}: its tool and another one, of phase {other.name!r}, are "
            f"both named {tool.name!r}; limits, statistics and evidence go by name: tool.using(name=...)"
        )


def _fields(pipeline: str, item: Any) -> dict[str, Any] | None:
    """The declared fields with their types."""
    if item is None:
        return None
    if isinstance(item, type) and issubclass(item, BaseModel):
        return {name: field.annotation for name, field in item.model_fields.items()}
    if isinstance(item, type) and (dataclasses.is_dataclass(item) or is_typeddict(item)):
        return _hints(item)
    if not isinstance(item, (str, type)) and isinstance(item, Iterable):
        names = list(item)
        if all(isinstance(name, str) and name.isidentifier() for name in names) and names:
            return dict.fromkeys(names, Any)
    raise TypeError(
        f"pipeline {pipeline!r}: item= is a list of field names, a TypedDict, a model or a dataclass, not {item!r}"
    )


def _hints(item: type) -> dict[str, Any]:
    """Fields with types; one that cannot be resolved (a local class behind a string) is `Any`, as in a signature."""
    names = [field.name for field in dataclasses.fields(item)] if dataclasses.is_dataclass(item) else None
    try:
        hints = typing.get_type_hints(item)
    except Exception:  # noqa: BLE001  (whatever evaluating a foreign annotation raises)
        hints = dict.fromkeys(item.__annotations__, Any)
    return {name: hints.get(name, Any) for name in (hints if names is None else names)}
