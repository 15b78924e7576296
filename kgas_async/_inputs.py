"""What a phase is given: fields of an item, results, and what lies below them."""

from __future__ import annotations

import dataclasses
from collections import ChainMap
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pydantic import BaseModel

from ._errors import PipelineError, shown
from ._frame import Expansion, Frame, Lack
from ._item_outcome import outcome_as_input
from ._offload import refuse_coroutine
from ._pipeline import Pipeline
from ._plan import Binding, PlannedPhase
from ._suggest import nearest

__all__ = [
    "as_pipeline_error",
    "collected_inputs",
    "follow",
    "inputs_for",
    "item_fields",
    "key_of",
    "origins_of",
    "taken",
    "with_fields_read",
]


def follow(value: Any, path: tuple[str, ...]) -> Any:
    """The value below a path of attributes or keys.

    Raises:
        PipelineError: There is no such thing.
    """
    for part in path:
        try:
            value = value[part] if isinstance(value, Mapping) else getattr(value, part)
        except (KeyError, AttributeError):
            known = value if isinstance(value, Mapping) else getattr(value, "__dict__", ())
            close = nearest(part, [name for name in known if isinstance(name, str)])
            raise PipelineError(f"{type(value).__name__} has no {part!r} (of {'.'.join(path)!r}){close}") from None
        except Exception as error:
            of = f"{type(value).__name__} (of {'.'.join(path)!r})"
            raise PipelineError(f"{part!r} of {of} cannot be read: {shown(error)}") from error
    return value


def taken(binding: Binding, value: Any) -> Any:
    """What an input takes of a value.

    Raises:
        PipelineError: There is no such thing below it; or it is lazy, and checking it would run it to its end.
    """
    if binding.path:
        value = follow(value, binding.path)
    if binding.whole and hasattr(value, "__next__"):
        raise PipelineError(
            f"input {binding.parameter!r} takes all of {'.'.join((binding.name, *binding.path))!r} at once, which is a "
            f"{type(value).__name__}: it may be endless, and its code would run on the event loop; take it apart "
            f"(expand=), or have the tool that makes it make a list of it: tool(returns=list)"
        )
    return value


def inputs_for(planned: PlannedPhase, frame: Frame) -> dict[str, Any]:
    """The inputs of a phase in this frame, but for what it collects.

    Raises:
        PipelineError: The item has no such field.
    """
    inputs: dict[str, Any] = {}
    if planned.direct is not None:
        try:
            for parameter, is_result, name in planned.direct:
                inputs[parameter] = (frame.results if is_result else frame.fields)[name]
            return inputs
        except KeyError:
            inputs.clear()  # said below, with its name
    depth = len(planned.level)
    for binding in planned.bindings:
        if binding.collected:
            continue
        home = frame
        for _ in range(depth - len(binding.level)):
            assert home.parent is not None
            home = home.parent
        source = home.results if binding.kind == "result" else home.fields
        try:
            value = source[binding.name]
        except KeyError:
            if binding.optional:
                continue
            raise PipelineError(
                f"phase {planned.phase.name!r}: the item {home.key!r} has no {binding.kind} {binding.name!r}"
            ) from None
        inputs[binding.parameter] = taken(binding, value) if binding.path or binding.whole else value
    return inputs


def origins_of(planned: PlannedPhase, frame: Frame) -> dict[str, Any]:
    """By input the field, result or element that it is, or is somewhere below of: also of those that cannot be read."""
    found: dict[str, Any] = {}
    for binding in planned.bindings:
        home: Frame | None = frame
        while home is not None and not binding.collected:
            source = home.results if binding.kind == "result" else home.fields
            with suppress(Exception):  # a mapping of the user's
                found[binding.parameter] = source[binding.name]
                break
            home = home.parent
    return found


