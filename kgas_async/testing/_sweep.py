"""The cancellation sweep: cancels a coroutine at each of its suspensions in turn and has the world checked after each.

It steps the coroutine itself, in the current task, and strikes just before it hands a suspension on to the event loop.
It knows the suspensions of this coroutine only, not those of tasks that it starts, and nothing of tools and managers.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from inspect import isawaitable
from itertools import count, takewhile
from types import FrameType
from typing import Any, Final, Literal, TypeAlias, get_args

import anyio
import sniffio
from trio.lowlevel import Abort

from kgas_async.testing._suspended import frames_of, is_library, suspended_at

__all__ = ["SweepMode", "sweep"]

SweepMode: TypeAlias = Literal["scope", "native", "error"]
_Make: TypeAlias = Callable[[], Awaitable[object]]
_Check: TypeAlias = Callable[[int], object]
_REASON: Final = "kgas_async sweep"
_GROUP_EXITS: Final = ("anyio._backends._asyncio", "asyncio.taskgroups")
_TURNS: Final = ("checkpoint", "sleep")


async def sweep(
    make: _Make,
    *,
    check: _Check | None = None,
    mode: SweepMode = "scope",
    error: Callable[[], BaseException] | None = None,
    only: int | None = None,
    max_points: int = 10_000,
    timeout_s: float | None = None,
) -> int:
    """Cancel what ``make()`` gives at each of its suspensions in turn, and have ``check`` look at what is left.

    Point 0 is the first place where the coroutine waits. Each takes a fresh coroutine; the last run of all, in which
    no point is left, ends undisturbed. Context managers are swept by a function that enters and leaves them::

        async def use() -> None:
            async with limit:
                await checkpoint()

        assert await sweep(use, check=nothing_held) > 0

    Args:
        make: Called without arguments for each point; gives an awaitable. An async function will do.
        check: Called (and awaited if need be) after each run, outside of any cancellation, with the number of the point
            (after the undisturbed run, the number of points). Raises if the world is not clean.
        mode: ``"scope"``: an AnyIO cancel scope around it is cancelled. ``"native"``: it runs in a task of its own and
            gets ``task.cancel()`` (asyncio and uvloop only). ``"error"``: the wait ends with an exception, except where
            only a cancellation can come out: a lock's own checkpoint, an asyncio task group waiting for its children.
        error: Makes the exception of mode ``"error"``, a class or a function; by default a ``RuntimeError``.
        only: Run this one point, to look into a failure.
        max_points: More suspensions than these are an error.
        timeout_s: What each run may take, in the loop's time; None is no limit. It cannot end a wait under a shield.

    Returns:
        The number of points that were run: 0 if the coroutine never waits.

    Raises:
        AssertionError: The coroutine swallowed the cancellation (it was thrown in, and a value came out), took too
            long, or has too many points. Says which point, and where the coroutine was suspended.
        BaseException: What ``check`` raised, or the coroutine on its own account; a note says which point, and where.

    Cancellation: Cancels the run in progress and waits for its end.
    """
    _refuse_misuse(mode, error)
    for point in range(max_points + 1) if only is None else [only]:
        run = _RUNS[mode](point, error)
        await run.finish(make, check, timeout_s)
        if not run.reached or only is not None:
            return _count(run, only)
    raise AssertionError(f"still not at the end after {max_points} points: is it endless? Else raise max_points")


def _count(run: _Run, only: int | None) -> int:
    if only is None:
        return run.point
    if not run.reached:
        raise AssertionError(f"there is no point {only}: the coroutine was not suspended so often")
    return 1


def _refuse_misuse(mode: str, error: Callable[[], BaseException] | None) -> None:
    if mode not in get_args(SweepMode):
        raise ValueError(f"no mode {mode!r}: use one of {', '.join(get_args(SweepMode))}")
    if error is not None and mode != "error":
        raise ValueError(f'error= belongs to mode="error", not to mode={mode!r}')
    if mode == "native" and sniffio.current_async_library() != "asyncio":
        raise RuntimeError('native cancellation is asyncio\'s own: on trio, sweep with mode="scope"')


class _Run:
    """One run of the coroutine, struck at one of its suspensions. This one by the enclosing cancel scope."""

    mode: SweepMode = "scope"

    def __init__(self, point: int, error: Callable[[], BaseException] | None) -> None:
        self.point = point
        self.reached = False
        self.returned = False
        self.cancelled = False  # it ended with the cancellation that is ours
        self.error: BaseException = error() if error is not None else RuntimeError(f"thrown by sweep at point {point}")
        self._delivered = False
        self._place = ""
        self._last_place = ""
        self._late: BaseException | None = None  # replaces the result of the wait at the point
        self._strike: Callable[[], object] = lambda: None
        self._reason = f"{_REASON} {id(self):x}, point {point}"  # sweeps may be nested

    async def finish(self, make: _Make, check: _Check | None, timeout_s: float | None) -> None:
        """Run to the end, judge how it ended, and have the world checked."""
        with anyio.move_on_after(timeout_s) as limit:
            try:
                await self.run(_coroutine(make))
            except BaseException as error:
                if not self.is_expected(error):
                    error.add_note(self.describe())
                    raise
        if limit.cancelled_caught:
            raise AssertionError(f"not ended within {timeout_s} s, waits at {self._last_place}; {self.describe()}")
        if self.returned and self._delivered:
            raise AssertionError(f"swallowed its cancellation: returned as if nothing was; {self.describe()}")
        if not self.returned and self.cancelled and not self.reached:
            raise AssertionError(f"ended as cancelled, which nobody did; {self.describe()}")
        if check is None:
            return
        try:
            verdict = check(self.point)
            if isawaitable(verdict):
                await verdict
        except BaseException as error:
            error.add_note(f"check({self.point}) failed; {self.describe()}")
            raise

    async def run(self, coroutine: Coroutine[Any, Any, object]) -> None:
        with anyio.CancelScope() as scope:
            self._strike = lambda: scope.cancel(self._reason)
            await self._drive(coroutine)
        self.cancelled = scope.cancelled_caught

    def is_expected(self, error: BaseException) -> bool:
        """Whether the coroutine may end with this, given what was done to it."""
        return False

    def describe(self) -> str:
        """The point, its place, and how to run it alone."""
        if not self.reached:
            return f"sweep: mode {self.mode!r}, the undisturbed run, after {self.point} points"
        return (
            f"sweep: mode {self.mode!r}, point {self.point}, suspended at {self._place};"
            f" run it alone with sweep(..., mode={self.mode!r}, only={self.point})"
        )

    @types.coroutine
    def _drive(self, coroutine: Coroutine[Any, Any, object]) -> Generator[Any, Any, None]:
        resume: Callable[[Any], Any] = coroutine.send
        argument: Any = None
        for suspension in count():
            try:
                step = resume(argument)
            except StopIteration:
                self.returned = True
                return
            if suspension == self.point:
                self.reached = True
                self._place = self._last_place = suspended_at(coroutine)
                thrown, step = self.strike(coroutine, step)
                if thrown is not None:
                    resume, argument = coroutine.throw, thrown
                    continue
            try:
                argument = yield step
                resume = coroutine.send
            except GeneratorExit:
                coroutine.close()
                raise
            except BaseException as error:  # noqa: BLE001  (handed to the coroutine, which raises it again or not)
                resume, argument = coroutine.throw, error
            self._observe(coroutine, argument)
            if self._late is not None:
                resume, argument, self._late = coroutine.throw, self._late, None

    def strike(self, coroutine: object, step: Any) -> tuple[BaseException | None, Any]:
        """Do it, at the point: what is to be thrown at once, if anything, and what is handed to the event loop."""
        self._strike()
        return None, step

    def _observe(self, coroutine: object, resumed_with: Any) -> None:
        # asyncio throws a cancellation in; trio sends an Outcome, in which it is the error.
        error = resumed_with if isinstance(resumed_with, BaseException) else getattr(resumed_with, "error", None)
        if isinstance(error, anyio.get_cancelled_exc_class()):
            self._last_place = suspended_at(coroutine)
            # By our reason: the coroutine's own scopes and timeouts cancel it too, which is their affair.
            if self._reason in str(error):
                self._delivered = True


class _NativeRun(_Run):
    """Struck by ``task.cancel()``, in a task of its own."""

    mode: SweepMode = "native"

    async def run(self, coroutine: Coroutine[Any, Any, object]) -> None:
        task = asyncio.get_running_loop().create_task(self._in_task(coroutine), name=f"sweep-{self.point}")
        self._strike = lambda: task.cancel(self._reason)
        try:
            await asyncio.wait({task})
        except BaseException:
            task.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait({task})
            raise
        self.cancelled = task.cancelled()
        if not self.cancelled:
            task.result()

    async def _in_task(self, coroutine: Coroutine[Any, Any, object]) -> None:
        await self._drive(coroutine)


class _ErrorRun(_Run):
    """Struck by an exception that ends the wait."""

    mode: SweepMode = "error"

    def is_expected(self, error: BaseException) -> bool:
        return self.reached and _comes_from(error, self.error, set())

    def strike(self, coroutine: object, step: Any) -> tuple[BaseException | None, Any]:
        # As the loop itself would break the wait off, so that what is waited for forgets us; only then the error.
        if hasattr(step, "abort_func"):
            return self._strike_trio(step)
        if not _can_raise(frames_of(coroutine), is_wait=hasattr(step, "cancel")):
            return None, step
        if hasattr(step, "cancel"):
            step.cancel()
        return self.error, step

    def _strike_trio(self, step: Any) -> tuple[BaseException | None, Any]:
        taken = False

        def raise_error() -> None:
            nonlocal taken
            taken = True
            raise self.error

        if step.abort_func(raise_error) is Abort.SUCCEEDED:
            return self.error, step
        if not taken:
            self._late = self.error
        # A wait may be asked only once to break off.
        return None, type(step)(lambda _raise_cancel: Abort.FAILED)


_RUNS: Final[dict[str, type[_Run]]] = {"scope": _Run, "native": _NativeRun, "error": _ErrorRun}


async def _coroutine(make: _Make) -> object:
    return await make()


def _can_raise(frames: list[FrameType], *, is_wait: bool) -> bool:
    """Whether anything but a cancellation could come out of here: else the error would find bugs that nobody has."""
    innermost = frames[-1]
    if is_wait:
        return not ("aexit" in innermost.f_code.co_name and innermost.f_globals.get("__name__") in _GROUP_EXITS)
    # A mere turn of the loop, such as a lock takes once it is held; but one that own code asks for stands for any work.
    library = list(takewhile(is_library, reversed(frames)))
    return not library or library[-1].f_code.co_name in _TURNS


def _comes_from(error: BaseException | None, origin: BaseException, seen: set[int]) -> bool:
    """Whether an exception is this one, or was raised because of it, or holds one that was."""
    if error is None or id(error) in seen:
        return False
    if error is origin:
        return True
    seen.add(id(error))
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    return any(_comes_from(other, origin, seen) for other in (error.__cause__, error.__context__, *inner))
