"""The calls of a session by name, and those that were submitted for a while after their end.

Bounded, however many calls a session makes.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

from ._call import Call
from ._errors import CallRejected, shown

__all__ = ["ENDED_KEPT", "CallBook"]

ENDED_KEPT: Final = 256  # submitted calls that have ended, with their results
LONGEST_SERIAL: Final = 30  # digits


class CallBook:
    """What a session knows of calls beyond the register of the open ones.

    Args:
        calls_open: That register.
    """

    def __init__(self, calls_open: Mapping[int, Call[Any]]) -> None:
        self._calls_open = calls_open
        self._open: dict[str, list[Call[Any]]] = {}  # by name: the latest, last, and those that it replaces
        self._ended: OrderedDict[int, Call[Any]] = OrderedDict()  # by number, the latest last

    def open_calls(self, id_or_name: str) -> list[Call[Any]]:
        """The open call of that id, or those of that name.

        Raises:
            TypeError: It is no string.
        """
        if not isinstance(id_or_name, str):
            mend = "; a call itself has cancel(), wait() and result()" if isinstance(id_or_name, Call) else ""
            raise TypeError(f"a call is found by its id or its name, a string, not by {shown(id_or_name)}{mend}")
        call = self._with_id(self._calls_open, id_or_name)
        return list(self._open.get(id_or_name, ())) if call is None else [call]

    def find(self, id_or_name: str) -> Call[Any] | None:
        """The call of that id, open or kept; or the latest of that name."""
        found = self.open_calls(id_or_name)
        if found:
            return found[-1]
        kept = self._with_id(self._ended, id_or_name)
        if kept is None:
            latest_first = reversed(list(self._ended.values()))  # a snapshot: other threads may look, too
            kept = next((call for call in latest_first if call.given_name == id_or_name), None)
        return kept

    def _with_id(self, calls: Mapping[int, Call[Any]], id_or_name: str) -> Call[Any] | None:
        serial = id_or_name.rpartition("-")[2]
        is_number = serial.isdecimal() and len(serial) <= LONGEST_SERIAL  # whoever asks may have made it up
        call = calls.get(int(serial)) if is_number else None
        return call if call is not None and call.id == id_or_name else None

    def keep(self, call: Call[Any]) -> None:
        """Have a submitted call be found for a while after its end."""
        call.on_end = self._submitted_ended if call.on_end is None else self._submitted_and_named_ended

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
                if ancestor.serial == call.serial:  # it may be one of two attempts at once
                    raise CallRejected(
                        f"this code runs inside {call!r}, which is named {name!r} itself: it cannot be replaced from "
                        f"within"
                    )
                ancestor = ancestor.parent

    def give(self, call: Call[Any], name: str) -> None:
        """Name a call that was admitted; open ones of that name are cancelled, and waited for before it begins."""
        call.given_name = name
        earlier = self._open.setdefault(name, [])
        if earlier:
            call.replaces = tuple(earlier)
            if call.deadline_at is None:
                call.deadline_at = math.inf  # no limit, but no plain call either: those do not wait
            for one in call.replaces:
                one.cancel(f"replaced by call {call.id}")
        earlier.append(call)
        call.on_end = self._named_ended

    def _named_ended(self, call: Call[Any]) -> None:
        calls = self._open[call.name]
        calls.remove(call)
        if not calls:
            del self._open[call.name]

    def _submitted_ended(self, call: Call[Any]) -> None:
        ended = self._ended
        ended[call.serial] = call
        if len(ended) > ENDED_KEPT:
            ended.popitem(last=False)

    def _submitted_and_named_ended(self, call: Call[Any]) -> None:
        self._named_ended(call)
        self._submitted_ended(call)
