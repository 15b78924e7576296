"""`tool.execute()`, the sync door: alone where no loop runs, refused on a loop."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar, copy_context
from typing import Any

import anyio
import anyio.to_thread
import pytest
import sniffio
from anyio.lowlevel import checkpoint

from kgas_async import (
    CallFailed,
    CallTimeout,
    InvalidInputs,
    KGASTool,
    Policy,
    Retry,
    Service,
    ServiceManager,
    ToolAdapter,
    tool,
)

ON_A_LOOP = r"runs an event loop; use 'await (manager|current\(\))\.execute\(tool, \.\.\.\)' here"
colour: ContextVar[str] = ContextVar("colour", default="none")


@tool
async def double(x: int) -> int:
    await checkpoint()
    return 2 * x


@tool
def in_thread(x: int) -> int:
    return 2 * x


@tool
async def forever() -> None:
    await anyio.sleep_forever()


@tool
async def breaks() -> None:
    raise KeyError("broken")


class Store(Service):
    """Counts how often it was started."""

    def __init__(self) -> None:
        self.starts = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self.starts += 1
        yield

    def ask(self) -> str:
        self.ensure_running()
        return "answer"


class Above(Service):
    def __init__(self, store: Store) -> None:
        self.store = store

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        yield


class Ask(KGASTool):
    def __init__(self, store: Store) -> None:
        self.store = store

    async def execute_async(self) -> str:
        return self.store.ask()


class AskAbove(KGASTool):
    def __init__(self, above: Above) -> None:
        self.above = above

    async def execute_async(self) -> str:
        return self.above.store.ask()


def in_foreign_thread(function: Callable[[], Any]) -> Any:
    """What the function gives, or raises, in a thread that nobody of ours knows."""
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(function())
        except BaseException as error:  # noqa: BLE001  (raised again in the thread of the test)
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if isinstance(result[0], BaseException):
        raise result[0]
    return result[0]


# --- no loop runs


@pytest.mark.parametrize("one", [double, in_thread])
def test_where_no_loop_runs_it_runs_the_tool_and_gives_the_value(one: Any) -> None:
    assert one.execute(x="4") == 8
    assert one.execute(4) == 8


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_it_runs_on_the_backend_of_the_tool(backend: str) -> None:
    @tool(backend=backend)
    async def which() -> str:
        await checkpoint()
        return sniffio.current_async_library()

    assert which.execute() == backend
    assert in_foreign_thread(which.execute) == backend


def test_the_tools_policy_holds() -> None:
    tries = []

    @tool(policy=Policy(retry=Retry(3, on=ConnectionError, wait=0)))
    async def flaky() -> int:
        tries.append(1)
        if len(tries) < 3:
            raise ConnectionError
        return len(tries)

    assert flaky.execute() == 3
    with pytest.raises(CallTimeout, match=r"timeout of 0\.001 s"):
        forever.using(timeout=0.001).execute()


def test_the_tools_services_run_for_the_time_of_the_call() -> None:
    store = Store()
    assert Ask(store).execute() == "answer"
    assert AskAbove(Above(store)).execute() == "answer"
    assert store.starts == 2
    assert not store._is_running


def test_its_errors_are_those_of_a_manager_and_come_singly() -> None:
    with pytest.raises(CallFailed, match="KeyError: 'broken'") as caught:
        breaks.execute()
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(InvalidInputs, match="x: missing"):
        double.execute()  # type: ignore[call-arg]
    with pytest.raises(InvalidInputs, match="x is given twice"):
        double.execute(1, x=2)  # type: ignore[misc]
    with pytest.raises(InvalidInputs, match="2 positional inputs, it takes 1"):
        double.execute(1, 2)  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_exit_in_an_async_tool_comes_out_bare_and_in_a_thread_it_is_a_failure(kind: type[BaseException]) -> None:
    @tool
    async def leaves() -> None:
        raise kind("enough")

    @tool
    def leaves_its_thread() -> None:
        raise kind("enough")

    with pytest.raises(kind, match="enough"):
        leaves.execute()
    with pytest.raises(CallFailed, match=f"{kind.__name__}: enough"):
        leaves_its_thread.execute()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_ctrl_c_cancels_the_call_and_is_raised_when_that_has_ended(backend: str) -> None:
    story = []

    @tool(backend=backend)
    async def interrupted() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        try:
            await anyio.sleep_forever()
        finally:
            story.append("ended")

    with pytest.raises(KeyboardInterrupt):
        interrupted.execute()
    assert story == ["ended"]
    assert double.execute(2) == 4


def test_the_callers_context_is_seen_and_not_changed() -> None:
    @tool
    async def paints() -> str:
        old = colour.get()
        colour.set("green")
        return old

    def paint() -> tuple[str, str]:
        colour.set("red")
        return paints.execute(), colour.get()

    assert copy_context().run(paint) == ("red", "red")


def test_an_input_may_be_named_self() -> None:
    @tool
    def selfish(self: int) -> int:
        return self

    assert selfish.execute(self=1) == 1


# --- on a loop, and in threads of somebody else's


async def test_on_a_running_loop_it_raises_and_says_what_to_do_instead() -> None:
    with pytest.raises(RuntimeError, match=ON_A_LOOP):
        double.execute(1)

    @tool
    async def calls_inner() -> int:
        return double.execute(1)

    async with ServiceManager(log=None) as manager:
        for wrong in (calls_inner, ToolAdapter(lambda: double.execute(1), name="inline", offload="inline")):
            with pytest.raises(CallFailed, match=ON_A_LOOP):
                await manager.execute(wrong)


def test_in_a_callback_of_a_loop_it_raises_too() -> None:
    async def main() -> int:
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def callback() -> None:
            try:
                answer.set_result(double.execute(1))
            except RuntimeError as error:
                answer.set_exception(error)

        asyncio.get_running_loop().call_soon(callback)
        return await answer

    with pytest.raises(RuntimeError, match=ON_A_LOOP):
        asyncio.run(main())


async def test_a_foreign_thread_beside_a_loop_has_a_manager_of_its_own() -> None:
    assert await anyio.to_thread.run_sync(double.execute, 4) == 8
    assert in_foreign_thread(lambda: double.execute(4)) == 8


def test_a_thread_that_has_inherited_the_context_of_a_loop_is_on_none() -> None:
    async def main() -> int:
        return await asyncio.to_thread(double.execute, 4)

    assert anyio.run(main) == 8  # which has put the name of its loop into the context


async def test_in_a_foreign_thread_while_its_services_live_on_a_loop_it_raises_with_the_mend() -> None:
    store = Store()
    async with ServiceManager(store, log=None):
        for one in (Ask(store), AskAbove(Above(store))):
            with pytest.raises(
                RuntimeError,
                match=r"its service 'Store' runs on an event loop in another thread.*through that manager.*blocking",
            ):
                in_foreign_thread(one.execute)
        assert (store.starts, store.ask()) == (1, "answer")
    assert in_foreign_thread(Ask(store).execute) == "answer"
