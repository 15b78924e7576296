"""One MCP server in motion within a session of a manager: from the start of its services to the end of its calls.

It drains and closes with the session, as a map or a run does. Knows no transport.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio

from kgas_async._manager import ServiceManager
from kgas_async._tool import Toolbox

from ._mcp_calls import ServedTools

__all__ = ["Serving", "serving"]

SECONDS_TO_ANSWER = 0.2  # for the last answers to be written, after the last call of a draining session


class Serving:
    """What the session sees of a server, among its maps and runs.

    Attributes:
        tools: The handlers.
        backend: The event loop's name.
        parent: The call that it runs in; such a server goes on while the session drains.
        left: Always set: it has no workers whose end anybody would wait for.
    """

    def __init__(self, manager: ServiceManager, tools: ServedTools) -> None:
        self.tools = tools
        self._session = manager._opened()
        self.backend: str = self._session.mailbox.backend
        self.parent: Any = self._session.parent()
        self._stopping = anyio.Event()
        self.left = anyio.Event()
        self.left.set()

    def drain(self) -> None:
        """Answer what is open, then end."""
        self._stopping.set()
        self._session.drop_crew(self)  # no more calls come from here; the last answers are the server's own business

    def cut(self, reason: str) -> None:
        """All calls are being cancelled: end with the session, but not for `ServiceManager.cancel` alone."""
        if self._session.is_draining or self._session.is_cancelled:
            self.drain()

    async def wait_for_stop(self) -> None:
        """Wait until the session drains and what was open is answered; never ends otherwise."""
        await self._stopping.wait()
        await self.tools.wait_until_idle()
        await anyio.sleep(SECONDS_TO_ANSWER)


@asynccontextmanager
async def serving(manager: ServiceManager, toolbox: Toolbox, **about: Any) -> AsyncIterator[Serving]:
    """A server whose services run; on leaving, the calls whose clients were left have ended.

    Raises:
        ManagerClosed, ServiceStartFailed: It did not begin.
        TypeError: A tool has no schema.
    """
    if not isinstance(manager, ServiceManager):
        raise TypeError(f"tools are served by an open ServiceManager, not {manager!r}")
    session = manager._opened()
    session.check_open(session.parent())
    tools = ServedTools(manager, toolbox, **about)
    await session.hosting.start_all(tools.services)
    one = Serving(manager, tools)
    session.keep_crew(one)
    try:
        yield one
    finally:
        session.drop_crew(one)
        with anyio.CancelScope(shield=True):
            await tools.wait_for_cancelled()
