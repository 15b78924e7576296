"""What can be told of a legacy object or factory by looking at it: its method, its name, whether it is async."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

from ._suggest import nearest
from ._tool import KGASTool

__all__ = ["describe", "is_async", "method_of", "method_of_class", "name_of", "refuse_unbound"]


def is_async(legacy: object, method: str | None) -> bool:
    if legacy is None:
        return False
    function = method_of(legacy, method)
    while isinstance(function, functools.partial):
        function = function.func
    call = getattr(function, "__call__", None)  # noqa: B004  (the method itself is wanted: it may be async)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def method_of(legacy: object, method: str | None) -> Callable[..., Any]:
    if method is None and callable(legacy) and not hasattr(legacy, "execute"):
        return legacy
    if method is None and inspect.isroutine(legacy):
        return legacy
    name = method or "execute"
    found = getattr(legacy, name, None)
    if not callable(found):
        known = [one for one in dir(legacy) if not one.startswith("_") and callable(getattr(legacy, one, None))]
        raise TypeError(
            f"{type(legacy).__name__} object has no method {name!r}{nearest(name, known)}; say which: "
            f"ToolAdapter(obj, method=...); it has {', '.join(known) or 'none'}"
        )
    return found  # type: ignore[no-any-return]


def method_of_class(tool: str, factory: Any, method: str | None, *, named: bool) -> Callable[..., Any] | None:
    """The unbound method that the factory's objects will have, as a bound one: for its signature only.

    None where nobody knows before the factory runs, and nobody needs to (``named``).
    """
    while isinstance(factory, functools.partial):
        factory = factory.func
    cls = factory if isinstance(factory, type) else getattr(factory, "__annotations__", {}).get("return")
    if isinstance(cls, str):
        cls = getattr(sys.modules.get(getattr(factory, "__module__", "")), cls, None)
    if not isinstance(cls, type):
        if named:
            return None
        raise TypeError(
            f"tool {tool!r}: what {factory!r} builds is not known before it runs; name its inputs: params=[...], "
            f"or annotate the factory's return type"
        )
    method = method or "execute"
    function = getattr(cls, method, None)
    if not callable(function):
        raise TypeError(f"tool {tool!r}: {cls.__name__} has no method {method!r}; say which: ToolAdapter(method=...)")
    if inspect.iscoroutinefunction(function):
        raise TypeError(
            f"tool {tool!r}: {cls.__name__}.{method} is async: pass an object, ToolAdapter({cls.__name__}(...)); "
            f"a factory builds its objects in threads, for sync code"
        )
    static = inspect.getattr_static(cls, method)
    return function if isinstance(static, (staticmethod, classmethod)) else functools.partial(function, None)


def refuse_unbound(legacy: object, method: str | None) -> None:
    """
    Raises:
        TypeError: A class, and a method of its objects: got from the class it would take ``self`` as an input. One that
            the class has without an object (static methods, class methods, callable attributes) is none.
    """
    if not isinstance(legacy, type) or method is None:
        return
    found = getattr(legacy, method, None)
    kept = inspect.getattr_static(legacy, method, None)
    gives_itself = found is kept and hasattr(type(kept), "__get__") and not isinstance(kept, staticmethod)
    if not gives_itself and not isinstance(kept, functools.partialmethod):
        return
    if inspect.isfunction(kept) and _takes_no_object(kept):
        raise TypeError(
            f"ToolAdapter: {method!r} takes no object (its first parameter is not 'self'): this class only keeps it; "
            f"give the function itself, ToolAdapter({legacy.__name__}.{method}), or make it a staticmethod"
        )
    made, factory = _as_written(legacy)
    is_sync = not inspect.iscoroutinefunction(found)  # objects of async code are not built in threads
    raise TypeError(
        f"ToolAdapter: this is the class, and {method!r} is a method of its objects; give an object, "
        f"ToolAdapter({made}, method={method!r})"
        + (f", or ToolAdapter(factory={factory}, method={method!r})" if is_sync else "")
    )


def _takes_no_object(function: Callable[..., Any]) -> bool:
    first = next(iter(inspect.signature(function).parameters.values()), None)
    return first is None or (first.name != "self" and first.kind is not first.VAR_POSITIONAL)


def _as_written(cls: type) -> tuple[str, str]:
    """An object of the class, and what makes one without arguments: with dots where the constructor needs something."""
    name = cls.__name__
    try:
        inspect.signature(cls).bind()
    except (TypeError, ValueError):  # ValueError: it has no signature
        return f"{name}(...)", f"functools.partial({name}, ...)"
    return f"{name}()", name


def name_of(target: object, method: str | None) -> str:
    while isinstance(target, functools.partial):
        target = target.func
    if isinstance(target, KGASTool):
        return target.name
    name = getattr(target, "__name__", None) or type(target).__name__
    if name == "<lambda>":
        raise TypeError("a lambda has no name to be known by in limits and evidence: give name='...'")
    return str(name) if method is None or inspect.isroutine(target) else f"{name}.{method}"


def describe(target: object) -> str:
    while isinstance(target, functools.partial):
        target = target.func
    if isinstance(target, KGASTool):
        return target.description
    return (inspect.getdoc(target) or "").partition("\n")[0]
