"""The manager's public methods for one call: `execute`, `outcome`, `submit`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ParamSpec, TypeVar

import anyio.lowlevel

from ._book import CallBook
from ._call import Call
from ._errors import KgasAsyncError
from ._outcome import Outcome
from ._session import Session
from ._tool import SupportsExecute

__all__ = ["SingleCalls"]

P = ParamSpec("P")
R = TypeVar("R")


class SingleCalls(ABC):
    """See the module; `ServiceManager` and `CallOptions` have these among their own."""

    @abstractmethod
    def _opened(self) -> Session:
        """The session, if there is one."""

    @property
    @abstractmethod
    def _book(self) -> CallBook:
        """The names of calls, and those that have ended."""

    def _admit(self, session: Session, tool: Any, args: tuple[Any, ...], inputs: dict[str, Any]) -> Call[Any]:
        """A call, registered and not begun."""
        return session.admit(tool, args, inputs)

    async def execute(self, tool: SupportsExecute[P, R], /, *args: P.args, **inputs: P.kwargs) -> R:
        """Run a tool and give its value.

        Args:
            tool: The tool.
            inputs: Its inputs, by name.

        Returns:
            What ``execute_async`` of the tool returns, or its fallback's, or a value that is used again.

        Raises:
            CallFailed: The tool raised; its exception is the ``__cause__``.
            CallTimeout: Timeout or deadline; also a ``TimeoutError``.
            InvalidInputs: The inputs do not fit.
            CallRejected: There is no room for it.
            CallCancelled: Somebody else cancelled the call.
            ManagerClosed, ServiceNotRunning: It was not admitted.
            RuntimeError: This is not the thread of the manager's event loop.

        Cancellation: Reaches the tool; a thread that does not look has its grace, then is abandoned.
        """
        call = await self._run_here(tool, args, inputs)
        result: R = call.unwrap()
        return result

    async def outcome(self, tool: SupportsExecute[P, R], /, *args: P.args, **inputs: P.kwargs) -> Outcome[R]:
        """Run a tool and give what came of it; raises nothing but the caller's own cancellation.

        Args:
            tool: The tool.
            inputs: Its inputs, by name.

        Returns:
            The `Outcome`; also of a call that was not admitted, which is ``rejected``.

        Cancellation: As `execute`.
        """
        try:
            call = await self._run_here(tool, args, inputs)
        except (KgasAsyncError, TypeError, ValueError, RuntimeError) as error:
            name = getattr(tool, "name", type(tool).__name__)
            return Outcome("rejected", None, error, "", -1, name)
        return call.to_outcome()

    async def _run_here(self, tool: Any, args: tuple[Any, ...], inputs: dict[str, Any]) -> Call[Any]:
        session = self._opened()
        session.mailbox.check_here("manager.execute")
        if session.log is not None and session.log.behind:
            await session.log.caught_up()
        call = self._admit(session, tool, args, inputs)
        await session.host_call(call)
        if call.status == "cancelled":
            await anyio.lowlevel.checkpoint_if_cancelled()  # as in `Call.wait`
        return call

    def submit(self, tool: SupportsExecute[P, R], /, *args: P.args, **inputs: P.kwargs) -> Call[R]:
        """Start a tool in the background; the manager owns it.

        Args:
            tool: The tool.
            inputs: Its inputs, by name.

        Returns:
            The `Call`: ``await call.result()``, ``call.cancel()``. `ServiceManager.find` finds it by its id, also
            for a while after its end.

        Raises:
            ManagerClosed, ServiceNotRunning, InvalidInputs: It was not admitted.
            RuntimeError: This is not the thread of the manager's event loop.
        """
        session = self._opened()
        session.mailbox.check_here("manager.submit")
        call = self._admit(session, tool, args, inputs)
        call.is_submitted = True
        self._book.keep(call)
        session.start_call(call)
        return call
