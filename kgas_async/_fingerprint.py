"""The fingerprint of a tool's code, by which a changed function is noticed where its version stayed the same.

Of what Python has compiled, so that comments and line numbers do not count; what the function calls does not either.
Numbers and texts that it was made with, as defaults, by `functools.partial` or as a closure, do.
Only fingerprints of one Python version can be compared.
"""

from __future__ import annotations

import dis
import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from hashlib import sha256
from types import CodeType
from typing import Any, Final

from ._digest import digest
from ._tool import KGASTool

__all__ = ["differ", "fingerprint"]

_TAG: Final = sys.implementation.cache_tag or sys.version
_PLAIN: Final = (int, float, str, bytes, bool, complex, type(None))


def fingerprint(tool: KGASTool) -> str:
    """The fingerprint of the function, or the class, that a tool runs; empty where there is no code to be seen."""
    parts = sorted(_code_of(tool._origin()))
    for given in tool._given():
        if isinstance(given, functools.partial):
            parts.append(f"partial={_shown([*given.args, *sorted(given.keywords.items())])};")
        parts += [f"given={_written(one)};" for one in _functions(given)]
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
