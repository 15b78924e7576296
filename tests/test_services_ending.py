"""Services that stop badly or crash, and tools whose services do not run."""

from __future__ import annotations

import pickle
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import (
    MemorySink,
    Phase,
    Pipeline,
    Service,
    ServiceCrashed,
    ServiceManager,
    ServiceNotRunning,
    ServiceStartFailed,
    tool,
)
from kgas_async.testing import FakeService, explore

from .test_services import Asks, BadStop, Crashing, HangingStop, Recorded, Refusing

# --- stopping goes wrong


async def test_one_failing_stop_does_not_skip_the_others() -> None:
    story: list[str] = []
    sink = MemorySink()
    async with ServiceManager(
        Recorded("a", story), BadStop("bad", story), Recorded("c", story), evidence=sink, log=None
    ):
        pass
    assert story[3:] == ["-c", "-a"]
    (failed,) = [record for record in sink.records if record["event"] == "service.failed"]
    assert failed["service"] == "bad"
    assert failed["error"] == {"type": "OSError", "message": "cannot stop bad"}


@explore(seeds=3)
async def test_a_hanging_stop_is_bounded_by_the_grace() -> None:
    story: list[str] = []
    sink = MemorySink()
    began = anyio.current_time()
    async with ServiceManager(Recorded("a", story), HangingStop("hangs", story), grace=5.0, evidence=sink, log=None):
        pass
    assert anyio.current_time() - began == pytest.approx(5.0, abs=0.5)
    assert story[-1] == "-a"
    (failed,) = [record for record in sink.records if record["event"] == "service.failed"]
    assert failed["service"] == "hangs"
    assert "did not stop in time" in failed["error"]["message"]


async def test_services_stop_only_after_the_calls_that_use_them() -> None:
    story: list[str] = []
    gate = anyio.Event()

    class Slow(Asks):
        async def execute_async(self) -> str:
            await gate.wait()
            story.append("asked " + self.service.ask())  # type: ignore[attr-defined]
            return ""

    service = Recorded("graph", story)
    async with ServiceManager(service) as manager:
        manager.submit(Slow(service))
        await anyio.wait_all_tasks_blocked()
        gate.set()
    assert story == ["+graph", "asked graph", "-graph"]


async def test_a_cancelled_session_stops_its_services_after_the_clean_up_of_its_calls() -> None:
    story: list[str] = []
    service = Recorded("graph", story)

    class Slow(Asks):
        async def execute_async(self) -> str:
            await anyio.sleep_forever()
            return ""

        async def cleanup_resources(self, call: object) -> None:
            await checkpoint()
            story.append("cleaned up with " + self.service.ask())  # type: ignore[attr-defined]

    with anyio.CancelScope() as scope:
        async with ServiceManager(service) as manager:
            manager.submit(Slow(service))
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
    assert story == ["+graph", "cleaned up with graph", "-graph"]


# --- crashing


async def test_a_crash_takes_the_session_down_with_the_reason() -> None:
    story: list[str] = []
    crashing = Crashing("db", story)
    body_ended = False
    with pytest.raises(ServiceCrashed, match=r"'db' crashed.*connection lost") as caught:
        async with ServiceManager(Recorded("other", story), crashing):
            crashing.fuse.set()
            try:
                await anyio.sleep_forever()
            finally:
                body_ended = True
    assert body_ended
    assert caught.value.service == "db"
    assert "connection lost" in repr(caught.value.__cause__)
    assert story[-1] == "-other"


async def test_a_crash_ends_the_calls_in_flight_as_cancelled() -> None:
    crashing = Crashing("db", [])

    @tool
    async def slow() -> None:
        await anyio.sleep_forever()

    calls = []
    with pytest.raises(ServiceCrashed):
        async with ServiceManager(crashing) as manager:
            calls.append(manager.submit(slow))
            crashing.fuse.set()
            await anyio.sleep_forever()
    assert calls[0].status == "cancelled"


async def test_a_service_that_ends_by_itself_has_crashed() -> None:
    class Leaves(Recorded):
        async def stop(self) -> None:
            pass

    class Quits(Service):
        name = "quits"

        def running(self):  # type: ignore[no-untyped-def]
            from contextlib import asynccontextmanager

            @asynccontextmanager
            async def life():  # type: ignore[no-untyped-def]
                with anyio.CancelScope() as self.scope:
                    yield

            return life()

    quits = Quits()
    with pytest.raises(ServiceCrashed, match=r"'quits' crashed.*ended by itself"):
        async with ServiceManager(quits):
            quits.scope.cancel()
            await anyio.sleep_forever()


