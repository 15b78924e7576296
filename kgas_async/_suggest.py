"""Words for error messages: the nearest known name, an extra that is not installed."""

from __future__ import annotations

import functools
import inspect
import shlex
from collections.abc import Callable, Collection, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, TypeVar, cast

__all__ = ["KEYS_KEPT", "extra_hint", "nearest", "nearest_key", "suggests"]

KEYS_KEPT: Final = 10_000  # of items, to look for the nearest among them

F = TypeVar("F", bound=Callable[..., Any])


def nearest(name: object, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the nearest of the known names, or nothing; also for what is no name at all."""
    if not isinstance(name, str):
        return ""
    found = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {found[0]!r}?" if found else ""


def nearest_key(key: str, known: Iterable[str]) -> str:
    """As `nearest`, of items' keys, which may be paths: one that is the end of the other is near, however short."""
    keys = list(known)
    for one in keys:
        if one.endswith(f"/{key}") or key.endswith(f"/{one}"):
            return f"; did you mean {one!r}?"
    if (hint := nearest(key, keys)) or "/" in key:
        return hint
    by_name = {one.rpartition("/")[2]: one for one in reversed(keys)}  # of those with one name the first
    found = get_close_matches(key, by_name, n=1, cutoff=0.6)
    return f"; did you mean {by_name[found[0]]!r}?" if found else ""


def extra_hint(extra: str) -> str:
    """How to install one of our extras: from the clone that this is, as the README says it, or as a package."""
    root = Path(__file__).resolve().parent.parent
    what = f"'kgas-async[{extra}]'"
    try:
        if 'name = "kgas-async"' in (root / "pyproject.toml").read_text(encoding="utf-8"):
            what = f"-e '.[{extra}]'" if root == Path.cwd() else f"-e {shlex.quote(f'{root}[{extra}]')}"
    except (OSError, ValueError):  # it is installed
        pass
    return f"install the extra `{extra}`: python -m pip install {what}"


def suggests(method: F) -> F:
    """Have a function or method say its arguments, and the nearest, where it is called with others than it has.

    Python's own messages know nothing of near names, and name the private class that has the method. To type checkers
    and `inspect.signature` it stays what it is.
    """
    what = method.__qualname__.removesuffix(".__init__").rpartition(".")[2]
    check = _checker(what, inspect.signature(method))

    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def checked_async(*args: Any, **kwargs: Any) -> Any:
            check(len(args), kwargs)
            return await method(*args, **kwargs)

        return cast(F, checked_async)

    @functools.wraps(method)
    def checked(*args: Any, **kwargs: Any) -> Any:
        check(len(args), kwargs)
        return method(*args, **kwargs)

    return cast(F, checked)


def _checker(what: str, signature: inspect.Signature) -> Callable[[int, Collection[str]], None]:
    """A function of how many arguments were given by position, and of the names of the others."""
    parameters = list(signature.parameters.values())
    own = 1 if parameters[0].name == "self" else 0
    kinds = {one.kind for one in parameters}
    by_name = [one for one in parameters[own:] if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    known = [one.name for one in by_name]
    placed = [one.name for one in by_name if one.kind is one.POSITIONAL_OR_KEYWORD]
    needed = [one.name for one in by_name if one.default is one.empty]
    called = f"{what}({', '.join(needed)}{', ...' if len(parameters) - own > len(needed) else ''})"

    def check(count: int, named: Collection[str]) -> None:
        count -= own
        if not named and len(needed) <= count <= len(placed):
            return
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            for name in named:
                if name not in known:
                    has = ", ".join(known)
                    raise TypeError(f"{what} has no argument {name!r}; it has {has}{nearest(name, known)}")
        if count > len(placed) and inspect.Parameter.VAR_POSITIONAL not in kinds:
            others = f"; the others go by name, as {known[len(placed)]}=..." if len(known) > len(placed) else ""
            raise TypeError(f"{what} takes {', '.join(placed) or 'nothing'} by position, not {count} arguments{others}")
        for index, name in enumerate(placed):
            if index < count and name in named:
                raise TypeError(f"{what} was given {name!r} twice, by position and by name")
            if index >= count and name in needed and name not in named:
                raise TypeError(f"{what} needs {name!r}: {called}")

    return check
