"""Services that crash: started again as their policy says, with those that require them, and what becomes of calls."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint

from kgas_async import (
    Batcher,
    CallFailed,
    CallTimeout,
    ConcurrencyLimit,
    KGASTool,
    MemorySink,
    Phase,
    Pipeline,
    Policy,
    RestartPolicy,
    Retry,
    RunReport,
    Service,
    ServiceCrashed,
    ServiceManager,
    ServiceNotRunning,
    ServiceStartFailed,
    ToolAdapter,
    check_cancelled,
    exponential,
    tool,
)
from kgas_async._mailbox import Mailbox
from kgas_async.testing import assert_clean, explore

ONCE = RestartPolicy(1, 60, wait=1.0)
OFTEN = RestartPolicy(5, 60, wait=1.0)


class Shaky(Service):
    """Crashes when it is told to; counts its lives."""

    def __init__(self, name: str, *needed: Service, restart: RestartPolicy | None = None, story: Any = None) -> None:
        self.name = name
        self.restart = restart
        self.needed = needed
        self.story: list[str] = [] if story is None else story
        self.lives = 0
        self.fails_to_start: list[int] = []  # in which of its lives
        self.fails_to_stop = False
        self.hangs_in_stop = False
        self.fuse = anyio.Event()

    @property
    def requires(self) -> tuple[Service, ...]:
        return self.needed

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self.lives += 1
        self.fuse = anyio.Event()
        await checkpoint()
        if self.lives in self.fails_to_start:
            raise OSError(f"{self.name} cannot start")
        self.story.append(f"+{self.name}")
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._burn)
                yield
                tasks.cancel_scope.cancel()
        finally:
            self.story.append(f"-{self.name}")
            if self.hangs_in_stop:
                await anyio.sleep_forever()
            if self.fails_to_stop:
                raise OSError(f"{self.name} cannot stop")

    async def _burn(self) -> None:
        await self.fuse.wait()
        raise ConnectionError(f"{self.name} is gone")

    def crash(self) -> None:
        self.fuse.set()

    def ask(self) -> int:
        self.ensure_running()
        return self.lives


class Asks(KGASTool):
    """Uses a service before and after a wait; says in which of the service's lives it got through."""

    def __init__(self, service: Shaky, wait_s: float = 0.0, policy: Policy | None = None) -> None:
        self.service = service
        self.wait_s = wait_s
        if policy is not None:
            self.policy = policy
        self.begun = 0

    async def execute_async(self) -> int:
        self.begun += 1
        before = self.service.ask()
        await anyio.sleep(self.wait_s)
        assert self.service.ask() == before
        return before


def manager_of(*services: Any, **options: Any) -> tuple[ServiceManager, MemorySink]:
    sink = MemorySink()
    options.setdefault("grace", 5)
    return ServiceManager(*services, evidence=sink, log=None, **options), sink


def told(sink: MemorySink, *names: str) -> list[tuple[Any, ...]]:
    """What the evidence says of services: (event without its prefix, service, attempt)."""
    found = [record for record in sink.records if record["event"].startswith("service.")]
    chosen = [record for record in found if not names or record["service"] in names]
    return [(record["event"].removeprefix("service."), record["service"], record["attempt"]) for record in chosen]


@tool
async def first(x: int) -> int:
    await checkpoint()
    return x


class Batched(KGASTool):
    def __init__(self, service: Shaky) -> None:
        self.service = service

    async def execute_async(self, xs: list[int]) -> list[int]:
        self.service.ask()
        await anyio.sleep(1)
        self.service.ask()
        return [2 * x for x in xs]


# --- one service


@explore(seeds=5)
async def test_a_crashed_service_is_started_again_after_its_delay() -> None:
    service = Shaky("db", restart=OFTEN)
    manager, sink = manager_of(service)
    async with manager:
        service.crash()
        await anyio.sleep(0.9)
        assert manager.statistics().services == []
        await anyio.sleep(0.2)
        assert manager.statistics().services == ["db"]
        assert await manager.execute(Asks(service)) == 2
    assert told(sink) == [
        ("starting", "db", 1),
        ("started", "db", 1),
        ("crashed", "db", 1),
        ("restarting", "db", 2),
        ("starting", "db", 2),
        ("started", "db", 2),
        ("stopped", "db", 2),
    ]
    (restarting,) = [record for record in sink.records if record["event"] == "service.restarting"]
    assert restarting["delay_us"] == 1_000_000
    assert restarting["reason"] == "ConnectionError: db is gone"
    assert_clean(manager)


