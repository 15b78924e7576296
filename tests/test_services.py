"""Services: started as their requires allow, stopped in reverse, bounded, and what their failures do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import (
    KGASTool,
    Service,
    ServiceManager,
    ServiceNotRunning,
    ServiceStartFailed,
    current,
    tool,
)
from kgas_async._errors import ServiceError
from kgas_async.testing import explore


class Recorded(Service):
    """Writes down what happens to it."""

    def __init__(self, name: str, story: list[str], *needed: Service) -> None:
        self.name = name
        self.story = story
        for number, one in enumerate(needed):
            setattr(self, f"needed_{number}", one)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await self.start()
        self.story.append(f"+{self.name}")
        try:
            yield
        finally:
            await self.stop()
            self.story.append(f"-{self.name}")

    async def start(self) -> None:
        await checkpoint()

    async def stop(self) -> None:
        await checkpoint()

    def ask(self) -> str:
        self.ensure_running()
        return self.name


class Refusing(Recorded):
    async def start(self) -> None:
        await checkpoint()
        raise OSError("no route to " + self.name)


class BadStop(Recorded):
    async def stop(self) -> None:
        raise OSError("cannot stop " + self.name)


class HangingStop(Recorded):
    async def stop(self) -> None:
        await anyio.sleep_forever()


class HangingStart(Recorded):
    async def start(self) -> None:
        await anyio.sleep_forever()


class Crashing(Recorded):
    """Holds a task group whose task fails when told to."""

    def __init__(self, name: str, story: list[str]) -> None:
        super().__init__(name, story)
        self.fuse: Any = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self.fuse = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(self._burn)
            async with super().running():
                yield
            group.cancel_scope.cancel()

    async def _burn(self) -> None:
        await self.fuse.wait()
        raise OSError("connection lost")


class Asks(KGASTool):
    def __init__(self, service: Service) -> None:
        self.service = service

    async def execute_async(self) -> str:
        await checkpoint()
        return self.service.ask()  # type: ignore[attr-defined, no-any-return]


# --- starting and stopping


async def test_services_stop_one_by_one_in_reverse_order_of_their_start() -> None:
    story: list[str] = []
    first, second = Recorded("first", story), Recorded("second", story)
    third = Recorded("third", story, first, second)
    async with ServiceManager(third) as manager:
        assert manager.statistics().services == ["first", "second", "third"]
        assert story[-1] == "+third"
        assert sorted(story[:2]) == ["+first", "+second"]
    assert story[3:] == ["-third", "-second", "-first"]


async def test_services_that_do_not_require_each_other_start_at_once() -> None:
    meeting = anyio.Event()
    here: list[str] = []

    class Meets(Recorded):
        async def start(self) -> None:
            here.append(self.name)
            if len(here) == 2:
                meeting.set()
            await meeting.wait()  # each can only start once the other is starting

    async with ServiceManager(Meets("a", []), Meets("b", [])):
        assert sorted(here) == ["a", "b"]


async def test_a_service_starts_only_after_what_it_requires() -> None:
    story: list[str] = []
    gate = anyio.Event()

    class Gated(Recorded):
        async def start(self) -> None:
            await gate.wait()

    class Noted(Recorded):
        async def start(self) -> None:
            story.append(f"starting {self.name}")

    base = Gated("base", story)
    async with anyio.create_task_group() as group:

        async def session() -> None:
            async with ServiceManager(Noted("top", story, base)):
                pass

        group.start_soon(session)
        await anyio.wait_all_tasks_blocked()
        assert story == []
        gate.set()
    assert story == ["+base", "starting top", "+top", "-top", "-base"]


async def test_a_circle_of_requirements_is_refused_by_name() -> None:
    one, two = Recorded("one", []), Recorded("two", [])
    one.other, two.other = two, one  # type: ignore[attr-defined]
    with pytest.raises(ServiceError, match="circle: one -> two -> one"):
        async with ServiceManager(one):
            pass


async def test_a_service_required_twice_runs_once() -> None:
    story: list[str] = []
    base = Recorded("base", story)
    async with ServiceManager(Recorded("a", story, base), base, Recorded("b", story, base)):
        pass
    assert story.count("+base") == story.count("-base") == 1


async def test_a_service_is_reentered_in_a_second_lifetime() -> None:
    story: list[str] = []
    service = Recorded("graph", story)
    manager = ServiceManager(service)
    for _ in range(2):
        async with manager:
            assert service.ask() == "graph"
        with pytest.raises(ServiceNotRunning):
            service.ask()
    assert story == ["+graph", "-graph"] * 2


async def test_a_plain_async_context_manager_is_a_service() -> None:
    story: list[str] = []

    @asynccontextmanager
    async def plain() -> AsyncIterator[None]:
        story.append("in")
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            yield
            group.cancel_scope.cancel()
        story.append("out")

    async with ServiceManager(plain()):
        assert story == ["in"]
    assert story == ["in", "out"]


async def test_a_scope_that_a_service_holds_is_left_in_the_task_that_entered_it() -> None:
    tasks = []

    class Scoped(Service):
        @asynccontextmanager
        async def running(self) -> AsyncIterator[None]:
            tasks.append(anyio.get_current_task().id)
            with anyio.fail_after(60):
                yield
            tasks.append(anyio.get_current_task().id)

    async with ServiceManager(Scoped()):
        tasks.append(anyio.get_current_task().id)
    entered, body, left = tasks
    assert entered == left != body


async def test_a_service_finds_its_manager() -> None:
    found = []

    class Curious(Recorded):
        async def start(self) -> None:
            found.append(current())

    async with ServiceManager(Curious("c", [])) as manager:
        assert found == [manager]


async def test_what_a_service_does_is_no_part_of_the_call_that_had_it_started() -> None:
    found: list[Any] = []

    class Listens(Service):
        @asynccontextmanager
        async def running(self) -> AsyncIterator[None]:
            found.append(current())
            call = current().submit(nested)
            await call.wait()
            found.append(call.parent)
            yield

    @tool
    async def nested() -> None:
        await checkpoint()

    @tool
    async def starts() -> None:
        await current().start(Listens())

    async with ServiceManager() as manager:
        await manager.execute(starts)
    assert found == [manager, None]


def test_a_class_given_for_its_object_is_refused_at_construction() -> None:
    with pytest.raises(TypeError, match=r"is no service but a class: pass an object of it, Recorded\(\.\.\.\)"):
        ServiceManager(Recorded)


# --- starting goes wrong


async def test_a_failed_start_stops_what_had_started_in_reverse() -> None:
    story: list[str] = []
    one = Recorded("one", story)
    two = Recorded("two", story, one)
    with pytest.raises(ServiceStartFailed) as caught:
        async with ServiceManager(Refusing("bad", story, two)):
            pytest.fail("the body must not run")
    assert story == ["+one", "+two", "-two", "-one"]
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.service == "bad"


async def test_a_failed_start_says_who_waited_for_whom() -> None:
    story: list[str] = []
    bad = Refusing("database", story)
    graph = Recorded("graph", story, bad)
    with pytest.raises(
        ServiceStartFailed, match=r"'database' did not start.*no route to database.*graph waited for it"
    ):
        async with ServiceManager(graph):
            pass
    assert story == []


async def test_two_services_that_fail_on_their_own_are_not_said_to_wait_for_each_other() -> None:
    with pytest.raises(ServiceStartFailed) as caught:
        async with ServiceManager(Refusing("one", []), Refusing("two", [])):
            pass
    message = str(caught.value)
    assert "no route to one" in message
    assert "no route to two" in message
    assert "waited" not in message


@explore(seeds=3)
async def test_a_failed_start_is_not_held_up_by_one_that_hangs() -> None:
    story: list[str] = []
    with anyio.fail_after(1000), pytest.raises(ServiceStartFailed, match="no route to bad"):
        async with ServiceManager(HangingStart("slow", story), Refusing("bad", story)):
            pass
    assert story == []


async def test_cancelling_the_start_stops_what_had_started() -> None:
    story: list[str] = []
    one = Recorded("one", story)
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:

            async def cancel() -> None:
                await anyio.wait_all_tasks_blocked()
                scope.cancel()

            group.start_soon(cancel)
            async with ServiceManager(HangingStart("two", story, one)):
                pytest.fail("the body must not run")
    assert scope.cancelled_caught
    assert story == ["+one", "-one"]


async def test_start_adds_a_service_to_an_open_session() -> None:
    story: list[str] = []
    base = Recorded("base", story)
    top = Recorded("top", story, base)
    async with ServiceManager(Recorded("first", story)) as manager:
        await manager.start(top)
        await manager.start(top)  # runs already
        assert manager.statistics().services == ["first", "base", "top"]
    assert story == ["+first", "+base", "+top", "-top", "-base", "-first"]


async def test_a_service_that_failed_to_start_can_be_started_again() -> None:
    class Moody(Recorded):
        tries = 0

        async def start(self) -> None:
            self.tries += 1
            if self.tries == 1:
                raise OSError("not today")

    moody = Moody("moody", [])
    async with ServiceManager() as manager:
        with pytest.raises(ServiceStartFailed):
            await manager.start(moody)
        assert manager.statistics().services == []
        await manager.start(moody)
        assert await manager.execute(Asks(moody)) == "moody"


async def test_whoever_starts_a_service_that_is_starting_waits_until_it_runs() -> None:
    gate = anyio.Event()

    class Slow(Recorded):
        async def start(self) -> None:
            await gate.wait()

    slow = Slow("slow", [])
    answers = []
    async with ServiceManager() as manager, anyio.create_task_group() as group:

        async def start_and_ask() -> None:
            await manager.start(slow)
            answers.append(await manager.execute(Asks(slow)))

        for _ in range(3):
            group.start_soon(start_and_ask)
        await anyio.wait_all_tasks_blocked()
        gate.set()
    assert answers == ["slow"] * 3


async def test_whoever_waits_for_a_start_that_fails_is_told() -> None:
    gate = anyio.Event()

    class Slow(Recorded):
        async def start(self) -> None:
            await gate.wait()
            raise OSError("after all")

    slow = Slow("slow", [])
    failures = []
    async with ServiceManager() as manager, anyio.create_task_group() as group:

        async def start() -> None:
            with pytest.raises(ServiceStartFailed, match="slow") as caught:
                await manager.start(slow)
            failures.append(caught.value)

        group.start_soon(start)
        group.start_soon(start)
        await anyio.wait_all_tasks_blocked()
        gate.set()
    assert len(failures) == 2


@dataclass(frozen=True)
class Frozen(Service):
    address: str

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        yield

    def ask(self) -> str:
        self.ensure_running()
        return self.address


async def test_a_frozen_dataclass_is_a_service_in_one_manager_after_the_other() -> None:
    service = Frozen("here")
    for _ in range(2):
        async with ServiceManager(service, log=None) as manager:
            assert service.ask() == "here"
            with pytest.raises(ServiceStartFailed, match="another open manager runs it"):
                async with ServiceManager(service, log=None):
                    pass
            assert (await manager.health()).ok
        with pytest.raises(ServiceNotRunning):
            service.ask()


@pytest.mark.parametrize("wrong", [None, "graph", 3, Frozen("alone")])
async def test_requires_that_is_no_tuple_of_services_is_refused_with_the_mend(wrong: Any) -> None:
    class Graph(Frozen):
        requires = wrong

    class Uses(KGASTool):
        requires = wrong

        async def execute_async(self) -> None:
            raise AssertionError("it ran")

    mend = r"requires of \w+ names the services themselves, as a tuple such as \(graph,\), not "
    with pytest.raises(TypeError, match="Graph".join(mend.split(r"\w+"))):
        async with ServiceManager(Graph("here"), log=None):
            pass
    async with ServiceManager(log=None) as manager:
        with pytest.raises(TypeError, match=mend):
            await manager.execute(Uses())
