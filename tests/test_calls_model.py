"""The register of calls under random users, in virtual time, on both loops, under seeds: a model says what is open.

Each action has a second of its own, and no call ends on a full second: so the model knows what comes before what.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kgas_async import CallRejected, ManagerClosed, ServiceManager, current, tool
from kgas_async.testing import assert_clean, virtual_backend

from .loops import SEED

pytestmark = pytest.mark.anyio  # so that they are among those that KGAS_TEST_SEED runs
BOTH = pytest.mark.parametrize("name", ["asyncio", "trio"])
SLOW_END = 2.5  # seconds that a stubborn tool takes to be cancelled


@tool
async def work(seconds: float, stubborn: bool, fails: bool) -> float:
    try:
        await anyio.sleep(seconds)
    except anyio.get_cancelled_exc_class():
        if stubborn:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(SLOW_END)
        raise
    if fails:
        raise ValueError("no")
    return seconds


@tool
async def outer(seconds: float, stubborn: bool, fails: bool) -> float:
    return await current().execute(work, seconds=seconds, stubborn=stubborn, fails=fails)


@dataclass(frozen=True)
class Submit:
    """Begin a call, maybe with a name, maybe in the place of the one that has it."""

    seconds: int
    stubborn: bool
    fails: bool
    nested: bool
    given_name: str | None
    replace: bool
    patience: float


@dataclass(frozen=True)
class Cancel:
    """Cancel a call by itself, by its id or by its name; or all."""

    how: Literal["call", "id", "name", "all"]
    number: int
    given_name: str


actions = st.lists(
    st.one_of(
        st.builds(
            Submit,
            seconds=st.integers(0, 6),
            stubborn=st.booleans(),
            fails=st.sampled_from([False, False, True]),
            nested=st.sampled_from([False, False, True]),
            given_name=st.sampled_from([None, "a", "a", "b"]),
            replace=st.booleans(),
            patience=st.sampled_from([0.0, 1.1, 4.1, 100.1]),
        ),
        st.builds(
            Cancel,
            how=st.sampled_from(["call", "id", "name", "all"]),
            number=st.integers(0, 20),
            given_name=st.sampled_from("ab"),
        ),
    ),
    min_size=1,
    max_size=20,
)


class Known:
    """A call as the model knows it."""

    def __init__(self, call: Any, wanted: Submit, begins: float) -> None:
        self.call = call
        self.wanted = wanted
        self.begins = begins
        self.ends = begins + wanted.seconds + 0.25
        self.status = "failed" if wanted.fails else "succeeded"

    def is_open(self, now: float) -> bool:
        return now < self.ends

    def cancel(self, now: float) -> bool:
        if not self.is_open(now):
            return False
        if self.status != "cancelled":
            self.status = "cancelled"
            has_begun = now >= self.begins
            self.ends = now + (SLOW_END if has_begun and self.wanted.stubborn else 0)
        return True


class Users:
    """What is done with a manager, and what the model makes of it."""

    def __init__(self, manager: ServiceManager, tasks: Any) -> None:
        self.manager = manager
        self.tasks = tasks
        self.zero = anyio.current_time()
        self.known: list[Known] = []
        self.refused = 0

    def now(self) -> float:
        return anyio.current_time() - self.zero

    def of_name(self, name: str, now: float) -> list[Known]:
        return [one for one in self.known if one.wanted.given_name == name and one.is_open(now)]

    def submit(self, wanted: Submit, now: float) -> None:
        earlier = [] if wanted.given_name is None else self.of_name(wanted.given_name, now)
        view: Any = self.manager
        if wanted.given_name is not None:
            view = self.manager.options(name=wanted.given_name, replace=wanted.replace)
        kind: Any = outer if wanted.nested else work
        inputs = {"seconds": wanted.seconds + 0.25, "stubborn": wanted.stubborn, "fails": wanted.fails}
        if earlier and not wanted.replace:
            with pytest.raises(CallRejected, match="is open already"):
                view.submit(kind, **inputs)
            return
        call = view.submit(kind, **inputs)
        for one in earlier:
            one.cancel(now)
        begins = max([now, *(one.ends for one in earlier)])
        self.known.append(Known(call, wanted, begins))
        self.tasks.start_soon(self.wait, self.known[-1], wanted.patience)

    async def wait(self, one: Known, patience: float) -> None:
        until = self.now() + patience
        has_ended = await one.call.wait(patience)
        assert has_ended is (one.ends < until)
        assert self.now() == pytest.approx(min(until, one.ends), abs=1e-6)

    async def cancelled(self, id_or_name: str | None, expected: bool) -> None:
        assert await self.manager.cancel(id_or_name) is expected

    def cancel(self, what: Cancel, now: float) -> None:
        if what.how == "name":
            targets = self.of_name(what.given_name, now)
            expected = any([one.cancel(now) for one in targets])  # noqa: C419  (all of them)
            self.tasks.start_soon(self.cancelled, what.given_name, expected)
        elif what.how == "all":
            expected = any([one.cancel(now) for one in self.known])  # noqa: C419
            self.tasks.start_soon(self.cancelled, None, expected)
        elif self.known:
            one = self.known[what.number % len(self.known)]
            expected = one.cancel(now)
            if what.how == "call":
                assert one.call.cancel("enough") is expected
            else:
                self.tasks.start_soon(self.cancelled, one.call.id, expected)

    def check(self) -> None:
        now = self.now()
        is_open = [one for one in self.known if one.is_open(now)]
        ids = set(self.manager.calls)
        assert {one.call.id for one in is_open} <= ids
        inner = [one for one in is_open if one.wanted.nested and now >= one.begins]
        assert len(ids) == len(is_open) + len(inner)
        assert self.manager.statistics().calls_open == len(ids)
        for one in self.known:
            assert self.manager.find(one.call.id) is one.call
            assert one.call.has_ended is (one not in is_open)
            if one.call.has_ended:
                assert one.call.status == one.status
            elif one.status != "cancelled":
                assert one.call.status == ("running" if now >= one.begins else "waiting")
        for name in "ab":
            named = [one for one in self.known if one.wanted.given_name == name]
            latest: Any = [one for one in named if one in is_open] or sorted(named, key=lambda one: one.ends)
            assert self.manager.find(name) is (latest[-1].call if latest else None)

    def check_counts(self) -> None:
        for kind in (work, outer):
            calls = [one for one in self.known if one.wanted.nested or kind is work]
            if kind is work:  # an outer one that was cancelled before it began never made its own
                calls = [
                    one
                    for one in calls
                    if not (one.wanted.nested and one.status == "cancelled" and one.ends <= one.begins)
                ]
            statistics: Any = self.manager.statistics().tools.get(kind.name)
            counts = Counter(one.status for one in calls)
            found = {status: getattr(statistics, status, 0) for status in ("succeeded", "failed", "cancelled")}
            assert found == {status: counts[status] for status in found}


async def use(script: list[Submit | Cancel]) -> None:
    async with anyio.create_task_group() as tasks, ServiceManager(log=None, grace=30.0) as manager:
        users = Users(manager, tasks)
        for second, action in enumerate(script, 1):
            await anyio.sleep_until(users.zero + second)
            if isinstance(action, Submit):
                users.submit(action, second)
            else:
                users.cancel(action, second)
            await anyio.sleep_until(users.zero + second + 0.1)
            users.check()
        await manager.drain()
        with pytest.raises(ManagerClosed):
            manager.submit(work, seconds=1, stubborn=False, fails=False)
        assert not manager.calls
        assert all(one.ends <= users.now() + 1e-6 for one in users.known)
        users.check()
        users.check_counts()
    assert_clean(manager)


@BOTH
@settings(max_examples=60, deadline=None)
@given(script=actions, seed=st.integers(0, 1000))
def test_the_register_of_calls(name: str, script: list[Submit | Cancel], seed: int) -> None:
    backend, options = virtual_backend(name, seed + 1000 * (SEED or 0))
    anyio.run(use, script, backend=backend, backend_options=options)
