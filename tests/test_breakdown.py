"""Errors outside of any tool: an exit, what is no `Exception`, an error of ours. The session ends with them, loudly."""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import (
    Outcome,
    Phase,
    Pipeline,
    PipelineError,
    ServiceManager,
    _batch,
    _inputs,
    _item_outcome,
    _run,
    _run_level,
    _walk,
    tool,
)
from kgas_async._cancellation import breakdown_between, breakdown_of, exit_in, failure_in, parted
from kgas_async._expand import Elements
from kgas_async._frame import Expansion, Frame
from kgas_async._map import MapCrew
from kgas_async._session import Session


class StopAllError(BaseException):
    """What is no `Exception`, as test frameworks and some schedulers have it."""


@tool
async def same(x: int) -> int:
    await checkpoint()
    return x


class Counted:
    """A source that knows how many items were taken from it."""

    def __init__(self, count: int) -> None:
        self.count, self.pulled = count, 0

    def __iter__(self) -> Iterator[dict[str, int]]:
        for x in range(self.count):
            self.pulled += 1
            yield {"x": x}


class Foreign:
    """Takes outcomes in a task that the end of the session does not cancel; `raised` is what the session raised."""

    def __init__(self) -> None:
        self.came: list[Outcome[Any]] = []
        self.error: BaseException | None = None
        self.raised: BaseException | None = None

    async def take(self, start: Callable[[ServiceManager], Any]) -> None:
        opened, done = anyio.Event(), anyio.Event()
        managers: list[ServiceManager] = []

        async def hold() -> None:
            try:
                async with ServiceManager(log=None, grace=1) as manager:
                    managers.append(manager)
                    opened.set()
                    await done.wait()
            except (Exception, StopAllError) as error:  # noqa: BLE001
                self.raised = error

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hold)
            await opened.wait()
            try:
                async with start(managers[0]) as outcomes:
                    async for outcome in outcomes:
                        self.came.append(outcome)
            except Exception as error:  # noqa: BLE001
                self.error = error
            done.set()


# --- what the user's functions around tools raise


def stop(*_: Any, **__: Any) -> Any:
    raise StopAllError("stop")


class Stopping:
    def __iter__(self) -> Stopping:
        return self

    def __next__(self) -> int:
        raise StopAllError("stop")


@tool
async def stopping_elements(x: int) -> Any:
    return Stopping()


@tool
async def async_stopping_elements(x: int) -> AsyncIterator[int]:
    yield 1
    raise StopAllError("stop")


def elements(made_by: Any) -> Pipeline:
    return Pipeline("p", Phase("made", made_by, expand="e"), Phase("same", same, bind={"x": "e"}))


AROUND: dict[str, Callable[[ServiceManager, Counted], Any]] = {
    "when": lambda manager, source: manager.stream(Pipeline("p", Phase("a", same, when=lambda x: stop())), source),
    "key": lambda manager, source: manager.stream(Pipeline("p", Phase("a", same), key=stop), source),
    "elements": lambda manager, source: manager.stream(elements(stopping_elements), source),
    "async elements": lambda manager, source: manager.stream(elements(async_stopping_elements), source),
    "progress of a run": lambda manager, source: manager.stream(
        Pipeline("p", Phase("a", same)), source, on_progress=stop
    ),
    "progress of a map": lambda manager, source: manager.map(same, source, on_progress=stop),
}


@pytest.mark.parametrize("where", AROUND)
async def test_what_is_no_exception_ends_the_session_and_each_pulled_item_has_one_outcome(where: str) -> None:
    source, foreign = Counted(7), Foreign()
    await foreign.take(lambda manager: AROUND[where](manager, source))
    assert isinstance(foreign.raised, StopAllError)
    assert sorted(outcome.index for outcome in foreign.came) == list(range(source.pulled))


def torn() -> Iterator[dict[str, int]]:
    yield {"x": 1}
    raise StopAllError("torn")


