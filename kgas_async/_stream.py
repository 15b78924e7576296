"""`OutcomeStream`: what a map or a run gives, one outcome at a time; and what it is entered by."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Final, Generic, NoReturn, TypeVar

from ._crew import Crew
from ._offload import gives_coroutine
from ._outcome import Outcome

__all__ = ["LEFT", "Opening", "OutcomeStream", "Unentered", "check_crew_options", "not_taken"]

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


LEFT: Final = (
    "the block of this map or stream was left, and with it what was still to come; take the outcomes inside the block"
)


class _LeftCrew:
    """What is behind a stream whose block was left: no outcomes."""

    error: Final = True  # whoever takes one comes to `next`
    has_cancelled: Final = True

    async def next(self) -> NoReturn:
        raise RuntimeError(LEFT)


class Unentered:
    """What only a ``with`` can use: all other uses raise a `TypeError` that says so. Type checkers see none of them."""

    def __init__(self, right: str) -> None:
        self._right = right

    if not TYPE_CHECKING:

        def _refuse(self, *arguments: object) -> NoReturn:
            raise TypeError(self._right)

        __iter__ = __aiter__ = __await__ = _refuse


class Opening(Unentered, Generic[T]):
    """What `map` and `stream` give: an async context manager over outcomes, for one use."""

    def __init__(self, what: str, context: AbstractAsyncContextManager[OutcomeStream[T]]) -> None:
        super().__init__(f"write 'async with {what}(...) as outcomes:', and in it 'async for outcome in outcomes:'")
        self._what = what
        self._context: AbstractAsyncContextManager[OutcomeStream[T]] | None = context
        self._entered: tuple[AbstractAsyncContextManager[OutcomeStream[T]], OutcomeStream[T]] | None = None

    def __repr__(self) -> str:
        return f"<{self._what}(...), to be entered by 'async with'>"

    async def __aenter__(self) -> OutcomeStream[T]:
        context, self._context = self._context, None
        if context is None:
            raise RuntimeError(f"it was entered before; call {self._what}(...) again")
        stream = await context.__aenter__()
        self._entered = context, stream
        return stream

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._entered is not None
        context, stream = self._entered
        try:
            await context.__aexit__(exc_type, exc, tb)
        finally:
            stream._crew = _LeftCrew()  # type: ignore[assignment]

    if not TYPE_CHECKING:
        __enter__ = __exit__ = Unentered._refuse


def check_crew_options(on_progress: Callable[..., object] | None, *, ordered: object = True) -> None:
    """
    Raises:
        TypeError: ``on_progress`` is nothing that can be called, or async; ``ordered`` is neither True nor False.
    """
    if not isinstance(ordered, bool):
        raise TypeError(f"ordered= is True or False, not {ordered!r}")
    if on_progress is None:
        return
    if not callable(on_progress):
        raise TypeError(f"on_progress= is a function of the Progress, not {on_progress!r}")
    if gives_coroutine(on_progress):
        raise TypeError(f"on_progress= is a plain function: nobody would await {on_progress!r}")


def not_taken(crew: Crew[T]) -> list[Outcome[T]]:
    """The outcomes that were there when an error came before them, in source order."""
    return [crew._ready[index] for index in sorted(crew._ready)] + list(crew._queue)
