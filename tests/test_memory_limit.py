"""Memory limits: calls wait while memory is short, and one always may run."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import anyio
import pytest

from kgas_async import ConcurrencyLimit, MemoryLimit, MemorySink, Policy, ServiceManager, tool
from kgas_async import _memory_limit as module
from kgas_async._system import memory_bytes, rss_bytes, tree_rss_bytes
from kgas_async.testing import assert_clean

pytestmark = pytest.mark.real_time  # it looks by the machine's clock


class Meter:
    """What the machine says is in use, in place of the machine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bytes = 0
        self.looks = 0
        monkeypatch.setattr(module, "tree_rss_bytes", self.read)
        monkeypatch.setattr(module, "EVERY_S", 0.005)
        monkeypatch.setattr(module, "SHARE", 1e9)  # how long a look took says nothing on a busy machine

    def read(self) -> int:
        self.looks += 1
        return self.bytes


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Meter:
    return Meter(monkeypatch)


@pytest.mark.parametrize(("value", "kind"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("4GB", TypeError)])
def test_bytes_that_are_none_are_refused(value: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"MemoryLimit\(max_bytes\) must be"):
        MemoryLimit(value)


def test_a_limit_pickles_by_its_argument() -> None:
    limit = MemoryLimit(1 << 30)
    limit.acquire_nowait()
    copy = pickle.loads(pickle.dumps(limit))
    assert repr(copy) == repr(limit) == "MemoryLimit(1073741824)"
    assert copy.statistics().borrowed == 0


async def test_calls_wait_while_memory_is_short_and_go_on_when_it_is_not(meter: Meter) -> None:
    limit = MemoryLimit(1000)
    let_go = anyio.Event()
    inside = most = 0

    @tool(policy=Policy(concurrency=limit))
    async def load(fills: int) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        meter.bytes += fills
        await let_go.wait()
        meter.bytes -= fills
        inside -= 1

    sink = MemorySink()
    async with ServiceManager(log=None, evidence=sink) as manager:
        calls = []
        for _ in range(6):
            calls.append(manager.submit(load, fills=300))
            await anyio.wait_all_tasks_blocked()
            await anyio.sleep(0.006)  # the next one looks again
        assert (inside, limit.statistics().waiting) == (4, 2)  # the one that went beyond is let be
        let_go.set()
        for call in calls:
            await call.result()
        await anyio.sleep(0.006)
        await manager.execute(load, fills=0)
    assert most == 4
    assert_clean(manager, limit)
    paused, resumed = [record for record in sink.records if record["event"].startswith("limit.")]
    assert (paused["event"], paused["tool"], paused["max_bytes"]) == ("limit.paused", "load", 1000)
    assert paused["used_bytes"] == 1200
    assert (resumed["event"], resumed["limit"]) == ("limit.resumed", "MemoryLimit(1000)")
    assert resumed["used_bytes"] <= 950


async def test_one_call_at_a_time_runs_however_short_memory_is(meter: Meter) -> None:
    meter.bytes = 5000
    limit = MemoryLimit(1000)
    inside = most = runs = 0

    @tool(policy=Policy(concurrency=limit))
    async def load() -> None:
        nonlocal inside, most, runs
        inside += 1
        most = max(most, inside)
        await anyio.lowlevel.checkpoint()
        inside -= 1
        runs += 1

    async with ServiceManager(log=None) as manager, anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(manager.execute, load)
    assert (most, runs) == (1, 20)
    assert limit.statistics().is_paused
    assert_clean(manager, limit)