async def async_torn() -> AsyncIterator[dict[str, int]]:
    yield {"x": 1}
    raise StopAllError("torn")


@pytest.mark.parametrize("source", [torn, async_torn])
async def test_so_it_does_where_a_source_raises_it(source: Callable[[], Any]) -> None:
    foreign = Foreign()
    await foreign.take(lambda manager: manager.stream(Pipeline("p", Phase("a", same)), source()))
    assert isinstance(foreign.raised, StopAllError)
    assert [outcome.index for outcome in foreign.came] == [0]


async def test_an_item_that_was_in_the_hands_of_its_worker_says_what_it_was_lost_to() -> None:
    foreign, source = Foreign(), Counted(1)
    await foreign.take(lambda manager: AROUND["when"](manager, source))
    (outcome,) = foreign.came
    assert (outcome.status, outcome.key, outcome.index) == ("failed", "0", 0)
    assert isinstance(outcome.error, PipelineError)
    assert isinstance(outcome.error.__cause__, StopAllError)


# --- errors of ours


@tool
async def split(x: int) -> list[int]:
    return [x, x + 1, x + 2]


@tool
async def lazy(x: int) -> AsyncIterator[int]:
    for element in range(3):
        await checkpoint()
        yield element


@tool
async def vectors(es: list[int]) -> list[int]:
    await checkpoint()
    return [2 * e for e in es]


@tool
async def joined(one: list[int], vector: list[int]) -> int:
    return sum(one) + sum(vector)


@tool
async def side(x: int) -> int:
    await checkpoint()
    if x == 3:
        raise ValueError(x)
    return x


@tool
async def added(joined: int, side: int) -> int:
    return joined + side


@tool
async def total(added: list[int]) -> int:
    return sum(added)


@tool
async def counted(side: AsyncIterable[int]) -> int:
    return len([one async for one in side])


def everything() -> Pipeline:
    return Pipeline(
        "everything",
        Phase("split", split, expand="e"),
        Phase("one", same, bind={"x": "e"}),
        Phase("vector", vectors, bind={"es": "e"}, batch=4),
        Phase("joined", joined, collect="e"),
        Phase("side", side, when=lambda x: x != 4),
        Phase("added", added),
        Phase("total", total, collect=True),
        Phase("counted", counted, collect=True),
        Phase("lazy", lazy, expand="l"),
        Phase("again", same, bind={"x": "l"}),
        key=lambda item: item["x"],
    )


class Bug(AssertionError):
    pass


# Where something of ours breaks: what the workers of a run call between their calls.
BREAKS: list[tuple[Any, str]] = [
    (Session, "new_call"),
    (_run.RunCrew, "take"),
    (_run.RunCrew, "_admitted"),
    (_run.RunCrew, "_entered"),
    (_run.RunCrew, "_advance"),
    (_run.RunCrew, "_after"),
    (_run.RunCrew, "_take_result"),
    (_run.RunCrew, "_begin"),
    (_run.RunCrew, "_seat"),
    (_run.RunCrew, "_run_batch"),
    (_run.RunCrew, "_item_done"),
    (_batch, "_results"),
    (_batch, "_end"),
    (_batch.Batch, "add"),
    (_batch.Batch, "leave"),
    (_item_outcome, "_leaf"),
    (_inputs, "follow"),
    (_walk, "begin"),
    (_walk, "inputs_for"),
    (_run_level.RunLevel, "take_item"),
    (Frame, "settle"),
    (Frame, "join"),
    (Expansion, "take"),
    (Elements, "pull"),
]


def breaking(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, at: int) -> list[int]:
    """Have a function of ours raise when it is called for that time; how often it was called."""
    function = getattr(owner, name)
    calls: list[int] = []

    def count() -> None:
        calls.append(len(calls) + 1)
        if calls[-1] == at:
            raise Bug(name)

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def broken(*args: Any, **kwargs: Any) -> Any:
            count()
            return await function(*args, **kwargs)
    else:

        @functools.wraps(function)
        def broken(*args: Any, **kwargs: Any) -> Any:
            count()
            return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, broken)
    return calls


