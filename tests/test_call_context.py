"""`call_context`: a tool's own structlog lines say which call they come from, in tasks and in threads."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
import structlog
from anyio.lowlevel import checkpoint

from kgas_async import (
    CallTimeout,
    MemorySink,
    Phase,
    Pipeline,
    Retry,
    ServiceManager,
    ToolAdapter,
    call_context,
    current,
    tool,
)

from .test_evidence import double, ends

Lines = list[dict[str, Any]]
OURS = {"session", "run", "pipeline", "phase", "item", "tool", "call", "attempt"}


@pytest.fixture
def lines() -> Iterator[Lines]:
    """What structlog gets to print, as dicts, in a configuration of the user's."""
    kept: Lines = []

    def keep(logger: Any, method: str, event_dict: Any) -> Any:
        kept.append({"level": method, **event_dict})
        raise structlog.DropEvent

    before = structlog.get_config() if structlog.is_configured() else None
    structlog.configure(processors=[structlog.contextvars.merge_contextvars, call_context, keep])
    yield kept
    structlog.reset_defaults()
    if before is not None:
        structlog.configure(**before)


def say(**fields: Any) -> None:
    structlog.get_logger().info("here", **fields)


@tool
async def says() -> None:
    await checkpoint()
    say()


@tool
def says_in_thread() -> None:
    say()


class Legacy:
    def execute(self, **inputs: Any) -> None:
        say()


# --- where it knows the call


@pytest.mark.parametrize(
    "which",
    [
        says,
        says_in_thread,
        says.using(timeout=30, concurrency=2),
        says_in_thread.using(timeout=30),
        says.using(isolated=True),
        ToolAdapter(Legacy(), params=[], offload="inline"),
        ToolAdapter(factory=Legacy, params=[], instances="dedicated"),
        ToolAdapter(factory=Legacy, params=[], instances="per_thread"),
    ],
    ids=lambda one: f"{one.name} {one._using or ''}",
)
async def test_a_tools_own_line_names_its_call_wherever_it_runs(lines: Lines, which: Any) -> None:
    async with ServiceManager(log=None) as manager:
        await manager.execute(which)
        session = manager.session_id
    assert lines == [
        {
            "level": "info",
            "event": "here",
            "session": session,
            "tool": which.name,
            "call": f"{session}-1",
            "attempt": 1,
        }
    ]


async def test_a_line_in_a_run_names_run_pipeline_phase_and_item_as_the_evidence_does(lines: Lines) -> None:
    @tool
    def load(path: str) -> list[str]:
        say()
        return [path, path]

    @tool
    async def look(part: str) -> None:
        say()

    kept = MemorySink()
    pipeline = Pipeline(
        "papers", Phase("text", load, expand="part"), Phase("each", look), item=["path"], key="path"
    )  # fmt: skip
    async with ServiceManager(evidence=kept, log=None) as manager:
        await manager.run(pipeline, [{"path": "a"}, {"path": "b"}])
    names = {"session": "session_id", "run": "run_id", "call": "call_id"}
    expected = [{name: record.get(names.get(name, name)) for name in OURS} for record in ends(kept.records)]
    found = [{name: line.get(name) for name in OURS} for line in lines]
    assert sorted(found, key=lambda line: line["call"]) == sorted(expected, key=lambda line: line["call"])
    assert {line["item"] for line in lines} == {"a", "a/0", "a/1", "b", "b/0", "b/1"}
    assert None not in found[0].values()


async def test_a_nested_calls_lines_are_its_own_and_then_it_is_the_outer_ones_again(lines: Lines) -> None:
    @tool
    async def outer() -> None:
        say()
        await current().execute(says)
        await current().execute(through_the_door)
        say()

    @tool
    def through_the_door() -> None:
        say()
        says.execute()
        say()

    async with ServiceManager(log=None) as manager:
        await manager.execute(outer)
    door = "through_the_door"
    assert [line["tool"] for line in lines] == ["outer", "says", door, "says", door, "outer"]
    assert len({line["call"] for line in lines}) == 4


