"""Health of services: asked for, asked now and then, bounded, on record when it changes, and a crash if so wanted."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from anyio.lowlevel import checkpoint

from kgas_async import (
    HealthReport,
    MemorySink,
    RestartPolicy,
    Service,
    ServiceHealth,
    ServiceManager,
    current,
    tool,
)
from kgas_async._mailbox import Mailbox
from kgas_async.testing import assert_clean, explore


class Plain(Service):
    """Has no check."""

    def __init__(self, name: str = "plain", restart: RestartPolicy | None = None) -> None:
        self.name = name
        self.restart = restart
        self.lives = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self.lives += 1
        await checkpoint()
        yield


class Checked(Plain):
    """Is as well as it is told; ``ill`` may be an error, or a function to be awaited."""

    def __init__(self, name: str = "checked", every: float | None = None, restart: RestartPolicy | None = None) -> None:
        super().__init__(name, restart)
        self.health_every = every
        self.ill: Any = None
        self.asked = 0
        self.cancelled = 0

    async def health(self) -> None:
        self.asked += 1
        await checkpoint()
        if isinstance(self.ill, Exception):
            raise self.ill
        if self.ill is not None:
            try:
                await self.ill()
            except BaseException:
                self.cancelled += 1
                raise


class CheckedInThread(Plain):
    """Its check is a plain function."""

    def __init__(self, name: str = "legacy", check: Callable[[], object] = bool) -> None:
        super().__init__(name)
        self.check = check
        self.threads: list[str] = []

    def health(self) -> None:  # type: ignore[override]
        self.threads.append(threading.current_thread().name)
        self.check()


def manager_of(*services: Any, **options: Any) -> tuple[ServiceManager, MemorySink]:
    sink = MemorySink()
    options.setdefault("grace", 5)
    return ServiceManager(*services, evidence=sink, log=None, **options), sink


def changes(sink: MemorySink) -> list[tuple[str, str]]:
    return [(record["service"], record["status"]) for record in sink.records if record["event"] == "service.health"]


async def test_the_report_says_of_each_service_how_it_is() -> None:
    well, ill = Checked("well"), Checked("ill")
    ill.ill = OSError("no space")
    manager, _ = manager_of(Plain(), well, ill)
    began = datetime.now(UTC)
    async with manager:
        report = await manager.health()
        assert isinstance(report, HealthReport)
        assert [(one.name, one.status, one.restarts) for one in report.services] == [
            ("plain", "healthy", 0),
            ("well", "healthy", 0),
            ("ill", "ill", 0),
        ]
        assert not report.ok
        assert report["plain"].checked_at is None
        assert report["ill"].error is ill.ill
        checked_at = report["well"].checked_at
        assert checked_at is not None
        assert began <= checked_at <= datetime.now(UTC)
        assert str(report) == "plain: healthy\nwell: healthy\nill: ill: OSError: no space"
        with pytest.raises(KeyError, match="no service is named 'other'; there are plain, well, ill"):
            report["other"]
        ill.ill = None
        assert (await manager.health()).ok
    assert_clean(manager)


@explore(seeds=5)
async def test_a_service_that_does_not_run_is_not_asked_and_says_why() -> None:
    service = Checked(restart=RestartPolicy(wait=30.0, ill_after=1))
    manager, _ = manager_of(service)
    async with manager:
        service.ill = OSError("gone")
        assert (await manager.health())["checked"].status in ("ill", "stopping", "restarting")
        await anyio.sleep(1)
        report = await manager.health()
        assert report["checked"].status == "restarting"
        assert "gone" in str(report["checked"].error)
        assert service.asked == 1
        service.ill = None
        await anyio.sleep(31)
        report = await manager.health()
        assert report["checked"] == ServiceHealth("checked", "healthy", report["checked"].checked_at, None, 1)
        assert str(report) == "checked: healthy (1 restarts)"


@explore(seeds=5)
async def test_checks_come_at_their_interval_and_only_changes_are_on_record() -> None:
    service = Checked(every=10)
    manager, sink = manager_of(service)
    async with manager:
        await anyio.sleep(35)
        assert service.asked == 3
        service.ill = OSError("ill")
        await anyio.sleep(30)
        service.ill = None
        await anyio.sleep(30)
        assert manager.statistics().services == ["checked"]  # ill, and left running: it has no policy
        service.ill = OSError("ill again")
        await anyio.sleep(10)
    assert changes(sink) == [("checked", "ill"), ("checked", "healthy"), ("checked", "ill")]
    assert [r["error"]["message"] for r in sink.records if r.get("status") == "ill"] == ["ill", "ill again"]
    assert_clean(manager)


@explore(seeds=5)
async def test_failed_checks_in_a_row_are_a_crash_where_the_policy_says_so() -> None:
    service = Checked(every=1, restart=RestartPolicy(wait=0.5, ill_after=3))
    manager, sink = manager_of(service)
    async with manager:
        service.ill = OSError("stuck")
        await anyio.sleep(2.5)
        service.ill = None  # two in a row are not three
        await anyio.sleep(1)
        service.ill = OSError("stuck")
        await anyio.sleep(2.4)
        assert manager.statistics().services == ["checked"]
        await anyio.sleep(0.4)
        assert (service.lives, manager.statistics().services) == (1, [])  # stopped; waits for its restart
        service.ill = None
        await anyio.sleep(5)
        assert (service.lives, manager.statistics().services) == (2, ["checked"])
    (crashed,) = [record for record in sink.records if record["event"] == "service.crashed"]
    assert crashed["error"]["message"] == "service 'checked' is ill, 3 health checks failed: OSError('stuck')"
    assert_clean(manager)


@explore(seeds=5)
async def test_an_ill_one_whose_stop_hangs_has_the_grace_and_is_started_again() -> None:
    class Stuck(Checked):
        @asynccontextmanager
        async def running(self) -> AsyncIterator[None]:
            async with super().running():
                try:
                    yield
                finally:
                    if self.lives == 1:
                        await anyio.sleep_forever()

    service = Stuck(restart=RestartPolicy(wait=0.5, ill_after=1))
    manager, sink = manager_of(service, grace=5)
    async with manager:
        service.ill = OSError("stuck")
        await manager.health()
        service.ill = None
        await anyio.sleep(7)
        assert (service.lives, manager.statistics().services) == (2, ["checked"])
    messages = [record["error"]["message"] for record in sink.records if record["event"] == "service.failed"]
    assert messages == ["service 'checked' did not stop in time"]
    assert_clean(manager)


@explore(seeds=5)
async def test_without_ill_after_no_number_of_failed_checks_is_a_crash() -> None:
    service = Checked(every=1, restart=RestartPolicy(wait=0.5))
    service.ill = OSError("ill")
    manager, _ = manager_of(service)
    async with manager:
        await anyio.sleep(100)
        assert service.lives == 1


@explore(seeds=5)
async def test_a_check_that_hangs_is_bounded_and_makes_it_ill() -> None:
    service = Checked()
    service.ill = anyio.sleep_forever
    manager, _ = manager_of(service)
    async with manager:
        began = anyio.current_time()
        report = await manager.health()
        assert anyio.current_time() - began == pytest.approx(service.health_timeout, abs=0.01)
        assert report["checked"].status == "ill"
        assert isinstance(report["checked"].error, TimeoutError)
    assert service.cancelled == 1


@explore(seeds=5)
async def test_who_asks_while_a_check_is_under_way_gets_that_one() -> None:
    service = Checked(every=1)

    async def slowly() -> None:
        await anyio.sleep(3)

    service.ill = slowly
    manager, _ = manager_of(service)
    async with manager, anyio.create_task_group() as tasks:
        await anyio.sleep(1.5)
        reports = []

        async def ask() -> None:
            reports.append(await manager.health())

        for _ in range(3):
            tasks.start_soon(ask)
        await anyio.sleep(3)
        assert [report.ok for report in reports] == [True] * 3
        assert service.asked == 1


@explore(seeds=5)
async def test_a_check_ends_before_its_service_does() -> None:
    order: list[str] = []

    class Ordered(Checked):
        @asynccontextmanager
        async def running(self) -> AsyncIterator[None]:
            yield
            order.append("stopped")

        async def health(self) -> None:
            try:
                await anyio.sleep(60)
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(1)
                order.append("check over")

    service = Ordered(every=1)
    service.health_timeout = 100
    manager, sink = manager_of(service)
    async with manager:
        await anyio.sleep(2)
    assert order == ["check over", "stopped"]
    assert changes(sink) == []
    assert_clean(manager)


@explore(seeds=5)
async def test_a_check_that_was_asked_for_and_ends_with_its_service_says_nothing_about_it() -> None:
    service = Checked()
    service.ill = anyio.sleep_forever
    manager, sink = manager_of(service)
    async with anyio.create_task_group() as tasks, manager:
        tasks.start_soon(manager.health)
        await anyio.sleep(1)
        assert service.asked == 1
    assert service.cancelled == 1
    assert changes(sink) == []
    assert_clean(manager)


async def test_whoever_stops_waiting_for_the_report_leaves_the_check_to_its_limit() -> None:
    service = Checked()
    service.ill = anyio.sleep_forever
    service.health_timeout = 0.05
    manager, _ = manager_of(service)
    async with manager:
        with anyio.move_on_after(0.001):
            await manager.health()
        assert service.cancelled == 0
        report = await manager.health()
        assert report["checked"].status == "ill"
    assert_clean(manager)


async def test_a_check_belongs_to_no_call_and_finds_its_manager() -> None:
    found: list[Any] = []

    @tool
    async def nested() -> None:
        await checkpoint()

    class Curious(Checked):
        async def health(self) -> None:
            call = current().submit(nested)
            await call.wait()
            found.append((current(), call.parent))

    @tool
    async def asks() -> bool:
        return (await current().health()).ok

    manager, _ = manager_of(Curious())
    async with manager:
        assert await manager.execute(asks)
    assert found == [(manager, None)]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
async def test_an_exit_in_a_check_ends_the_session_and_comes_out_bare(error: BaseException) -> None:
    class Leaves(Checked):
        async def health(self) -> None:
            raise error

    manager, _ = manager_of(Leaves())
    with pytest.raises(type(error)):
        async with manager:
            await manager.health()
            await anyio.sleep(60)
    assert_clean(manager)


# --- checks in threads


async def test_a_sync_check_runs_in_a_reserved_thread() -> None:
    service = CheckedInThread()
    manager, _ = manager_of(service)
    async with manager:
        assert (await manager.health()).ok
    (name,) = service.threads
    assert "reserved" in name
    assert_clean(manager)


async def test_100_hung_legacy_calls_do_not_delay_a_check() -> None:
    begun, let_go, mailbox = anyio.Event(), threading.Event(), Mailbox.here()

    @tool
    def hangs() -> None:
        mailbox.put(begun.set)
        let_go.wait()

    service, other = CheckedInThread(), Checked()
    manager, sink = manager_of(service, other, threads=4)
    async with manager:
        calls = [manager.submit(hangs) for _ in range(100)]
        await begun.wait()
        await wait_all_tasks_blocked()
        for _ in range(3):
            report = await manager.health()
            assert report.ok, report
        assert len(service.threads) == other.asked == 3
        assert all(not call.has_ended for call in calls)
        let_go.set()
        for call in calls:
            await call.result()
    assert changes(sink) == []
    assert_clean(manager)


async def test_a_sync_check_that_hangs_costs_one_thread_however_often_it_is_asked() -> None:
    let_go = threading.Event()
    service = CheckedInThread(check=let_go.wait)
    service.health_timeout = 0.05
    manager, sink = manager_of(service, abandoned="join")
    async with manager:
        for _ in range(4):
            report = await manager.health()
            assert report["legacy"].status == "ill"
        assert "has not ended yet" in str(report["legacy"].error)
        assert len(service.threads) == 1
        assert manager.statistics().threads_abandoned == 1
        let_go.set()
    events = [(record["event"], record.get("service")) for record in sink.records]
    assert events.count(("thread.abandoned", "legacy")) == 1
    assert events.count(("thread.ended", "legacy")) == 1
    assert_clean(manager)


async def test_a_hung_check_does_not_hold_up_leaving_and_is_named() -> None:
    let_go = threading.Event()
    service = CheckedInThread(check=let_go.wait)
    service.health_timeout = 0.05
    manager, sink = manager_of(service)
    async with manager:
        await manager.health()
    assert sink.records[-1]["abandoned"] == ["legacy"]
    assert_clean(manager, abandoned=1)
    let_go.set()


# --- misuse, and the blocking manager


@pytest.mark.parametrize(("name", "value"), [("health_every", 0), ("health_every", -1), ("health_timeout", 0)])
def test_intervals_that_make_no_sense_are_refused_by_the_manager(name: str, value: float) -> None:
    service = Checked()
    setattr(service, name, value)
    with pytest.raises(ValueError, match=rf"Checked\.{name} must be above 0"):
        ServiceManager(service)


def test_the_blocking_manager_has_it_too() -> None:
    with ServiceManager(Checked(), log=None).blocking() as manager:
        assert manager.health().ok