@pytest.mark.parametrize("at", [1, 4, 9])
@pytest.mark.parametrize(("owner", "name"), BREAKS, ids=[f"{owner.__name__}.{name}" for owner, name in BREAKS])
async def test_an_error_of_ours_in_a_run_ends_the_session_or_an_item_and_loses_none(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, at: int
) -> None:
    source, foreign, pipeline = Counted(6), Foreign(), everything()
    calls = breaking(monkeypatch, owner, name, at)
    await foreign.take(lambda manager: manager.stream(pipeline, source, in_flight=4))
    assert source.pulled or at == 1
    assert sorted(outcome.index for outcome in foreign.came) == list(range(source.pulled))
    if len(calls) < at:
        assert all(outcome.ok or outcome.index == 3 or outcome.status == "skipped" for outcome in foreign.came)
    elif foreign.raised is None:  # before the run began; or where the user's code runs: taken for an error of that
        assert isinstance(foreign.error, Bug) or not all(outcome.ok for outcome in foreign.came)
    else:
        assert isinstance(foreign.raised, Bug)


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize(("owner", "name"), [(Session, "new_call"), (MapCrew, "process")])
async def test_an_error_of_ours_in_a_map_ends_the_session_and_loses_none(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, at: int, ordered: bool
) -> None:
    source, foreign = Counted(6), Foreign()
    breaking(monkeypatch, owner, name, at)
    await foreign.take(lambda manager: manager.map(same, source, in_flight=3, ordered=ordered))
    assert isinstance(foreign.raised, Bug)
    assert sorted(outcome.index for outcome in foreign.came) == list(range(source.pulled))


async def test_who_runs_in_the_body_is_cancelled_and_the_error_comes_out_bare(monkeypatch: pytest.MonkeyPatch) -> None:
    breaking(monkeypatch, _walk, "inputs_for", 10**6)  # never
    breaking(monkeypatch, _batch, "_end", 5)
    with pytest.raises(Bug) as caught:
        async with ServiceManager(log=None) as manager:
            await manager.run(everything(), Counted(6), in_flight=4)
    assert "in a task of the manager's own" in caught.value.__notes__[0]


# --- telling them apart


async def cancellation() -> BaseException:
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await checkpoint()
        except anyio.get_cancelled_exc_class() as error:
            return error
    raise AssertionError


async def test_a_cancellation_in_a_group_is_found_and_the_rest_too() -> None:
    cancelled, wrong, leaving = await cancellation(), ValueError("wrong"), SystemExit(3)
    inner = BaseExceptionGroup("inner", [cancelled, wrong])
    assert parted(cancelled) == (cancelled, None)
    assert parted(wrong) == (None, wrong)
    found, rest = parted(BaseExceptionGroup("outer", [inner]))
    assert found is cancelled
    assert isinstance(rest, ExceptionGroup)
    assert parted(BaseExceptionGroup("only", [cancelled])) == (cancelled, None)
    assert exit_in(BaseExceptionGroup("outer", [inner, leaving])) is leaving
    assert exit_in(inner) is None


async def test_what_ends_a_session_is_no_cancellation_from_outside() -> None:
    wrong, leaving, closed = ValueError("wrong"), KeyboardInterrupt(), GeneratorExit()
    assert breakdown_of(leaving) is breakdown_between(leaving) is leaving
    assert breakdown_of(wrong) is wrong
    assert breakdown_of(closed) is breakdown_between(closed) is None
    assert failure_in(wrong) is wrong
    assert failure_in(leaving) is failure_in(closed) is failure_in(StopAllError()) is None
    with anyio.CancelScope() as scope:
        scope.cancel()
        cancelled = await cancellation()
        assert breakdown_of(cancelled) is breakdown_between(cancelled) is failure_in(cancelled) is None
        assert failure_in(BaseExceptionGroup("mixed", [cancelled, StopAllError(), wrong])) is not None
