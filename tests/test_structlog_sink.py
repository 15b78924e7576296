"""What the manager itself says through the user's structlog: `log="events"`, `"calls"`, None."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import anyio
import pytest
import structlog
from anyio.lowlevel import checkpoint

from kgas_async import (
    EvidenceError,
    MemorySink,
    Phase,
    Pipeline,
    Retry,
    Service,
    ServiceManager,
    ToolAdapter,
    tool,
)

from .test_call_context import Lines, lines  # noqa: F401  (a fixture)
from .test_evidence import broken, broken_in_thread, double, ends, forever

Level = Literal["events", "calls"] | None


def of(lines: Lines, event: str) -> dict[str, Any]:  # noqa: F811
    """The one line of that event."""
    found = [line for line in lines if line["event"] == event]
    assert len(found) == 1, lines
    return found[0]


async def everything(level: Level) -> MemorySink:
    """A session in which a bit of everything happens, and its evidence."""
    kept, release = MemorySink(), threading.Event()

    @tool(on_cancel="abandon")
    def held() -> None:
        release.wait()

    pipeline = Pipeline("p", Phase("twice", double), item=["x"])
    async with ServiceManager(evidence=kept, log=level) as manager:
        await manager.execute(double, x=1)
        await manager.outcome(broken)
        await manager.outcome(broken.using(name="again", retry=Retry(2, wait=0)))
        await manager.outcome(double, x="no number")
        await manager.outcome(held.using(timeout=0.02))
        release.set()
        while not any(record["event"] == "thread.ended" for record in kept.records):  # noqa: ASYNC110
            await anyio.sleep(0.005)
        call = manager.submit(forever)
        while not any(record["event"] == "call.started" for record in kept.records):  # noqa: ASYNC110
            await anyio.sleep(0.005)
        call.cancel("enough")
        await call.wait()
        await manager.run(pipeline, [{"x": 1}])
    return kept


# --- what is said


async def test_events_are_failures_retries_and_runs_but_not_what_goes_well(lines: Lines) -> None:  # noqa: F811
    kept = await everything("events")
    said = [line["event"] for line in lines]
    assert sorted(said) == [
        "call.failed", "call.failed", "call.failed", "call.retried", "call.timed_out", "run.ended", "run.started",
        "thread.abandoned", "thread.ended",
    ]  # fmt: skip
    assert of(lines, "thread.abandoned")["level"] == "warning"
    order = [record["event"] for record in kept.records if record["event"] in said]
    assert said == order


async def test_calls_are_every_end_too(lines: Lines) -> None:  # noqa: F811
    kept = await everything("calls")
    everyone = [record["event"] for record in kept.records]
    assert [line["event"] for line in lines] == [event for event in everyone if event != "call.started"]
    assert "call.started" in everyone
    assert len([line for line in lines if "run_us" in line and "status" in line and "delay_us" not in line]) == (
        len(ends(kept.records)) + 1  # and the thread's
    )


async def test_none_is_nothing(lines: Lines) -> None:  # noqa: F811
    await everything(None)
    assert lines == []


@pytest.mark.parametrize("level", ["events", "calls"])
async def test_it_needs_no_other_evidence(lines: Lines, level: Level) -> None:  # noqa: F811
    async with ServiceManager(log=level) as manager:
        await manager.execute(double, x=1)
        await manager.outcome(broken)
        with anyio.move_on_after(0) as scope:
            scope.cancel()
            await manager.execute(forever)
    calls = ["session.started", "call.succeeded", "call.failed", "call.cancelled", "session.ended"]
    assert [line["event"] for line in lines] == (["call.failed"] if level == "events" else calls)


async def test_events_are_the_default_and_services_are_among_them(lines: Lines) -> None:  # noqa: F811
    class Disk(Service):
        @asynccontextmanager
        async def running(self) -> AsyncIterator[None]:
            yield

    async with ServiceManager(Disk()):
        pass
    assert [line["event"] for line in lines] == ["service.starting", "service.started", "service.stopped"]
    assert {line["service"] for line in lines} == {"Disk"}


async def test_a_line_has_the_records_fields_and_a_level(lines: Lines) -> None:  # noqa: F811
    kept = MemorySink()
    async with ServiceManager(evidence=kept, log="calls") as manager:
        await manager.execute(double, x=1)
        await manager.outcome(broken, x=3)
    for event, level in (("call.succeeded", "info"), ("call.failed", "warning"), ("session.ended", "info")):
        record = next(dict(record) for record in kept.records if record["event"] == event)
        line = dict(of(lines, event))
        assert line.pop("level") == level
        assert record.pop("schema") == 2
        assert {name: line.get(name) for name in record} == record
        context = {name: line.pop(name, None) for name in ("session", "call")}  # of `call_context`, in a failure
        if event == "call.failed":
            assert context == {"session": record["session_id"], "call": record["call_id"]}
        assert line == record


async def test_the_failure_of_the_evidence_is_said(lines: Lines) -> None:  # noqa: F811
    async with ServiceManager(evidence="/dev/full", on_sink_error="continue") as manager:
        await manager.execute(double, x=1)
    line = of(lines, "evidence.failed")
    assert line["level"] == "warning"
    assert "/dev/full" in line["error"]["message"]


# --- the user's configuration


async def test_structlog_is_never_configured(monkeypatch: pytest.MonkeyPatch, lines: Lines) -> None:  # noqa: F811
    before = structlog.get_config()
    done: list[str] = []
    with monkeypatch.context() as patch:
        for name in ("configure", "configure_once", "reset_defaults"):
            for place in (structlog, structlog._config):
                patch.setattr(place, name, lambda *args, name=name, **kwargs: done.append(name))
        await everything("calls")
    assert done == []
    assert structlog.get_config() == before


async def test_the_users_filter_and_logger_are_used(lines: Lines) -> None:  # noqa: F811
    asked: list[Any] = []
    printed: list[str] = []

    class Printer:
        def msg(self, text: str) -> None:
            printed.append(text)

        warning = info = msg

    structlog.configure(
        processors=[structlog.processors.JSONRenderer(sort_keys=True)],
        wrapper_class=structlog.make_filtering_bound_logger(30),
        logger_factory=lambda *args: asked.append(args) or Printer(),
        cache_logger_on_first_use=True,
    )
    async with ServiceManager(log="calls") as manager:
        await manager.execute(double, x=1)
        await manager.outcome(broken)
    assert len(printed) == 1
    assert '"event": "call.failed"' in printed[0]
    assert ("kgas_async",) in asked


async def test_capture_logs_sees_them() -> None:
    with structlog.testing.capture_logs() as captured:
        async with ServiceManager() as manager:
            await manager.outcome(broken)
    assert [(line["event"], line["log_level"]) for line in captured] == [("call.failed", "warning")]


async def test_a_configuration_that_raises_is_a_failed_sink(
    lines: Lines,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken_processor(*args: Any) -> Any:
        raise ZeroDivisionError("in the user's processor")

    structlog.configure(processors=[broken_processor])
    kept = MemorySink()
    with pytest.raises(EvidenceError, match="in the user's processor"):
        async with ServiceManager(evidence=kept) as manager:
            await manager.outcome(broken)
            await manager.execute(forever)
    assert [record["event"] for record in kept.records].count("evidence.failed") == 1
    async with ServiceManager(evidence=kept, on_sink_error="continue") as manager:
        await manager.outcome(broken)
        assert await manager.execute(double, x=2) == 4
    assert "in the user's processor" in caplog.text


# --- context variables


async def binding() -> None:
    structlog.contextvars.bind_contextvars(by_tool="page 7")
    await checkpoint()
    raise LookupError


def binding_in_thread() -> None:
    structlog.contextvars.bind_contextvars(by_tool="page 7")
    raise LookupError


WAYS = {
    "async": tool(binding),
    "async, bounded": tool(binding).using(timeout=30, concurrency=1),
    "async, alone": tool(binding).using(isolated=True),
    "thread": tool(binding_in_thread),
    "thread, bounded": tool(binding_in_thread).using(timeout=30),
    "inline": ToolAdapter(binding_in_thread, offload="inline"),
    "dedicated": ToolAdapter(binding_in_thread, instances="serial"),
}


@pytest.mark.parametrize("which", WAYS.values(), ids=WAYS.keys())
async def test_what_the_user_and_the_tool_have_bound_is_in_the_failures_line(
    lines: Lines,  # noqa: F811
    which: Any,
) -> None:
    async with ServiceManager() as manager:
        with structlog.contextvars.bound_contextvars(by_user="request 9"):
            await manager.outcome(which)
        await manager.outcome(broken_in_thread)
    first, second = lines
    assert (first["by_user"], first["by_tool"]) == ("request 9", "page 7")
    assert not {"by_user", "by_tool"} & set(second)
    assert "by_tool" not in structlog.contextvars.get_contextvars()


async def test_what_an_earlier_attempt_bound_is_not_in_the_failures_line(lines: Lines) -> None:  # noqa: F811
    numbers = iter((1, 2, 3))

    @tool
    async def flaky() -> None:
        number = next(numbers)
        structlog.contextvars.bind_contextvars(**{f"attempt_{number}": number})
        raise LookupError

    async with ServiceManager() as manager:
        await manager.outcome(flaky.using(retry=Retry(3, wait=0)))
    line = of(lines, "call.failed")
    assert {name for name in line if name.startswith("attempt_")} == {"attempt_3"}


async def test_the_failure_of_an_item_has_what_its_tool_bound(lines: Lines) -> None:  # noqa: F811
    @tool
    def read(path: str) -> None:
        structlog.contextvars.bind_contextvars(size=len(path))
        raise OSError(path)

    pipeline = Pipeline("p", Phase("read", read), item=["path"], key="path")
    async with ServiceManager() as manager:
        await manager.run(pipeline, [{"path": "a"}, {"path": "bb"}])
    failures = [line for line in lines if line["event"] == "call.failed"]
    assert {(line["item"], line["size"], line["error"]["message"]) for line in failures} == {
        ("a", 1, "a"),
        ("bb", 2, "bb"),
    }
