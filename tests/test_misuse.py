"""What newcomers write by mistake, and the essential words of what they are told."""

from __future__ import annotations

import functools
import inspect
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from anyio.lowlevel import checkpoint
from pydantic import BaseModel

from kgas_async import (
    AdaptiveLimit,
    Batcher,
    Cache,
    CallFailed,
    CallRejected,
    CallTimeout,
    ConcurrencyLimit,
    Every,
    InvalidInputs,
    Journal,
    JsonlSink,
    KGASTool,
    ManagerClosed,
    MemoryLimit,
    MemorySink,
    MemoryStore,
    PerformanceMonitor,
    Phase,
    Pipeline,
    PipelineError,
    Policy,
    RateLimit,
    Retry,
    Service,
    ServiceManager,
    ServiceStartFailed,
    ToolAdapter,
    Toolbox,
    current,
    exponential,
    linear,
    load_pipeline,
    tool,
)


@tool
async def f(text: str) -> str:
    await checkpoint()
    return text


class MyTool(KGASTool):
    async def execute_async(self, *, text: str) -> str:
        return text


class LegacyTool:
    def execute(self, text: str) -> str:
        return text


class Plain(Service):
    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        yield


def plain(text: str) -> str:
    return text


async def report(progress: object) -> None: ...


pipeline = Pipeline("letters", Phase("text", f))


# --- where something is made


def no_running() -> None:
    class Store(Service): ...

    Store()


def undecorated() -> None:
    class Store(Service):
        async def running(self) -> AsyncIterator[None]:  # type: ignore[override]
            yield


