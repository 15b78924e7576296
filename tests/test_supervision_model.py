"""Supervision against what must hold whatever crashes when: random services, crashes and calls, in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from hypothesis import given, settings
from hypothesis import strategies as st

from kgas_async import (
    CallCancelled,
    CallFailed,
    CallTimeout,
    KGASTool,
    ManagerClosed,
    MemorySink,
    RestartPolicy,
    Retry,
    Service,
    ServiceCrashed,
    ServiceManager,
    ServiceStartFailed,
)
from kgas_async.testing import assert_clean, virtual_backend

ENDS = (
    "takes long",
    "stays",
    "stays",
    "crashes",
    "fails to start",
    "fails to stop",
    "hangs in stop",
    "ends by itself",
    "is ill",
)
SERVICES = st.lists(
    st.fixed_dictionaries(
        {
            "lives": st.lists(st.tuples(st.sampled_from(ENDS), st.integers(0, 6)), max_size=4),
            "requires": st.sets(st.integers(0, 3), max_size=2),
            "restart": st.sampled_from([None, "one_for_one", "rest_for_one", "rest_for_one"]),
            "restarts": st.integers(1, 3),
            "wait": st.sampled_from([0, 1, 5]),
        }
    ),
    min_size=1,
    max_size=4,
)
CALLS = st.lists(
    st.fixed_dictionaries(
        {
            "service": st.integers(0, 3),
            "at": st.integers(0, 12),
            "takes": st.integers(0, 5),
            "attempts": st.integers(1, 3),
            "deadline": st.sampled_from([None, 8.5]),
        }
    ),
    max_size=8,
)


class Fated(Service):
    """Leads the lives that it is given, then such as stay."""

    health_every = 1.0

    def __init__(self, story: Story, number: int, fate: dict[str, Any]) -> None:
        self.story = story
        self.name = f"s{number}"
        self.lives = list(fate["lives"])
        self.needed = [story.services[one] for one in sorted(fate["requires"]) if one < number]
        if fate["restart"]:
            self.restart = RestartPolicy(fate["restarts"], 20, wait=fate["wait"], strategy=fate["restart"], ill_after=2)
        self.leaves_users = fate["restart"] == "one_for_one"  # also those that are just starting
        self.is_up = False

    @property
    def requires(self) -> tuple[Any, ...]:
        return tuple(self.needed)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        how, seconds = self.lives.pop(0) if self.lives else ("stays", 0)
        self.story.hold(not self.is_up, f"two lives of {self.name} at once")
        self.story.hold(all(one.is_up for one in self.needed), f"{self.name} started before what it requires")
        if how == "takes long":
            await anyio.sleep(seconds)
        if how == "fails to start":
            raise OSError("no")
        self.is_up = True
        self.is_ill = how == "is ill"
        try:
            async with anyio.create_task_group() as tasks:
                if how in ("crashes", "ends by itself"):
                    tasks.start_soon(self.fall, how, seconds + 0.5, tasks)
                yield
                users = [one for one in self.story.services if self in one.needed]
                goes_alone = self.is_ill and self.leaves_users
                self.story.hold(
                    goes_alone or not any(one.is_up for one in users), f"{self.name} stopped before those that use it"
                )
                tasks.cancel_scope.cancel()
        finally:
            self.is_up = False
        if how == "fails to stop":
            raise LookupError("bad stop")
        if how == "hangs in stop":
            await anyio.sleep_forever()

    async def health(self) -> None:
        self.story.hold(self.is_up, "asked while it is down")
        await anyio.sleep(0.25)
        if self.is_ill:
            raise LookupError("ill")

    async def fall(self, how: str, seconds: float, tasks: Any) -> None:
        await anyio.sleep(seconds)
        if how == "crashes":
            raise ConnectionError("crash")
        tasks.cancel_scope.cancel()


class Uses(KGASTool):
    def __init__(self, service: Fated) -> None:
        self.service = service

    async def execute_async(self, seconds: int) -> str:
        self.service.ensure_running()
        self.service.story.hold(self.service.is_up, "used while it is down")
        self.service.story.using[self.service.name] = self.service.story.using.get(self.service.name, 0) + 1
        try:
            await anyio.sleep(seconds)
        finally:
            self.service.story.using[self.service.name] -= 1
        return self.service.name


class Story:
    """A manager, its services and its calls."""

    def __init__(self, fates: list[dict[str, Any]], calls: list[dict[str, Any]], options: dict[str, Any]) -> None:
        self.services: list[Fated] = []
        for number, fate in enumerate(fates):
            self.services.append(Fated(self, number, fate))
        self.calls = calls
        self.options = options
        self.sink = MemorySink()
        self.using: dict[str, int] = {}
        self.manager = ServiceManager(*self.services, evidence=self.sink, log=None, grace=3, **options)
        self.outcomes: list[Any] = []
        self.cut_off = 0
        self.wrong: list[str] = []

    def hold(self, is_right: bool, what: str) -> None:
        """Said at the end: what services and tools raise is their failure."""
        if not is_right:
            self.wrong.append(what)

    async def call(self, wanted: dict[str, Any]) -> None:
        await anyio.sleep(wanted["at"])
        service = self.services[wanted["service"] % len(self.services)]
        policy = {"retry": Retry(wanted["attempts"], on=ServiceCrashed, wait=0.5), "deadline": wanted["deadline"]}
        self.cut_off += 1  # by the end of the session
        self.outcomes.append(await self.manager.outcome(Uses(service).using(**policy), wanted["takes"]))
        self.cut_off -= 1

    async def run(self) -> None:
        with anyio.fail_after(1000):
            try:
                async with self.manager, anyio.create_task_group() as tasks:
                    for wanted in self.calls:
                        tasks.start_soon(self.call, wanted)
                    await anyio.sleep(15)
            except ServiceStartFailed:
                assert not self.outcomes
            except ServiceCrashed:
                self.hold(self.options["on_crash"] == "raise", "a crash was raised")
        assert not self.wrong
        assert not any(service.is_up for service in self.services)
        assert not any(self.using.values())
        assert_clean(self.manager)
        self._look_at_evidence()

    def _look_at_evidence(self) -> None:
        up: set[str] = set()
        ends = 0
        by_name = {service.name: service for service in self.services}
        for record in self.sink.records:
            event, name = record["event"], record.get("service") or ""
            if event == "service.started":
                assert all(one.name in up or one.leaves_users for one in by_name[name].needed)
                up.add(name)
            elif event in ("service.stopped", "service.crashed", "service.failed"):
                up.discard(name)
            ends += event in ("call.succeeded", "call.failed", "call.cancelled", "call.timed_out", "call.rejected")
        assert not up
        admitted = sum(1 for outcome in self.outcomes if outcome.status != "rejected")  # not those refused at the door
        assert admitted <= ends <= admitted + self.cut_off
        for outcome in self.outcomes:
            expected = (ServiceCrashed, CallCancelled, CallTimeout, ManagerClosed)
            error = outcome.error.__cause__ if isinstance(outcome.error, CallFailed) else outcome.error
            assert outcome.ok or isinstance(error, expected), repr(outcome.error)


@settings(deadline=None, max_examples=80)
@given(
    fates=SERVICES,
    calls=CALLS,
    on_crash=st.sampled_from(["raise", "continue"]),
    seed=st.integers(0, 9),
    backend=st.sampled_from(["asyncio", "trio"]),
)
def test_random_crashes_leave_nothing_running_and_end_every_call(
    fates: list[dict[str, Any]], calls: list[dict[str, Any]], on_crash: str, seed: int, backend: str
) -> None:
    story = Story(fates, calls, {"on_crash": on_crash})
    library, options = virtual_backend(backend, seed)
    anyio.run(story.run, backend=library, backend_options=options)
