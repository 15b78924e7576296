"""Whether a value of one annotated type can ever be an input of another; says yes when in doubt."""

from __future__ import annotations

import collections
import collections.abc
import types
import typing
from typing import Any

from typing_extensions import is_typeddict  # knows its own TypedDict too, the one that pydantic takes below Python 3.12

from ._outcome import Outcome

__all__ = [
    "bare",
    "cannot_expand",
    "cannot_fit",
    "element_type",
    "is_made_whole",
    "list_of",
    "outcome_type",
    "plain_class",
    "stream_type",
]

_CONTAINERS = (list, tuple, set, frozenset, dict)
_SCALARS = (str, bytes, int, float, bool, complex)


def bare(kind: Any) -> Any:
    """An annotation without what says nothing of its shape: ``Annotated``, a ``type`` alias, ``| None``."""
    while True:
        if typing.get_origin(kind) is typing.Annotated:
            kind = typing.get_args(kind)[0]
        elif hasattr(kind, "__value__"):
            kind = kind.__value__
        elif typing.get_origin(kind) in (typing.Union, types.UnionType):
            members = [one for one in typing.get_args(kind) if one is not type(None)]
            if len(members) != 1:
                return kind
            kind = members[0]
        else:
            return kind


def is_made_whole(kind: Any) -> bool:
    """Whether checking a value against this annotation runs through all of it."""
    kind = bare(kind)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return any(is_made_whole(one) for one in typing.get_args(kind))
    origin = typing.get_origin(kind) or kind
    return isinstance(origin, type) and issubclass(origin, (list, tuple, set, frozenset, collections.deque))


def list_of(kind: Any) -> Any:
    """``list[kind]``."""
    return list if kind is Any else types.GenericAlias(list, (kind,))


def element_type(kind: Any) -> Any:
    """What iterating over a value of this annotation gives; `Any` where it does not say."""
    args = typing.get_args(kind)
    origin = typing.get_origin(kind)
    iterables = (collections.abc.Iterable, collections.abc.AsyncIterable)
    if args and isinstance(origin, type) and issubclass(origin, iterables) and not issubclass(origin, (tuple, dict)):
        return args[0]
    if origin is tuple and len(args) == 2 and args[1] is ...:
        return args[0]
    return str if kind is str else Any


def stream_type(kind: Any) -> Any:
    """What an async iterable of this annotation gives; None where it is no async iterable."""
    origin = typing.get_origin(kind) or kind
    if origin not in (collections.abc.AsyncIterable, collections.abc.AsyncIterator):
        return None
    return next(iter(typing.get_args(kind)), Any)


def outcome_type(kind: Any) -> Any:
    """The type of the value of an `Outcome` of this annotation; None where it is no outcome."""
    if (typing.get_origin(kind) or kind) is not Outcome:
        return None
    return next(iter(typing.get_args(kind)), Any)


def cannot_expand(kind: Any) -> bool:
    """Whether no value of this annotation can be taken apart into elements: strings and mappings are not either."""
    given = plain_class(kind)
    if given is None:
        return is_typeddict(kind)
    if issubclass(given, (str, bytes, collections.abc.Mapping)):
        return True
    iterables = (collections.abc.Iterable, collections.abc.AsyncIterable)
    return issubclass(given, (*_SCALARS, type(None))) and not issubclass(given, iterables)


def plain_class(kind: Any) -> type | None:
    """The class that values of this annotation are instances of, or None where that is not one class."""
    if kind is None or kind is type(None):
        return type(None)
    origin = typing.get_origin(kind) or kind
    if (
        not isinstance(origin, type)
        or origin in (object, types.UnionType)
        or is_typeddict(origin)
        or hasattr(origin, "__supertype__")
    ):
        return None
    if getattr(origin, "_is_protocol", False) or origin.__module__ in ("typing", "collections.abc"):
        return None
    return origin


def cannot_fit(source: Any, target: Any) -> bool:
    """Whether no value of type ``source`` can be given where ``target`` is wanted, coercion included."""
    given, wanted = plain_class(source), plain_class(target)
    if given is None or wanted is None or issubclass(given, wanted) or issubclass(wanted, given):
        return False
    if given is type(None) or wanted is type(None):
        return True
    if issubclass(given, _SCALARS) and issubclass(wanted, _CONTAINERS):
        return True
    # Two containers or two scalars may be coerced into each other, and what pydantic can make of a foreign class
    # is not ours to know.
    return issubclass(given, _CONTAINERS) and issubclass(wanted, _SCALARS)