MADE: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "arguments without a constructor": (lambda: MyTool(1), TypeError, "MyTool() takes no arguments"),
    "by name": (lambda: MyTool(graph=1), TypeError, "MyTool() takes no arguments"),
    "of a service": (lambda: Plain(1), TypeError, "Plain() takes no arguments"),
    "tool(Class)": (lambda: tool(MyTool), TypeError, "this is the class; its objects are tools already: MyTool(...)"),
    "factory=Class": (lambda: ToolAdapter(factory=MyTool), TypeError, "this is the class"),
    "ToolAdapter(Class)": (lambda: ToolAdapter(MyTool), TypeError, "this is the class"),
    "Phase('g', Class)": (
        lambda: Phase("g", MyTool),  # type: ignore[arg-type]
        TypeError,
        "phase 'g' takes a tool, and this is the class; its objects are tools: MyTool(...)",
    ),
    "Every(60, Class)": (
        lambda: Every(60, MyTool),  # type: ignore[arg-type]
        TypeError,
        "Every takes a tool, and this is the class; its objects are tools: MyTool(...)",
    ),
    "Batcher(Class)": (
        lambda: Batcher(MyTool),
        TypeError,
        "Batcher takes a tool, and this is the class; its objects are tools: MyTool(...)",
    ),
    "Toolbox(Class)": (
        lambda: Toolbox(MyTool),  # type: ignore[arg-type]
        TypeError,
        "a Toolbox takes tools, and this is the class; its objects are tools: MyTool(...)",
    ),
    "fallback=Class": (lambda: Policy(fallback=MyTool), TypeError, "its objects are tools: MyTool(...)"),
    "a legacy class": (lambda: Phase("g", LegacyTool), TypeError, "wrap it: tool(...) or ToolAdapter(...)"),  # type: ignore[arg-type]
    "a legacy object": (lambda: Phase("g", LegacyTool()), TypeError, "wrap it: tool(...) or ToolAdapter(...)"),  # type: ignore[arg-type]
    "a service without running": (no_running, TypeError, "Store has no running(); write '@asynccontextmanager'"),
    "running without decorator": (undecorated, TypeError, "write '@asynccontextmanager' above it"),
    "Retry(on=BaseException)": (lambda: Retry(on=BaseException), TypeError, "what ends a program"),  # type: ignore[arg-type]
    "Retry(on=KeyboardInterrupt)": (
        lambda: Retry(on=(OSError, KeyboardInterrupt)),  # type: ignore[arg-type]
        TypeError,
        "Retry(on) is a type of Exception",
    ),
    "Retry(attempt=)": (lambda: Retry(attempt=3), TypeError, "did you mean 'attempts'?"),  # type: ignore[call-arg]
    "Policy(5)": (lambda: Policy(5), TypeError, "Policy takes its fields by name, as in Policy(timeout=5.0)"),  # type: ignore[misc]
    "ServiceManager(tool)": (lambda: ServiceManager(f), TypeError, "tools go to manager.execute(tool, ...)"),
    "ServiceManager(pipeline)": (lambda: ServiceManager(pipeline), TypeError, "manager.run(pipeline, items)"),
    "ServiceManager(Class)": (lambda: ServiceManager(Plain), TypeError, "pass an object of it, Plain(...)"),
    "signals=": (lambda: ServiceManager(signals="yes"), TypeError, "signals= is True or False, not 'yes'"),  # type: ignore[arg-type]
    "evidense=": (
        lambda: ServiceManager(evidense="x"),  # type: ignore[call-arg]
        TypeError,
        "ServiceManager has no argument 'evidense'",
    ),
    "its mend": (lambda: ServiceManager(evidense="x"), TypeError, "did you mean 'evidence'?"),  # type: ignore[call-arg]
    "Phase(colect=)": (lambda: Phase("g", f, colect=True), TypeError, "did you mean 'collect'?"),  # type: ignore[call-arg]
    "Pipeline(items=)": (
        lambda: Pipeline("letters", Phase("text", f), items=["text"]),  # type: ignore[call-arg]
        TypeError,
        "Pipeline has no argument 'items'; it has name, item, key, source, services; did you mean 'item'?",
    ),
    "Phase(tool)": (lambda: Phase("g"), TypeError, "Phase needs 'tool': Phase(name, tool, ...)"),  # type: ignore[call-arg]
    "Phase(..., bind)": (
        lambda: Phase("g", f, {"text": "x"}),  # type: ignore[misc]
        TypeError,
        "Phase takes name, tool by position, not 3 arguments; the others go by name, as bind=...",
    ),
    "Phase(name twice)": (
        lambda: Phase("g", f, name="h"),  # type: ignore[misc]
        TypeError,
        "Phase was given 'name' twice, by position and by name",
    ),
    "ToolAdapter(parms=)": (lambda: ToolAdapter(plain, parms=["text"]), TypeError, "did you mean 'params'?"),
    "@tool(offlod=)": (lambda: tool(offlod="process"), TypeError, "tool has no option 'offlod'; it has params"),  # type: ignore[call-overload]
    "@tool(timeout=)": (lambda: tool(timeout=3), TypeError, "policy=Policy(timeout=...)"),  # type: ignore[call-overload]
    "Journal(durble=)": (lambda: Journal("x.db", durble=True), TypeError, "did you mean 'durable'?"),  # type: ignore[call-arg]
    "Cache(storage=)": (lambda: Cache(60, stor=None), TypeError, "did you mean 'store'?"),  # type: ignore[call-arg]
    "MemoryStore(entries=)": (lambda: MemoryStore(entries=3), TypeError, "did you mean 'max_entries'?"),  # type: ignore[call-arg]
    "RateLimit(brust=)": (lambda: RateLimit(3, brust=2), TypeError, "did you mean 'burst'?"),  # type: ignore[call-arg]
    "ConcurrencyLimit(max=)": (
        lambda: ConcurrencyLimit(3, max_que=2),  # type: ignore[call-arg]
        TypeError,
        "did you mean 'max_queue'?",
    ),
    "AdaptiveLimit(intial=)": (lambda: AdaptiveLimit(1, 9, intial=2), TypeError, "did you mean 'initial'?"),  # type: ignore[call-arg]
    "MemoryLimit(bytes=)": (lambda: MemoryLimit(bytes=9), TypeError, "it has max_bytes"),  # type: ignore[call-arg]
    "JsonlSink(fsnc=)": (lambda: JsonlSink("x", fsnc=True), TypeError, "did you mean 'fsync'?"),  # type: ignore[call-arg]
    "PerformanceMonitor(stal=)": (lambda: PerformanceMonitor(stal=1), TypeError, "did you mean 'stall'?"),  # type: ignore[call-arg]
    "exponential(factr=)": (lambda: exponential(factr=3), TypeError, "did you mean 'factor'?"),  # type: ignore[call-arg]
    "linear(stp=)": (lambda: linear(stp=3), TypeError, "did you mean 'step'?"),  # type: ignore[call-arg]
    "Every(overlaps=)": (lambda: Every(60, f, overlaps=True), TypeError, "did you mean 'overlap'?"),  # type: ignore[call-arg]
    "Batcher(max_sise=)": (lambda: Batcher(f, max_sise=3), TypeError, "did you mean 'max_size'?"),
    "load_pipeline(profil=)": (
        lambda: load_pipeline("x.toml", profil="prod"),  # type: ignore[call-arg]
        TypeError,
        "load_pipeline has no argument 'profil'; it has path, profile, settings; did you mean 'profile'?",
    ),
    "blocking().run(pipeline)": (
        lambda: ServiceManager().blocking().run(pipeline),
        TypeError,
        "run needs 'items': run(pipeline, items, ...)",
    ),
    "blocking('uvloop')": (
        lambda: ServiceManager().blocking("uvloop"),
        ValueError,
        "blocking(backend_options={'use_uvloop': True})",
    ),
    "blocking('tri')": (lambda: ServiceManager().blocking("tri"), ValueError, "did you mean 'trio'?"),
}


