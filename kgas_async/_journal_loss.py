"""What of a value is lost on its way into a journal and back, also where the value's own ``==`` does not look.

Private attributes of models, fields that are left out of a comparison or of what is written, an attribute that a
dataclass has no field for. Knows values, no codecs.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import fields
from datetime import datetime, time
from functools import cached_property, lru_cache
from typing import Any, Final, cast

from pydantic import BaseModel

from ._digest import digest
from ._errors import shown

__all__ = ["cut", "loss"]

_NOTHING: Final = object()
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
    if value.__class__ in _SCALARS and value == again:
        return None
    try:
        lost = _loss(value, again)
    except RecursionError:  # it contains itself, or is that deep
        return None if _equals(value, again) else ""
    return "" if lost is not None and lost.startswith(" ") else lost


def _loss(value: Any, again: Any) -> str | None:
    """As `loss`, of a part: what is wrong with it, behind the places of what is wrong in it."""
    if isinstance(value, (list, tuple, deque)):
        if _is_kind_of(value, again, "maxlen"):
            return _of_elements(value, again)
    elif isinstance(value, dict):
        if _is_kind_of(value, again, "default_factory"):
            return _of_parts(value, again, _key)
    elif isinstance(value, BaseModel) or (hasattr(value, "__dataclass_fields__") and not isinstance(value, type)):
        if value.__class__ is again.__class__:
            return _of_parts(_attributes(value), _attributes(again), ".{}".format)
    elif _equals(value, again) and not _has_other_fold(value, again):
        return None
    return f" is {cut(again)} and was {cut(value)}"


def _of_elements(value: Sequence[Any], again: Sequence[Any]) -> str | None:
    if len(value) != len(again):
        return f" has {len(again)} elements and had {len(value)}"
    if set(map(type, value)) <= _SCALARS and value == again:
        return None
    for index, (part, other) in enumerate(zip(value, again, strict=True)):
        if not (part.__class__ in _SCALARS and part == other) and (lost := _loss(part, other)) is not None:
            return f"[{index}]{lost}"
    return None


def _of_parts(parts: Mapping[Any, Any], again: Mapping[Any, Any], named: Callable[[Any], str]) -> str | None:
    for name, part in parts.items():
        other = again.get(name, _NOTHING)
        if part.__class__ in _SCALARS and part == other:
            continue
        if other is _NOTHING:
            return f"{named(name)} is not there and was {cut(part)}"
        if (lost := _loss(part, other)) is not None:
            return named(name) + lost
    if len(again) == len(parts):
        return None
    return f"{named(next(name for name in again if name not in parts))} is new"


def _key(key: object) -> str:
    return f"[{cut(key)}]"


def _is_kind_of(value: object, again: Any, attribute: str) -> bool:
    """Whether it has come back as its class, or one that this is derived from and that has as much to it."""
    kind = value.__class__
    if kind is list or kind is dict or kind is tuple:
        return again.__class__ is kind
    if kind is again.__class__:
        return bool(getattr(value, attribute, None) == getattr(again, attribute, None))
    return isinstance(value, again.__class__) and not getattr(value, "__dict__", None)


def _attributes(value: Any) -> Mapping[str, Any]:
    """All that is in a model or a dataclass, but for what it computes and remembers."""
    own: Mapping[str, Any] = getattr(value, "__dict__", {})
    declared, computed = _declared(value.__class__)
    if isinstance(value, BaseModel):
        if own.keys() != declared:
            own = {name: one for name, one in own.items() if name in declared}
        extra, private = value.__pydantic_extra__, value.__pydantic_private__
        return {**own, **(extra or {}), **(private or {})} if extra or private else own
    if own.keys() == declared:
        return own
    kept = {name: one for name, one in own.items() if name not in computed}
    return {**kept, **{name: getattr(value, name) for name in declared if hasattr(value, name)}}


@lru_cache(512)
def _declared(kind: Any) -> tuple[AbstractSet[str], AbstractSet[str]]:
    """The names of a class's fields, and of what its objects compute and remember."""
    if issubclass(kind, BaseModel):
        return kind.model_fields.keys(), frozenset()
    names = {name for base in kind.__mro__ for name, one in vars(base).items() if isinstance(one, cached_property)}
    return frozenset(field.name for field in fields(cast(Any, kind))), names


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