async def test_after_a_pause_as_many_may_begin_at_each_look_as_still_run(meter: Meter) -> None:
    limit = MemoryLimit(1000)
    let_go = anyio.Event()

    async def hold() -> None:
        async with limit:
            await let_go.wait()

    async with anyio.create_task_group() as tasks:
        meter.bytes = 2000
        for _ in range(20):
            tasks.start_soon(hold)
        await anyio.wait_all_tasks_blocked()
        now = limit.statistics()
        assert (now.borrowed, now.waiting, now.is_paused) == (1, 19, True)
        meter.bytes = 980  # not yet: it goes on at 95 %
        before = meter.looks
        while meter.looks < before + 3:  # noqa: ASYNC110  (real time decides when it looks)
            await anyio.sleep(0.002)
        assert limit.statistics().borrowed == 1
        meter.bytes = 500
        seen = set()
        while limit.statistics().waiting:
            seen.add(limit.statistics().borrowed)
            await anyio.sleep(0.001)
        assert seen <= {1, 2, 4, 8, 16}
        assert not limit.statistics().is_paused
        assert limit.statistics().borrowed == 20
        let_go.set()
    assert_clean(limit)


async def test_it_looks_at_a_bounded_rate_and_not_for_each_call(meter: Meter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY_S", 3600)
    limit = MemoryLimit(1000)
    for _ in range(1000):
        async with limit:
            pass
    assert meter.looks == 1


async def test_it_composes_with_other_limits_and_each_one_holds(meter: Meter) -> None:
    limit, few = MemoryLimit(1000), ConcurrencyLimit(3)
    inside = most = 0

    @tool(policy=Policy(concurrency=[few, limit]))
    def load() -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        inside -= 1

    async with ServiceManager(log=None) as manager, anyio.create_task_group() as tasks:
        for number in range(60):
            meter.bytes = 2000 * (number % 20 < 10)
            tasks.start_soon(manager.execute, load)
            if number % 5 == 0:
                await anyio.sleep(0.006)
        meter.bytes = 0
    assert most <= 3
    assert_clean(manager, limit, few)


async def test_a_cancelled_waiter_leaves_the_line(meter: Meter) -> None:
    meter.bytes = 2000
    limit = MemoryLimit(1000)
    async with limit:
        with anyio.move_on_after(0.05) as scope:
            await limit.acquire()
        assert scope.cancelled_caught
        assert limit.statistics().waiting == 0
    assert_clean(limit)


async def test_real_memory_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY_S", 0.005)
    limit = MemoryLimit(tree_rss_bytes() + (48 << 20))
    filled = [bytearray(b"x" * (96 << 20))]
    async with limit:  # the one that always may run
        assert limit.statistics().is_paused
        assert limit.statistics().used_bytes > limit.statistics().max_bytes
        assert not limit.acquire_nowait()
        filled.clear()
        with anyio.fail_after(30):
            await limit.acquire()  # as soon as it looks again
        assert not limit.statistics().is_paused
        limit.release()
    assert_clean(limit)


# --- what the machine says


def test_the_tree_is_this_process_and_what_it_started() -> None:
    alone = tree_rss_bytes()
    assert alone >= rss_bytes() * 0.9
    held = "held = bytearray(b'x' * (64 << 20)); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", held], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        with_child = tree_rss_bytes()
        child.communicate(b"\n")
    assert with_child - alone > 64 << 20


def test_what_we_may_use_is_not_more_than_the_machine_has_nor_than_the_cgroup_allows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    from kgas_async import _system

    machine = memory_bytes()
    assert machine > 0
    own = tmp_path / "own"
    own.write_text("0::/slice/unit\n")
    (tmp_path / "slice" / "unit").mkdir(parents=True)
    (tmp_path / "slice" / "unit" / "memory.max").write_text("max\n")
    (tmp_path / "slice" / "memory.max").write_text("123456789\n")
    monkeypatch.setattr(_system, "_CGROUPS", tmp_path)
    monkeypatch.setattr(_system, "_OWN_CGROUP", own)
    assert memory_bytes() == 123456789
    own.write_text("5:cpu,memory:/unit\n3:pids:/else\n")
    (tmp_path / "memory" / "unit").mkdir(parents=True)
    (tmp_path / "memory" / "unit" / "memory.limit_in_bytes").write_text("98765\n")
    assert memory_bytes() == 98765
    monkeypatch.setattr(_system, "_OWN_CGROUP", tmp_path / "nowhere")
    assert memory_bytes() >= machine