@explore(seeds=5)
async def test_more_crashes_than_the_policy_allows_take_the_session_down() -> None:
    service = Shaky("db", restart=RestartPolicy(3, 60, wait=1.0))
    manager, sink = manager_of(service)
    with pytest.raises(ServiceCrashed, match=r"db is gone.*3 restarts within 60 s did not help") as caught:
        async with manager:
            while True:
                service.crash()
                await anyio.sleep(2)
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert service.lives == 4
    assert told(sink)[-2:] == [("crashed", "db", 4), ("failed", "db", 4)]
    assert_clean(manager)


@explore(seeds=3)
async def test_crashes_that_are_further_apart_do_not_add_up() -> None:
    service = Shaky("db", restart=ONCE)
    manager, _ = manager_of(service)
    async with manager:
        for _ in range(10):
            service.crash()
            await anyio.sleep(61)
        assert manager.statistics().services == ["db"]
    assert service.lives == 11


@explore(seeds=3)
async def test_a_service_that_crashes_every_10_ms_escalates() -> None:
    class Hopeless(Service):
        restart = RestartPolicy(5, 60, wait=exponential(0.1, jitter=0))
        lives = 0

        @asynccontextmanager
        async def running(self) -> AsyncIterator[None]:
            self.lives += 1
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._burn)
                yield

        async def _burn(self) -> None:
            await anyio.sleep(0.01)
            raise ConnectionError("again")

    service = Hopeless()
    manager, sink = manager_of(service)
    with pytest.raises(ServiceCrashed, match="again"):
        async with manager:
            await anyio.sleep_forever()
    delays = [record["delay_us"] for record in sink.records if record["event"] == "service.restarting"]
    assert delays == [100_000, 200_000, 400_000, 800_000, 1_600_000]
    assert service.lives == 6
    assert_clean(manager)


@explore(seeds=3)
async def test_a_first_start_that_fails_is_tried_again() -> None:
    service = Shaky("db", restart=OFTEN)
    service.fails_to_start = [1, 2]
    manager, sink = manager_of(service)
    async with manager:
        assert await manager.execute(Asks(service)) == 3
    assert [event for event, *_ in told(sink)].count("failed") == 2
    assert_clean(manager)


@explore(seeds=3)
async def test_a_first_start_that_never_succeeds_is_told_after_the_last_try() -> None:
    service = Shaky("db", restart=RestartPolicy(2, 60, wait=1.0))
    service.fails_to_start = list(range(100))
    manager, _ = manager_of(service, on_crash="continue")
    with pytest.raises(ServiceStartFailed, match="db cannot start"):
        async with manager:
            pytest.fail("the body must not run")
    assert service.lives == 3
    assert_clean(manager)


@explore(seeds=3)
async def test_a_restart_whose_start_fails_counts_as_a_crash() -> None:
    service = Shaky("db", restart=RestartPolicy(2, 60, wait=1.0))
    service.fails_to_start = [2, 3]
    manager, sink = manager_of(service)
    with pytest.raises(ServiceCrashed, match="db cannot start"):
        async with manager:
            service.crash()
            await anyio.sleep_forever()
    assert [event for event, _, attempt in told(sink) if event in ("crashed", "failed")] == [
        "crashed",
        "failed",
        "failed",
        "failed",
    ]


@explore(seeds=5)
async def test_one_that_crashes_while_others_still_start_is_waited_for() -> None:
    class Slow(Shaky):
        @asynccontextmanager
        async def running(self) -> AsyncIterator[None]:
            await anyio.sleep(2.5)
            async with super().running():
                yield

    class Early(Shaky):
        async def _burn(self) -> None:
            if self.lives == 1:
                await anyio.sleep(2)
                self.crash()
            await super()._burn()

    early, slow = Early("early", restart=OFTEN), Slow("slow")
    manager, _ = manager_of(early, slow)
    async with manager:
        assert manager.statistics().services == ["early", "slow"]
        assert (early.lives, slow.lives) == (2, 1)
    assert_clean(manager)