async def test_each_attempt_has_its_number(lines: Lines) -> None:
    @tool
    def flaky() -> None:
        say()
        if len(lines) < 3:
            raise OSError

    async with ServiceManager(log=None) as manager:
        await manager.execute(flaky.using(retry=Retry(5, wait=0)))
    assert [line["attempt"] for line in lines] == [1, 2, 3]


async def test_calls_at_once_do_not_mix_their_lines(lines: Lines) -> None:
    @tool
    async def mine(x: int) -> None:
        for _ in range(3):
            await checkpoint()
            say(x=x)

    @tool
    def mine_in_thread(x: int) -> None:
        for _ in range(3):
            say(x=x)

    async with ServiceManager(log=None, threads=4) as manager:
        for which in (mine, mine_in_thread):
            lines.clear()
            async with manager.map(which, range(30), arg="x", in_flight=10) as outcomes:
                async for _ in outcomes:
                    pass
            of: dict[str, set[int]] = {}
            for line in lines:
                of.setdefault(line["call"], set()).add(line["x"])
            assert len(of) == 30
            assert all(len(values) == 1 for values in of.values())
            assert {line["tool"] for line in lines} == {which.name}


async def test_a_task_that_a_tool_starts_belongs_to_its_call(lines: Lines) -> None:
    @tool
    async def spreads() -> None:
        async def part() -> None:
            say()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(part)
            tasks.start_soon(part)
        await anyio.to_thread.run_sync(say)

    async with ServiceManager(log=None) as manager:
        await manager.execute(spreads)
    assert [line["tool"] for line in lines] == ["spreads"] * 3


# --- where there is none, or none any more


async def test_outside_of_calls_nothing_is_added(lines: Lines) -> None:
    say(x=1)
    async with ServiceManager(log=None) as manager:
        say()
        await manager.execute(double, x=1)
        async with manager.map(double, [1], arg="x") as outcomes:
            say()
            async for _ in outcomes:
                say()
    assert not any(OURS & set(line) for line in lines)
    assert len(lines) == 4


async def test_fields_that_a_line_has_already_are_kept(lines: Lines) -> None:
    @tool
    async def particular() -> None:
        say(tool="hammer", item=None, attempt="nth")

    async with ServiceManager(log=None) as manager:
        await manager.execute(particular)
    assert (lines[0]["tool"], lines[0]["item"], lines[0]["attempt"]) == ("hammer", None, "nth")
    assert lines[0]["call"].startswith(lines[0]["session"])


async def test_an_abandoned_thread_may_log_after_its_manager_was_left(lines: Lines) -> None:
    release, done = threading.Event(), threading.Event()

    @tool(on_cancel="abandon")
    def late() -> None:
        release.wait()
        try:
            say()
        finally:
            done.set()

    manager = ServiceManager(log=None)
    async with manager:
        session = manager.session_id
        with pytest.raises(CallTimeout):
            await manager.execute(late.using(timeout=0.02))
    async with manager:  # another session of the same manager by now
        release.set()
        assert await anyio.to_thread.run_sync(done.wait, 5)
    assert [(line["session"], line["call"]) for line in lines] == [(session, f"{session}-1")]


async def test_calls_that_do_not_log_have_nothing_bound(lines: Lines) -> None:
    @tool
    def looks() -> dict[str, Any]:
        return structlog.contextvars.get_contextvars()

    async with ServiceManager(log=None) as manager:
        assert await manager.execute(looks) == {}
        with structlog.contextvars.bound_contextvars(request="r1"):
            assert await manager.execute(looks) == {"request": "r1"}


async def test_it_is_a_processor_for_the_standard_librarys_logging_too() -> None:
    said: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(self.format(record))

    @tool
    def talks() -> None:
        theirs.warning("hot")

    theirs = logging.getLogger("tests.call_context")
    theirs.propagate = False
    handler = Keep()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[call_context], processors=[lambda _, __, line: f"{line['event']} in {line['tool']}"]
        )
    )
    theirs.addHandler(handler)
    try:
        async with ServiceManager(log=None) as manager:
            await manager.execute(talks)
    finally:
        theirs.removeHandler(handler)
    assert said == ["hot in talks"]
