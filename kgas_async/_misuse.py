"""What was given instead of a tool, and the mend."""

from __future__ import annotations

import inspect

from ._errors import shown
from ._pipeline import Pipeline
from ._tool import KGASTool

__all__ = ["no_tool"]


def no_tool(thing: object) -> TypeError:
    """The error for what is no tool. A coroutine is closed, so that nobody is told that it was never awaited."""
    if inspect.iscoroutine(thing):
        name = thing.__name__
        thing.close()
        return TypeError(f"{name}(...) is a coroutine, no tool; pass the tool, then its inputs: execute({name}, ...)")
    if isinstance(thing, type) and issubclass(thing, KGASTool):
        return TypeError(f"this is the class; a call takes an object of it: {thing.__name__}(...)")
    if isinstance(thing, str):
        return TypeError(f"{thing!r} is a name, no tool; tools by name are a Toolbox: execute(toolbox[{thing!r}], ...)")
    if isinstance(thing, Pipeline):
        return TypeError(
            f"{thing.name!r} is a pipeline, no tool; it goes to manager.run(pipeline, items) or manager.stream(...)"
        )
    if callable(thing) or callable(getattr(thing, "execute", None)):
        return TypeError(f"{shown(thing)} is no tool; wrap it: tool(...) or ToolAdapter(...)")
    return TypeError(f"{shown(thing)} is no tool; pass the tool, then its inputs: execute(f, text=...)")
