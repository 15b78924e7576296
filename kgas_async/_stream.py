"""`OutcomeStream`: what a map or a run gives, one outcome at a time."""

from __future__ import annotations

from typing import Generic, TypeVar

from ._crew import Crew
from ._outcome import Outcome

__all__ = ["OutcomeStream", "not_taken"]

T = TypeVar("T")


class OutcomeStream(Generic[T]):
    """Outcomes as an async iterator; its context manager owns what makes them."""

    def __init__(self, crew: Crew[T]) -> None:
        self._crew = crew

    def __aiter__(self) -> OutcomeStream[T]:
        return self

    async def __anext__(self) -> Outcome[T]:
        """The next outcome.

        Raises:
            PipelineError: The source raised, or too many failed, after the outcomes until then.
            CallError: The first failure, with ``on_error="raise"``.

        Cancellation: Takes nothing; the outcomes stay.
        """
        crew = self._crew
        if crew.error is None and not crew.has_cancelled and (outcome := crew.next_ready()) is not None:
            return outcome
        return await crew.next()

    async def take_some(self, most: int) -> list[Outcome[T]]:
        """The next outcome and those that are ready behind it; none after the last."""
        try:
            some = [await self._crew.next()]
        except StopAsyncIteration:
            return []
        while len(some) < most and (outcome := self._crew.next_ready()) is not None:
            some.append(outcome)
        return some


def not_taken(crew: Crew[T]) -> list[Outcome[T]]:
    """The outcomes that were there when an error came before them, in source order."""
    return [crew._ready[index] for index in sorted(crew._ready)] + list(crew._queue)
