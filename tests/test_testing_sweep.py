"""The sweep: reaches every suspension, sees what is left behind, and names the point and the place."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio

from kgas_async._bare import run_bare
from kgas_async.testing import sweep, virtual_backends
from kgas_async.testing._sweep import SweepMode

checkpoint = anyio.lowlevel.checkpoint

MODES: list[SweepMode] = ["scope", "native", "error"]
BACKENDS: dict[str, Callable[[], Any]] = {
    "asyncio": lambda: ("asyncio", {}),
    "trio": lambda: ("trio", {}),
    **{backend.__name__: backend for backend in virtual_backends()},
}
if find_spec("uvloop"):
    BACKENDS["uvloop"] = lambda: ("asyncio", {"use_uvloop": True})


@pytest.fixture
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each async test on every backend, and one that takes a mode in each mode that the backend has."""
    if "anyio_backend" not in metafunc.fixturenames:
        return
    if "mode" in metafunc.fixturenames:
        pairs = [(name, mode) for name in BACKENDS for mode in MODES if (name[:4], mode) != ("trio", "native")]
        ids = [f"{name}-{mode}" for name, mode in pairs]
        rows = [(BACKENDS[name], mode) for name, mode in pairs]
        metafunc.parametrize(("anyio_backend", "mode"), rows, indirect=["anyio_backend"], ids=ids)
    else:
        metafunc.parametrize("anyio_backend", list(BACKENDS.values()), indirect=True, ids=list(BACKENDS))


def line_of(function: Callable[..., Any], text: str) -> int:
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    first = function.__code__.co_firstlineno
    return next(number for number in range(first, len(lines) + 1) if text in lines[number - 1])


class Tokens:
    """Two ways to hand out one token: the first leaks it when cancelled after the grant, the second does not."""

    def __init__(self) -> None:
        self.free = 1

    async def leaky_acquire(self) -> None:
        await checkpoint()
        self.free -= 1
        await checkpoint()  # LEAK

    async def acquire(self) -> None:
        await checkpoint()
        self.free -= 1
        try:
            await checkpoint()
        except BaseException:
            self.free += 1
            raise

    async def use(self, acquire: Callable[[], Any]) -> None:
        await checkpoint()
        await acquire()
        try:
            await anyio.sleep(0.001)
        finally:
            self.free += 1

    def check(self, point: int) -> None:
        free, self.free = self.free, 1
        assert free == 1, "a token is lost"


async def test_sound_code_passes(mode: SweepMode) -> None:
    tokens = Tokens()
    seen: list[int] = []

    def check(point: int) -> None:
        seen.append(point)
        tokens.check(point)

    points = await sweep(lambda: tokens.use(tokens.acquire), check=check, mode=mode)
    assert points >= 4  # a checkpoint of AnyIO's on asyncio may be two suspensions
    assert seen == list(range(points + 1))


async def test_a_planted_leak_is_found_at_its_point(mode: SweepMode) -> None:
    tokens = Tokens()
    with pytest.raises(AssertionError, match="a token is lost") as caught:
        await sweep(lambda: tokens.use(tokens.leaky_acquire), check=tokens.check, mode=mode)
    (note,) = caught.value.__notes__
    place = f"{__file__}:{line_of(Tokens.leaky_acquire, '# LEAK')} in leaky_acquire"
    assert f"check(2) failed; sweep: mode {mode!r}, point 2, suspended at {place}, awaiting " in note
    assert note.endswith(f"run it alone with sweep(..., mode={mode!r}, only=2)")


async def test_one_point_can_be_run_alone(mode: SweepMode) -> None:
    tokens = Tokens()
    for point in (0, 1, 3):
        assert await sweep(lambda: tokens.use(tokens.leaky_acquire), check=tokens.check, mode=mode, only=point) == 1
    with pytest.raises(AssertionError, match="a token is lost"):
        await sweep(lambda: tokens.use(tokens.leaky_acquire), check=tokens.check, mode=mode, only=2)
    with pytest.raises(AssertionError, match="no point 99"):
        await sweep(lambda: tokens.use(tokens.acquire), mode=mode, only=99)


