"""What of a value is lost on its way into a journal and back, also where the value's own ``==`` does not look.

Private attributes of models, fields that are left out of a comparison or of what is written, an attribute that a
dataclass has no field for. Knows values, no codecs.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime, time
from functools import cached_property
from typing import Any, Final

from pydantic import BaseModel

from ._digest import digest
from ._errors import shown

__all__ = ["cut", "loss"]

_SCALARS: Final = {str, int, float, bool, bytes, type(None)}


def loss(value: Any, again: Any) -> str | None:
    """What has not come back as it was.

    A part may come back as what is annotated, if it is equal to that: an int as a float, a subclass of str as a str.

    Returns:
        In words where it is, below the value, or no words where it is the value; None where nothing is lost.
    """
    is_number = value.__class__ is int and again.__class__ is float
    if value.__class__ is not again.__class__ and not is_number:
        return ""
    try:
        return _loss(value, again, "")
    except RecursionError:  # it contains itself, or is that deep
        return None if _equals(value, again) else ""


def _loss(value: Any, again: Any, place: str) -> str | None:
    if isinstance(value, BaseModel) or (is_dataclass(value) and not isinstance(value, type)):
        if value.__class__ is again.__class__:
            return _of_parts(_attributes(value), _attributes(again), place, ".{}".format)
    elif isinstance(value, (list, tuple, deque)):
        if _is_kind_of(value, again, "maxlen"):
            if _are_scalars(value) and list(value) == list(again):
                return None
            return _of_parts(dict(enumerate(value)), dict(enumerate(again)), place, "[{}]".format)
    elif isinstance(value, dict):
        if _is_kind_of(value, again, "default_factory"):
            return None if _are_scalars(value.values()) and value == again else _of_parts(value, again, place, _key)
    elif _equals(value, again) and not _has_other_fold(value, again):
        return None
    return f"{place} is {cut(again)} and was {cut(value)}" if place else ""


def _of_parts(
    parts: Mapping[Any, Any], again: Mapping[Any, Any], place: str, named: Callable[[Any], str]
) -> str | None:
    for name, part in parts.items():
        if name not in again:
            return f"{place}{named(name)} is not there and was {cut(part)}"
        lost = _loss(part, again[name], place + named(name))
        if lost is not None:
            return lost
    added = next((name for name in again if name not in parts), None)
    return None if added is None else f"{place}{named(added)} is new"


def _key(key: object) -> str:
    return f"[{cut(key)}]"


def _is_kind_of(value: object, again: Any, attribute: str) -> bool:
    """Whether it has come back as its class, or one that this is derived from and that has as much to it."""
    if value.__class__ is again.__class__:
        return bool(getattr(value, attribute, None) == getattr(again, attribute, None))
    return isinstance(value, again.__class__) and not getattr(value, "__dict__", None)


def _are_scalars(values: Iterable[Any]) -> bool:
    return set(map(type, values)) <= _SCALARS


def _attributes(value: Any) -> dict[str, Any]:
    """All that is in a model or a dataclass, but for what it computes and remembers."""
    own = getattr(value, "__dict__", {})
    if isinstance(value, BaseModel):
        known = type(value).model_fields
        found = {name: one for name, one in own.items() if name in known}
        return {**found, **(value.__pydantic_extra__ or {}), **(value.__pydantic_private__ or {})}
    computed = {
        name for kind in type(value).__mro__ for name, one in vars(kind).items() if isinstance(one, cached_property)
    }
    found = {field.name: getattr(value, field.name) for field in fields(value) if hasattr(value, field.name)}
    return {**{name: one for name, one in own.items() if name not in computed}, **found}


def _has_other_fold(value: Any, again: Any) -> bool:
    """Whether it is the other one of two moments that a clock which is put back shows alike."""
    return isinstance(value, (datetime, time)) and value.tzinfo is None and bool(value.fold != again.fold)


def _equals(value: Any, again: Any) -> bool:
    try:
        if value == again:
            return True
    except Exception:  # noqa: BLE001  (a comparison of the user's; arrays give no truth value)
        pass
    try:
        return digest(value) == digest(again)  # NaN is equal to nothing
    except TypeError:
        pass
    try:
        return pickle.dumps(value) == pickle.dumps(again)
    except Exception:  # noqa: BLE001
        return False


def cut(value: object) -> str:
    """How it shows itself, no longer than a line has room for."""
    text = shown(value)
    return text if len(text) <= 80 else text[:77] + "..."
