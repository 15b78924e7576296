"""What a running tool can ask for: its call, its manager, whether it should stop; and how it says how far it is.

Holds the context variable and the protocols of what is in it; the classes behind them live higher up.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, Protocol

from ._errors import CallAborted

__all__ = [
    "RunningCall",
    "check_cancelled",
    "current_call",
    "current_manager",
    "current_work",
    "door",
    "progress",
    "running_manager",
]


class RunningCall(Protocol):
    """The call that a piece of code runs in."""

    attempt: int
    item: str | None
    given_name: str | None

    @property
    def id(self) -> str: ...
    @property
    def session_id(self) -> str: ...
    @property
    def tool_name(self) -> str: ...
    @property
    def manager(self) -> Any: ...
    @property
    def aborted(self) -> bool: ...
    @property
    def placed(self) -> RunningCall: ...
    @property
    def pipeline(self) -> str | None: ...
    @property
    def phase(self) -> str | None: ...
    @property
    def run_id(self) -> str | None: ...
    def note_progress(self, done: float, total: float | None, message: str, data: Mapping[str, Any]) -> None: ...


current_call: ContextVar[RunningCall | None] = ContextVar("kgas_async_call", default=None)
current_work: ContextVar[Any] = ContextVar("kgas_async_work", default=None)
running_manager: ContextVar[Any] = ContextVar("kgas_async_manager", default=None)


class Door(Protocol):
    """How a tool's sync door reaches a manager; the top layer fills it in."""

    def __call__(self, tool: Any, inputs: dict[str, Any]) -> Any: ...


class _Doors:
    sync: Door | None = None
    imports_main = False  # this is a worker process that imports the program's main module again


door = _Doors()


def current_manager() -> Any:
    """The manager that this code runs under, None outside of calls and services."""
    call = current_call.get()
    return running_manager.get() if call is None else call.manager


def check_cancelled() -> None:
    """A sync tool's checkpoint: call it now and then in long loops.

    Does nothing outside of a call, so that a tool can be called as a plain function.

    Raises:
        CallAborted: The call was cancelled, or its timeout or deadline has passed: nobody waits for the result. Let
            it pass.
    """
    work = current_work.get()
    if work is not None and work.aborted:  # this thread's own attempt, while the call may be at another
        raise CallAborted("the call that this thread works for was cancelled or has timed out")
    call = current_call.get()
    if call is not None and call.aborted:
        raise CallAborted(f"call {call.id} of tool {call.tool_name!r} was cancelled")


def progress(done: float, total: float | None = None, message: str = "", **data: Any) -> None:
    """Say how far this call is; from any tool, in worker threads too. Never blocks.

    Whoever reads ``call.events()`` is told, and ``call.progress`` is the latest. In a nested call it is that call's.
    Does nothing outside of a call, so that a tool can be called as a plain function.

    Args:
        done: How much is done, in the tool's own unit.
        total: How much there is, None where nobody knows.
        message: For people.
        data: Whatever else readers are to have.
    """
    call = current_call.get()
    work = current_work.get()
    if call is not None and (work is None or not work.aborted):  # nobody waits for a thread that was left behind
        call.note_progress(done, total, message, data)