async def test_each_point_is_struck_once_and_in_order(mode: SweepMode) -> None:
    ends: list[str] = []

    async def three() -> None:
        done = 0
        try:
            for _ in range(3):
                await checkpoint()
                done += 1
        except BaseException as error:
            ends.append(f"{done} {isinstance(error, anyio.get_cancelled_exc_class())}")
            raise
        ends.append("end")

    await sweep(three, mode=mode)
    assert ends == [f"{done} {mode != 'error'}" for done in range(3)] + ["end"]


async def test_a_coroutine_that_never_waits_has_no_points(mode: SweepMode) -> None:
    async def at_once() -> int:
        return 1

    assert await sweep(at_once, mode=mode) == 0


async def test_a_swallowed_cancellation_is_reported(mode: SweepMode) -> None:
    async def deaf() -> None:
        with suppress(BaseException):
            await anyio.sleep(0.05)  # not shorter: a wait that ends first is not cancelled

    if mode == "error":
        assert await sweep(deaf, mode=mode) == 1  # it may handle an error
        return
    with pytest.raises(
        AssertionError, match=r"swallowed its cancellation.* point 0, suspended at .* in deaf, awaiting"
    ):
        await sweep(deaf, mode=mode)


async def test_an_error_instead_of_the_cancellation_is_reported(mode: SweepMode) -> None:
    async def clumsy() -> None:
        await checkpoint()
        try:
            await checkpoint()
        except BaseException:  # noqa: BLE001  (the bug that is to be found)
            raise KeyError("lost") from None

    if mode == "error":
        await sweep(clumsy, mode=mode)  # raised while the injected one was handled
        return
    with pytest.raises(KeyError, match="lost") as caught:
        await sweep(clumsy, mode=mode)
    assert "point 1, suspended at" in caught.value.__notes__[-1]


async def test_an_error_of_the_undisturbed_run_is_reported(mode: SweepMode) -> None:
    async def broken() -> None:
        await checkpoint()
        raise KeyError("always")

    with pytest.raises(KeyError) as caught:
        await sweep(broken, mode=mode)
    assert "the undisturbed run, after 1 points" in caught.value.__notes__[-1]


async def test_shielded_work_may_end_on_its_own(mode: SweepMode) -> None:
    ends: list[str] = []

    async def shielded() -> None:
        try:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.001)
        except BaseException:
            ends.append("broken off")
            raise
        ends.append("end")

    assert await sweep(shielded, mode=mode) == 1
    # A shield holds off its scopes only: neither an error nor a native cancellation.
    assert ends == ["end" if mode == "scope" else "broken off", "end"]


async def test_timeouts_of_its_own_are_no_swallowed_cancellations() -> None:
    async def impatient() -> None:
        with anyio.CancelScope(shield=True), anyio.move_on_after(0.001):
            await anyio.sleep_forever()

    assert await sweep(impatient) == 1


async def test_task_groups_and_streams_are_swept(mode: SweepMode) -> None:
    received: list[int] = []

    async def pipe() -> None:
        send, receive = anyio.create_memory_object_stream[int]()

        async def produce() -> None:
            async with send:
                for number in range(3):
                    await send.send(number)

        async with receive, anyio.create_task_group() as group:
            group.start_soon(produce)
            received.extend([number async for number in receive])

    left: list[int] = []

    def check(point: int) -> None:
        left.append(len([task for task in anyio.get_running_tasks() if task.name and "produce" in task.name]))
        assert left[-1] == 0

    before = len(anyio.get_running_tasks())
    assert await sweep(pipe, check=check, mode=mode) >= 3
    assert received[-3:] == [0, 1, 2]
    assert len(anyio.get_running_tasks()) == before


async def test_the_wait_for_a_group_s_children_leaves_none_behind(mode: SweepMode) -> None:
    running = 0

    async def child() -> None:
        nonlocal running
        running += 1
        try:
            await anyio.sleep(0.002)
        finally:
            running -= 1

    async def parent() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(child)

    def check(point: int) -> None:
        assert running == 0

    assert await sweep(parent, check=check, mode=mode) >= 1


