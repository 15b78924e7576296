"""A digest of values: equal for equal values of the same types, in every process; nothing is guessed.

Knows Python's own types, dataclasses, enums and pydantic models. Others are refused, since what tells two of their
objects apart is not known here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag
from fractions import Fraction
from hashlib import sha256
from pathlib import PurePath
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel
from pydantic_core import TzInfo

from ._errors import text_of

__all__ = ["digest", "has_digest"]

# Each with what makes a plain one of an object of a subclass, whatever that says of itself.
_BASES: Final[dict[type, Callable[[Any], Any]]] = {
    str: str.__str__, int: int.__int__, float: float.__float__, bytes: bytes.__bytes__, tuple: tuple, list: list,
}  # fmt: skip
_BY_REPR: Final = (complex, date, datetime, time, timedelta, Decimal, Fraction, UUID, PurePath, range)


def digest(value: object, prefix: str = "") -> str:
    """The SHA-256 of a value, in hexadecimal digits.

    Args:
        value: Anything made of Python's own types, dataclasses, enums, paths and pydantic models.
        prefix: Goes into the digest before it.

    Raises:
        TypeError: An object of another class; it names the class.
    """
    parts: list[str] = [prefix, "\n"]
    try:
        _write(value, parts.append)
    except RecursionError:
        raise TypeError(f"a {type(value).__name__} that contains itself has no digest") from None
    return sha256("".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def has_digest(kind: type) -> bool:
    """Whether objects of this class have one, as far as the class can tell."""
    known = (*_BASES, *_BY_REPR, type(None), Enum, BaseModel, bytearray, memoryview, Mapping, AbstractSet)
    return kind is object or issubclass(kind, known) or dataclasses.is_dataclass(kind)


def _write(value: Any, put: Callable[[str], object]) -> None:
    """Write a value so that no two different ones look the same: each text with its length, each list with its end."""
    kind = value.__class__
    if kind is str:
        put(f"s{len(value)}:{value}")
    elif value is None or kind is bool or kind is int or kind is float:
        try:
            put(f"{value!r};")
        except ValueError:  # Python writes no number of more than 4,300 digits in decimal ones
            put(f"x{value:x};")
    elif kind is list or kind is tuple:
        put("[" if kind is list else "(")
        for one in value:
            _write(one, put)
        put("]")
    elif kind is dict:
        _write_mapping(value, put)
    elif kind is bytes:
        put(f"b{len(value)}:{value.hex() if len(value) <= 32 else sha256(value).hexdigest()}")
    else:
        _write_other(value, kind, put)


def _write_mapping(value: Mapping[Any, Any], put: Callable[[str], object]) -> None:
    put("{")
    for entry in sorted(_written((key, one)) for key, one in value.items()):
        put(entry)
    put("}")


def _written(value: object) -> str:
    parts: list[str] = []
    _write(value, parts.append)
    return "".join(parts)


def _write_other(value: Any, kind: type, put: Callable[[str], object]) -> None:
    name = _name_of(kind)
    put(f"<{len(name)}:{name} ")
    try:
        _write_object(value, name, put)
    except (TypeError, RecursionError):
        raise
    except Exception as error:  # a field that nobody has set, a property or a mapping of the user's
        why = f"{type(error).__name__}: {text_of(error)}"
        raise TypeError(f"a {name.removeprefix('builtins.')} has no digest: {why}") from error
    put(">")


def _name_of(kind: type) -> str:
    """A class's name, which is the same on every Python: 3.13 has paths in a module of their own, 3.14 has not."""
    module = kind.__module__
    return f"{'pathlib' if module == 'pathlib._local' else module}.{kind.__qualname__}"


def _with_plain_zone(value: Any) -> Any:
    """A time as it was before pydantic read it, whose own zones look otherwise in each of its versions."""
    if isinstance(value, (datetime, time)) and isinstance(value.tzinfo, TzInfo):
        offset = value.utcoffset()
        assert offset is not None
        return value.replace(tzinfo=timezone(offset) if offset else UTC)
    return value


def _write_object(value: Any, name: str, put: Callable[[str], object]) -> None:
    if isinstance(value, Flag):
        _write((value.name, value.value), put)  # bits that no member has, have no name
    elif isinstance(value, Enum):
        _write(value.name, put)
    elif isinstance(value, BaseModel):
        fields = type(value).model_fields  # what it has computed and remembers is not a part of it
        own = {name: one for name, one in value.__dict__.items() if name in fields}
        _write({**own, **(value.__pydantic_extra__ or {})}, put)
    elif dataclasses.is_dataclass(value):
        _write({field.name: getattr(value, field.name) for field in dataclasses.fields(value)}, put)
    elif isinstance(value, _BY_REPR):
        _write(str(value) if isinstance(value, PurePath) else repr(_with_plain_zone(value)), put)
    elif isinstance(value, (bytearray, memoryview)):
        _write(bytes(value), put)
    elif isinstance(value, Mapping):
        _write_mapping(value, put)
    elif isinstance(value, AbstractSet):
        for entry in sorted(_written(one) for one in value):
            put(entry)
    else:
        for base, plain in _BASES.items():
            if isinstance(value, base):  # a subclass: its class is written already
                _write(plain(value), put)
                break
        else:
            raise TypeError(f"a {name.removeprefix('builtins.')} has no digest")
