"""Virtual time: it costs nothing, waits for our threads and for nobody else's sake, and is fresh for each test."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any, Self

import anyio
import anyio.lowlevel
import pytest
import trio

from kgas_async import ServiceManager, check_cancelled, tool
from kgas_async._bare import run_bare
from kgas_async._mailbox import Mailbox
from kgas_async._threads import start_daemon
from kgas_async.testing import VirtualBackend, _virtual, assert_clean, virtual_backend, virtual_backends

BOTH = pytest.mark.parametrize("name", ["asyncio", "trio"])
DAY = 86_400.0


@pytest.fixture(params=virtual_backends())
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param()


@pytest.fixture
async def opened_at() -> AsyncIterator[float]:
    before = anyio.current_time()
    await anyio.sleep(5)
    yield before
    await anyio.sleep(5)


class Stopwatch:
    def __enter__(self) -> Self:
        self._real = time.perf_counter()
        self._virtual = anyio.current_time()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.real = time.perf_counter() - self._real
        self.virtual = anyio.current_time() - self._virtual


async def test_a_day_of_sleep_costs_no_time() -> None:
    with Stopwatch() as taken:
        for _ in range(1440):
            await anyio.sleep(60)
    assert taken.virtual == pytest.approx(DAY)
    assert taken.real < 60


async def test_sleepers_wake_in_the_order_of_their_deadlines() -> None:
    woken: list[float] = []

    async def sleeper(seconds: float) -> None:
        await anyio.sleep(seconds)
        woken.append(seconds)
        assert anyio.current_time() == pytest.approx(seconds)

    async with anyio.create_task_group() as group:
        for seconds in (30, 10, 20, 0.001):
            group.start_soon(sleeper, seconds)
    assert woken == [0.001, 10, 20, 30]


async def test_far_off_deadlines_are_reached() -> None:
    for _ in range(3):
        await anyio.sleep(1000 * DAY)
        await anyio.sleep(0.5)
    assert anyio.current_time() == pytest.approx(3000 * DAY + 1.5)


async def test_timeout_fires_at_its_time() -> None:
    with Stopwatch() as taken, pytest.raises(TimeoutError), anyio.fail_after(3600):
        await anyio.sleep_forever()
    assert taken.virtual == pytest.approx(3600)
    assert taken.real < 60


async def test_wait_all_tasks_blocked_comes_before_a_jump() -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep, 1000)
        await anyio.wait_all_tasks_blocked()
        assert anyio.current_time() < 1
        group.cancel_scope.cancel()


async def test_a_working_thread_of_ours_holds_the_clock() -> None:
    with Stopwatch() as taken, anyio.fail_after(0.01):
        await run_bare(lambda: time.sleep(0.05))
    assert taken.virtual == 0
    assert taken.real >= 0.05


async def test_a_chain_of_short_thread_calls_holds_the_clock() -> None:
    with Stopwatch() as taken, anyio.fail_after(0.01):
        for _ in range(20):
            await run_bare(lambda: time.sleep(0.02))
    assert taken.virtual == 0
    assert taken.real >= 0.4  # in all longer than a single stuck thread could hold it


async def test_time_goes_on_when_the_thread_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_virtual, "HOLD_S", 3600.0)
    await run_bare(lambda: time.sleep(0.01))
    with Stopwatch() as taken:
        await anyio.sleep(DAY)
    assert taken.real < 60


async def test_a_stuck_thread_lets_a_timeout_fire() -> None:
    let_go = threading.Event()
    with Stopwatch() as taken, pytest.raises(TimeoutError), anyio.fail_after(60):
        await run_bare(lambda: let_go.wait(60), grace=1)
    let_go.set()
    assert taken.virtual == pytest.approx(61)
    assert 0.5 <= taken.real < 60  # 0.3 before the timeout, and 0.3 for it to hear of that


async def test_a_stuck_thread_costs_its_wait_once_not_at_each_jump() -> None:
    let_go = threading.Event()

    async def tick() -> None:
        for _ in range(100):
            await anyio.sleep(1)
        let_go.set()

    with Stopwatch() as taken:
        async with anyio.create_task_group() as group:
            group.start_soon(tick)
            await run_bare(lambda: let_go.wait(60))
    assert taken.virtual >= 100
    assert taken.real < 15  # at each jump: 30


async def test_a_stuck_thread_that_is_told_to_end_has_the_time_to_hear_of_it() -> None:
    @tool
    def polite() -> None:
        while True:
            time.sleep(0.05)
            check_cancelled()

    async with ServiceManager(log=None, grace=10) as manager:
        with anyio.move_on_after(60):
            await manager.execute(polite)
        assert anyio.current_time() == pytest.approx(60)
    assert_clean(manager)


def test_seconds_without_a_look_at_the_clock_are_not_held_against_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    now, hold, mailbox = 0.0, _virtual._Hold(), SimpleNamespace(busy=1)
    monkeypatch.setattr(_virtual, "perf_counter", lambda: now)
    hold.adopt(mailbox)
    looks = 0
    while hold.left_s():
        now += 1.0 if looks < 10 else 0.001  # the machine is busy with others; then the threads are, or are stuck
        looks += 1
    assert looks == pytest.approx(210, abs=2)
    mailbox.on_busy(1)
    assert hold.left_s()


async def test_a_count_changed_from_a_thread_holds_the_clock_too() -> None:
    mailbox = Mailbox.here()
    mailbox.add_busy(1)

    def take_up_more() -> None:
        time.sleep(0.2)
        mailbox.add_busy(1)

    start_daemon(take_up_more, "takes-up-more")
    with Stopwatch() as taken:
        await anyio.sleep(60)
    assert taken.real >= 0.45  # 0.2, and 0.3 from then on
    mailbox.add_busy(-2)


async def test_without_a_deadline_the_loop_waits_for_a_foreign_thread_without_spinning() -> None:
    mailbox = Mailbox.here()
    posted = anyio.Event()

    def post() -> None:
        time.sleep(0.2)
        mailbox.put(posted.set)

    cpu = time.process_time()
    start_daemon(post, "foreign")
    with Stopwatch() as taken:
        await posted.wait()
    assert taken.virtual == 0
    assert taken.real >= 0.15
    assert time.process_time() - cpu < 0.1


async def test_a_foreign_thread_does_not_hold_the_clock() -> None:
    mailbox = Mailbox.here()
    posted = anyio.Event()

    def post() -> None:
        time.sleep(0.1)
        mailbox.put(posted.set)

    start_daemon(post, "foreign")
    with anyio.move_on_after(DAY) as scope:
        await posted.wait()
    assert scope.cancelled_caught


@pytest.mark.parametrize("repeat", [1, 2, 3])
async def test_each_test_starts_at_time_zero(opened_at: float, repeat: int) -> None:
    assert opened_at == 0
    assert anyio.current_time() == pytest.approx(5)
    await anyio.sleep(DAY * repeat)


def test_parameters_have_readable_ids(request: pytest.FixtureRequest) -> None:
    assert [backend.__name__ for backend in virtual_backends()] == ["asyncio-virtual", "trio-virtual"]
    assert [backend.__name__ for backend in virtual_backends(["trio"], seed=7)] == ["trio-virtual-seed7"]


async def test_ids_reach_pytest(request: pytest.FixtureRequest, anyio_backend_name: str) -> None:
    assert request.node.name == f"test_ids_reach_pytest[{anyio_backend_name}-virtual]"


@pytest.mark.parametrize("make", [lambda: virtual_backend("uvloop"), lambda: virtual_backends(["curio"])])
def test_other_backends_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"no virtual time on '(uvloop|curio)'.*timers are real"):
        make()


@BOTH
def test_each_call_makes_a_fresh_clock(name: str) -> None:
    backend = VirtualBackend(name)
    for _ in range(2):
        library, options = backend()
        assert anyio.run(_sleep_and_tell, backend=library, backend_options=options) == pytest.approx(10)


async def _sleep_and_tell() -> float:
    await anyio.sleep(10)
    return anyio.current_time()


def order(name: str, seed: int | None) -> list[int]:
    """The order in which ten tasks take four turns each."""
    taken: list[int] = []

    async def take_turns(number: int) -> None:
        for _ in range(4):
            await anyio.lowlevel.checkpoint()
            taken.append(number)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            for number in range(10):
                group.start_soon(take_turns, number)

    library, options = virtual_backend(name, seed)
    anyio.run(main, backend=library, backend_options=options)
    return taken


@BOTH
def test_a_seed_gives_its_order_again(name: str) -> None:
    assert order(name, 3) == order(name, 3)
    assert order(name, 3) != order(name, 4)


@BOTH
def test_cancelled_tasks_unwind_in_the_order_of_the_seed(name: str) -> None:
    def unwind(seed: int) -> list[int]:
        ended: list[int] = []

        async def wait(number: int) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                ended.append(number)

        async def main() -> None:
            async with anyio.create_task_group() as group:
                for number in range(20):
                    group.start_soon(wait, number)
                await anyio.sleep(1)
                group.cancel_scope.cancel()

        library, options = virtual_backend(name, seed)
        anyio.run(main, backend=library, backend_options=options)
        return ended

    kept = []
    for _ in range(5):
        kept.append([object() for _ in range(random.randrange(1000))])  # other addresses, so another order in sets
        assert unwind(1) == unwind(1) != unwind(2)


def test_without_a_seed_asyncio_is_first_come_first_served() -> None:
    assert order("asyncio", None) == list(range(10)) * 4


def test_trio_gets_its_own_random_numbers_back() -> None:
    run = trio._core._run
    before = run._r.getstate(), run._ALLOW_DETERMINISTIC_SCHEDULING
    order("trio", 5)
    assert (run._r.getstate(), run._ALLOW_DETERMINISTIC_SCHEDULING) == before


def test_trio_gets_its_own_random_numbers_back_after_a_failure() -> None:
    run = trio._core._run
    before = run._r.getstate(), run._ALLOW_DETERMINISTIC_SCHEDULING

    async def fail() -> None:
        await anyio.sleep(1)
        raise KeyError

    library, options = virtual_backend("trio", 5)
    with pytest.raises(KeyError):
        anyio.run(fail, backend=library, backend_options=options)
    assert (run._r.getstate(), run._ALLOW_DETERMINISTIC_SCHEDULING) == before


@pytest.mark.parametrize("renamed", ["_r", "_ALLOW_DETERMINISTIC_SCHEDULING"])
def test_a_renamed_private_name_of_trio_is_named(renamed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(trio._core._run, renamed)
    virtual_backend("trio")  # without a seed nothing of it is needed
    with pytest.raises(RuntimeError, match=rf"private name trio\._core\._run\.{renamed}\b"):
        virtual_backend("trio", seed=1)


def test_a_renamed_hook_of_the_clock_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(trio.testing.MockClock, "_autojump")
    with pytest.raises(RuntimeError, match=r"private name MockClock\._autojump"):
        virtual_backend("trio")


def test_a_ready_queue_that_is_gone_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"private name Handle\._callbacks"):
        _virtual._need(asyncio.Handle, "_callbacks")
