"""Where a coroutine is suspended: the file and line of its innermost awaits.

Walks from a coroutine to what it awaits, through generators and asynchronous generators. It knows nothing of event
loops and tasks, and cannot look into awaitables written in C or as classes.
"""

from __future__ import annotations

import gc
import inspect
from pathlib import Path
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType
from typing import Any, TypeAlias

__all__ = ["frames_of", "is_library", "suspended_at"]

_Walkable: TypeAlias = "CoroutineType[Any, Any, Any] | GeneratorType[Any, Any, Any] | AsyncGeneratorType[Any, Any]"
_LIBRARIES = ("anyio", "asyncio", "contextlib", "trio", "types")
_TRIO_TRAPS = "trio._core._traps"


def frames_of(awaitable: object) -> list[FrameType]:
    """The suspended frames of a coroutine, the outermost first; empty if it has ended or has not begun to wait."""
    frames = []
    item: object = awaitable
    while item is not None:
        found = _as_walkable(item)
        if found is None:
            break
        frame, item = _frame_and_awaited(found)
        if frame is not None:
            frames.append(frame)
    return frames


def suspended_at(awaitable: object) -> str:
    """Say where a coroutine is suspended, as ``file:line in function``.

    Of the frames it names the innermost that is no event loop's, and the innermost of all where that is another.
    """
    frames = frames_of(awaitable)
    if not frames:
        return "an unknown place"
    while len(frames) > 1 and frames[-1].f_globals.get("__name__") == _TRIO_TRAPS:
        frames.pop()  # through which every wait of trio's goes
    own = [frame for frame in frames if not is_library(frame)] or frames
    place = _describe(own[-1])
    return place if own[-1] is frames[-1] else f"{place}, awaiting {_describe(frames[-1])}"


def is_library(frame: FrameType) -> bool:
    """Whether a frame runs code of an event loop's, or of what lies between."""
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] in _LIBRARIES


def _describe(frame: FrameType) -> str:
    path = Path(frame.f_code.co_filename)
    shown = "/".join(path.parts[-3:]) if is_library(frame) else path
    return f"{shown}:{frame.f_lineno} in {frame.f_code.co_name}"


def _frame_and_awaited(item: _Walkable) -> tuple[FrameType | None, object]:
    if isinstance(item, CoroutineType):
        return item.cr_frame, item.cr_await
    if isinstance(item, AsyncGeneratorType):
        return item.ag_frame, item.ag_await
    return item.gi_frame, item.gi_yieldfrom


def _as_walkable(item: object) -> _Walkable | None:
    if isinstance(item, CoroutineType | GeneratorType | AsyncGeneratorType):
        return item
    if not inspect.isawaitable(item) and not hasattr(item, "send"):
        return None
    # What asend() and coroutine.__await__() give tells nobody what it wraps, but the garbage collector.
    for referent in gc.get_referents(item):
        if isinstance(referent, CoroutineType | AsyncGeneratorType):
            return referent
    return None
