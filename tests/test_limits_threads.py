"""Tokens taken and given back by threads and a loop at once, without a lock where nobody waits: never one too many."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import pytest

from kgas_async import ConcurrencyLimit
from kgas_async._admission import Waiter
from kgas_async._mailbox import Mailbox
from kgas_async._priority import PriorityLine

THREADS = 4
ROUNDS = 2000


@pytest.fixture(autouse=True)
def _often_switched() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@contextmanager
def hammering(limit: ConcurrencyLimit, most: Callable[[], int]) -> Iterator[list[int]]:
    """Threads that take tokens and give them back, until the block is left; how many were out where too many."""
    out: list[None] = []  # its length is a count that is changed atomically
    wrong: list[int] = []
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            if limit.acquire_nowait():
                out.append(None)
                if len(out) > most():
                    wrong.append(len(out))
                out.pop()
                limit.release()

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    try:
        yield wrong
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def all_free(limit: ConcurrencyLimit) -> bool:
    """Whether each of its tokens can be had, and not one more."""
    taken = [limit.acquire_nowait() for _ in range(limit.total + 1)]
    for _ in range(sum(taken)):
        limit.release()
    return taken == [True] * limit.total + [False]


def test_threads_never_have_more_tokens_than_there_are() -> None:
    limit = ConcurrencyLimit(2)
    with hammering(limit, lambda: 2) as wrong:
        for _ in range(20 * ROUNDS):
            if limit.acquire_nowait():
                assert 1 <= limit.borrowed <= 2
                limit.release()
    assert wrong == []
    assert limit.borrowed == 0
    assert limit.statistics().peak <= 2
    assert all_free(limit)


@pytest.mark.real_time
async def test_a_task_that_lines_up_while_a_thread_gives_back_gets_that_token() -> None:
    limit = ConcurrencyLimit(1)
    for _ in range(ROUNDS):
        assert limit.acquire_nowait()
        giver = threading.Thread(target=limit.release)
        giver.start()
        with anyio.fail_after(30):  # nobody else gives one back
            await limit.acquire()
        giver.join()
        assert limit.borrowed == 1
        limit.release()
    assert all_free(limit)


@pytest.mark.real_time
async def test_a_task_that_leaves_the_line_takes_no_token_with_it() -> None:
    limit = ConcurrencyLimit(1)
    got = 0
    with hammering(limit, lambda: 1):
        for _ in range(ROUNDS):
            with anyio.move_on_after(1e-5):
                await limit.acquire()
                got += 1
                limit.release()
    assert got
    assert all_free(limit)


def test_a_total_that_is_made_smaller_holds_for_tokens_that_are_given_back_meanwhile() -> None:
    limit = ConcurrencyLimit(8)
    for _ in range(ROUNDS):
        limit.total = 8
        assert [limit.acquire_nowait() for _ in range(8)] == [True] * 8
        givers = [threading.Thread(target=limit.release) for _ in range(4)]
        for giver in givers:
            giver.start()
        limit.total = 4
        assert not limit.acquire_nowait()  # 4 at least are out, whoever was first
        for giver in givers:
            giver.join()
        assert limit.borrowed == 4
        for _ in range(4):
            limit.release()
        assert all_free(limit)


def test_a_token_that_was_not_taken_cannot_be_given_back_after_others_were() -> None:
    limit = ConcurrencyLimit(2)
    assert limit.acquire_nowait()
    limit.release()
    with pytest.raises(RuntimeError, match="not taken"):
        limit.release()
    assert all_free(limit)


class Between(deque[None]):
    """Spare tokens of a limit, where something happens just before one is put by: as when threads take turns there."""

    def __init__(self, happens: Callable[[], object]) -> None:
        self.happens = happens

    def append(self, token: None) -> None:
        self.happens()
        super().append(token)


async def test_who_lines_up_while_a_token_is_put_by_gets_it() -> None:
    limit = ConcurrencyLimit(1)
    waiter = Waiter(Mailbox.here())
    assert limit.acquire_nowait()
    limit._spare = Between(lambda: limit.line_up(waiter))
    limit.release()
    assert waiter.granted
    assert limit.borrowed == 1
    assert not limit.acquire_nowait()


async def test_who_comes_while_a_token_is_put_by_may_have_it_and_the_line_gets_the_next() -> None:
    limit = ConcurrencyLimit(1)
    waiter = Waiter(Mailbox.here())
    assert limit.acquire_nowait()
    limit._spare = Between(lambda: limit.line_up(waiter))
    limit._line = TakenWhenAsked(limit)
    limit.release()
    assert not waiter.granted
    assert limit.borrowed == 1
    limit.release()
    assert waiter.granted


class TakenWhenAsked(PriorityLine):
    """A line; whoever asks whether somebody is in it is overtaken, once, by a thread that takes a token."""

    def __init__(self, limit: ConcurrencyLimit) -> None:
        super().__init__()
        self.limit = limit
        self.is_due = True

    def __getattribute__(self, name: str) -> Any:
        if name == "size" and self.limit._spare and self.is_due:
            self.is_due = False
            assert self.limit.acquire_nowait()
        return super().__getattribute__(name)


async def test_a_token_that_is_put_by_while_somebody_lines_up_is_theirs() -> None:
    class Giving(ConcurrencyLimit):
        def _check_queue(self, waiter: Waiter) -> None:
            self.release()  # by a thread that sees nobody in line yet

    limit = Giving(1)
    waiter = Waiter(Mailbox.here())
    assert limit.acquire_nowait()
    assert not limit.line_up(waiter)
    assert waiter.granted
    assert waiter.event.is_set()
    assert limit.borrowed == 1


def test_a_token_that_is_put_by_while_the_total_gets_smaller_is_gone() -> None:
    limit = ConcurrencyLimit(2)
    assert limit.acquire_nowait()
    assert limit.acquire_nowait()

    def shrink() -> None:
        limit.total = 1

    limit._spare = Between(shrink)
    limit.release()
    assert not limit.acquire_nowait()
    assert limit.borrowed == 1


def test_spare_tokens_are_gone_when_the_total_gets_smaller() -> None:
    limit = ConcurrencyLimit(3)
    assert [limit.acquire_nowait() for _ in range(3)] == [True] * 3
    limit.release()
    limit.release()
    limit.total = 1
    assert not limit.acquire_nowait()
    assert limit.borrowed == 1
    limit.release()
    assert all_free(limit)
