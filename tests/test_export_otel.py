"""Evidence as OpenTelemetry spans, by the official SDK; and the spans of tools below those of their calls."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import anyio
import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from kgas_async import (
    EvidenceError,
    MemorySink,
    Phase,
    Pipeline,
    Policy,
    Retry,
    ServiceManager,
    ToolAdapter,
    current,
    tool,
)
from kgas_async._reading import duration_us, unix_us
from kgas_async.export.otel import OtelSink, span_context

from .programs import LOOPS, PREAMBLE, ROOT, Program
from .test_lineage import load, named, words


class Spans:
    """A sink, and what came out of it."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.sink = OtelSink(SimpleSpanProcessor(self.exporter), Resource({"service.name": "tests"}))
        self.memory = MemorySink()

    def manager(self, **options: Any) -> ServiceManager:
        return ServiceManager(evidence=[self.sink, self.memory], log=None, **options)

    @property
    def records(self) -> list[dict[str, Any]]:
        return self.memory.records

    def all(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    def of(self, own_id: str) -> ReadableSpan:
        wanted = span_context(self.records[0]["session_id"], own_id).span_id
        (span,) = [span for span in self.all() if span.context.span_id == wanted]
        return span

    def of_tool(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all() if (span.attributes or {}).get("kgas.tool") == name]


async def test_each_session_run_and_call_is_one_span_of_one_trace() -> None:
    spans = Spans()
    async with spans.manager() as manager:
        await manager.run(words, named("a", "b"))
        await manager.execute(load, name="x")
    ids = [span.context.span_id for span in spans.all()]
    ends = [record for record in spans.records if "wait_us" in record]
    assert len(set(ids)) == len(ids) == len(ends) + 2
    assert {span.context.trace_id for span in spans.all()} == {span_context(ends[0]["session_id"]).trace_id}
    (root,) = [span for span in spans.all() if span.parent is None]
    assert root.name == "session"
    assert {span.parent.span_id for span in spans.all() if span.parent is not None} <= set(ids)


async def test_a_span_says_what_the_record_says() -> None:
    spans = Spans()
    async with spans.manager() as manager:
        await manager.run(words, named("a"))
    for end in (record for record in spans.records if "wait_us" in record):
        span = spans.of(end["call_id"])
        assert span.end_time == unix_us(end["time"]) * 1000
        assert span.start_time == span.end_time - duration_us(end) * 1000
        attributes = dict(span.attributes or {})
        assert attributes["kgas.status"] == "succeeded"
        for name in ("tool", "version", "phase", "item", "run_us", "attempt"):
            assert attributes.get(f"kgas.{name}") == end.get(name)
        assert attributes["kgas.wait.thread_us"] == end["wait_us"]["thread"]
        assert span.name == ("inner" if end["tool"] == "inner" else end["phase"])
        assert span.resource.attributes["service.name"] == "tests"
        assert json.loads(span.to_json())["context"]["trace_id"]


@tool
async def in_task(x: int) -> int:
    return await current().execute(in_thread, x=x)


@tool
def in_thread(x: int) -> int:
    return in_process.execute(x=x) + outside.execute(x=x)  # the sync door: nested calls


@tool
async def outside(x: int) -> int:
    return x


def in_child(x: int) -> int:
    return x + 1


in_process = ToolAdapter(in_child, name="in_process", offload="process")


@pytest.mark.real_time  # a worker process
async def test_parents_are_right_through_tasks_threads_and_processes() -> None:
    spans = Spans()
    async with spans.manager(processes=1) as manager:
        report = await manager.run(Pipeline("p", Phase("all", in_task), item=["x"]), [{"x": 1}])
    assert report.ok, report
    (task,), (thread,), (process,) = map(spans.of_tool, ("in_task", "in_thread", "in_process"))
    (other,) = spans.of_tool("outside")
    run = spans.of(report.run_id)
    assert [span.parent and span.parent.span_id for span in (task, thread, process, other)] == [
        run.context.span_id,
        task.context.span_id,
        thread.context.span_id,
        thread.context.span_id,
    ]
    assert "kgas.cpu_us" in dict(process.attributes or {})


async def test_failures_and_retries_are_told() -> None:
    tries = []

    @tool(policy=Policy(retry=Retry(attempts=2, wait=0, on=OSError)))
    async def broken() -> None:
        tries.append(1)
        raise OSError(f"try {len(tries)}")

    spans = Spans()
    async with spans.manager() as manager:
        await manager.outcome(broken)
        await manager.outcome(load, name=["secret"])
    (failed,), (invalid,) = spans.of_tool("broken"), spans.of_tool("load")
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.status.description == "try 2"
    assert [(event.name, dict(event.attributes or {})["exception.message"]) for event in failed.events] == [
        ("retried", "try 1"),
        ("exception", "try 2"),
    ]
    assert invalid.status.status_code is StatusCode.ERROR
    assert "secret" not in invalid.to_json()


async def test_a_cancelled_call_is_no_error() -> None:
    spans = Spans()
    async with spans.manager() as manager:
        call = manager.submit(load, name="x")
        call.cancel("no need")
        await call.wait()
    (span,) = spans.of_tool("load")
    assert span.status.status_code is StatusCode.UNSET
    assert dict(span.attributes or {})["kgas.reason"] == "no need"


async def test_parts_of_a_batch_have_a_link_to_it() -> None:
    @tool
    async def up(name: list[str]) -> list[str]:
        return name

    spans = Spans()
    async with spans.manager() as manager:
        await manager.run(Pipeline("p", Phase("up", up, batch=2), item=["name"]), named("a", "b"))
    (batch,) = [record["call_id"] for record in spans.records if "batch_size" in record]
    parts = [spans.of(record["call_id"]) for record in spans.records if "batch_id" in record]
    assert len(parts) == 2
    for part in parts:
        assert [link.context.span_id for link in part.links] == [spans.of(batch).context.span_id]


async def test_a_run_in_a_call_is_below_it() -> None:
    @tool
    async def outer(name: str) -> int:
        return (await current().run(Pipeline("in", Phase("text", load)), named(name))).total

    spans = Spans()
    async with spans.manager() as manager:
        await manager.run(Pipeline("out", Phase("made", outer), item=["name"]), named("a"))
    (made,) = spans.of_tool("outer")
    (inside,) = [span for span in spans.all() if span.name == "in"]
    (text,) = spans.of_tool("load")
    assert inside.parent is not None
    assert inside.parent.span_id == made.context.span_id
    assert text.name == "text"
    assert text.parent is not None
    assert text.parent.span_id == inside.context.span_id


async def test_a_call_with_a_fallback_begins_before_that() -> None:
    spans = Spans()

    @tool
    async def other(x: int) -> int:
        for _ in range(1000):
            if any(record["event"] == "call.started" for record in spans.records):  # or it is too short to tell
                break
            await anyio.sleep(0.005)
        return x

    @tool(policy=Policy(fallback=other))
    async def fails(x: int) -> int:
        raise OSError("no")

    async with spans.manager() as manager:
        await manager.execute(fails, x=1)
    (outer,), (inner,) = spans.of_tool("fails"), spans.of_tool("other")
    assert inner.parent is not None
    assert inner.parent.span_id == outer.context.span_id
    assert outer.start_time is not None
    assert inner.start_time is not None
    assert outer.start_time <= inner.start_time


class Unreachable(SimpleSpanProcessor):
    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return False


async def test_spans_that_cannot_be_sent_are_said_as_of_any_sink() -> None:
    sink = OtelSink(Unreachable(InMemorySpanExporter()))
    with pytest.raises(EvidenceError, match="could not be sent within 5 s"):
        async with ServiceManager(evidence=sink, log=None):
            pass


def test_where_the_extra_is_not_installed_it_says_which() -> None:
    code = "import sys; sys.modules['opentelemetry.sdk'] = None\ntry: import kgas_async.export.otel\n"
    code += "except ModuleNotFoundError as error: print(error)"
    with Program(command=["-c", code]) as program:
        (said,) = program.rest()
    assert "kgas_async.export.otel needs opentelemetry" in said
    assert "install the extra `otel`" in said


def test_what_is_no_processor_is_refused_with_the_mend() -> None:
    with pytest.raises(TypeError, match="BatchSpanProcessor"):
        OtelSink(InMemorySpanExporter())  # type: ignore[arg-type]


# --- spans of the tools' own


OWN_SPANS = """
import json
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from kgas_async.export.otel import OtelSink

exporter = InMemorySpanExporter()
processor = SimpleSpanProcessor(exporter)
provider = TracerProvider()
provider.add_span_processor(processor)
trace.set_tracer_provider(provider)
tracer = trace.get_tracer("tests")

def above():
    return f"{trace.get_current_span().get_span_context().span_id:016x}"

@tool
async def outer(x: int) -> dict:
    with tracer.start_as_current_span("own") as own:
        with tracer.start_as_current_span("below own"):
            inner = await current().execute(threaded, x=x)
        await anyio.sleep(0)
        assert trace.get_current_span() is own
    return {"outer": above(), **inner}

@tool
def threaded(x: int) -> dict:
    with tracer.start_as_current_span("in thread"):
        pass
    return {"threaded": above(), **elsewhere.execute(x=x)}

@tool(offload="process")
def elsewhere(x: int) -> dict:
    return {"elsewhere": above()}

async def main():
    async with ServiceManager(evidence=OtelSink(processor), log=None, processes=1) as manager:
        with tracer.start_as_current_span("the program's"):
            return await manager.execute(outer, x=1)

if __name__ == "__main__":
    seen = run(main)
    spans = [
        (span.name, f"{span.context.span_id:016x}", span.parent and f"{span.parent.span_id:016x}")
        for span in exporter.get_finished_spans()
    ]
    say(json.dumps([seen, spans]))
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder that tells of our entry points as they are declared, as an installed package does."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    found = tmp_path / "installed" / "kgas_async_entry_points-1.dist-info"
    found.mkdir(parents=True)
    (found / "METADATA").write_text("Metadata-Version: 2.1\nName: kgas-async-entry-points\nVersion: 1\n")
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {what}\n" for name, what in one.items()) for group, one in declared.items()
    ]
    (found / "entry_points.txt").write_text("\n".join(lines))
    return found.parent


@pytest.mark.parametrize("loop", LOOPS)
def test_spans_of_a_tool_are_below_its_call_in_tasks_threads_and_processes(
    loop: str, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_PYTHON_CONTEXT", "kgas_async")
    monkeypatch.setenv("PYTHONPATH", ":".join([str(installed), *sys.path[1:]]))
    file = installed / "program.py"  # a file: worker processes import it again
    file.write_text(PREAMBLE + OWN_SPANS)
    with Program(command=[str(file)], loop=loop) as program:
        lines = program.rest()
        assert program.code() == 0
        seen, spans = json.loads(lines[-1])
    own = {name: (span_id, parent) for name, span_id, parent in spans}
    calls = {name: own[name][0] for name in ("outer", "threaded", "elsewhere")}
    assert seen == calls  # each sees its own call's span as the current one
    assert own["own"][1] == calls["outer"]
    assert own["below own"][1] == own["own"][0]
    assert own["in thread"][1] == calls["threaded"]
    assert own["threaded"][1] == calls["outer"]
    assert own["elsewhere"][1] == calls["threaded"]
    assert own["outer"][1] == own["session"][0]