def test_what_cannot_be_wrapped_is_not_told_to_be() -> None:
    with pytest.raises(TypeError, match=r"^phase 'g' takes a tool, not 'load'$"):
        Phase("g", "load")  # type: ignore[arg-type]


@pytest.mark.parametrize("case", MADE)
def test_said_where_it_is_made(case: str) -> None:
    make, kind, words = MADE[case]
    with pytest.raises(kind) as caught:
        make()
    assert words in str(caught.value)


def test_an_event_loop_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    with pytest.raises(ModuleNotFoundError, match=r"uvloop is not installed; install the extra `uvloop`"):
        ServiceManager().blocking(backend_options={"use_uvloop": True})


def test_the_methods_that_suggest_keep_their_signatures() -> None:
    assert "evidence" in inspect.signature(ServiceManager).parameters
    assert list(inspect.signature(ServiceManager.map).parameters)[:3] == ["self", "tool", "inputs"]
    assert inspect.iscoroutinefunction(ServiceManager.run)
    assert list(inspect.signature(Phase).parameters)[:3] == ["name", "tool", "bind"]


# --- where it is used

Use = Callable[[ServiceManager], Any]
USED: dict[str, tuple[Use, type[Exception], str]] = {
    "the class": (lambda m: m.execute(MyTool, text="a"), TypeError, "this is the class"),  # type: ignore[arg-type]
    "its mend": (lambda m: m.execute(MyTool, text="a"), TypeError, "MyTool(...)"),  # type: ignore[arg-type]
    "a coroutine": (
        lambda m: m.execute(f(text="a")),  # type: ignore[arg-type]
        TypeError,
        "pass the tool, then its inputs: execute(f, ...)",
    ),
    "a value": (
        lambda m: m.execute(42),  # type: ignore[arg-type]
        TypeError,
        "42 is no tool; pass the tool, then its inputs: execute(f, text=...)",
    ),
    "a name": (lambda m: m.execute("f", text="a"), TypeError, "a Toolbox: execute(toolbox['f'], ...)"),  # type: ignore[arg-type]
    "a pipeline": (lambda m: m.execute(pipeline), TypeError, "manager.run(pipeline, items)"),  # type: ignore[arg-type]
    "a function": (lambda m: m.execute(plain, text="a"), TypeError, "wrap it: tool(...)"),  # type: ignore[arg-type]
    "run(in_fligt=)": (lambda m: m.run(pipeline, [], in_fligt=3), TypeError, "did you mean 'in_flight'?"),  # type: ignore[call-arg]
    "run(pipeline)": (lambda m: m.run(pipeline), TypeError, "run needs 'items': run(pipeline, items, ...)"),  # type: ignore[call-arg]
    "run(..., journal)": (
        lambda m: m.run(pipeline, [], "run.db"),  # type: ignore[misc]
        TypeError,
        "run takes pipeline, items by position, not 3 arguments; the others go by name, as journal=...",
    ),
    "gather(text=)": (
        lambda m: m.gather({"a": f}, text="a"),
        TypeError,
        "gather has no argument 'text'; it has tools,",
    ),
    "race()": (lambda m: m.race(), TypeError, "race needs 'tools': race(tools, ...)"),
    "run(on_progress=async)": (lambda m: m.run(pipeline, [], on_progress=report), TypeError, "nobody would await"),
}


