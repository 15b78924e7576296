"""What a tool reaches its manager by: ``current()``, and the sync door ``tool.execute(...)``.

In a worker thread the door is a nested call of the thread's manager, elsewhere a manager for one call.
"""

from __future__ import annotations

from contextvars import copy_context
from functools import partial
from typing import Any

import anyio

from ._call import Call
from ._context import current_call, current_manager, current_work, door
from ._drive import drive
from ._errors import CallAborted, ManagerClosed
from ._hosting import in_order
from ._mailbox import is_on_loop, leave_loop, nested_context
from ._manager import ServiceManager
from ._policy_checks import services_of
from ._service import Service, service_name
from ._session import Session
from ._threads import Reply, current_ident
from ._tool import KGASTool

__all__ = ["current", "open_door"]


def current() -> ServiceManager:
    """The manager that this code runs under: inside a call (in its worker thread too) or a service.

    Returns:
        The manager, for further calls: ``await current().execute(tool, ...)``.

    Raises:
        RuntimeError: Outside of calls and services.
    """
    manager: ServiceManager | None = current_manager()
    if manager is None:
        raise RuntimeError(
            "current() was called outside of a call: only tools and services that a ServiceManager runs have a "
            "current manager"
        )
    return manager


def open_door() -> None:
    """Open the sync door of all tools."""

    def through(tool: KGASTool, inputs: dict[str, Any]) -> Any:
        if is_on_loop():
            manager = "manager" if current_manager() is None else "current()"
            raise RuntimeError(
                f"tool {tool.name!r}: execute() blocks, and this thread runs an event loop; "
                f"use 'await {manager}.execute(tool, ...)' here"
            )
        call: Any = current_call.get()
        if hasattr(call, "nested"):  # in a worker process, far from any manager
            return call.nested(tool)
        if call is not None:
            return _nested(call, tool, inputs)
        return _alone(tool, inputs)

    door.sync = through


def _nested(parent: Call[Any], tool: KGASTool, inputs: dict[str, Any]) -> Any:
    """A call of the manager whose thread this is; the thread lends its slot while it waits."""
    session: Session = parent.bound.home  # type: ignore[assignment]
    work = current_work.get()
    if work is not None and work.ident != current_ident():
        work = None  # a thread that the tool itself has started: it has no slot to lend
    reply = Reply()
    context = nested_context(session.mailbox.backend)

    async def host(child: Call[Any]) -> None:
        session.starting.discard(child)
        try:
            if not child.ended_ns:  # else it was cancelled before this task began
                await drive(session.host_call(child, owned=True), context)
        finally:
            if work is not None:
                session.mailbox.add_busy(1)
            reply.give(child)

    def begin() -> None:
        try:
            # A call that has ended may still have its lazy result pulled, in a work of ours.
            if work.aborted if work is not None else parent.ended_ns:
                raise CallAborted(f"call {parent.id}, which this thread works for, has ended")
            child = session.admit(tool, (), inputs, parent)
            session.adopt(child)
            session.starting.add(child)
            session.spawn(host, child)
        except BaseException as error:  # noqa: BLE001  (raised in the thread that waits)
            reply.give(error=error)
            return
        if work is not None:
            session.mailbox.add_busy(-1)

    if not session.mailbox.put(begin):
        raise ManagerClosed(f"tool {tool.name!r}: the event loop of this thread's manager has ended")
    if work is None or work.pool is not session.pool:
        child = reply.wait()  # the one thread of a dedicated instance is lent to nobody: there is one instance
    else:
        work.pool.lend(1)
        try:
            child = reply.wait()
        finally:
            work.pool.lend(-1)
    if child.status == "cancelled" and work is not None and work.aborted:
        raise CallAborted(f"call {parent.id}, which this thread works for, was cancelled")
    return child.unwrap()


def _alone(tool: KGASTool, inputs: dict[str, Any]) -> Any:
    for service in in_order(services_of(tool)):  # those that they require, too
        if isinstance(service, Service) and service._is_running:
            raise RuntimeError(
                f"tool {tool.name!r}: its service {service_name(service)!r} runs on an event loop in another thread; "
                f"call it through that manager, or through 'ServiceManager(...).blocking()'"
            )

    async def main() -> Any:
        async with ServiceManager(*services_of(tool)) as manager:
            return await manager.execute(tool, **inputs)

    context = copy_context()
    leave_loop(context)  # a thread of somebody else's loop may say that it were on it
    return context.run(partial(anyio.run, main, backend=tool.backend))