async def test_leaving_while_a_service_waits_for_its_restart_does_not_wait_for_it() -> None:
    service = Shaky("db", restart=RestartPolicy(wait=1000.0))
    manager, _ = manager_of(service)
    async with manager:
        service.crash()
        while manager.statistics().services:
            await checkpoint()
    assert service.lives == 1
    assert_clean(manager)


def wait_breaks(restarts: int) -> float:
    raise ZeroDivisionError


@explore(seeds=2)
async def test_a_policy_whose_function_fails_escalates_with_the_crash_and_says_so() -> None:
    service = Shaky("db", restart=RestartPolicy(wait=wait_breaks))
    manager, _ = manager_of(service)
    with pytest.raises(ServiceCrashed) as caught:
        async with manager:
            service.crash()
            await anyio.sleep_forever()
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert any("ZeroDivisionError" in note for note in caught.value.__cause__.__notes__)


# --- those that require it


@explore(seeds=10)
async def test_rest_for_one_stops_those_that_require_it_in_reverse_and_starts_them_after_it() -> None:
    story: list[str] = []
    db = Shaky("db", restart=OFTEN, story=story)
    cache = Shaky("cache", db, story=story)
    api = Shaky("api", cache, story=story)
    other = Shaky("other", story=story)
    manager, sink = manager_of(api, other)
    async with manager:
        story.clear()
        db.crash()
        await anyio.sleep(3)
        assert sorted(manager.statistics().services) == ["api", "cache", "db", "other"]
        assert story == ["-db", "-api", "-cache", "+db", "+cache", "+api"]
    assert (db.lives, cache.lives, api.lives, other.lives) == (2, 2, 2, 1)
    stopped = [r for r in sink.records if r["event"] == "service.stopped" and r["service"] == "api"]
    assert stopped[0]["reason"] == "service 'db' crashed"
    assert_clean(manager)


@explore(seeds=10)
async def test_one_for_one_leaves_those_that_require_it_running() -> None:
    story: list[str] = []
    db = Shaky("db", restart=RestartPolicy(wait=1.0, strategy="one_for_one"), story=story)
    cache = Shaky("cache", db, story=story)
    manager, _ = manager_of(cache)
    async with manager:
        db.crash()
        await anyio.sleep(0.5)
        assert manager.statistics().services == ["cache"]
        with pytest.raises(ServiceNotRunning, match="start it again"):
            db.ask()
        await anyio.sleep(3)
    assert (db.lives, cache.lives) == (2, 1)


@explore(seeds=10)
async def test_a_chain_of_restarts_ends_with_all_running() -> None:
    db = Shaky("db", restart=OFTEN)
    cache = Shaky("cache", db, restart=OFTEN)
    api = Shaky("api", cache, restart=OFTEN)
    manager, _ = manager_of(api)
    async with manager:
        for crashing in ([db, cache], [api, db], [cache], [db, cache, api]):
            for service in crashing:
                service.crash()
            await anyio.sleep(5)
            assert manager.statistics().services == ["db", "cache", "api"]
    assert_clean(manager)


@explore(seeds=10)
async def test_one_that_crashes_because_what_it_requires_is_down_is_started_again_with_it() -> None:
    db = Shaky("db", restart=RestartPolicy(wait=5.0))
    cache = Shaky("cache", db)  # has no policy of its own
    api = Shaky("api", cache)

    class Tidies(Asks):
        async def execute_async(self) -> int:
            try:
                return await super().execute_async()
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(1)  # until then it is not told to stop

    manager, sink = manager_of(api)
    async with manager:
        manager.submit(Tidies(cache, 100))
        await anyio.sleep(1)
        db.crash()
        await anyio.sleep(0.5)
        assert manager.statistics().services == ["cache", "api"]
        cache.crash()
        await anyio.sleep(10)
        assert manager.statistics().services == ["db", "cache", "api"]
    assert (cache.lives, api.lives) == (2, 2)
    assert ("crashed", "cache", 1) in told(sink)
    assert_clean(manager)


