"""The sweep that throws an error: where it strikes, with what, and that it ends."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import anyio
import anyio.lowlevel
import pytest
import trio

from kgas_async.testing import sweep

checkpoint = anyio.lowlevel.checkpoint


async def test_error_strikes_only_where_one_can_come_out() -> None:
    struck: list[str] = []

    async def walk() -> None:
        step = "a checkpoint"
        try:
            await checkpoint()
            step = "a lock's checkpoint"
            async with anyio.Lock():
                step = "a checkpoint in a context manager"
                async with manager():
                    pass
        except KeyError:
            struck.append(step)

    @asynccontextmanager
    async def manager() -> AsyncIterator[None]:
        await checkpoint()
        yield

    await sweep(walk, mode="error", error=KeyError)
    assert struck == ["a checkpoint", "a checkpoint in a context manager"]


async def test_a_run_that_does_not_end_is_reported_with_its_place() -> None:
    async def stuck() -> None:
        await checkpoint()
        await anyio.sleep_forever()

    line = stuck.__code__.co_firstlineno + 2

    with pytest.raises(AssertionError, match=r"not ended within 0\.05 s") as caught:
        await sweep(stuck, mode="error", only=7, timeout_s=0.05)
    assert f"waits at {__file__}:{line} in stuck" in str(caught.value)


async def test_error_is_the_callers_and_may_be_wrapped() -> None:
    seen: list[BaseException] = []

    async def call() -> None:
        try:
            await checkpoint()
        except ConnectionError as error:
            seen.append(error)
            raise RuntimeError("call failed") from error

    await sweep(call, mode="error", error=ConnectionResetError)
    assert [type(error) for error in seen] == [ConnectionResetError]


def test_a_wait_that_cannot_be_broken_off_ends_with_the_error() -> None:
    ends: list[str] = []

    async def in_thread() -> None:  # on trio, a thread that is not abandoned does not let go of its caller
        started = time.perf_counter()
        try:
            await trio.to_thread.run_sync(time.sleep, 0.05)
        except KeyError:
            ends.append("at the end" if time.perf_counter() - started >= 0.05 else "at once")

    trio.run(partial(sweep, in_thread, mode="error", error=KeyError))
    assert "at the end" in ends
