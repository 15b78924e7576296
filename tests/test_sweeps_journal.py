"""Runs with a journal cancelled at each moment: nothing stays open, and each of the journals resumes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import pytest
import sniffio

from kgas_async import Phase, Pipeline, tool
from kgas_async._journal_file import JournalFile
from kgas_async.testing import sweep, virtual_backends

from .sweep_world import World, source


@pytest.fixture(params=virtual_backends())
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def held(path: Path) -> set[tuple[str, str]]:
    if not path.exists():
        return set()
    file = JournalFile(str(path))
    file.open(None)
    try:
        return set(file.database.execute("SELECT phase, item FROM results WHERE phase = 'scored' OR phase = 'joined'"))
    finally:
        file.break_off()


async def test_cancelled_at_each_moment_it_resumes(world: World, tmp_path: Path) -> None:
    ran: Counter[tuple[str, str]] = Counter()

    @tool
    async def parts(x: int) -> list[int]:
        await anyio.sleep(0.1)
        return [x, x + 10]

    @tool
    async def scored(xs: list[int]) -> list[int]:
        await anyio.sleep(0.1)
        for x in xs:
            ran["scored", str(x)] += 1
        return [2 * x for x in xs]

    @tool
    async def joined(parts: list[int], x: int) -> int:
        ran["joined", str(x)] += 1
        await anyio.sleep(0.1)
        return sum(parts)

    @tool
    async def total(sums: list[int]) -> int:
        await anyio.sleep(0.1)
        return sum(sums)

    pipeline = Pipeline(
        "p",
        Phase("parts", parts, expand="part"),
        Phase("scored", scored, bind={"xs": "x"}, batch=2),
        Phase("joined", joined, bind={"parts": "part"}, collect="part"),
        Phase("total", total, bind={"sums": "joined"}, collect=True),
        item=["x"],
        key="x",
    )
    journals: list[Path] = []

    async def run(path: Path | None = None) -> Any:
        if path is None:
            path = tmp_path / f"run{len(journals)}.db"
            journals.append(path)
        async with world.manager() as manager:
            return await manager.run(pipeline, source(world, 3), in_flight=3, journal=path, keep="all")

    modes: list[Any] = ["scope"] if sniffio.current_async_library() == "trio" else ["scope", "native"]
    for mode in modes:
        assert await sweep(run, check=world.check, mode=mode, timeout_s=600) >= 3
    for moment in range(12):
        with anyio.move_on_after(moment * 0.05):
            await run()
        world.check(moment)
    complete = {("scored", str(x)) for x in range(3)} | {("joined", str(x)) for x in range(3)}
    cut = [path for path in journals if held(path) != complete]
    assert len(cut) > 3
    for path in journals:
        before = held(path)
        ran.clear()
        report = await run(path)
        assert report.ok
        assert not before & ran.keys()
        assert held(path) == complete
