"""`manager.options(...)`: how one call is made.

A view, since no type checker takes options of ours between a tool's own inputs.
"""

from __future__ import annotations

from typing import Any

from ._book import CallBook
from ._call import Call
from ._limits import check_text
from ._priority import check_priority
from ._session import Session
from ._single import SingleCalls

__all__ = ["CallOptions"]


class CallOptions(SingleCalls):
    """How one call is made; from `ServiceManager.options`. Its methods are the manager's own."""

    def __init__(self, manager: SingleCalls, name: str | None, replace: bool, priority: int | None = None) -> None:
        if name is not None:
            check_text("options(name=...)", name)
        if not isinstance(replace, bool):
            raise TypeError(f"options(replace=...) is True or False, not {replace!r}")
        if replace and name is None:
            raise TypeError("options(replace=True) replaces the open call of a name: say which, name=...")
        self._manager = manager
        self._name = name
        self._replace = replace
        self._priority = None if priority is None else check_priority("options(priority)", priority)

    def __repr__(self) -> str:
        return f"CallOptions(name={self._name!r}, replace={self._replace}, priority={self._priority})"

    def _opened(self) -> Session:
        return self._manager._opened()

    @property
    def _book(self) -> CallBook:
        return self._manager._book

    def _admit(self, session: Session, tool: Any, args: tuple[Any, ...], inputs: dict[str, Any]) -> Call[Any]:
        if self._name is not None:
            self._book.check(self._name, session.parent(), replace=self._replace)
        call = session.admit(tool, args, inputs)
        if self._name is not None:
            self._book.give(call, self._name)
        call.given_priority = self._priority
        return call
