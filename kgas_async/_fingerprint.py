"""The fingerprint of a tool's code, by which a changed function is noticed where its version stayed the same.

Of what Python has compiled, so that comments and line numbers do not count; what the function calls does not either.
Only fingerprints of one Python version can be compared.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from types import CodeType
from typing import Any, Final

from ._tool import KGASTool

__all__ = ["differ", "fingerprint"]

_TAG: Final = sys.implementation.cache_tag or sys.version
_PLAIN: Final = (int, float, str, bytes, bool, complex, type(None), tuple)


def fingerprint(tool: KGASTool) -> str:
    """The fingerprint of the function, or the class, that a tool runs; empty where there is no code to be seen."""
    parts = sorted(_code_of(tool._origin()))
    return f"{_TAG}:{sha256(''.join(parts).encode()).hexdigest()[:16]}" if parts else ""


def differ(one: str, other: str) -> bool:
    """Whether these are of different code; not where nobody can tell."""
    tag, _, code = one.partition(":")
    other_tag, _, other_code = other.partition(":")
    return tag == other_tag and code != other_code


def _code_of(origin: Any) -> Iterator[str]:
    if isinstance(origin, type):
        for kind in origin.__mro__:
            if kind is object or kind.__module__.partition(".")[0] == __package__:
                continue
            for name, member in vars(kind).items():
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
    member = inspect.unwrap(getattr(member, "__func__", member)) if callable(member) else member
    return [member] if hasattr(member, "__code__") else []


def _written(function: Any) -> str:
    given = [*(function.__defaults__ or ()), *sorted((function.__kwdefaults__ or {}).items())]
    defaults = [repr(one) for one in given if isinstance(one, _PLAIN)]
    return f"{_of_code(function.__code__, function.__doc__)}{defaults}"


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
