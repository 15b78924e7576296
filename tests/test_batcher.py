"""`Batcher`: single calls are coalesced; each gets its own result, and fails or is cancelled alone."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import (
    Batcher,
    CallCancelled,
    CallFailed,
    CallRejected,
    CallTimeout,
    ConcurrencyLimit,
    InvalidInputs,
    JsonlSink,
    ManagerClosed,
    MemorySink,
    Outcome,
    Phase,
    Pipeline,
    Policy,
    Retry,
    ServiceManager,
    ServiceNotRunning,
    ToolAdapter,
    current,
    tool,
)
from kgas_async.testing import assert_clean, explore

from .loops import virtual


@pytest.fixture(params=virtual())
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param()


class Embedder:
    """Tools that take lists, and the batches that they were given."""

    def __init__(self, seconds: float = 1.0) -> None:
        self.batches: list[list[str]] = []
        self.began: list[float] = []
        self.inside = self.most = 0

        @tool
        async def embed(texts: list[str], model: str = "small") -> list[float | Exception]:
            self.batches.append(texts)
            self.began.append(anyio.current_time())
            self.inside += 1
            self.most = max(self.most, self.inside)
            try:
                await anyio.sleep(seconds)
            finally:
                self.inside -= 1
            return [ValueError(text) if text.startswith("bad") else float(len(text)) for text in texts]

        self.tool = embed


@tool
def lengths(texts: list[str]) -> list[int]:
    return [len(text) for text in texts]


async def gathered(manager: ServiceManager, batcher: Batcher[Any], texts: Sequence[str]) -> list[Outcome[Any]]:
    async with manager.map(batcher.tool, texts, arg="texts", in_flight=1000) as outcomes:
        return [outcome async for outcome in outcomes]


# --- coalescing


async def test_single_calls_become_one_batch_and_each_gets_its_result() -> None:
    embedder = Embedder()
    batcher = Batcher(embedder.tool, max_wait=0.5)
    async with ServiceManager(batcher) as manager:
        outcomes = await gathered(manager, batcher, ["a", "bb", "ccc"])
        assert [outcome.value for outcome in outcomes] == [1.0, 2.0, 3.0]
        assert [sorted(batch) for batch in embedder.batches] == [["a", "bb", "ccc"]]
        assert embedder.began == [pytest.approx(0.5)]
        assert await manager.execute(batcher.tool, texts="dddd") == 4.0
        assert await batcher(texts="eeeee") == 5.0
        assert [len(batch) for batch in embedder.batches] == [3, 1, 1]
        assert {name: one.calls for name, one in manager.statistics().tools.items()} == {"embed": 3, "embed.one": 4}
    assert_clean(manager)


async def test_a_full_batch_leaves_at_once_and_no_more_than_that_run_at_once() -> None:
    embedder = Embedder()
    batcher = Batcher(embedder.tool, max_size=4, max_wait=100, in_flight=2)
    async with ServiceManager(batcher) as manager:
        outcomes = await gathered(manager, batcher, [str(n) for n in range(24)])
        assert all(outcome.ok for outcome in outcomes)
    assert [len(batch) for batch in embedder.batches] == [4] * 6
    assert embedder.began == [pytest.approx(n) for n in (0, 0, 1, 1, 2, 2)]
    assert embedder.most == 2


async def test_elements_gather_while_no_batch_may_leave() -> None:
    embedder = Embedder(10)
    batcher = Batcher(embedder.tool, max_size=8, max_wait=0.1, in_flight=1)
    async with ServiceManager(batcher), anyio.create_task_group() as group:
        for n in range(16):
            group.start_soon(lambda n=n: batcher(texts=str(n)))
            await anyio.sleep(0.2)
    assert [len(batch) for batch in embedder.batches] == [1, 8, 7]


async def test_more_than_the_queue_holds_wait_for_room() -> None:
    embedder = Embedder(1)
    batcher = Batcher(embedder.tool, max_size=2, max_wait=0, max_queue=3, in_flight=1)
    queued = []
    async with ServiceManager(batcher) as manager, anyio.create_task_group() as group:
        group.start_soon(gathered, manager, batcher, [str(n) for n in range(20)])
        for _ in range(9):
            await anyio.sleep(1)
            assert batcher._gathering is not None
            queued.append(len(batcher._gathering._queue))
    assert max(queued) <= 3
    assert sorted(text for batch in embedder.batches for text in batch) == sorted(str(n) for n in range(20))
    assert {len(batch) for batch in embedder.batches} <= {1, 2}


async def test_sync_list_tools_and_single_calls_from_worker_threads() -> None:
    batcher = Batcher(lengths, max_size=50, max_wait=0.01)

    @tool
    def in_thread(n: int) -> int:
        return batcher.tool.execute(texts="x" * n) + 1

    async with ServiceManager(batcher, threads=3) as manager:
        calls = [manager.submit(in_thread, n=n) for n in range(20)]
        assert [await call.result() for call in calls] == [n + 1 for n in range(20)]
    assert_clean(manager)


async def test_it_is_a_phase_of_a_pipeline_which_brings_it_along() -> None:
    embedder = Embedder()
    batcher = Batcher(embedder.tool, max_size=5)

    @tool
    def text_of(x: int) -> str:
        return "bad" if x == 3 else "x" * x

    pipeline = Pipeline(
        "p", Phase("text", text_of), Phase("vector", batcher.tool, bind={"texts": "text"}), item=["x"], key="x"
    )
    async with ServiceManager() as manager:
        report = await manager.run(pipeline, ({"x": n} for n in range(10)), keep="all")
        assert [outcome.value for outcome in report.outcomes] == [0, 1, 2, None, 4, 5, 6, 7, 8, 9]
        assert report.outcomes[3].failed_phase == "vector"
        assert manager.statistics().services == ["Batcher(embed)"]
    assert max(len(batch) for batch in embedder.batches) > 1


async def test_several_lists_and_fixed_inputs() -> None:
    @tool
    async def scores(texts: list[str], weights: tuple[int, ...], model: str, factor: int = 2) -> list[str]:
        return [f"{model}:{text}:{weight * factor}" for text, weight in zip(texts, weights, strict=True)]

    batcher = Batcher(scores, inputs={"model": "m"}, name="score")
    assert batcher.tool.name == "score"
    assert batcher.tool.input_schema()["properties"].keys() == {"texts", "weights"}
    assert batcher.tool.output_schema() == {"type": "string"}
    async with ServiceManager(batcher) as manager:
        values = await manager.gather({"a": batcher.tool, "b": batcher.tool}, {"texts": "t", "weights": "3"})
        assert values == {"a": "m:t:6", "b": "m:t:6"}
        assert await manager.execute(batcher.tool.using(name="other", timeout=3), texts="t", weights=1) == "m:t:2"


# --- failing


async def test_an_exception_among_the_results_fails_its_element_alone() -> None:
    embedder = Embedder()
    batcher = Batcher(embedder.tool)
    async with ServiceManager(batcher) as manager:
        good, bad = await gathered(manager, batcher, ["a", "bad b"])
        assert good.value == 1.0
        assert isinstance(bad.error, CallFailed)
        assert isinstance(bad.error.__cause__, ValueError)
        with pytest.raises(ValueError, match="bad c"):
            await batcher(texts="bad c")
        assert manager.statistics().tools["embed"].failed == 0


async def test_an_exit_among_the_results_is_not_raised_as_one() -> None:
    @tool
    async def exits(texts: list[str]) -> list[Any]:
        return [SystemExit(3) for _ in texts]

    batcher = Batcher(exits)
    async with ServiceManager(batcher):
        with pytest.raises(CallFailed, match=r"SystemExit\(3\)"):
            await batcher(texts="a")


@pytest.mark.parametrize(
    ("results", "why"),
    [
        ([1], "given a batch of 2 and returned 1 results: nobody knows which is whose"),
        ([1, 2, 3], "given a batch of 2 and returned 3 results"),
        ("ab", "returns a list with one result for each element, in order, not str"),
        ({"a": 1, "b": 2}, "not dict"),
        (None, "not NoneType"),
    ],
)
@pytest.mark.parametrize("sync", [True, False])
async def test_another_number_of_results_fails_the_whole_batch(results: Any, why: str, sync: bool) -> None:
    async def wrong(texts: list[str]) -> Any:
        return results

    def wrong_in_thread(texts: list[str]) -> Any:
        return results

    batcher: Batcher[Any] = Batcher(ToolAdapter(wrong_in_thread if sync else wrong, name="wrong"))
    sink = MemorySink()
    async with ServiceManager(batcher, evidence=sink, log=None) as manager:
        outcomes = await gathered(manager, batcher, ["a", "b"])
        for outcome in outcomes:
            assert outcome.status == "failed"
            assert why in str(outcome.error)
    ends = [(record["tool"], record["status"]) for record in sink.records if "wait_us" in record]
    assert ends == [("wrong", "failed"), ("wrong.one", "failed"), ("wrong.one", "failed")]


async def test_a_failed_batch_fails_each_with_an_error_of_its_own() -> None:
    @tool
    async def breaks(texts: list[str]) -> list[int]:
        raise OSError("down")

    batcher = Batcher(breaks)
    async with ServiceManager(batcher) as manager:
        outcomes = await gathered(manager, batcher, ["a", "b"])
        causes = [outcome.error.__cause__ for outcome in outcomes if outcome.error is not None]
        assert all(isinstance(cause, CallFailed) and isinstance(cause.__cause__, OSError) for cause in causes)
        assert causes[0] is not causes[1]
        with pytest.raises(CallFailed, match="tool 'breaks' failed: OSError: down"):
            await batcher(texts="a")


async def test_policy_is_that_of_the_batch() -> None:
    tries = []

    @tool(policy=Policy(timeout=2, retry=Retry(2, on=ConnectionError, wait=1)))
    async def flaky(texts: list[str]) -> list[str]:
        tries.append(texts)
        if len(tries) == 1:
            raise ConnectionError
        await anyio.sleep(len(texts))
        return texts

    batcher = Batcher(flaky)
    async with ServiceManager(batcher) as manager:
        assert [outcome.value for outcome in await gathered(manager, batcher, ["a"])] == ["a"]
        others = [manager.submit(batcher.tool, texts="b") for _ in range(2)]
        with pytest.raises(CallTimeout, match="timeout of 2 s"):
            await batcher(texts="c")
        for other in others:
            assert (await other.outcome()).status == "failed"  # it was not they that timed out
        assert await manager.execute(batcher.tool, texts="d") == "d"


async def test_an_element_that_does_not_fit_fails_alone() -> None:
    batcher = Batcher(lengths)
    async with ServiceManager(batcher) as manager:
        outcomes = await gathered(manager, batcher, ["a", 3, "cc"])  # type: ignore[list-item]
        assert [outcome.value for outcome in outcomes] == [1, None, 2]
        assert isinstance(outcomes[1].error, InvalidInputs)
        with pytest.raises(InvalidInputs, match=r"'lengths\.one'.*no such input; it takes texts"):
            await batcher(text="a")
        assert manager.statistics().tools["lengths"].failed == 0


async def test_whoever_holds_a_token_that_the_batch_needs_is_refused() -> None:
    limit = ConcurrencyLimit(1)
    batcher = Batcher(lengths.using(concurrency=limit))

    @tool(policy=Policy(concurrency=limit))
    async def holds() -> int:
        return await current().execute(batcher.tool, texts="a")

    async with ServiceManager(batcher) as manager:
        with pytest.raises(CallFailed, match="they would wait for each other; give the two tools") as caught:
            await manager.execute(holds)
        assert isinstance(caught.value.__cause__, CallRejected)
        assert await batcher(texts="a") == 1
    assert_clean(manager, limit)


async def test_so_is_whoever_has_entered_it() -> None:
    limit = ConcurrencyLimit(1)
    batcher = Batcher(lengths.using(concurrency=limit))

    @tool
    def nested() -> Any:
        return batcher.tool.execute(texts="a")

    async with ServiceManager(batcher) as manager:
        with anyio.fail_after(10):
            async with limit:
                outcomes = [await manager.outcome(batcher.tool, texts="a"), await manager.outcome(nested)]
                with pytest.raises(CallRejected, match="has entered by 'async with': they would wait for each other"):
                    await batcher(texts="a")
        assert [outcome.status for outcome in outcomes] == ["rejected", "failed"]
        assert await batcher(texts="a") == 1
    assert_clean(manager, limit)


# --- cancelling


async def test_an_element_that_is_cancelled_before_its_batch_left_is_dropped() -> None:
    embedder = Embedder()
    batcher = Batcher(embedder.tool, max_wait=5)
    async with ServiceManager(batcher) as manager:
        call = manager.submit(batcher.tool, texts="a")
        kept = manager.submit(batcher.tool, texts="b")
        await anyio.sleep(1)
        call.cancel()
        assert await kept.result() == 1.0
        with anyio.move_on_after(1):
            await batcher(texts="c")
        await anyio.sleep(20)
    assert embedder.batches == [["b"]]


async def test_of_one_that_is_cancelled_later_the_result_is_thrown_away() -> None:
    embedder = Embedder(10)
    batcher = Batcher(embedder.tool, max_wait=1)
    async with ServiceManager(batcher) as manager:
        call = manager.submit(batcher.tool, texts="a")
        kept = manager.submit(batcher.tool, texts="b")
        await anyio.sleep(5)
        call.cancel("not needed")
        await call.wait()
        assert anyio.current_time() == pytest.approx(5)
        assert await kept.result() == 1.0
        assert [sorted(batch) for batch in embedder.batches] == [["a", "b"]]


async def test_a_batch_that_nobody_waits_for_any_more_is_cancelled() -> None:
    embedder = Embedder(100)
    batcher = Batcher(embedder.tool, max_wait=1)
    sink = MemorySink()
    async with ServiceManager(batcher, evidence=sink, log=None) as manager:
        calls = [manager.submit(batcher.tool, texts="a") for _ in range(2)]
        await anyio.sleep(5)
        calls[0].cancel()
        await anyio.sleep(5)
        assert embedder.inside == 1
        calls[1].cancel()
        await checkpoint()
        await anyio.wait_all_tasks_blocked()
        assert embedder.inside == 0
        assert not manager.calls
    assert [record.get("reason") for record in sink.records if record.get("batch_size")][-1] == (
        "nobody waits for it any more"
    )


async def test_a_clean_up_may_still_use_it_while_the_session_closes() -> None:
    embedder = Embedder(1)
    batcher = Batcher(embedder.tool)
    cleaned: list[float] = []

    @tool
    async def cleans_up() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                cleaned.append(await batcher(texts="abc"))

    with pytest.raises(KeyError):
        async with ServiceManager(batcher) as manager:
            manager.submit(cleans_up)
            await anyio.sleep(1)
            raise KeyError
    assert cleaned == [3.0]
    assert_clean(manager)


async def test_those_who_wait_for_a_batch_that_is_cancelled_are_told() -> None:
    embedder = Embedder(10)
    batcher = Batcher(embedder.tool)
    async with ServiceManager(batcher) as manager, anyio.create_task_group() as group:

        async def waits() -> None:
            with pytest.raises(CallCancelled, match="enough"):
                await batcher(texts="a")

        group.start_soon(waits)
        await anyio.sleep(1)
        (call,) = manager.calls.values()
        assert call.batch_size == 1
        await manager.cancel(call.id, "enough")


@explore(seeds=30)
async def test_each_element_has_its_result_whoever_is_cancelled_whenever() -> None:
    embedder = Embedder(0.5)
    batcher = Batcher(embedder.tool, max_size=3, max_wait=0.5, max_queue=4, in_flight=2)
    results: dict[int, float] = {}
    async with ServiceManager(batcher) as manager, anyio.create_task_group() as group:

        async def asks(n: int) -> None:
            with anyio.move_on_after(0.5 * (n % 7)):
                results[n] = await manager.execute(batcher.tool, texts="x" * n)

        for n in range(1, 40):
            group.start_soon(asks, n)
    assert results
    assert all(value == n for n, value in results.items())
    sent = [len(text) for batch in embedder.batches for text in batch]
    assert len(sent) == len(set(sent))
    assert set(results) <= set(sent)
    assert embedder.most <= 2
    assert_clean(manager)


# --- lifetime


async def test_the_evidence_tells_who_was_in_which_batch(tmp_path: Any) -> None:
    sink, path = MemorySink(), tmp_path / "evidence.jsonl"
    embedder = Embedder()
    batcher = Batcher(embedder.tool, max_size=2)
    async with ServiceManager(batcher, evidence=[sink, JsonlSink(path)], log=None) as manager:
        await gathered(manager, batcher, ["a", "bad", "c"])
        await manager.options(name="one").execute(batcher.tool, texts="d")
    ends = [record for record in sink.records if "wait_us" in record]
    batches = {record["call_id"]: record["batch_size"] for record in ends if record["tool"] == "embed"}
    assert list(batches.values()) == [2, 1, 1]
    first = next(iter(batches))
    members = [record["batch_id"] for record in ends if record["tool"] == "embed.one"]
    assert Counter(members) == batches
    assert [record.get("call_name") for record in ends][-1] == "one"
    assert path.read_text().count(f'"batch_id":"{first}"') == 2
    assert not any("parent_id" in record for record in ends)


async def test_a_batch_is_no_part_of_the_call_that_happens_to_be_first() -> None:
    embedder = Embedder(10)
    batcher = Batcher(embedder.tool, max_wait=1)

    @tool(policy=Policy(deadline=5))
    async def impatient() -> float:
        return await batcher(texts="a")

    async with ServiceManager(batcher) as manager:
        first = manager.submit(impatient)
        second = manager.submit(batcher.tool, texts="bb")
        assert await second.result() == 2.0
        assert first.status == "timed_out"
        assert [sorted(batch) for batch in embedder.batches] == [["a", "bb"]]


async def test_a_manager_that_drains_still_sends_what_its_calls_wait_for() -> None:
    embedder = Embedder()
    batcher = Batcher(embedder.tool, max_wait=2)
    async with ServiceManager(batcher) as manager:
        call = manager.submit(batcher.tool, texts="a")
        await anyio.sleep(1)
        async with anyio.create_task_group() as group:
            group.start_soon(manager.drain)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(ManagerClosed):
                await batcher(texts="b")
        assert await call.result() == 1.0
    assert_clean(manager)


async def test_what_waits_when_the_session_is_cancelled_ends_with_it() -> None:
    embedder = Embedder(1000)
    batcher = Batcher(embedder.tool, max_size=1, max_queue=1, in_flight=1)
    with pytest.raises(KeyError):
        async with ServiceManager(batcher) as manager:
            calls = [manager.submit(batcher.tool, texts="a") for _ in range(5)]
            await anyio.sleep(1)
            raise KeyError
    assert {call.status for call in calls} == {"cancelled"}
    assert_clean(manager)


async def test_whoever_waits_outside_of_calls_when_it_stops_is_told() -> None:
    batcher = Batcher(Embedder(1000).tool, max_size=1, max_queue=1, in_flight=1)
    told: list[str] = []

    async def waits() -> None:
        try:
            await batcher(texts="a")
        except (CallCancelled, ServiceNotRunning) as error:
            told.append(type(error).__name__)

    async with anyio.create_task_group() as group, ServiceManager(batcher, grace=3) as manager:
        for _ in range(5):
            group.start_soon(waits)
        await anyio.sleep(1)
    assert sorted(told) == ["CallCancelled"] + ["ServiceNotRunning"] * 4
    assert_clean(manager)


async def test_it_is_used_again_in_the_next_lifetime_and_not_between() -> None:
    embedder = Embedder()
    batcher = Batcher(embedder.tool)
    for _ in range(2):
        async with ServiceManager(batcher) as manager:
            assert await batcher(texts="a") == 1.0
        with pytest.raises(ServiceNotRunning):
            await batcher(texts="a")
    async with ServiceManager() as manager:
        with pytest.raises(ServiceNotRunning, match=r"Batcher\(embed\)"):
            await manager.execute(batcher.tool, texts="a")


def test_it_serves_the_event_loop_that_it_runs_on() -> None:
    batcher = Batcher(lengths)

    async def elsewhere() -> None:
        with pytest.raises(RuntimeError, match="runs on another event loop"):
            await batcher(texts="a")

    with ServiceManager(batcher).blocking() as manager:
        assert manager.execute(batcher.tool, texts="abc") == 3
        anyio.run(elsewhere)
        thread = threading.Thread(target=lambda: anyio.run(elsewhere, backend="trio"))
        thread.start()
        thread.join()


def test_the_sync_door_of_its_tool_works_alone() -> None:
    assert Batcher(lengths).tool.execute(texts="abc") == 3


def test_tools_that_are_not_made_for_it_are_refused() -> None:
    @tool
    async def single(text: str) -> str:
        return text

    @tool
    async def pair(texts: list[str], model: str) -> list[str]:
        return texts

    @tool
    async def optional(text: str = "") -> str:
        return text

    with pytest.raises(TypeError, match=r"takes 'text', which is no list .* inputs={'text'"):
        Batcher(single)
    with pytest.raises(TypeError, match="takes 'model', which is no list"):
        Batcher(pair)
    with pytest.raises(TypeError, match="takes no list of elements: text"):
        Batcher(optional)
    with pytest.raises(TypeError, match=r"names 'modl', which is no input of tool 'pair'.*did you mean 'model'"):
        Batcher(pair, inputs={"modl": "m"})
    with pytest.raises(TypeError, match="takes a tool, not"):
        Batcher(print)  # type: ignore[arg-type]
    for wrong in ({"max_size": 0}, {"max_queue": 0}, {"in_flight": 0}, {"max_wait": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Batcher(lengths, **wrong)  # type: ignore[arg-type]


async def test_a_tool_without_types_gives_elements_of_any_type() -> None:
    @tool
    async def untyped(texts, weights=None):  # type: ignore[no-untyped-def]
        return texts

    batcher: Batcher[Any] = Batcher(untyped, inputs={"weights": None})
    async with ServiceManager(batcher):
        await checkpoint()
        assert await batcher(texts=3) == 3