async def test_a_crash_keeps_its_own_reason_and_notes_the_error_that_the_body_raised_meanwhile() -> None:
    crashing = Crashing("db", [])
    with pytest.raises(ServiceCrashed) as caught:
        async with ServiceManager(crashing):
            crashing.fuse.set()
            try:
                await anyio.sleep_forever()
            finally:
                raise KeyError("of the body")
    assert "connection lost" in repr(caught.value.__cause__)
    assert any("of the body" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("when", ["start", "stop", "running"])
async def test_an_exit_in_a_service_ends_the_session_and_comes_out_bare(when: str) -> None:
    class Leaves(Service):
        @asynccontextmanager
        async def running(self) -> AsyncIterator[None]:
            await self.maybe("start")
            try:
                yield
            except BaseException:
                raise
            finally:
                await self.maybe("stop")

        async def maybe(self, now: str) -> None:
            await checkpoint()
            if now == when:
                raise SystemExit(9)

    class Tool(Asks):
        async def execute_async(self) -> str:
            raise SystemExit(9)

    service = Leaves()
    with pytest.raises(SystemExit) as caught:
        async with ServiceManager(service) as manager:
            if when == "running":
                await manager.execute(Tool(service))
    assert caught.value.code == 9


# --- tools and their services


async def test_a_tool_whose_service_is_not_held_is_refused_with_the_mend() -> None:
    graph = Recorded("graph", [])
    async with ServiceManager() as manager:
        for make in (
            lambda: manager.execute(Asks(graph)),
            lambda: _consume(manager.map(Asks(graph), [{}])),
            lambda: _submit(manager, Asks(graph)),
        ):
            with pytest.raises(ServiceNotRunning, match=r"'Asks' uses service 'graph'.*manager\.start") as caught:
                await make()
            assert caught.value.service == "graph"
        outcome = await manager.outcome(Asks(graph))
        assert outcome.status == "rejected"
        assert isinstance(outcome.error, ServiceNotRunning)


async def _consume(context) -> None:  # type: ignore[no-untyped-def]
    async with context as outcomes:
        async for _ in outcomes:
            pass


async def _submit(manager: ServiceManager, asks: Asks) -> None:
    manager.submit(asks)


async def test_a_service_method_outside_of_its_lifetime_says_how_to_start_it() -> None:
    with pytest.raises(ServiceNotRunning, match=r"'graph' is not running.*ServiceManager"):
        Recorded("graph", []).ask()


async def test_a_run_starts_the_services_of_its_pipeline_and_keeps_them() -> None:
    story: list[str] = []
    graph = Recorded("graph", story)
    pipeline = Pipeline("p", Phase("asks", Asks(graph)))
    assert pipeline.services == (graph,)
    async with ServiceManager() as manager:
        for _ in range(2):
            report = await manager.run(pipeline, [{}, {}], keep="all")
            assert [outcome.value for outcome in report.outcomes] == ["graph", "graph"]
        assert story == ["+graph"]
    assert story == ["+graph", "-graph"]


async def test_two_runs_at_once_share_the_start_of_a_service() -> None:
    story: list[str] = []
    gate = anyio.Event()

    class Slow(Recorded):
        async def start(self) -> None:
            await gate.wait()

    pipeline = Pipeline("p", Phase("asks", Asks(Slow("graph", story))))
    reports = []
    async with ServiceManager() as manager, anyio.create_task_group() as group:

        async def run() -> None:
            reports.append(await manager.run(pipeline, [{}]))

        group.start_soon(run)
        group.start_soon(run)
        await anyio.wait_all_tasks_blocked()
        gate.set()
    assert [report.ok for report in reports] == [True, True], [report.failures for report in reports]
    assert story.count("+graph") == 1


async def test_a_run_whose_service_does_not_start_pulls_nothing() -> None:
    pulled = []

    def items():  # type: ignore[no-untyped-def]
        pulled.append(1)
        yield {}

    async with ServiceManager() as manager:
        with pytest.raises(ServiceStartFailed):
            await manager.run(Pipeline("p", Phase("asks", Asks(Refusing("graph", [])))), items())
        assert pulled == []
        assert manager.statistics().services == []


async def test_a_crash_inside_a_services_task_group_is_told_as_the_one_error_that_it_is() -> None:
    service = FakeService("db")
    with pytest.raises(ServiceCrashed, match="disk") as caught:
        async with ServiceManager(service, log=None):
            service.crash(OSError("disk"))
            await anyio.sleep(60)
    assert type(caught.value.__cause__) is OSError


def test_a_service_pickles_by_its_constructors_arguments() -> None:
    copy = pickle.loads(pickle.dumps(FakeService("db", start_s=1.5)))
    assert (copy.name, copy._start_s, copy.log) == ("db", 1.5, [])
