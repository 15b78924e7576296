"""What a tool must be to run in a worker process, checked where it is declared."""

from __future__ import annotations

import functools
import inspect
import sys
from typing import Any

from ._offload import LegacyFunction
from ._processes import Remote
from ._travel import Travelling, refuse_local

__all__ = ["check_process", "remote"]


def remote(tool: str, function: LegacyFunction, max_memory: int | None) -> Remote:
    """A tool's function as what calls it in a worker process."""
    return Remote(Travelling(tool, function), max_memory)


def check_process(tool: Any, options: dict[str, Any]) -> None:
    """Check a `ToolAdapter` with ``offload="process"``.

    Raises:
        TypeError: With the mend.
    """
    if tool.instances in ("per_thread", "dedicated"):
        raise TypeError(
            f"instances={tool.instances!r} is about threads; with offload='process' each worker process builds one "
            f"object and makes one call at a time: leave it out"
        )
    if tool.max_memory is not None and (not isinstance(tool.max_memory, int) or tool.max_memory <= 0):
        raise TypeError(f"max_memory= is a positive number of bytes, not {tool.max_memory!r}")
    if tool.max_memory is not None and sys.platform != "linux":
        raise TypeError("max_memory= needs Linux")
    legacy = tool._legacy if tool._sync is None else _innermost(tool._sync)._legacy
    if legacy is not None and not _is_function(legacy, tool._method):
        raise TypeError(
            f"tool {tool.name!r}: an object of {type(legacy).__name__} does not travel to worker processes; have each "
            f"build its own: ToolAdapter(factory={type(legacy).__name__}, offload='process')"
        )
    for what, thing in (("the function", legacy), ("the factory", tool._factory)):
        refuse_local(tool.name, what, thing)
    for what in ("returns", "error_when", "inputs"):
        refuse_local(tool.name, f"{what}=", options.get(what))


def _innermost(tool: Any) -> Any:
    while tool._sync is not None:
        tool = tool._sync
    return tool


def _is_function(legacy: Any, method: str | None) -> bool:
    """Whether it is found by a name, and holds no object."""
    while isinstance(legacy, functools.partial):
        legacy = legacy.func
    if method is not None and not inspect.isroutine(legacy):
        return False
    bound_to = getattr(legacy, "__self__", None)
    return isinstance(legacy, type) or (
        inspect.isroutine(legacy) and (bound_to is None or isinstance(bound_to, type) or inspect.ismodule(bound_to))
    )