@explore(seeds=10)
@pytest.mark.parametrize("how", ["fails_to_stop", "hangs_in_stop"])
async def test_a_bad_stop_of_one_that_requires_it_does_not_keep_either_from_running_again(how: str) -> None:
    db = Shaky("db", restart=OFTEN)
    cache = Shaky("cache", db)
    setattr(cache, how, True)
    manager, sink = manager_of(cache)
    async with manager:
        db.crash()
        await anyio.sleep(0.5)
        setattr(cache, how, False)
        await anyio.sleep(20)
        assert manager.statistics().services == ["db", "cache"]
    assert ("failed", "cache", 1) in told(sink)
    assert cache.lives == 2
    assert_clean(manager)


@explore(seeds=5)
async def test_one_that_requires_it_and_fails_to_start_again_escalates_by_its_own_policy() -> None:
    db = Shaky("db", restart=OFTEN)
    cache = Shaky("cache", db)
    cache.fails_to_start = [2]
    manager, _ = manager_of(cache)
    with pytest.raises(ServiceCrashed, match="cache cannot start") as caught:
        async with manager:
            db.crash()
            await anyio.sleep_forever()
    assert caught.value.service == "cache"
    assert_clean(manager)


# --- calls that use it


@explore(seeds=10)
async def test_a_call_that_used_it_fails_with_the_crash_and_others_go_on() -> None:
    service, other = Shaky("db", restart=OFTEN), Shaky("other")
    manager, _ = manager_of(service, other)
    async with manager:
        uses = manager.submit(Asks(service, 10))
        unharmed = manager.submit(Asks(other, 10).using(name="unharmed"))
        await anyio.sleep(1)
        service.crash()
        with pytest.raises(CallFailed, match=r"ServiceCrashed.*'db' crashed") as caught:
            await uses.result()
        crashed = caught.value.__cause__
        assert isinstance(crashed, ServiceCrashed)
        assert crashed.service == "db"
        assert isinstance(crashed.__cause__, ConnectionError)
        assert uses.status == "failed"
        assert await unharmed.result() == 1
    assert_clean(manager)


@explore(seeds=10)
async def test_a_failed_attempt_is_retried_and_waits_for_the_restart() -> None:
    service = Shaky("db", restart=RestartPolicy(wait=30.0))
    manager, sink = manager_of(service)
    retry = Retry(3, on=ServiceCrashed, wait=0.1)
    async with manager:
        uses = manager.submit(Asks(service, 10, Policy(retry=retry, timeout=60, concurrency=1)))
        await anyio.sleep(1)
        service.crash()
        assert await uses.result() == 2
        assert uses.attempt == 2
        assert uses.wait_service_ns >= 0
    (retried,) = [record for record in sink.records if record["event"] == "call.retried"]
    assert retried["error"]["type"] == "ServiceCrashed"
    (ended,) = [record for record in sink.records if record["event"] == "call.succeeded"]
    assert "service" in ended["wait_us"]
    assert_clean(manager)


@explore(seeds=10)
@pytest.mark.parametrize("after_s", [2, 20])
async def test_a_call_that_is_cancelled_before_its_next_attempt_is_cancelled_and_has_not_failed(after_s: float) -> None:
    service = Shaky("db", restart=RestartPolicy(wait=100.0))
    manager, _ = manager_of(service)
    async with manager:
        call = manager.submit(Asks(service, 10, Policy(retry=Retry(3, on=ServiceCrashed, wait=5))))
        await anyio.sleep(1)
        service.crash()
        await anyio.sleep(after_s)  # in the sleep of the retry, or in the wait for the restart
        call.cancel("enough")
        outcome = await call.outcome()
        assert (outcome.status, call.reason) == ("cancelled", "enough")
    assert_clean(manager)


@explore(seeds=10)
async def test_new_calls_wait_for_the_restart() -> None:
    service = Shaky("db", restart=RestartPolicy(wait=30.0))
    asks = Asks(service)
    manager, _ = manager_of(service)
    async with manager:
        service.crash()
        await anyio.sleep(1)
        began = anyio.current_time()
        assert await manager.execute(asks) == 2
        assert 28.5 < anyio.current_time() - began < 31
    assert asks.begun == 1