@pytest.mark.parametrize("case", USED)
async def test_said_where_it_is_used(case: str) -> None:
    use, kind, words = USED[case]
    async with ServiceManager(log=None) as manager:
        with pytest.raises(kind) as caught:
            await use(manager)
        assert words in str(caught.value)
        assert not manager.calls


class Reporter:
    async def __call__(self, progress: object) -> None: ...


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"on_progress": report}, "nobody would await"),
        ({"on_progress": Reporter()}, "nobody would await"),
        ({"on_progress": functools.partial(report)}, "nobody would await"),
        ({"on_progress": 3}, "on_progress= is a function of the Progress, not 3"),
        ({"ordered": "no"}, "ordered= is True or False, not 'no'"),
        ({"inflight": 3}, "did you mean 'in_flight'?"),
    ],
)
async def test_options_of_map_and_stream_are_refused_at_the_call(options: Any, words: str) -> None:
    async with ServiceManager(log=None) as manager:
        for make in (lambda: manager.map(f, [], **options), lambda: manager.stream(pipeline, [], **options)):
            with pytest.raises(TypeError) as caught:
                make()
            assert words in str(caught.value)


async def test_a_map_or_stream_says_how_it_is_used() -> None:
    async with ServiceManager(log=None) as manager:
        for opening, name in ((manager.map(f, []), "map"), (manager.stream(pipeline, []), "stream")):
            wrong: Any = opening
            right = rf"write 'async with manager\.{name}\(\.\.\.\) as outcomes:', and in it 'async for outcome"
            with pytest.raises(TypeError, match=right):
                async for _ in wrong:
                    pass
            with pytest.raises(TypeError, match=right):
                await wrong
            with pytest.raises(TypeError, match=right), wrong:
                pass
            with pytest.raises(TypeError, match=right):
                list(wrong)
            async with opening as outcomes:
                assert [outcome async for outcome in outcomes] == []
            with pytest.raises(RuntimeError, match=rf"call manager\.{name}\(\.\.\.\) again"):
                async with opening:
                    pass


def test_a_blocking_manager_suggests_too() -> None:
    with ServiceManager(log=None).blocking() as manager:
        blocking: Any = manager
        with pytest.raises(TypeError, match=r"gather has no argument 'input'; it has .*; did you mean 'inputs'\?"):
            blocking.gather({"a": f}, input={"text": "a"})
        with pytest.raises(TypeError, match=r"race needs 'tools': race\(tools, \.\.\.\)"):
            blocking.race()


async def test_a_blocking_map_says_how_it_is_used() -> None:
    with ServiceManager(log=None).blocking() as manager:
        wrong: Any = manager.map(f, [])
        right = r"write 'with manager\.map\(\.\.\.\) as outcomes:', and in it 'for outcome in outcomes:'"
        with pytest.raises(TypeError, match=right):
            list(wrong)
        with pytest.raises(TypeError, match=right):
            async with wrong:
                pass
        with pytest.raises(TypeError, match="did you mean 'in_flight'"):
            manager.map(f, [], inflight=3)


async def test_a_manager_says_how_it_is_entered() -> None:
    wrong: Any = ServiceManager(log=None)
    with pytest.raises(TypeError, match=r"async with ServiceManager\(\.\.\.\) as manager.*blocking\(\)"), wrong:
        pass
    blocking: Any = wrong.blocking()
    with pytest.raises(TypeError, match=r"write 'with ServiceManager\(\.\.\.\)\.blocking\(\) as manager:'"):
        async with blocking:
            pass


