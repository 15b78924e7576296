"""What the adaptive limits of a call are told of an attempt: how long it ran, without its waits, and how it ended."""

from __future__ import annotations

from typing import Any

from ._call import Call
from ._offload import ReturnedError
from ._tokens import DeadlinePassed, tell_news

__all__ = ["Feedback"]


class Feedback:
    """Of one attempt, which has its tokens and is about to run. A cancelled one says nothing."""

    def __init__(self, call: Call[Any]) -> None:
        self._call = call
        self._clock = call.bound.home.mailbox.time
        self._in_flight = [(limit, limit.borrowed) for limit in call.bound.adaptive]
        self._began = self._clock()

    def ended(self, error: BaseException | None) -> BaseException | None:
        """The attempt has ended, so.

        Returns:
            The error, or what a function of the user's made of it.
        """
        call = self._call
        if isinstance(error, DeadlinePassed):
            return error  # cut off: nobody knows how long it would have run
        cause = error.error if isinstance(error, ReturnedError) else error
        run_s = self._run_s()
        try:
            for limit, in_flight in self._in_flight:
                limit.note_run(run_s, self._clock, in_flight, cause)
                tell_news(call, limit)
        except Exception as broken:  # noqa: BLE001  (the function that AdaptiveLimit(on=...) was given)
            broken.__context__ = error
            return broken
        return error

    def _run_s(self) -> float:
        work = self._call.work
        if work is None or not work.started_ns:
            return self._clock() - self._began
        ended_at = work.ended_at if work.ended_ns else self._clock() + self._call.bound.home.mailbox.offset
        return ended_at - work.started_at