@explore(seeds=10)
async def test_new_calls_wait_until_their_deadline_at_the_most() -> None:
    service = Shaky("db", restart=RestartPolicy(wait=30.0))
    asks = Asks(service, policy=Policy(deadline=5))
    manager, _ = manager_of(service)
    async with manager:
        service.crash()
        await anyio.sleep(1)
        began = anyio.current_time()
        with pytest.raises(CallTimeout, match="deadline") as caught:
            await manager.execute(asks)
        assert anyio.current_time() - began == pytest.approx(5, abs=0.1)
        assert isinstance(caught.value.__cause__, ConnectionError)  # why the service is not there
    assert asks.begun == 0


@explore(seeds=10)
async def test_new_calls_fail_with_the_crash_once_it_is_decided() -> None:
    service = Shaky("db", restart=RestartPolicy(1, 60, wait=30.0))
    service.fails_to_start = [2]
    manager, _ = manager_of(service, on_crash="continue")
    async with manager:
        service.crash()
        await anyio.sleep(1)
        began = anyio.current_time()
        with pytest.raises(CallFailed) as caught:
            await manager.execute(Asks(service))
        assert isinstance(caught.value.__cause__, ServiceCrashed)
        assert anyio.current_time() - began > 28
    assert_clean(manager)


@explore(seeds=10)
async def test_a_map_goes_on_after_the_restart() -> None:
    service = Shaky("db", restart=RestartPolicy(wait=3.0))
    retrying = Asks(service, 1, Policy(retry=Retry(2, on=ServiceCrashed, wait=0)))
    manager, _ = manager_of(service)
    for asks, lost in ((Asks(service, 1), 3), (retrying, 0)):
        async with manager:
            async with manager.map(asks, [{}] * 12, in_flight=3) as outcomes:
                first = [await anext(outcomes) for _ in range(6)]
                await anyio.sleep(0.5)
                service.crash()
                outcomes_after = [outcome async for outcome in outcomes]
            ended = [outcome.status for outcome in [*first, *outcomes_after]]
            assert ended.count("failed") == lost
            assert ended.count("succeeded") == 12 - lost
            if lost:
                assert all(isinstance(o.error.__cause__, ServiceCrashed) for o in outcomes_after if not o.ok)
        assert_clean(manager)


@explore(seeds=10)
async def test_a_run_goes_on_after_the_restart_and_loses_no_item() -> None:
    service = Shaky("db", restart=RestartPolicy(wait=3.0))
    asks = Asks(service, 1)
    batched = Batched(service)
    pipeline = Pipeline(
        "p",
        Phase("first", first),
        Phase("asked", asks, after="first"),
        Phase("batched", batched, bind={"xs": "first"}, batch=3, after="asked"),
        item=["x"],
    )
    retry = Policy(retry=Retry(2, on=ServiceCrashed, wait=0))
    retrying = Pipeline(
        "r",
        Phase("first", first),
        Phase("asked", asks, after="first", policy=retry),
        Phase("batched", batched, bind={"xs": "first"}, batch=3, after="asked", policy=retry),
        item=["x"],
    )
    for declared in (pipeline, retrying):
        manager, _ = manager_of()
        reports: list[RunReport] = []

        async def run(manager: ServiceManager, declared: Pipeline, reports: list[RunReport]) -> None:
            reports.append(await manager.run(declared, ({"x": x} for x in range(20)), in_flight=6, keep="all"))

        async with manager, anyio.create_task_group() as tasks:
            tasks.start_soon(run, manager, declared, reports)
            await anyio.sleep(2.5)
            service.crash()
            await anyio.sleep(5)
            service.crash()
        (report,) = reports
        assert report.total == 20
        assert report.succeeded + report.failed == 20
        assert (report.failed == 0) is (declared is retrying)
        assert all(isinstance(failure.error.__cause__, ServiceCrashed) for failure in report.failures)
        assert_clean(manager)


@explore(seeds=5)
async def test_a_batcher_goes_down_with_the_service_of_its_tool_and_comes_back() -> None:
    service = Shaky("db", restart=RestartPolicy(wait=3.0))
    batcher = Batcher(Batched(service), max_size=3, max_wait=0.1)
    manager, _ = manager_of(batcher)
    async with manager:
        once = manager.submit(batcher.tool, xs=1)
        twice = manager.submit(batcher.tool.using(name="twice", retry=Retry(2, on=ServiceCrashed, wait=0)), xs=2)
        await anyio.sleep(0.5)
        service.crash()
        assert (await once.outcome()).status == "failed"
        assert await twice.result() == 4
        assert await manager.execute(batcher.tool, xs=3) == 6
        assert manager.statistics().services == ["db", batcher.name]
    assert_clean(manager)


