"""How the values of a phase are kept: as JSON by the tool's annotation, pickled, or as the user says.

A value is kept only if it comes back equal: each is read back before it is written. Knows types and values, no files.
"""

from __future__ import annotations

import functools
import json
import pickle
import types
import typing
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Generator, Iterable, Iterator, Sequence
from inspect import signature
from typing import Annotated, Any, Protocol, runtime_checkable

from pydantic import ConfigDict, TypeAdapter

from ._journal_loss import cut, loss
from ._schema import NO_SCHEMA

__all__ = ["JournalCodec", "codec_for", "elements_of", "named_codec", "read_back"]

_ITERABLES = {
    list, tuple, set, frozenset, Iterable, Iterator, Generator, Sequence, AsyncIterable, AsyncIterator, AsyncGenerator,
}  # fmt: skip
# Values are written with their fields' names, also of fields that have an alias.
_BY_NAME: dict[str, Any] = (
    {"by_name": True, "by_alias": False} if "by_name" in signature(TypeAdapter.validate_json).parameters else {}
)
_CONFIG = ConfigDict(ser_json_inf_nan="constants", ser_json_bytes="base64", val_json_bytes="base64")


@runtime_checkable
class JournalCodec(Protocol):
    """How values become bytes and come back: ``Journal(path, codec=...)``, ``Phase(journal=...)``.

    ``name`` goes into the journal: what was kept under another name is not read by this one.
    """

    @property
    def name(self) -> str:
        """Its name; another one for each format."""
        ...

    def encode(self, value: Any, /) -> bytes:
        """The value as bytes. Raises where it has none."""
        ...

    def decode(self, data: bytes, /) -> Any:
        """The value again, of its ``data``: equal to what it was."""
        ...


class PlainJson:
    """What JSON can hold by itself."""

    name = "json"

    def encode(self, value: Any, /) -> bytes:
        return json.dumps(value, separators=(",", ":")).encode()

    def decode(self, data: bytes, /) -> Any:
        return json.loads(data)


class TypedJson:
    """JSON of an annotated type, by pydantic."""

    name = "json"

    def __init__(self, annotation: Any) -> None:
        # In a tuple, since pydantic takes no configuration for a dataclass or a TypedDict by itself.
        kind: Any = tuple
        self._adapter: TypeAdapter[Any] = TypeAdapter(kind[annotation], config=_CONFIG)

    def encode(self, value: Any, /) -> bytes:
        return self._adapter.dump_json((value,), round_trip=True, warnings="error")[1:-1]

    def decode(self, data: bytes, /) -> Any:
        return self._adapter.validate_json(b"[%b]" % data, **_BY_NAME)[0]


class Pickled:
    """Python's pickle: any object, but reading a journal that somebody else has written runs what is in it."""

    name = "pickle"

    def encode(self, value: Any, /) -> bytes:
        return pickle.dumps(value, protocol=5)

    def decode(self, data: bytes, /) -> Any:
        return pickle.loads(data)


def named_codec(what: str, codec: object) -> JournalCodec | None:
    """The codec that somebody asks for; None for JSON, which depends on the tool's annotation.

    Raises:
        TypeError, ValueError: There is no such codec, with the mend.
    """
    if codec == "json":
        return None
    if codec == "pickle":
        return Pickled()
    if isinstance(codec, str):
        raise ValueError(f"{what}={codec!r} is not known; use 'json', 'pickle' or an object with encode and decode")
    if (
        isinstance(codec, type)
        or not isinstance(codec, JournalCodec)
        or not isinstance(codec.name, str)
        or not codec.name
    ):
        raise TypeError(
            f"{what} is 'json', 'pickle', or an object with a name, encode(value) -> bytes and decode(data), not "
            f"{codec!r}"
        )
    return codec


@functools.lru_cache(256)
def _typed(annotation: Any) -> JournalCodec:
    return TypedJson(annotation)


def codec_for(annotation: Any) -> JournalCodec:
    """JSON for values of this annotation.

    Raises:
        TypeError: Pydantic can make nothing of it.
    """
    if annotation is Any or annotation is None or annotation is object:
        return PlainJson()
    try:
        try:
            return _typed(annotation)
        except TypeError as error:
            if "unhashable" not in str(error):
                raise
            return TypedJson(annotation)
    except NO_SCHEMA as error:
        raise TypeError(f"pydantic knows no JSON for {annotation!r}: {str(error).partition(chr(10))[0]}") from error


def elements_of(annotation: Any) -> Any:
    """The annotation of one element of an annotated iterable, without the exceptions that may stand for one."""
    while typing.get_origin(annotation) is Annotated:
        annotation = typing.get_args(annotation)[0]
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin not in _ITERABLES or not arguments or (origin is tuple and arguments[1:] != (...,)):
        return Any
    return _without_errors(arguments[0])


def _without_errors(annotation: Any) -> Any:
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return annotation
    kept = [
        one for one in typing.get_args(annotation) if not (isinstance(one, type) and issubclass(one, BaseException))
    ]
    return typing.Union[tuple(kept)] if kept else Any  # noqa: UP007  (made of a tuple)


def read_back(codec: JournalCodec, value: Any) -> tuple[bytes, Any]:
    """A value as bytes, and what they give back, which is equal to it.

    Whoever goes on with that is given the same now and by a journal: an aware datetime, say, may come back with another
    class of time zone, and so have another digest.

    Raises:
        TypeError: They do not, or there are none.
    """
    try:
        data = codec.encode(value)
        if data.__class__ is not bytes:
            raise TypeError(f"its codec {codec.name!r} gives {type(data).__name__}, not bytes")
        again = codec.decode(data)
        lost = loss(value, again)
    except Exception as error:
        raise TypeError(f"{type(value).__name__} cannot be kept as {codec.name}: {_first_line(error)}") from error
    if lost is not None:
        where = lost and f", where {lost}"
        raise TypeError(
            f"{type(value).__name__} does not come back from {codec.name} as it was: {cut(value)} gives {cut(again)}"
            f"{where}"
        )
    return data, again


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