async def test_outcomes_are_taken_inside_the_block() -> None:
    async with ServiceManager(log=None) as manager:
        async with manager.map(f, ["a", "b"], arg="text") as outcomes:
            assert (await anext(outcomes)).ok
        for _ in range(2):
            with pytest.raises(RuntimeError, match="take the outcomes inside the block"):
                async for _ in outcomes:
                    raise AssertionError("an outcome")
        async with manager.stream(pipeline, [{"text": "a"}]) as outcomes:
            pass
        with pytest.raises(RuntimeError, match="take the outcomes inside the block"):
            await anext(outcomes)


def test_outcomes_of_a_blocking_map_are_taken_inside_the_block() -> None:
    with ServiceManager(log=None).blocking() as manager:
        with manager.map(f, "abc", arg="text") as outcomes:
            assert next(outcomes).value == "a"
        with pytest.raises(RuntimeError, match="take the outcomes inside the block"):
            next(outcomes)
        with manager.map(f, "abc", arg="text") as untouched:
            pass
        with pytest.raises(RuntimeError, match="take the outcomes inside the block"):
            list(untouched)


class Request(BaseModel):
    text: str = ""
    a: int = 0


class Checked(MyTool):
    async def validate_inputs(self, /, **inputs: Any) -> dict[str, Any]:
        return await super().validate_inputs(**inputs)


@pytest.mark.parametrize(
    "what", [f, MyTool(), Checked(), ToolAdapter(lambda request: 1, inputs=Request, name="legacy")]
)
@pytest.mark.parametrize("value", ["a", "ab", 3, ["text"]])
async def test_bare_values_without_arg_are_told_of_it(what: Any, value: Any) -> None:
    async with ServiceManager(log=None) as manager, manager.map(what, [value]) as outcomes:
        error = (await anext(outcomes)).error
    assert isinstance(error, InvalidInputs)
    assert "inputs are mappings of input names" in str(error)
    assert "for bare values give arg='text'" in str(error)
    assert error.errors[0]["type"] == "mapping_type"


async def test_after_closing_it_was_closed() -> None:
    manager = ServiceManager(log=None)
    with pytest.raises(ManagerClosed, match="is not open"):
        await manager.execute(f, text="a")
    async with manager:
        pass
    with pytest.raises(ManagerClosed, match="was closed"):
        await manager.execute(f, text="a")
    blocking = ServiceManager(log=None).blocking()
    with pytest.raises(ManagerClosed, match="is not open"):
        blocking.execute(f, text="a")
    with blocking:
        pass
    with pytest.raises(ManagerClosed, match="was closed"):
        blocking.execute(f, text="a")


# --- services


async def test_a_service_that_another_open_manager_runs_is_refused() -> None:
    service = Plain()
    async with ServiceManager(service, log=None):
        with pytest.raises(ServiceStartFailed, match="another open manager runs it; give a service to one manager"):
            async with ServiceManager(service, log=None):
                pass
        service.ensure_running()
    async with ServiceManager(service, log=None):
        service.ensure_running()


async def test_a_running_of_the_wrong_kind_is_told_of_its_decorator() -> None:
    class Store(Service):
        @contextmanager  # type: ignore[arg-type]
        def running(self) -> Iterator[None]:  # type: ignore[override]
            yield

    with pytest.raises(ServiceStartFailed, match="write '@asynccontextmanager' above"):
        async with ServiceManager(Store(), log=None):
            pass


# --- inside of calls


async def test_a_cost_function_that_fails_is_not_called_the_tools_failure() -> None:
    ran = []

    @tool(policy=Policy(rate=RateLimit(10, cost=lambda inputs: inputs["size"]), retry=Retry(3, wait=0)))
    async def embed(text: str) -> None:
        ran.append(text)

    async with ServiceManager(log=None) as manager:
        with pytest.raises(CallFailed) as caught:
            await manager.execute(embed, text="a")
    assert "tool 'embed': the cost function of its RateLimit(10" in str(caught.value)
    assert "failed, and the tool was not run: KeyError: 'size'" in str(caught.value)
    assert isinstance(caught.value.__cause__, KeyError)
    assert (ran, caught.value.attempts) == ([], 1)