async def test_a_nested_call_from_a_thread_waits_for_the_restart() -> None:
    service = Shaky("db", restart=RestartPolicy(wait=0.01))
    asks = Asks(service)

    def nested() -> int:
        return asks.execute()  # type: ignore[no-any-return]

    manager, _ = manager_of(service)
    async with manager:
        service.crash()
        while service._is_running:
            await checkpoint()
        assert await manager.execute(tool(nested)) == 2
    assert_clean(manager)


@explore(seeds=10)
async def test_a_call_that_waits_for_a_token_has_not_used_the_service() -> None:
    service = Shaky("db", restart=RestartPolicy(wait=3.0))
    asks = Asks(service, 10, Policy(concurrency=1))
    manager, _ = manager_of(service)
    async with manager:
        calls = manager.submit(asks), manager.submit(asks)
        await anyio.sleep(1)
        assert asks.begun == 1
        runs, waits = sorted(calls, key=lambda call: call.status)
        assert (runs.status, waits.status) == ("running", "waiting")
        service.crash()
        assert (await runs.outcome()).status == "failed"
        assert await waits.result() == 2
        assert waits.attempt == 1
    assert_clean(manager)


@explore(seeds=10)
async def test_calls_of_those_that_go_down_with_it_fail_and_end_before_these_stop() -> None:
    story: list[str] = []
    db = Shaky("db", restart=OFTEN)
    cache = Shaky("cache", db, story=story)

    class Tidies(Asks):
        async def execute_async(self) -> int:
            try:
                return await super().execute_async()
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(2)
                story.append(f"tidied in life {self.service.ask()}")

    manager, _ = manager_of(cache)
    async with manager:
        call = manager.submit(Tidies(cache, 100))
        await anyio.sleep(1)
        db.crash()
        with pytest.raises(CallFailed, match="'cache', which requires it, goes down with it") as caught:
            await call.result()
        assert isinstance(caught.value.__cause__, ServiceCrashed)
        assert caught.value.__cause__.service == "db"
        await manager.start(cache)  # waits for its restart
    assert story[:4] == ["+cache", "tidied in life 1", "-cache", "+cache"]


class InThread(ToolAdapter):
    def __init__(self, service: Shaky, function: Callable[[], object], policy: Policy | None = None) -> None:
        super().__init__(function, policy=policy)
        self.service = service


async def test_a_sync_tool_is_told_by_its_next_look() -> None:
    service = Shaky("db", restart=RestartPolicy(wait=0.01))
    manager, _ = manager_of(service)
    async with manager:
        looking = anyio.Event()
        mailbox = Mailbox.here()

        def works() -> None:
            mailbox.put(looking.set)
            while True:
                check_cancelled()

        call = manager.submit(InThread(service, works))
        await looking.wait()
        service.crash()
        outcome = await call.outcome()
        assert outcome.status == "failed"
        assert isinstance(outcome.error, CallFailed)
        assert isinstance(outcome.error.__cause__, ServiceCrashed)
    assert_clean(manager)


async def test_a_thread_that_does_not_look_is_left_behind_and_keeps_its_token() -> None:
    service = Shaky("db", restart=RestartPolicy(wait=0.01))
    limit = ConcurrencyLimit(1)
    begun, let_go, mailbox = anyio.Event(), threading.Event(), Mailbox.here()

    def hangs() -> None:
        mailbox.put(begun.set)
        let_go.wait()

    manager, sink = manager_of(service, grace=0.05, abandoned="join")
    async with manager:
        retry = Retry(3, on=ServiceCrashed, wait=0)
        call = manager.submit(InThread(service, hangs, Policy(concurrency=limit, retry=retry)))
        await begun.wait()
        service.crash()
        outcome = await call.outcome()
        assert (outcome.status, outcome.attempts) == ("failed", 1)  # its first attempt still runs
        assert limit.statistics().borrowed == 1
        let_go.set()
    assert [record["event"] for record in sink.records].count("thread.abandoned") == 1
    assert_clean(manager, limit)


