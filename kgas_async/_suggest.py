"""Words for error messages: the nearest known name, an extra that is not installed."""

from __future__ import annotations

import functools
import inspect
import shlex
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, cast

__all__ = ["extra_hint", "nearest", "suggests"]

F = TypeVar("F", bound=Callable[..., Any])


def nearest(name: object, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the nearest of the known names, or nothing; also for what is no name at all."""
    if not isinstance(name, str):
        return ""
    found = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {found[0]!r}?" if found else ""


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
    """Have a method name the nearest of its arguments where it is given one that it does not have.

    To type checkers and `inspect.signature` it stays what it is.
    """
    known = [
        one.name
        for one in list(inspect.signature(method).parameters.values())[1:]
        if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    ]
    what = method.__qualname__.removesuffix(".__init__").rpartition(".")[2]

    def check(given: Iterable[str]) -> None:
        for name in given:
            if name not in known:
                raise TypeError(f"{what} has no argument {name!r}; it has {', '.join(known)}{nearest(name, known)}")

    if inspect.iscoroutinefunction(method):

        @functools.wraps(method)
        async def checked_async(*args: Any, **kwargs: Any) -> Any:
            check(kwargs)
            return await method(*args, **kwargs)

        return cast(F, checked_async)

    @functools.wraps(method)
    def checked(*args: Any, **kwargs: Any) -> Any:
        check(kwargs)
        return method(*args, **kwargs)

    return cast(F, checked)
