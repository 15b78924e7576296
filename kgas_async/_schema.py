"""What pydantic makes of annotated types: the check of inputs, JSON schemas of inputs and results, results as JSON.

Knows types and pydantic, and the tool's name for messages; nothing of callables.
"""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any, Final, NotRequired, Required

from pydantic import ConfigDict, TypeAdapter, WrapValidator
from pydantic.errors import PydanticUserError
from pydantic_core import PydanticSerializationError, SchemaError, to_jsonable_python
from typing_extensions import TypedDict  # pydantic refuses typing's below Python 3.12

__all__ = ["NO_SCHEMA", "ResultSchema", "inputs_adapter", "no_check", "no_json_schema", "with_defaults"]

NO_SCHEMA: Final = (PydanticUserError, SchemaError, TypeError)  # what pydantic raises where it can make no schema
_NOT_JSON = (PydanticSerializationError, ValueError)
_CONFIG = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


def inputs_adapter(tool: str, kinds: Mapping[str, Any], required: Collection[str]) -> TypeAdapter[Any]:
    """Named inputs as a mapping that takes no others."""
    fields = {
        name: Required[_kept(kind)] if name in required else NotRequired[_kept(kind)] for name, kind in kinds.items()
    }
    make: Any = TypedDict  # with a name and fields that only run time knows
    shape = make(f"{tool} inputs", fields)
    shape.__pydantic_config__ = _CONFIG
    return TypeAdapter(shape)


def no_check(tool: str, kinds: Mapping[str, Any], error: Exception) -> TypeError:
    """The error of inputs that cannot be checked, with the one that is to blame."""
    to_blame = _to_blame(tool, kinds, lambda adapter: adapter.validator.validate_python)
    if to_blame is None:
        return TypeError(f"tool {tool!r}: no schema can be made of its signature: {_first_line(error)}")
    name, own = to_blame
    return TypeError(
        f"tool {tool!r}, parameter {name!r}: no schema can be made of {_named(kinds[name])}: {_first_line(own)}"
    )


def no_json_schema(tool: str, kinds: Mapping[str, Any], error: Exception) -> TypeError:
    """The error of inputs that cannot be given as JSON, with the one that is to blame."""
    to_blame = _to_blame(tool, kinds, TypeAdapter.json_schema)
    if to_blame is None:
        return TypeError(f"tool {tool!r}: its inputs have no JSON Schema: {_first_line(error)}")
    name, own = to_blame
    return TypeError(
        f"tool {tool!r}, parameter {name!r}: no JSON Schema can be made of {_named(kinds[name])} "
        f"({_first_line(own)}); annotate it with what JSON can hold (str, Path, a pydantic model, ...)"
    )


def _to_blame(
    tool: str, kinds: Mapping[str, Any], make: Callable[[TypeAdapter[Any]], object]
) -> tuple[str, Exception] | None:
    for name, kind in kinds.items():
        try:
            make(inputs_adapter(tool, {name: kind}, ()))
        except NO_SCHEMA as error:
            return name, error
    return None


def with_defaults(schema: dict[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of the inputs with the defaults, but those that only code can give, such as a sentinel."""
    for name, value in defaults.items():
        try:
            schema["properties"][name]["default"] = to_jsonable_python(value)
        except (KeyError, *_NOT_JSON):  # a KeyError: the annotation keeps the input out of the schema
            continue
    plain: dict[str, Any] = _as_plain_json(schema)
    return plain


def _as_plain_json(schema: Any) -> Any:
    """A schema without the defaults and bounds for which JSON has no form, such as an infinite one."""
    if isinstance(schema, Mapping):
        kept = {name: _as_plain_json(one) for name, one in schema.items() if _is_finite(one)}
        if "default" in kept and not _is_json(kept["default"]):
            del kept["default"]
        return kept
    return [_as_plain_json(one) for one in schema] if isinstance(schema, list) else schema


def _is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError):
        return False
    return True


class ResultSchema:
    """The annotated result of a tool in JSON; nothing is made before it is asked for."""

    def __init__(self, tool: str, kind: Any) -> None:
        self._tool = tool
        self._kind = kind
        self._is_iterable = _iterable_of(kind) is not None

    @cached_property
    def _adapter(self) -> TypeAdapter[Any]:
        element = _iterable_of(self._kind)
        return TypeAdapter(self._kind if element is None else list[element])  # type: ignore[valid-type]

    def schema(self) -> dict[str, Any]:
        """JSON Schema of the result; an empty one where it is not annotated.

        Raises:
            TypeError: JSON has no form for it; the message names the tool.
        """
        if self._kind is Any:
            return {}
        try:
            schema: dict[str, Any] = _as_plain_json(self._adapter.json_schema(mode="serialization"))
            return schema
        except NO_SCHEMA as error:
            raise TypeError(
                f"tool {self._tool!r}: no JSON Schema can be made of its result, {_named(self._kind)} "
                f"({_first_line(error)}); annotate it with what JSON can hold, or map it: ToolAdapter(..., returns=...)"
            ) from error

    def as_json(self, value: Any) -> Any:
        """A result as JSON can hold it, by its annotation.

        Raises:
            TypeError: It cannot be held.
        """
        try:
            if self._kind is Any:
                return to_jsonable_python(value)
            if self._is_iterable and isinstance(value, Iterable):
                value = list(value)  # pydantic would take an iterator for it, and nothing else
            return self._adapter.dump_python(value, mode="json", warnings="error")
        except (*NO_SCHEMA, *_NOT_JSON) as error:
            raise TypeError(
                f"the result of tool {self._tool!r} cannot be given as JSON: {_first_line(error)}"
            ) from error


def _kept(kind: Any) -> Any:
    """An annotation of which a checked value can be iterated over in each attempt of a call, and not in the first only.

    Pydantic makes an iterator of what is given for an Iterable.
    """

    def check(value: Any, handler: Callable[[Any], Any]) -> Any:
        checked = handler(value)
        return list(checked) if isinstance(checked, Iterator) and isinstance(value, Collection) else checked

    return Annotated[kind, WrapValidator(check)] if _takes_iterable(kind) else kind


def _iterable_of(kind: Any) -> Any:
    """The type of the elements where a result is annotated as an Iterable of them, else None."""
    if typing.get_origin(kind) is Annotated:
        return _iterable_of(typing.get_args(kind)[0])
    if Iterable not in (kind, typing.get_origin(kind)):
        return None
    return next(iter(typing.get_args(kind)), Any)


def _takes_iterable(kind: Any) -> bool:
    origin = typing.get_origin(kind)
    if origin in (Annotated, typing.Union, types.UnionType):
        return any(_takes_iterable(one) for one in typing.get_args(kind))
    return Iterable in (kind, origin)


def _named(kind: Any) -> str:
    return kind.__qualname__ if isinstance(kind, type) else str(kind)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].partition(". Set `")[0]