def collected_inputs(planned: PlannedPhase, frame: Frame, expansion: Expansion) -> tuple[dict[str, Any], Lack]:
    """The inputs of a collect per parent, lists over the elements in order; and what is missing in them.

    What was skipped is left out, and is not missing. Lists of outcomes have all elements. No inputs are read for a
    collect that is to be skipped.

    Raises:
        PipelineError: A value cannot be read.
    """
    inner = {one.phase.name: one for one in expansion.planned.children.phases}
    wanted = [binding for binding in planned.bindings if binding.collected]
    seen = {binding.name for binding in wanted if binding.outcomes}
    needed = {b.name for b in wanted if b.kind == "result"} | (set(planned.needs) & inner.keys())
    needed = {name for name in needed if name not in seen or any(b.name == name and not b.outcomes for b in wanted)}
    missing = [one for one in expansion.frames if not one.bad.isdisjoint(needed)]
    whole = [one for one in expansion.frames if one.bad.isdisjoint(needed) and one.skipped.isdisjoint(needed)]
    lack = Lack(planned, expansion, missing, needed)
    if missing and planned.phase.missing == "skip":
        return {}, lack
    inputs = inputs_for(planned, frame)
    for binding in wanted:
        if binding.outcomes:
            inputs[binding.parameter] = [outcome_as_input(one, inner[binding.name]) for one in expansion.frames]
        else:
            inputs[binding.parameter] = [
                taken(binding, one.results[binding.name] if binding.kind == "result" else one.fields[binding.name])
                for one in whole
            ]
    return inputs, lack


def item_fields(pipeline: Pipeline, item: Any) -> Mapping[str, Any]:
    """The fields of an item.

    Raises:
        PipelineError: It is no mapping, model or dataclass, or lacks a declared field.
    """
    fields: Mapping[str, Any]
    if isinstance(item, Mapping):
        fields = item
    elif isinstance(item, BaseModel):
        fields = {name: getattr(item, name) for name in type(item).model_fields}
    elif dataclasses.is_dataclass(item) and not isinstance(item, type):
        fields = {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
    else:
        raise PipelineError(
            f"pipeline {pipeline.name!r}: an item is a mapping of fields (or a model, or a dataclass), not "
            f"{type(item).__name__}: give {{'name': value}}"
        )
    return fields


def key_of(key: Any, item: Any, fields: Mapping[str, Any], index: int, pipeline: str) -> str:
    """The item's key, by the pipeline's ``key``: a field or a function.

    Raises:
        PipelineError: The key field is missing, the key is None, or the user's function or ``__str__`` raises.
    """
    try:
        value = (
            fields.get(key) if isinstance(key, str) else refuse_coroutine(key(item), key, "key= is a plain function")
        )
        if value is not None:
            return str(value)
    except Exception as error:  # noqa: BLE001
        failure = as_pipeline_error(f"pipeline {pipeline!r}: the key of item {index}", error, "made")
        raise failure from failure.__cause__
    raise PipelineError(f"pipeline {pipeline!r}: item {index} has no key ({key!r} gives None)")


def with_fields_read(
    pipeline: Pipeline, wanted: Mapping[str, bool], fields: Mapping[str, Any], key: str
) -> Mapping[str, Any]:
    """The fields with those read that run-level phases will want: what cannot be read is this item's fault, and now.

    Args:
        pipeline: For messages.
        wanted: Names, and whether the item may lack them.
        fields: Those of the item.
        key: The item's.

    Raises:
        PipelineError: The item has no such field: their lists must be of one length.
    """
    read = {}
    for name, optional in wanted.items():
        if name in fields:
            read[name] = fields[name]
        elif not optional:
            raise PipelineError(f"pipeline {pipeline.name!r}: the item {key!r} has no field {name!r}")
    return fields if type(fields) is dict or not read else ChainMap(read, fields)  # type: ignore[arg-type]


def as_pipeline_error(what: str, error: Exception, done: str = "read") -> PipelineError:
    """An error of the user's code around tools, unless it is ours already."""
    if isinstance(error, PipelineError):
        return error
    failure = PipelineError(f"{what} cannot be {done}: {shown(error)}")
    failure.__cause__ = error
    return failure
