"""Runs as a whole: run-level phases, on_error, what the report says."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import CallFailed, MemorySink, Phase, Pipeline, PipelineError, ServiceManager, current, tool

from .test_pipeline_run import forever, half, numbers, plus, same, total

# --- run-level phases


async def test_a_run_level_phase_runs_once_with_all_values_in_source_order() -> None:
    seen: list[Any] = []

    @tool
    async def all_of(half: list[float], x: list[int]) -> str:
        seen.append((half, x))
        return "ranked"

    @tool
    async def shout(ranked: str) -> str:
        return ranked.upper()

    pipeline = Pipeline(
        "p",
        Phase("half", half),
        Phase("ranked", all_of, collect=True),
        Phase("shouted", shout, bind={"ranked": "ranked"}),
    )
    async with ServiceManager() as manager:
        report = await manager.run(pipeline, ({"x": n * 10} for n in range(50)), in_flight=7)
    assert seen == [([n * 5 for n in range(50)], [n * 10 for n in range(50)])]
    assert report.results == {"ranked": "ranked", "shouted": "RANKED"}
    assert report.outcomes == []  # unless keep="all"


async def test_a_run_level_phase_runs_also_with_nothing() -> None:
    pipeline = Pipeline("p", Phase("half", half), Phase("sum", total, bind={"values": "half"}, collect=True))
    async with ServiceManager() as manager:
        report = await manager.run(pipeline, [])
    assert report.results == {"sum": 0}


async def test_items_of_a_pipeline_that_only_runs_once_have_succeeded() -> None:
    pipeline = Pipeline("p", Phase("sum", total, bind={"values": "x"}, collect=True), item=["x"])
    async with ServiceManager() as manager:
        report = await manager.run(pipeline, [{"x": 1}, {"x": 2}, 3], keep="all")
    assert (report.results, report.missing) == ({"sum": 3}, {"sum": 1})
    assert (report.succeeded, report.skipped, report.failed) == (2, 0, 1)  # nothing was asked whether it is to run
    assert [outcome.value for outcome in report.outcomes] == [{}, {}, None]


async def test_no_run_level_phase_starts_where_the_source_has_broken_off() -> None:
    ran: list[str] = []

    @tool
    async def index(values: list[int]) -> None:
        ran.append("index")

    def torn() -> Any:
        yield {"x": 1}
        raise OSError("disk gone")

    pipeline = Pipeline("p", Phase("same", same), Phase("index", index, bind={"values": "same"}, collect=True))
    async with ServiceManager() as manager:
        with pytest.raises(PipelineError, match="disk gone") as caught:
            await manager.run(pipeline, torn())
    assert (ran, caught.value.report.results, caught.value.report.succeeded) == ([], {}, 1)


async def test_a_run_level_phase_goes_on_without_failed_items_and_says_how_many() -> None:
    sink = MemorySink()
    pipeline = Pipeline("p", Phase("half", half), Phase("sum", total, bind={"values": "half"}, collect=True))
    async with ServiceManager(evidence=sink, log=None) as manager:
        report = await manager.run(pipeline, numbers(20))
    assert report.results == {"sum": (sum(range(20)) - 3 - 13) / 2}
    assert report.missing == {"sum": 2}
    (record,) = [record for record in sink.records if record["event"] == "phase.incomplete"]
    assert (record["phase"], record["missing"]) == ("sum", 2)


async def test_a_run_level_phase_that_wants_all_is_skipped_with_what_follows_it() -> None:
    ran = []

    @tool
    async def follows(sum: float) -> None:  # noqa: A002
        ran.append(sum)

    pipeline = Pipeline(
        "p",
        Phase("half", half),
        Phase("sum", total, bind={"values": "half"}, collect=True, missing="skip"),
        Phase("next", follows),
    )
    async with ServiceManager() as manager:
        report = await manager.run(pipeline, numbers(20))
        assert report.results == {}
        assert report.missing == {"sum": 2}
        assert str(report).endswith("2 failed; phase 'sum' was skipped, since it lacks 2")
        assert ran == []
        report = await manager.run(pipeline, numbers(3))
        assert report.results["sum"] == 1.5
        assert ran == [1.5]


async def test_a_failed_run_level_phase_is_on_the_report_and_skips_what_needs_it() -> None:
    @tool
    async def breaks(half: list[float]) -> float:
        raise OSError("no rank")

    pipeline = Pipeline(
        "p",
        Phase("half", half),
        Phase("rank", breaks, collect=True),
        Phase("sum", total, bind={"values": "half"}, collect=True),
        Phase("next", same, bind={"x": "rank"}),
    )
    async with ServiceManager() as manager:
        report = await manager.run(pipeline, numbers(3))
    assert list(report.results) == ["sum"]
    assert list(report.errors) == ["rank"]
    assert isinstance(report.errors["rank"].__cause__, OSError)
    assert not report.ok
    with pytest.raises(PipelineError, match="phase 'rank' failed"):
        report.raise_for_failures()


async def test_results_and_errors_are_told_as_declared_whichever_ends_first() -> None:
    ended = {name: anyio.Event() for name in "dbca"}
    before = {"d": "b", "b": "c", "c": "a"}  # each waits for the one behind it

    def phase(name: str) -> Phase:
        @tool(name=f"makes_{name}")
        async def makes(values: list[float]) -> str:
            if name in before:
                await ended[before[name]].wait()
            ended[name].set()
            if name in "dc":
                raise OSError(name)
            return name

        return Phase(name, makes, bind={"values": "half"}, collect=True)

    async with ServiceManager() as manager:
        report = await manager.run(Pipeline("p", Phase("half", half), *map(phase, "dbca")), numbers(3))
    assert list(report.results) == ["b", "a"]
    assert list(report.errors) == ["d", "c"]


async def test_a_run_level_phase_whose_when_raises_has_its_end_on_record() -> None:
    def odd(values: list[float]) -> bool:
        raise LookupError(f"none of {values}")

    pipeline = Pipeline(
        "p",
        Phase("half", half),
        Phase("sum", total, bind={"values": "half"}, collect=True, when=odd),
        Phase("next", same, bind={"x": "sum"}),
    )
    sink = MemorySink()
    async with ServiceManager(evidence=sink, log=None, redact=["values"]) as manager:
        report = await manager.run(pipeline, [{"x": 246913578}])
    assert (list(report.errors), report.ok) == (["sum"], False)
    (record,) = (record for record in sink.records if record["event"] == "call.failed")
    assert (record["phase"], record["status"], record["attempt"]) == ("sum", "failed", 0)
    assert record["error"] == {"type": "PipelineError", "message": "phase 'sum': LookupError('none of [[redacted]]')"}


async def test_run_level_phases_run_when_the_last_outcome_of_a_stream_was_taken() -> None:
    ran = []

    @tool
    async def last(half: list[float]) -> None:
        ran.append(len(half))

    pipeline = Pipeline("p", Phase("half", half), Phase("last", last, collect=True))
    async with ServiceManager() as manager:
        async with manager.stream(pipeline, numbers(3)) as outcomes:
            for _ in range(3):
                await anext(outcomes)
                await anyio.wait_all_tasks_blocked()
                assert ran == []
            with pytest.raises(StopAsyncIteration):
                await anext(outcomes)
        assert ran == [3]
        async with manager.stream(pipeline, numbers(3)) as outcomes:
            await anext(outcomes)
        assert ran == [3]  # left early: there is no run to collect


async def test_a_phase_after_a_collect_with_order_only_runs_once() -> None:
    ran = []

    @tool
    async def closes() -> None:
        ran.append(1)

    pipeline = Pipeline("p", Phase("half", half), Phase("rank", closes, after="half", collect=True))
    async with ServiceManager() as manager:
        report = await manager.run(pipeline, numbers(3))
    assert ran == [1]
    assert report.results == {"rank": None}


# --- on_error


async def test_raise_ends_the_run_with_the_first_failure() -> None:
    async with ServiceManager() as manager:
        with pytest.raises(CallFailed, match="no 3"):
            await manager.run(Pipeline("p", Phase("half", half)), numbers(1_000_000), on_error="raise")
        assert not manager.calls


async def test_a_share_of_failures_ends_the_run_and_keeps_the_report() -> None:
    async with ServiceManager() as manager:
        with pytest.raises(PipelineError, match=r"more than on_error=0.05") as caught:
            await manager.run(Pipeline("p", Phase("half", half)), numbers(1_000_000), on_error=0.05, in_flight=2)
    assert caught.value.report is not None
    assert caught.value.report.total <= 40


async def test_the_report_of_an_error_has_all_that_had_finished_when_it_came() -> None:
    @tool
    async def at_once(x: int) -> int:
        if x == 5:
            raise ValueError(x)
        return x

    async with ServiceManager() as manager:
        with pytest.raises(PipelineError, match="1 of 20 items have failed") as caught:
            await manager.run(Pipeline("p", Phase("f", at_once)), numbers(100), on_error=0.0, keep="all")
    report = caught.value.report
    assert report is not None
    assert (report.total, report.succeeded, report.failed) == (20, 19, 1)
    assert [outcome.index for outcome in report.outcomes] == list(range(20))
    assert [outcome.index for outcome in report.failures] == [5]


# --- stopping


async def test_leaving_a_stream_cancels_what_is_in_flight() -> None:
    async with ServiceManager() as manager:
        async with manager.stream(Pipeline("p", Phase("f", forever)), numbers(100), in_flight=3):
            await anyio.wait_all_tasks_blocked()
            calls = list(manager.calls.values())
            assert len(calls) == 3
        assert {call.status for call in calls} == {"cancelled"}
        assert not manager.calls


async def test_cancelling_the_manager_gives_each_pulled_item_its_outcome_and_then_says_so() -> None:
    statuses = []

    async def stream(manager: ServiceManager) -> None:
        pipeline = Pipeline("p", Phase("same", same), Phase("f", forever, after="same"))
        async with manager.stream(pipeline, numbers(100), in_flight=3) as outcomes:
            with pytest.raises(PipelineError, match="cancelled after 3 items, before the end of the source: enough"):
                async for outcome in outcomes:
                    statuses.append((outcome.index, outcome.status, outcome.failed_phase))

    async with ServiceManager() as manager, anyio.create_task_group() as group:
        group.start_soon(stream, manager)
        await anyio.wait_all_tasks_blocked()
        await manager.cancel(reason="enough")
    assert statuses == [(n, "cancelled", "f") for n in range(3)]


async def test_one_call_of_a_run_is_cancelled_alone() -> None:
    gate = anyio.Event()

    @tool
    async def gated(x: int) -> int:
        await gate.wait()
        return x

    pipeline = Pipeline("p", Phase("gated", gated), Phase("next", same, bind={"x": "gated"}), Phase("other", plus_one))
    reports = []

    async def run(manager: ServiceManager) -> None:
        reports.append(await manager.run(pipeline, numbers(3), keep="all"))

    async with ServiceManager() as manager, anyio.create_task_group() as group:
        group.start_soon(run, manager)
        await anyio.wait_all_tasks_blocked()
        (call,) = [call for call in manager.calls.values() if call.index == 1]
        await manager.cancel(call.id, "just this one")
        gate.set()
    outcomes = reports[0].outcomes
    assert [outcome.status for outcome in outcomes] == ["succeeded", "cancelled", "succeeded"]
    assert {name: one.status for name, one in outcomes[1].phases.items()} == {
        "gated": "cancelled",
        "next": "skipped",
        "other": "succeeded",  # it does not need what was cancelled
    }
    assert "just this one" in str(outcomes[1].error)


@tool
async def plus_one(x: int) -> int:
    await checkpoint()
    return x + 1


async def test_a_run_inside_a_tool_ends_with_it() -> None:
    @tool
    async def outer() -> None:
        await current().run(Pipeline("p", Phase("f", forever)), numbers(100))

    async with ServiceManager() as manager:
        call = manager.submit(outer)
        await anyio.wait_all_tasks_blocked()
        assert len(manager.calls) == 101
        call.cancel()
        await call.wait()
        assert not manager.calls


# --- reports


async def test_the_report_keeps_a_thousand_failures_and_counts_the_rest() -> None:
    @tool
    async def breaks(x: int) -> None:
        raise ValueError(x)

    async with ServiceManager(log=None) as manager:
        report = await manager.run(Pipeline("p", Phase("b", breaks)), numbers(1_005))
    assert (report.failed, len(report.failures), report.more_failures) == (1_005, 1_000, 5)
    assert not report.ok
    with pytest.raises(PipelineError, match="1005 failed") as caught:
        report.raise_for_failures()
    assert caught.value.report is report
    assert isinstance(caught.value.__cause__, CallFailed)


async def test_the_report_prints_what_matters() -> None:
    pipeline = Pipeline("papers", Phase("half", half), Phase("sum", total, bind={"values": "half"}, collect=True))
    async with ServiceManager() as manager:
        report = await manager.run(pipeline, numbers(10))
    assert str(report).startswith("papers: 10 items in ")
    assert "9 succeeded, 1 failed; phase 'sum' went on without 1" in str(report)
    assert report.run_id.startswith(manager_session(report.run_id))


def manager_session(run_id: str) -> str:
    return run_id.partition("-")[0]


async def test_keep_is_all_or_nothing() -> None:
    async with ServiceManager() as manager:
        with pytest.raises(ValueError, match="keep= is 'all' or None, not 'some'"):
            await manager.run(Pipeline("p", Phase("half", half)), [], keep="some")  # type: ignore[arg-type]


async def test_a_tool_is_no_pipeline() -> None:
    async with ServiceManager() as manager:
        with pytest.raises(TypeError, match=r"take a Pipeline.*for a single tool there is map"):
            await manager.run(half, [])  # type: ignore[arg-type]


async def test_evidence_names_pipeline_phase_item_and_run() -> None:
    sink = MemorySink()
    pipeline = Pipeline("p", Phase("half", half), Phase("plus", plus), key="x")
    async with ServiceManager(evidence=sink, log=None) as manager:
        report = await manager.run(pipeline, numbers(2))
    ends = [record for record in sink.records if record["event"] == "call.succeeded"]
    assert sorted((end["phase"], end["item"]) for end in ends) == [
        ("half", "0"),
        ("half", "1"),
        ("plus", "0"),
        ("plus", "1"),
    ]
    assert {(end["pipeline"], end["run_id"]) for end in ends} == {("p", report.run_id)}
    (ended,) = [record for record in sink.records if record["event"] == "run.ended"]
    assert (ended["items"], ended["failed"], ended["skipped"]) == (2, 0, 0)
