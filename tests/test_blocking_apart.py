"""The blocking door: Ctrl-C while it is entered, and the calls that it shows."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from kgas_async import Service, ServiceManager, tool

pytestmark = pytest.mark.real_time
INNER = pytest.mark.parametrize("inner", ["asyncio", "trio"])


def interrupt_when(event: threading.Event) -> None:
    def interrupt() -> None:
        event.wait(30)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()


@INNER
def test_ctrl_c_while_entering_stops_what_has_started_and_leaves_nothing(inner: str) -> None:
    starting = threading.Event()
    log = []

    class First(Service):
        @asynccontextmanager
        async def running(self) -> AsyncIterator[None]:
            log.append("first started")
            yield
            log.append("first stopped")

    class Hangs(Service):
        def __init__(self, first: First) -> None:
            self.first = first

        @asynccontextmanager
        async def running(self) -> AsyncIterator[None]:
            starting.set()
            await anyio.sleep_forever()
            yield

    interrupt_when(starting)
    with pytest.raises(KeyboardInterrupt), ServiceManager(Hangs(First()), log=None).blocking(inner):
        raise AssertionError("it never starts")
    assert log == ["first started", "first stopped"]
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("kgas")] == []


@INNER
def test_the_calls_in_flight_are_shown_and_can_be_cancelled(inner: str) -> None:
    @tool
    async def forever() -> None:
        await anyio.sleep_forever()

    with ServiceManager(log=None).blocking(inner) as manager:
        call = manager.submit(forever)
        assert list(manager.calls) == [call.id]
        manager.calls[call.id].cancel("enough")
        call.wait()
        assert (call.status, dict(manager.calls)) == ("cancelled", {})