async def test_the_sync_door_in_an_async_tool_names_current() -> None:
    @tool
    async def outer() -> str:
        return f.execute(text="a")

    async with ServiceManager(log=None) as manager:
        with pytest.raises(CallFailed, match=r"use 'await current\(\)\.execute\(tool, \.\.\.\)' here"):
            await manager.execute(outer)
        with pytest.raises(RuntimeError, match=r"use 'await manager\.execute\(tool, \.\.\.\)' here"):
            f.execute(text="a")


@pytest.mark.real_time
@pytest.mark.parametrize("attempts", [1, 3])
async def test_a_timeout_that_was_not_retried_since_its_thread_runs_says_so(attempts: int) -> None:
    @tool(on_cancel="abandon", policy=Policy(timeout=0.02, retry=Retry(attempts, wait=0)))
    def stuck() -> None:
        time.sleep(0.2)

    async with ServiceManager(log=None, abandoned="join") as manager:
        with pytest.raises(CallTimeout) as caught:
            await manager.execute(stuck)
    notes = "".join(getattr(caught.value, "__notes__", ()))
    assert ("its abandoned thread still runs" in notes) == ("while_running=True" in notes) == (attempts > 1)


async def test_a_tool_that_calls_itself_under_its_limit_is_told_to_take_the_limit_away() -> None:
    @tool(policy=Policy(concurrency=1))
    async def walk(depth: int, limited: bool) -> int:
        inner = walk if limited else walk.using(concurrency=None)
        return 0 if depth == 0 else 1 + await current().execute(inner, depth=depth - 1, limited=limited)

    async with ServiceManager(log=None) as manager:
        outcome = await manager.outcome(walk, depth=2, limited=True)
        assert isinstance(outcome.error, CallFailed)
        assert isinstance(outcome.error.__cause__, CallRejected)
        assert "tool 'walk' calls itself" in str(outcome.error.__cause__)
        assert "tool.using(concurrency=None)" in str(outcome.error.__cause__)
        assert await manager.execute(walk, depth=2, limited=False) == 2


# --- reports


async def test_raise_for_failures_names_item_and_phase_of_the_first_error() -> None:
    @tool
    async def picky(text: str) -> str:
        raise LookupError(f"no {text}")

    letters = Pipeline("letters", Phase("check", picky), item=["text"], key="text")
    async with ServiceManager(log=None) as manager:
        one = await manager.run(letters, [{"text": "b"}])
    with pytest.raises(PipelineError) as caught:
        one.raise_for_failures()
    assert "the first error: item 'b' in phase 'check': tool 'picky' failed: LookupError: no b" in str(caught.value)
    assert str(one).startswith("letters: 1 item in ")


class Numbered(KGASTool):
    def __init__(self) -> None:
        self.name = 7  # type: ignore[assignment]

    async def execute_async(self) -> None: ...


def named_by_a_number() -> None:
    class Tool(KGASTool):
        name = 7  # type: ignore[assignment]

        async def execute_async(self) -> None: ...


@pytest.mark.parametrize(
    "use",
    [
        lambda manager, monitor: manager.cancel(reason=ValueError("no")),
        lambda manager, monitor: manager.submit(f, text="a").cancel(ValueError("no")),
        lambda manager, monitor: manager.execute(Numbered()),
        lambda manager, monitor: named_by_a_number(),
        lambda manager, monitor: monitor.track(7),
        lambda manager, monitor: monitor.track(""),
        lambda manager, monitor: monitor.counter(7),
        lambda manager, monitor: monitor.gauge(None),
        lambda manager, monitor: monitor.histogram(b"x"),
    ],
    ids=["cancel", "Call.cancel", "name", "class name", "track", "track nothing", "counter", "gauge", "histogram"],
)
async def test_what_goes_into_the_evidence_is_text_and_nothing_else_gets_that_far(use: Any) -> None:
    sink, monitor = MemorySink(), PerformanceMonitor(stall=None, sample_every=None)
    async with ServiceManager(log=None, evidence=sink, monitor=monitor) as manager:
        with pytest.raises(TypeError, match=r"is a (non-empty )?string, not"):
            await use(manager, monitor)
        assert await manager.execute(f, text="a") == "a"
    assert sink.records[-1]["event"] == "session.ended"  # it was not the end of the evidence
