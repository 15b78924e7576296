"""`manager.options(...)`: how one call is made; and the names that calls were given, one open call for each.

A view, since no type checker takes options of ours between a tool's own inputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ._call import Call
from ._errors import CallRejected
from ._session import Session
from ._single import SingleCalls

__all__ = ["CallNames", "CallOptions"]


class CallNames:
    """The open calls that have names of their own: one for each, and those that it replaces until they have ended."""

    def __init__(self) -> None:
        self._open: dict[str, list[Call[Any]]] = {}

    def matching(self, calls_open: Mapping[int, Call[Any]], id_or_name: str) -> list[Call[Any]]:
        """The open call of that id, or those of that name."""
        serial = id_or_name.rpartition("-")[2]
        call = calls_open.get(int(serial)) if serial.isdecimal() else None
        if call is not None and call.id == id_or_name:
            return [call]
        return list(self._open.get(id_or_name, ()))

    def check(self, name: str, parent: Call[Any] | None, *, replace: bool) -> None:
        """
        Raises:
            CallRejected: A call of that name is open, and is not to be replaced, or waits for this very code.
        """
        for call in self._open.get(name, ()):
            if not replace:
                raise CallRejected(
                    f"a call named {name!r} is open already: {call!r}; give this one another name, or replace that "
                    f"one: manager.options(name={name!r}, replace=True)"
                )
            ancestor = parent
            while ancestor is not None:
                if ancestor is call:
                    raise CallRejected(
                        f"this code runs inside {call!r}, which is named {name!r} itself: it cannot be replaced from "
                        f"within"
                    )
                ancestor = ancestor.parent

    def give(self, call: Call[Any], name: str) -> None:
        """Name a call that was admitted; open ones of that name are cancelled, and waited for before it begins."""
        call.extra = {"call_name": name}
        earlier = self._open.setdefault(name, [])
        if earlier:
            call.replaces = tuple(earlier)
            if call.deadline_at is None:
                call.deadline_at = math.inf  # no limit, but no plain call either: those do not wait
            for one in call.replaces:
                one.cancel(f"replaced by call {call.id}")
        earlier.append(call)
        call.on_end = self._ended

    def _ended(self, call: Call[Any]) -> None:
        calls = self._open[call.name]
        calls.remove(call)
        if not calls:
            del self._open[call.name]


class CallOptions(SingleCalls):
    """How one call is made; from `ServiceManager.options`. Its methods are the manager's own."""

    def __init__(self, manager: SingleCalls, names: CallNames, name: str | None, replace: bool) -> None:
        if name is not None and (not isinstance(name, str) or not name):
            raise TypeError(f"options(name=...) is a non-empty string, not {name!r}")
        if replace and name is None:
            raise TypeError("options(replace=True) replaces the open call of a name: say which, name=...")
        self._manager = manager
        self._names = names
        self._name = name
        self._replace = replace

    def __repr__(self) -> str:
        return f"CallOptions(name={self._name!r}, replace={self._replace})"

    def _opened(self) -> Session:
        return self._manager._opened()

    def _admit(self, tool: Any, args: tuple[Any, ...], inputs: dict[str, Any]) -> Call[Any]:
        session = self._opened()
        if self._name is not None:
            self._names.check(self._name, session.parent(), replace=self._replace)
        call = session.admit(tool, args, inputs)
        if self._name is not None:
            self._names.give(call, self._name)
        return call
