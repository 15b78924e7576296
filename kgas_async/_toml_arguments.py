"""The arguments that a class or function of the user's takes, and those that a TOML pipeline gives it.

Each mistake is told by itself. Knows signatures; what a reference refers to, `_toml_objects` has looked up.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final

from pydantic import ValidationError

from ._convert import converted
from ._service import Service
from ._signature import hints_of
from ._suggest import nearest
from ._toml_lines import KeyPath
from ._toml_mistakes import Mistakes
from ._toml_words import Places, Reference, as_toml
from ._tool import KGASTool

__all__ = ["LOAD", "Arguments", "references_in"]

LOAD: Final = "$load"  # {"$load" = "module:attribute"} among arguments: the object of that name


def references_in(value: Any) -> list[str]:
    """The names of all references in there."""
    if isinstance(value, Reference):
        return [value.name]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [name for part in parts for name in references_in(part)]


class Arguments:
    """The arguments that something takes, by name."""

    def __init__(self, what: str, function: Any) -> None:
        self._what = what
        # Their __new__ takes anything.
        is_ours = isinstance(function, type) and issubclass(function, (KGASTool, Service))
        kind: Any = function
        called = kind.__init__ if is_ours else function
        try:
            parameters = list(inspect.signature(called).parameters.values())
        except (TypeError, ValueError):  # a builtin, say: it tells by itself
            self.known, self.required, self.takes_any = [], [], True
        else:
            own = parameters[1:] if called is not function else parameters
            named = [one for one in own if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
            self.known = [one.name for one in named]
            self.required = [one.name for one in named if one.default is one.empty]
            self.takes_any = called is not object.__init__ and any(one.kind is one.VAR_KEYWORD for one in own)
        self._hints = hints_of(function)

    def check(
        self,
        arguments: dict[str, Any],
        given: Mapping[str, Any],
        at: KeyPath,
        places: Places,
        mistakes: Mistakes,
        meant: Callable[[Any], str],
        *,
        is_all: bool,
    ) -> None:
        """Tell what it does not take, and make of texts and lists what it does.

        Args:
            arguments: Where references were looked up; without those that could not be.
            given: As they stand in the file.
            at: Where they stand.
            places: Of the file.
            mistakes: Where they are told.
            meant: The mend where a text stands for an object.
            is_all: Whether nothing else is given to it.
        """
        unknown = [] if self.takes_any else [key for key in given if key not in self.known]
        for key in unknown:
            known = f"which takes {', '.join(self.known) or 'none'}"
            said = f"is no argument of {self._what}, {known}{nearest(key, self.known)}"
            mistakes.tell(places.error((*at, key), said))
        missing = [key for key in self.required if key not in given]
        if is_all and missing and not unknown:  # else one of those may be meant
            them = " and ".join(missing)
            add = ", ".join(f"{key} = ..." for key in missing)
            is_missing = "is missing" if len(missing) == 1 else "are missing"
            mistakes.tell(places.error(at, f"{self._what} needs {them}, which {is_missing}; add {add}"))
        for key, value in given.items():
            if key not in self._hints or key not in arguments or references_in(value) or _has_load(value):
                continue
            try:
                arguments[key] = converted(arguments[key], self._hints[key])
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                said = f"{self._what}: {first['msg']}, not {as_toml(first['input'])}{meant(value)}"
                mistakes.tell(places.error((*at, key), said))


def _has_load(value: Any) -> bool:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (isinstance(value, dict) and LOAD in value) or any(map(_has_load, parts))