@pytest.mark.parametrize("kind", ["lock", "limiter", "event", "condition", "semaphore"])
async def test_primitives_stay_whole(mode: SweepMode, kind: str) -> None:
    lock, limiter, condition, semaphore = anyio.Lock(), anyio.CapacityLimiter(1), anyio.Condition(), anyio.Semaphore(1)
    guard: dict[str, Any] = {"lock": lock, "limiter": limiter, "condition": condition, "semaphore": semaphore}
    event = anyio.Event()

    async def contend() -> None:
        if kind == "event":
            with anyio.move_on_after(0.01):
                await event.wait()
            return
        async with guard[kind]:
            await checkpoint()

    async def hold() -> None:
        async with guard[kind]:
            await anyio.sleep(0.002)

    async def contended() -> None:
        async with anyio.create_task_group() as group:
            if kind != "event":
                group.start_soon(hold)
                await anyio.sleep(0.001)
            await contend()

    async def check(point: int) -> None:
        with anyio.fail_after(1):
            await contend()

    assert await sweep(contended, check=check, mode=mode) >= 2


async def test_async_generators_and_context_managers_are_looked_into(mode: SweepMode) -> None:
    @asynccontextmanager
    async def manager() -> AsyncIterator[None]:
        await checkpoint()
        yield
        await checkpoint()  # LEAVE

    async def numbers() -> AsyncIterator[int]:
        yield 1
        await checkpoint()  # DEEP

    async def use() -> None:
        async with manager():
            async for _ in numbers():
                pass

    places: list[str] = []
    for point in range(3):
        with pytest.raises(KeyError) as caught:
            await sweep(use, check=_fail, mode=mode, only=point)
        places.append(caught.value.__notes__[-1])
    assert f"{__file__}:{line_of(numbers, '# DEEP')} in numbers" in places[1]
    assert f"{__file__}:{line_of(manager.__wrapped__, '# LEAVE')} in manager" in places[2]  # type: ignore[attr-defined]


def _fail(point: int) -> None:
    raise KeyError(point)


async def test_threads_of_ours_are_waited_for(mode: SweepMode) -> None:
    inside = 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal inside
        with lock:
            inside += 1
        time.sleep(0.01)
        with lock:
            inside -= 1

    def check(point: int) -> None:
        assert inside == 0

    assert await sweep(lambda: run_bare(work), check=check, mode=mode) >= 1


async def test_endless_is_reported(mode: SweepMode) -> None:
    async def busy() -> None:
        for _ in range(100):
            await checkpoint()

    with pytest.raises(AssertionError, match="after 5 points: is it endless"):
        await sweep(busy, mode=mode, max_points=5)


async def test_check_may_be_async_and_is_not_cancelled(mode: SweepMode) -> None:
    checked: list[int] = []

    async def check(point: int) -> None:
        await checkpoint()
        await anyio.sleep(0.001)
        checked.append(point)

    points = await sweep(checkpoint, check=check, mode=mode)
    assert checked == list(range(points + 1))
    await checkpoint()  # and neither is who sweeps


async def test_who_sweeps_can_be_cancelled(mode: SweepMode) -> None:
    ended: deque[str] = deque()

    async def long() -> None:
        try:
            await anyio.sleep(30)
        finally:
            ended.append("ended")

    with anyio.move_on_after(0.01) as scope:
        await sweep(long, mode=mode, only=5)
    assert scope.cancelled_caught
    assert list(ended) == ["ended"]


def test_native_on_trio_is_refused() -> None:
    with pytest.raises(RuntimeError, match='sweep with mode="scope"'):
        trio.run(partial(sweep, checkpoint, mode="native"))


async def test_misuse_is_refused() -> None:
    with pytest.raises(ValueError, match="no mode 'sope': use one of scope, native, error"):
        await sweep(checkpoint, mode="sope")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='belongs to mode="error"'):
        await sweep(checkpoint, error=KeyError)
