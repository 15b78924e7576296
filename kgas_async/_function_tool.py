"""`@tool`: a function as a tool."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Sequence
from pickle import PicklingError
from typing import Any, Generic, ParamSpec, Protocol, Self, TypeVar, overload

from pydantic import BaseModel

from ._adapter import ErrorWhen, Offload, OnCancel, ToolAdapter, refuse_unknown
from ._policy import Policy
from ._tool import KGASTool, refuse_class

__all__ = ["FunctionTool", "tool"]

P = ParamSpec("P")
R = TypeVar("R")
C_co = TypeVar("C_co", covariant=True)

_OF_OBJECTS = ("factory", "method", "instances")  # options of a `ToolAdapter` that say nothing of a function


class FunctionTool(ToolAdapter[P, R], Generic[P, R, C_co]):
    """A function as a tool, made by `@tool`. Calling it is calling the plain function."""

    name = "FunctionTool"
    _plain: Callable[..., Any]

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> C_co:
        """The plain function, without policy and evidence; a coroutine if it is async."""
        result: C_co = self._plain(*args, **kwargs)
        return result

    def __get__(self, instance: object, owner: type | None = None) -> Self:
        if instance is None:
            return self
        raise TypeError(
            f"@tool on the method {self.name!r} does not bind to the object; make the class a KGASTool, or wrap the "
            f"object: ToolAdapter(obj, method={self.name!r})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # As the global that it is: what wraps the function is made anew where it is loaded.
        plain = self._plain
        module, qualname = getattr(plain, "__module__", None), getattr(plain, "__qualname__", None)
        found = _global(module, qualname) if module and qualname else None
        if not isinstance(found, FunctionTool) or found._plain is not plain:
            raise PicklingError(
                f"tool {self.name!r} pickles as the global that it is, and {module}.{qualname} is not it; decorate a "
                f"function at the top level of its module: @tool"
            )
        return (_load_global, (module, qualname, self._using, self.__dict__.get("name")))


def _global(module: str, qualname: str) -> Any:
    found: Any = __import__(module, fromlist=["_"])
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found


def _load_global(module: str, qualname: str, using: Policy | None, name: str | None) -> Any:
    found = _global(module, qualname)
    if not isinstance(found, FunctionTool):
        raise TypeError(f"{module}.{qualname} is no tool any more")
    copy = found.using(name=name)
    copy._using = using
    return copy


class _Decorator(Protocol):
    @overload
    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> FunctionTool[P, R, Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> FunctionTool[P, R, R]: ...


@overload
def tool(function: Callable[P, Coroutine[Any, Any, R]], /) -> FunctionTool[P, R, Coroutine[Any, Any, R]]: ...
@overload
def tool(function: Callable[P, R], /) -> FunctionTool[P, R, R]: ...
@overload
def tool(
    *,
    params: Sequence[str] | None = None,
    inputs: type[BaseModel] | None = None,
    returns: Callable[[Any], Any] | None = None,
    error_when: ErrorWhen | None = None,
    offload: Offload = "thread",
    on_cancel: OnCancel | None = None,
    max_memory: int | None = None,
    name: str | None = None,
    version: str = "0",
    description: str | None = None,
    idempotent: bool = False,
    backend: str = "asyncio",
    policy: Policy | None = None,
) -> _Decorator: ...
def tool(function: Any = None, /, **options: Any) -> Any:
    """Make a function a tool: ``@tool``, or ``@tool(policy=Policy(timeout=5))``.

    An async function runs in the call's task, a sync one in a worker thread. The options are those of `ToolAdapter`
    but ``factory``, ``method`` and ``instances``. Calling the tool object is still calling the plain function.

    Args:
        function: An async or a sync function; without it ``tool(...)`` is a decorator with these options.
        options: As of `ToolAdapter`.

    Returns:
        A `FunctionTool`, typed as the function.

    Raises:
        TypeError: A function without named inputs, or options that do not fit.
    """
    for name in _OF_OBJECTS:
        if name in options:
            raise TypeError(f"@tool takes a function and no {name}=; use ToolAdapter({name}=...)")
    refuse_unknown("tool", options, without=_OF_OBJECTS)
    if function is None:
        return functools.partial(tool, **options)
    refuse_class(function, "tool")
    if isinstance(function, KGASTool):
        raise TypeError(f"{function!r} is a tool already; tool.using(...) gives it another policy")
    if isinstance(function, (staticmethod, classmethod)) or not callable(function):
        raise TypeError(f"@tool takes a function, not {function!r}")
    made: FunctionTool[..., Any, Any] = FunctionTool(function, **options)
    made._plain = function
    functools.update_wrapper(made, function, assigned=("__module__", "__qualname__", "__doc__"), updated=())
    return made
