"""`manager.gather` and `manager.race`: several tools on the same inputs, side by side.

Every call is the manager's, in a task of its own; whoever waits for them only watches, and ends what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import not_
from typing import Any

import anyio.lowlevel

from ._bound import Bound
from ._call import Call, wait_for_end
from ._errors import ServiceError, shown
from ._order import held_here
from ._outcome import Outcome
from ._session import Session
from ._suggest import nearest

__all__ = ["Together"]


class Together:
    """One call per tool.

    Args:
        session: Who owns the calls.
        tools: By the names that the results have.
        inputs: Each tool gets those of them that it takes.

    Raises:
        ManagerClosed: No admission any more.
        TypeError: Something that is no tool, or an input that none of them takes. Nothing has begun then.
    """

    def __init__(self, session: Session, tools: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
        for what, given in (("tools", tools), ("inputs", inputs)):
            if not isinstance(given, Mapping):
                raise TypeError(f"{what} of gather and race are a mapping by name, {{'name': ...}}, not {shown(given)}")
        self._parent = session.parent()
        session.check_open(self._parent)
        self._session = session
        self._bounds: dict[str, Bound] = {name: session.bind(tool) for name, tool in tools.items()}
        self._inputs = {name: bound.signature.those_of_mine(inputs) for name, bound in self._bounds.items()}
        _refuse_unused(self._bounds, self._inputs, inputs)
        self._calls: dict[str, Call[Any]] = {}
        self._refused: dict[str, ServiceError] = {}
        self._open = 0
        self._news = session.mailbox.gate()
        self._decides: Callable[[bool], bool] = bool  # whether a call that ended so, with success or not, ends the rest
        self._decider: Call[Any] | None = None
        self._cut: set[Call[Any]] = set()  # that we have cancelled

    async def all(self, *, on_error: str) -> dict[str, Any]:
        """Every value by name; see `ManyCalls.gather`."""
        if on_error == "collect":
            await self._run(_never)
            return {name: self._outcome(name) for name in self._bounds}
        await self._run(not_)
        if self._decider is not None or self._refused:
            raise await self._error("gather")
        return {name: call.value for name, call in self._calls.items()}

    async def first(self) -> Outcome[Any]:
        """The outcome of the first that succeeds; see `ManyCalls.race`."""
        await self._run(bool)
        winner = self._decider
        if winner is None:
            raise await self._error("race")
        return self._outcome(next(name for name, call in self._calls.items() if call is winner))

    async def _run(self, decides: Callable[[bool], bool]) -> None:
        """Have the calls run until all have ended, or one that decides; then end the others and wait for them.

        Cancellation: Cancels all and waits for them; asyncio's own too.
        """
        self._decides = decides
        self._admit()
        try:
            for call in self._calls.values():
                self._session.start_call(call)
            if self._calls:
                await self._news.wait()
            else:
                await anyio.lowlevel.checkpoint()
        except BaseException:
            await self._end_rest("the one who waited for it was cancelled")
            raise
        native = await self._end_rest("another tool was first" if decides(True) else "another tool has failed")
        if native is not None:
            raise native

    def _admit(self) -> None:
        session = self._session
        for name, bound in self._bounds.items():
            try:
                if bound.requires:
                    session.hosting.check_running(bound.requires, bound.name)
            except ServiceError as error:
                self._refused[name] = error
        if self._refused and self._decides(False):
            return
        around = held_here()
        for name, bound in self._bounds.items():
            if name not in self._refused:
                call = self._calls[name] = session.new_call(bound, self._inputs[name], self._parent)
                call.on_end = self._ended
                call.around = around
        self._open = len(self._calls)

    def _ended(self, call: Call[Any]) -> None:
        self._open -= 1
        if self._decider is None and self._decides(call.ok):
            self._decider = call
        if not self._open or self._decider is not None:
            self._news.set()

    async def _end_rest(self, reason: str) -> BaseException | None:
        rest = [call for call in self._calls.values() if not call.ended_ns]
        for call in rest:
            if not call.cancel_requested:
                self._cut.add(call)
            call.cancel(reason)
        native: BaseException | None = None
        for call in rest:
            native = await wait_for_end(call, call.grace_deadline() + 1) or native
        return native

    def _outcome(self, name: str) -> Outcome[Any]:
        call = self._calls.get(name)
        if call is None:
            return Outcome("rejected", None, self._refused[name], name, -1, self._bounds[name].name)
        outcome = call.to_outcome()
        outcome._key = name
        return outcome

    async def _error(self, what: str) -> BaseException:
        """What all the failures come to: one of them as it is, several in a group."""
        failed: list[Exception] = []
        cancelled: Call[Any] | None = None
        for name in self._bounds:
            call = self._calls.get(name)
            if call is None:
                if name in self._refused:
                    failed.append(self._refused[name])
            elif call.status == "cancelled":
                cancelled = call if call not in self._cut else cancelled
            elif isinstance(call.error, Exception):
                failed.append(call.error)
        if len(failed) == 1:
            return failed[0]
        if failed:
            return ExceptionGroup(f"{len(failed)} of the {len(self._bounds)} tools of a {what} failed", failed)
        # What cancelled the calls may be about to cancel us: then that is what we are told, and nothing else.
        await anyio.lowlevel.checkpoint_if_cancelled()
        assert cancelled is not None
        return cancelled.cancelled_error()


def _refuse_unused(
    bounds: Mapping[str, Bound], used: Mapping[str, Mapping[str, Any]], inputs: Mapping[str, Any]
) -> None:
    for name in inputs if bounds else ():
        if not any(name in one for one in used.values()):
            known = sorted({parameter for bound in bounds.values() for parameter in bound.signature.types})
            raise TypeError(
                f"{name!r} is no input of any of these tools; they take {', '.join(known) or 'none'}"
                f"{nearest(name, known)}"
            )


def _never(has_succeeded: bool) -> bool:
    return False
