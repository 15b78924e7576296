"""Memory does not grow with the items: measured in processes of their own, so that nothing else is in the figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kgas_async import ServiceManager, tool
from kgas_async.testing import explore

pytestmark = pytest.mark.slow

BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])
MIB = 1024 * 1024

PROGRAM = """
import json, sys
import anyio
from kgas_async import Phase, Pipeline, ServiceManager, tool
from kgas_async._system import rss_bytes

backend, kind, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
seen = []

def look(progress):
    if progress.done == 10_000 or progress.done % 50_000 == 0:
        seen.append(rss_bytes())

@tool
async def first(x: int) -> int:
    return x + 1

@tool
async def second(first: int) -> int:
    return first * 2

@tool
async def third(second: int, x: int) -> int:
    return second - x

@tool
async def parts(x: int) -> list[int]:
    return [x, x + 1]

@tool
async def joined(part: list[int]) -> int:
    return sum(part)

LINE = Pipeline("line", Phase("first", first), Phase("second", second), Phase("third", third))
FAN = Pipeline("fan", Phase("parts", parts, expand="part"), Phase("joined", joined, collect="part"))

async def main():
    items = ({"x": n} for n in range(count))
    async with ServiceManager(log=None, evidence=sys.argv[4] if len(sys.argv) > 4 else None) as manager:
        if kind == "map":
            async with manager.map(first, items, on_progress=look) as outcomes:
                async for outcome in outcomes:
                    pass
        else:
            report = await manager.run({"line": LINE, "fan": FAN}[kind], items, on_progress=look)
            assert report.succeeded == count, report
    print(json.dumps(seen))

anyio.run(main, backend=backend)
"""


def growth(backend: str, kind: str, count: int, *evidence: str) -> float:
    """How much the process grew after its first 10,000 items, at its largest, in MiB."""
    command = [sys.executable, "-c", PROGRAM, backend, kind, str(count), *evidence]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    first, *later = json.loads(done.stdout)
    grown: float = (max(later) - first) / MIB
    print(f"{backend}, {kind}, {count} items: {grown:.1f} MiB after the first 10,000 ({first / MIB:.0f} MiB)")
    return grown


@BACKENDS
def test_a_million_items_through_three_phases_take_no_more_than_the_first_ten_thousand(backend: str) -> None:
    assert growth(backend, "line", 1_000_000) < 30


@BACKENDS
@pytest.mark.parametrize("kind", ["map", "fan"])
def test_many_items_of_a_map_and_of_expansions_take_no_more_than_the_first_ten_thousand(
    backend: str, kind: str
) -> None:
    assert growth(backend, kind, 200_000) < 30


@BACKENDS
def test_evidence_of_many_items_takes_no_more_memory_than_its_buffer(backend: str, tmp_path: Path) -> None:
    assert growth(backend, "line", 200_000, str(tmp_path / "run.jsonl")) < 60


@BACKENDS
def test_with_a_consumer_that_sleeps_for_a_minute_the_source_is_never_more_than_the_window_ahead(backend: str) -> None:
    async def slow_consumer() -> None:
        pulled = taken = worst = 0

        def source() -> Any:
            nonlocal pulled, worst
            while True:
                pulled += 1
                worst = max(worst, pulled - taken)
                yield {"x": pulled}

        @tool
        async def same(x: int) -> int:
            return x

        import anyio

        async with ServiceManager() as manager, manager.map(same, source(), in_flight=25) as outcomes:
            async for _ in outcomes:
                taken += 1
                await anyio.sleep(0.001)
                if anyio.current_time() > 60:
                    break
        assert taken > 59_000
        assert worst <= 100

    explore(slow_consumer, seeds=1, backends=[backend])
