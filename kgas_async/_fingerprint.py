"""The fingerprint of a tool: of its code, and of what it was made with, where its version stayed the same.

Of what Python has compiled, so that comments and line numbers do not count; what the function calls does not either.
Numbers and texts that it was made with, as defaults, by `functools.partial`, as a closure or in its class, do; only
fingerprints of one Python version can be compared in that. In a part of its own, which all versions share, are the
arguments of its constructor, and what an object had in its attributes when it was wrapped.
"""

from __future__ import annotations

import dis
import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import is_dataclass
from hashlib import sha256
from itertools import chain
from types import CodeType, FunctionType, MethodType
from typing import Any, Final

from pydantic import BaseModel

from ._digest import digest, has_digest
from ._service import Service
from ._tool import KGASTool

__all__ = ["attributes_of", "difference", "fingerprint"]

_TAG: Final = sys.implementation.cache_tag or sys.version
MANY: Final = 10_000  # values, and kilobytes, in an argument above which it is left out
_NO_CODE: Final = ("name", "version", "description", "backend", "idempotent", "policy", "requires")
_ROUTINES: Final = (FunctionType, MethodType)
_PLAIN: Final = (int, float, str, bytes, bool, complex, type(None))


def fingerprint(tool: KGASTool) -> str:
    """The fingerprint of a tool: Python's version, its code (nothing where none can be seen), what it was made with.

    As it is when it is first asked for: a tool may change what it was given.
    """
    known: str | None = tool.__dict__.get("_fingerprint")
    if known is None:
        code, made = sorted(_code_of(tool._origin())), []
        for given in tool._given():
            if isinstance(given, functools.partial):
                code.append(f"partial={_partial(given)};")
            code += [f"given={_written(one)};" for one in _functions(given)]
        for name, given in sorted(tool._made_with().items()):
            if isinstance(given, KGASTool):
                made.append(f"{name}={fingerprint(given).partition(':')[2]};")
            elif isinstance(given, (*_ROUTINES, functools.partial)) and (functions := _functions(given)):
                code += [f"{name}={_written(one)}{_partial(given)};" for one in functions]
            else:
                made.append(f"{name}={_digest_of(given)};")
        known = tool.__dict__["_fingerprint"] = f"{_TAG}:{_hash(code) if code else ''}:{_hash(made)}"
    return known


def _partial(given: Any) -> list[str]:
    return _shown([*given.args, *sorted(given.keywords.items())]) if isinstance(given, functools.partial) else []


def _hash(parts: list[str]) -> str:
    return sha256("".join(parts).encode()).hexdigest()[:16]


def difference(one: str, other: str) -> str:
    """In what these differ: its ``code``, the ``arguments`` that it was made with; nothing where nobody can tell."""
    tag, code, made = f"{one}::".split(":")[:3]
    other_tag, other_code, other_made = f"{other}::".split(":")[:3]
    if tag == other_tag and code != other_code and code and other_code:
        return "code"
    return "arguments" if made != other_made and made and other_made else ""


def attributes_of(thing: object) -> dict[str, str]:
    """What an object, or that of a bound method, has in its attributes now, as far as there are digests: by name."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    if inspect.ismethod(thing):
        thing = thing.__self__
    if isinstance(thing, (type, KGASTool)) or inspect.isroutine(thing):
        return {}
    try:
        own = object.__getattribute__(thing, "__dict__")  # what stands for something elsewhere is not asked for it
    except AttributeError:
        return {}
    found = {name: _digest_of(one) for name, one in own.items()}
    return {name: one for name, one in found.items() if one}


def _digest_of(value: object) -> str:
    """Of a value that has a digest, and is not too big for one here, and no service; else nothing."""
    if isinstance(value, type) or inspect.isroutine(value):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, Service) or hasattr(type(value), "__aenter__") or not has_digest(type(value)):
        return ""
    try:
        return digest(value) if _size(value, 0) <= MANY else ""
    except (TypeError, RecursionError):
        return ""


def _size(value: Any, size: int) -> int:
    """How many values are in it, on top of so many; counted as far as there are not too many."""
    size += 1 + len(value) // 1024 if isinstance(value, (str, bytes, bytearray)) else 1
    parts: Iterable[Any] = ()
    if isinstance(value, dict):
        parts = chain.from_iterable(value.items())
    elif isinstance(value, (list, tuple, set, frozenset)):
        parts = value
    elif isinstance(value, (Mapping, AbstractSet)):
        return size + MANY  # it may read them from somewhere
    elif isinstance(value, BaseModel) or (is_dataclass(value) and not isinstance(value, type)):
        parts = getattr(value, "__dict__", {}).values()
    for part in parts:
        if size > MANY:
            break
        size = _size(part, size)
    return size


def _code_of(origin: Any) -> Iterator[str]:
    if isinstance(origin, type):
        for kind in origin.__mro__:
            if kind is object or kind.__module__.partition(".")[0] == __package__:
                continue
            for name, member in vars(kind).items():
                if _is_plain(member) and not name.startswith("__") and name not in _NO_CODE:
                    yield f"{kind.__qualname__}.{name}={digest(member)};"
                for function in _functions(member):
                    yield f"{kind.__qualname__}.{name}={_written(function)};"
    else:
        for function in _functions(origin):
            yield _written(function)


def _functions(member: Any) -> list[Callable[..., Any]]:
    if isinstance(member, (staticmethod, classmethod)):
        member = member.__func__
    if isinstance(member, property):
        return [one for one in (member.fget, member.fset, member.fdel) if one is not None]
    if isinstance(member, functools.partial):
        member = member.func
    try:
        member = inspect.unwrap(getattr(member, "__func__", member)) if callable(member) else member
    except ValueError:  # it has whatever attribute is asked for, as what stands for something elsewhere
        return []
    return [member] if isinstance(getattr(member, "__code__", None), CodeType) else []


def _written(function: Any) -> str:
    given = [*(function.__defaults__ or ()), *sorted((function.__kwdefaults__ or {}).items())]
    return f"{_of_code(function.__code__, function.__doc__)}{_shown(given)}{_shown(_enclosed(function))}"


def _enclosed(function: Any) -> Iterator[Any]:
    """What it has of the function around it, but for what it sets itself, such as a counter."""
    code = function.__code__
    own = {step.argval for step in dis.get_instructions(code) if step.opname == "STORE_DEREF"}
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=False):
        with suppress(ValueError):  # nothing has been put there yet
            if name not in own:
                yield (name, cell.cell_contents)


def _shown(values: Iterable[Any]) -> list[str]:
    """Those that look the same in each process."""
    return [digest(one) for one in values if _is_plain(one)]


def _is_plain(value: Any) -> bool:
    return type(value) in _PLAIN or (type(value) is tuple and all(map(_is_plain, value)))


def _of_code(code: CodeType, doc: str | None = None) -> str:
    constants = []
    for place, constant in enumerate(code.co_consts):
        if isinstance(constant, CodeType):
            constants.append(_of_code(constant))
        elif isinstance(constant, frozenset):
            constants.append(repr(sorted(map(repr, constant))))
        elif place or constant != doc:
            constants.append(repr(constant))
    return f"{code.co_code.hex()}{constants}{code.co_names}{code.co_varnames}{code.co_freevars}"
