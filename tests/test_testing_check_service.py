"""`check_service`: good services pass it, and each kind of bad one is told what is wrong with it."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import Batcher, Every, Pool, Service, ServiceManager, tool
from kgas_async.testing import FakeService, check_service, explore


class Good(Service):
    def __init__(self, name: str = "good", needs: Service | None = None) -> None:
        self.name = name
        self.needs = needs

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            await self.start()
            try:
                yield
            finally:
                await self.stop()
            tasks.cancel_scope.cancel()

    async def start(self) -> None:
        await checkpoint()
        await checkpoint()

    async def stop(self) -> None:
        pass

    async def health(self) -> None:
        await checkpoint()
        self.use()

    def use(self) -> str:
        self.ensure_running()
        return self.name


@tool
async def doubles(xs: list[int]) -> list[int]:
    await checkpoint()
    return [2 * x for x in xs]


@tool
async def nothing() -> None:
    await checkpoint()


def use(service: Good) -> str:
    return service.use()


async def use_async(service: Good) -> str:
    await checkpoint()
    return service.use()


@explore(seeds=2)
@pytest.mark.parametrize("how", [use, use_async, None], ids=["sync", "async", "not at all"])
async def test_a_good_service_passes(how: Any) -> None:
    await check_service(Good(needs=Good("other")), use=how)


@explore(seeds=2)
async def test_our_own_services_pass() -> None:
    async def acquire(pool: Pool[object]) -> None:
        async with pool.acquire():
            pass

    await check_service(FakeService("fake"), use=lambda service: service.use())
    await check_service(Pool(object), use=acquire)
    await check_service(Batcher(doubles), use=lambda batcher: batcher(xs=1))
    await check_service(Every(10, nothing))


async def fails(service: Service, *patterns: str, **options: Any) -> None:
    with pytest.raises(AssertionError) as caught:
        await check_service(service, timeout_s=5, **options)
    message = str(caught.value)
    assert message.startswith("check_service: ")
    for pattern in patterns:
        assert pattern in message


class Opens(Good):
    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        with open(path):  # noqa: PTH123
            pass


class Connects(Good):
    def __init__(self) -> None:
        super().__init__()
        socket.socket().close()


class StartsAThread(Good):
    def __init__(self) -> None:
        super().__init__()
        thread = threading.Thread(target=bool)
        thread.start()
        thread.join()


@explore(seeds=1)
async def test_a_constructor_that_does_io_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    await fails(Opens(str(path)), "its constructor does I/O (open", "do it in running()")
    await fails(Connects(), "its constructor does I/O (socket.")


class Consumes(Good):
    def __init__(self, numbers: Any) -> None:
        super().__init__()
        self.first = next(numbers)


@explore(seeds=1)
async def test_one_that_cannot_be_made_again_or_pickled_is_named() -> None:
    await fails(Consumes(iter([1])), "cannot be made again", "does not survive pickling")
    local = FakeService("x", start_error=None, log=None)
    local._constructed = ((), {"log": threading.Lock()})
    await fails(local, "does not survive pickling")
    await check_service(local, pickles=False)


class NeverChecks(Good):
    def use(self) -> str:
        return self.name


class AlwaysRefuses(Good):
    def use(self) -> str:
        raise ConnectionError("not connected")

    async def health(self) -> None:
        pass


@explore(seeds=1)
async def test_one_that_can_be_used_while_it_does_not_run_is_named() -> None:
    await fails(
        NeverChecks(),
        "used before its first start it works, instead of raising ServiceNotRunning",
        "used after its first lifetime it works",
        "used after its second lifetime it works",
        use=use,
    )
    await fails(
        AlwaysRefuses(),
        "used before its first start it raises ConnectionError",
        "in its first lifetime it runs, and cannot be used: ConnectionError",
        use=use,
    )


class StartsOnce(Good):
    lives = 0

    async def start(self) -> None:
        self.lives += 1
        if self.lives > 1:
            raise RuntimeError("started before")


class HangsInStart(Good):
    async def start(self) -> None:
        await anyio.sleep_forever()


class FailsToStop(Good):
    async def stop(self) -> None:
        raise OSError("cannot")


class HangsInStop(Good):
    async def stop(self) -> None:
        await anyio.sleep_forever()


class Ill(Good):
    async def health(self) -> None:
        raise OSError("ill")


class Crashes(Good):
    async def health(self) -> None:
        raise SystemExit(3)


@explore(seeds=1)
async def test_lifetimes_that_go_wrong_are_named() -> None:
    await fails(StartsOnce(), "in its second lifetime: service 'good' did not start: RuntimeError('started before')")
    await fails(HangsInStart(), "in its first lifetime it does not start, or does not end, within 5 s")
    await fails(FailsToStop(), "in its first lifetime service 'good' fails to stop: OSError: cannot")
    await fails(HangsInStop(), "fails to stop: ServiceError: service 'good' did not stop in time")
    await fails(Ill(), "in its first lifetime it runs, and is ill: OSError('ill')")


class LeavesATask(Good):
    outside: Any = None

    async def start(self) -> None:
        self.outside.start_soon(anyio.sleep, 1000)


@explore(seeds=1)
async def test_a_task_that_outlives_it_is_named() -> None:
    async with anyio.create_task_group() as tasks:
        service = LeavesATask()
        service.outside = tasks
        await fails(service, "after its first lifetime tasks of it still run: ", "in a task group of running()")
        tasks.cancel_scope.cancel()


class Swallows(Service):
    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        with suppress(BaseException):
            await anyio.sleep(0.01)
        yield


class LosesItsLock(Good):
    held = False

    async def start(self) -> None:
        if self.held:
            raise RuntimeError("held by somebody")
        self.held = True
        await anyio.sleep(0.01)

    async def stop(self) -> None:
        self.held = False


@explore(seeds=1)
async def test_starts_that_take_a_cancellation_badly_are_named() -> None:
    await fails(Swallows(), "its start was cancelled, and it did not take it")
    await fails(LosesItsLock(), "its start was cancelled", "held by somebody", "point 0")
    await check_service(LosesItsLock(), sweeps=False)


async def test_what_is_no_service_is_refused() -> None:
    with pytest.raises(TypeError, match="an object of a Service, not"):
        await check_service(Good)  # type: ignore[arg-type]


@explore(seeds=1)
async def test_a_service_that_another_manager_runs_is_told() -> None:
    service = Good()
    async with ServiceManager(service, log=None):
        await fails(service, "another open manager runs it", pickles=False)


class Speechless(Exception):
    def __repr__(self) -> str:
        raise LookupError("no words")


class CrashesWithoutWords(Good):
    async def health(self) -> None:
        raise Speechless


async def test_an_error_that_cannot_be_shown_is_a_problem_like_any_other() -> None:
    with pytest.raises(AssertionError, match=r"is ill: .a Speechless whose __repr__ raised LookupError"):
        await check_service(CrashesWithoutWords(), sweeps=False)
