"""What the tests of the sweeps share: managers that are looked at once they were left, sources that count
themselves."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from kgas_async import ConcurrencyLimit, JsonlSink, MemorySink, RateLimit, ServiceManager
from kgas_async.testing import assert_clean


class World:
    """Makes managers, and looks at what is left when they have been left."""

    def __init__(self, folder: Path) -> None:
        self.limit = ConcurrencyLimit(2)
        self.rate = RateLimit(50, burst=2)
        self.services = 0  # that run
        self.sources = 0  # that are open
        self._folder = folder
        self._managers: list[tuple[ServiceManager, MemorySink]] = []
        self._tasks: set[int] | None = None
        self._files: set[str] = set()

    def manager(self, *services: Any, **options: Any) -> ServiceManager:
        if self._tasks is None:
            self._tasks = {task.id for task in anyio.get_running_tasks()}
            self._files = open_files()
        sink = MemorySink()
        evidence = [sink, JsonlSink(self._folder / f"{len(self._managers)}.jsonl")]
        made = ServiceManager(*services, evidence=evidence, log=None, grace=5, threads=2, **options)
        self._managers.append((made, sink))
        return made

    def check(self, point: int) -> None:
        assert_clean(*(manager for manager, _ in self._managers), self.limit, self.rate)
        for _, sink in self._managers:
            one_end_for_each_call(sink.records)
        assert (self.services, self.sources) == (0, 0)
        if self._tasks is not None:
            assert {task.id for task in anyio.get_running_tasks()} - self._tasks <= {anyio.get_current_task().id}
            assert open_files() == self._files
        self._managers.clear()


def open_files() -> set[str]:
    folder = "/proc/self/fd"
    found = set()
    for name in os.listdir(folder) if os.path.isdir(folder) else ():  # noqa: PTH112, PTH208
        try:
            found.add(os.readlink(f"{folder}/{name}"))  # noqa: PTH115
        except OSError:  # the listing's own
            continue
    return {name for name in found if name.endswith(".jsonl")}


def one_end_for_each_call(records: list[dict[str, Any]]) -> None:
    if not records:
        return  # it was never opened
    assert records[-1]["event"] == "session.ended"
    assert [record["seq"] for record in records] == list(range(1, len(records) + 1))
    ends = Counter(record["call_id"] for record in records if "status" in record and "wait_us" in record)
    assert set(ends.values()) <= {1}
    started = {record["call_id"] for record in records if record["event"] == "call.started"}
    assert started <= ends.keys()
    assert records[-1]["calls"] == len(ends)


def source(world: World, count: int) -> Iterator[dict[str, int]]:
    world.sources += 1
    try:
        for n in range(count):
            yield {"x": n}
    finally:
        world.sources -= 1


async def async_source(world: World, count: int) -> AsyncIterator[dict[str, int]]:
    world.sources += 1
    try:
        for n in range(count):
            await checkpoint()
            yield {"x": n}
    finally:
        world.sources -= 1