async def test_what_waits_for_a_thread_has_not_used_the_service() -> None:
    service = Shaky("db", restart=RestartPolicy(wait=0))
    lives: list[int] = []
    begun, let_go, mailbox = anyio.Event(), threading.Event(), Mailbox.here()

    def occupies() -> None:
        mailbox.put(begun.set)
        let_go.wait()

    def asks() -> None:
        lives.append(service.ask())

    manager, _ = manager_of(service, threads=1)
    async with manager:
        other = manager.submit(tool(occupies))
        await begun.wait()
        call = manager.submit(InThread(service, asks))
        await wait_all_tasks_blocked()
        assert call.status == "running"  # in the line for a thread
        service.crash()
        while service.lives < 2:
            await checkpoint()
        let_go.set()
        assert (await call.outcome()).ok
        await other.result()
    assert lives == [2]
    assert_clean(manager)


# --- on_crash


@explore(seeds=5)
async def test_without_a_policy_its_calls_fail_with_the_crash_and_the_session_ends() -> None:
    service, other = Shaky("db"), Shaky("other")
    manager, _ = manager_of(service, other)
    calls = []
    with pytest.raises(ServiceCrashed):
        async with manager:
            calls += [manager.submit(Asks(service, 10)), manager.submit(Asks(other, 10).using(name="other"))]
            await anyio.sleep(1)
            service.crash()
            await anyio.sleep_forever()
    assert [call.status for call in calls] == ["failed", "cancelled"]
    assert isinstance(calls[0].error.__cause__, ServiceCrashed)
    assert_clean(manager)


@explore(seeds=5)
async def test_going_on_without_it_refuses_those_that_need_it_and_stops_services_that_require_it() -> None:
    db, other = Shaky("db"), Shaky("other")
    cache = Shaky("cache", db)
    manager, sink = manager_of(cache, other, on_crash="continue")
    async with manager:
        call = manager.submit(Asks(cache, 10))
        queued = manager.submit(Asks(db, 10, Policy(concurrency=1)).using(name="queued"))
        await anyio.sleep(1)
        db.crash()
        assert (await call.outcome()).status == (await queued.outcome()).status == "failed"
        await anyio.sleep(1)
        assert manager.statistics().services == ["other"]
        for service in (db, cache):
            with pytest.raises(ServiceCrashed, match=r"has crashed.*starts it anew"):
                await manager.execute(Asks(service))
        assert await manager.execute(Asks(other)) == 1
        report = await manager.health()
        assert [(one.name, one.status) for one in report.services] == [
            ("db", "crashed"),
            ("cache", "crashed"),
            ("other", "healthy"),
        ]
        await manager.start(cache)
        assert await manager.execute(Asks(db)) == 2
        assert manager.statistics().services == ["other", "db", "cache"]
    assert told(sink, "cache")[:5] == [
        ("starting", "cache", 1),
        ("started", "cache", 1),
        ("stopped", "cache", 1),
        ("failed", "cache", 1),
        ("starting", "cache", 1),
    ]
    assert_clean(manager)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="on_crash= is 'raise' or 'continue', not 'log'"):
        ServiceManager(on_crash="log")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="strategy"):
        RestartPolicy(strategy="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"RestartPolicy\(per\) must be above 0"):
        RestartPolicy(per=0)
    with pytest.raises(TypeError, match="did you mean 'restarts'"):
        RestartPolicy(restart=3)  # type: ignore[call-arg]
    service = Shaky("db")
    service.restart = 3  # type: ignore[assignment]
    with pytest.raises(TypeError, match=r"Shaky.restart is a RestartPolicy or None, not 3"):
        ServiceManager(service)


def test_a_policy_compares_and_prints_by_its_fields() -> None:
    assert RestartPolicy(3, wait=1) == RestartPolicy(3, wait=1.0) != RestartPolicy(4, wait=1)
    assert hash(RestartPolicy(3)) == hash(RestartPolicy(3))
    assert repr(RestartPolicy(3, wait=1)) == "RestartPolicy(3, per=60, wait=1.0, strategy='rest_for_one')"
