"""Making of what a file or a command line has what a function takes, as its annotations say."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from pydantic import ConfigDict, TypeAdapter

from ._signature import hints_of

__all__ = ["as_first_argument", "converted"]


def converted(value: Any, hint: Any) -> Any:
    """As pydantic makes it of what a file has; what has no schema is left to whoever takes it."""
    for config in (ConfigDict(arbitrary_types_allowed=True), None):
        try:
            adapter = TypeAdapter(hint, config=config)
        except Exception:  # noqa: BLE001  (a type without a schema, or one that has a config of its own)
            continue
        made = adapter.validate_python(value)
        return value if type(made).__name__ == "ValidatorIterator" else made  # an Iterable: read but once
    return value


def as_first_argument(function: Callable[..., Any], text: str) -> Any:
    """A text as the first argument of a function; as it is where that has no annotation.

    Raises:
        ValueError: It is nothing that the function takes; pydantic's, with the reason.
    """
    function = inspect.unwrap(function)
    try:
        first = next(iter(inspect.signature(function).parameters.values()), None)
    except (TypeError, ValueError):  # a builtin, say
        return text
    hints = hints_of(function)
    return converted(text, hints[first.name]) if first is not None and first.name in hints else text
