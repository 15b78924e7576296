"""Steps of a run whose calls wait for tokens, without a worker each that waits for them."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import AsyncIterable, Iterable, Sequence
from contextlib import suppress
from time import perf_counter_ns
from typing import Any

from ._admission import Waiter
from ._call import Call
from ._crew import Crew
from ._employer import Employer
from ._host import Host
from ._keyed import NO_KEY
from ._priority import priority_of
from ._tokens import give_back

__all__ = ["LineCrew", "Place"]


class Place(Waiter):
    """A call's place in the lines of its limits, one after another; whoever is free begins it once it has all tokens.

    It stands in for the call's host, so that the call can be cancelled alone.

    Attributes:
        work: The step that it is the call of.
        held: The tokens that it has.
    """

    __slots__ = ("_began_ns", "_crew", "call", "held", "owned", "work")

    def __init__(self, crew: LineCrew, work: Any, call: Call[Any], held: list[Any]) -> None:
        self.mailbox = crew.home.mailbox
        self.priority = priority_of(call)
        self.key = NO_KEY
        self.granted = self.has_left = self.passed_over = False
        self.owned = True
        self.work = work
        self.call = call
        self.held = held
        self._crew = crew
        self._began_ns = perf_counter_ns()

    def wake(self) -> bool:
        """As of `Waiter`."""
        if self.mailbox.is_running_here():
            self._granted()
            return True
        return self.mailbox.put(self._granted)

    def _granted(self) -> None:
        if self.has_left:  # in between
            return
        self.granted = False
        self.held.append(self.call.bound.limits[len(self.held)])
        self.go_on()

    def go_on(self) -> None:
        """Take the tokens that are free, and join the line for the first that is not."""
        limits, held = self.call.bound.limits, self.held
        while len(held) < len(limits):
            limit = limits[len(held)]
            if not limit.line_up(self):
                return
            held.append(limit)
        self._crew.admitted(self)

    def leave(self) -> None:
        """Out of the line; its tokens go to others."""
        self.has_left = True
        limits, held = self.call.bound.limits, self.held
        if len(held) < len(limits):
            limits[len(held)].step_out(self)
        give_back(held)

    def note_wait(self) -> None:
        """Put on the call how long it stood here."""
        self.call.waited = True
        self.call.wait_concurrency_ns += perf_counter_ns() - self._began_ns

    def cancel(self) -> None:
        """As of a `Host`: whose call it is was asked to stop."""
        self._crew.call_off(self)


class LineCrew(Crew[Any]):
    """Workers that do something else while a call waits for its tokens.

    Args:
        home: The manager.
        source: The items.
        options: As of `Crew`.
    """

    def __init__(self, home: Employer, source: Iterable[Any] | AsyncIterable[Any], **options: Any) -> None:
        super().__init__(home, source, **options)
        self._places: dict[Place, None] = {}  # of calls that wait, or were let in and not begun
        self._let_in: deque[Place] = deque()
        self._is_releasing = False
        self.on_release = self._give_back

    @abstractmethod
    def called_off(self, place: Place) -> None:
        """A call has ended in line."""

    def line_up(self, host: Host, work: Any, call: Call[Any], held: list[Any]) -> None:
        """Have a call wait for the tokens that it does not hold yet, and nobody with it."""
        host.call = None
        call.status = "waiting"
        place = Place(self, work, call, held)
        call._host = place  # type: ignore[assignment]
        self._places[place] = None
        self.last_ended_ns = perf_counter_ns()  # as for an item at fault: nothing was run
        place.go_on()

    def admitted(self, place: Place) -> None:
        """A call has its tokens."""
        self._let_in.append(place)
        if not self._is_releasing:  # else the worker that gives the token back comes for it
            self.wake_one()

    def _give_back(self, held: Sequence[Any]) -> None:
        """A worker gives back the tokens of its call; then it takes what was let in by that."""
        self._is_releasing = True
        try:
            give_back(held)
        finally:
            self._is_releasing = False

    def leave_line(self, host: Host, place: Place) -> None:
        """A worker begins a call that was let in."""
        del self._places[place]
        call = host.call = place.call
        call._host = host
        place.note_wait()

    def call_off(self, place: Place) -> None:
        """End a call that was not begun as cancelled; its tokens go to others."""
        del self._places[place]
        with suppress(ValueError):
            self._let_in.remove(place)
        place.leave()
        place.note_wait()
        call = place.call
        call._host = None
        call.reason = call.reason or self.reason
        call.end("cancelled")
        self.called_off(place)

    def call_all_off(self) -> None:
        """Nothing more is begun: what waits or was let in ends as cancelled, so that its tokens do not lie idle."""
        for place in list(self._places):
            self.call_off(place)

    def room(self) -> int:
        """How many more may be worked at; a call in line counts as if a worker waited with it."""
        return self.in_flight - len(self._places) - self._workers + len(self._parked)

    def _is_crowded(self) -> bool:
        """Whether who asks may only begin what was let in: there is a worker left for each in line, and no more.

        Whatever else it did, a batch too, could wait for a token that one in line is given and nobody comes for.
        """
        return bool(self._places) and self.room() < 0
