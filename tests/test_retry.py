"""Retries: the pure decision by table, and in virtual time what a call does with it."""

from __future__ import annotations

import math
import pickle
import random
import threading
import time
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import (
    CallAborted,
    CallError,
    CallFailed,
    CallTimeout,
    ConcurrencyLimit,
    InvalidInputs,
    KGASTool,
    MemorySink,
    Policy,
    Retry,
    ServiceManager,
    ToolAdapter,
    check_cancelled,
    current,
    exponential,
    linear,
    tool,
)
from kgas_async.testing import assert_clean

from .loops import virtual


@pytest.fixture(params=virtual())
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param()


class Told(Exception):
    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds


def is_busy(error: BaseException) -> bool:
    return "busy" in str(error)


# --- the decision


@pytest.mark.parametrize(
    ("on", "error", "wanted"),
    [
        (Exception, ValueError(), True),
        (Exception, CallTimeout(""), True),
        (Exception, SystemExit(), False),
        (Exception, KeyboardInterrupt(), False),
        (Exception, InvalidInputs(""), False),
        (lambda error: True, InvalidInputs(""), False),
        (lambda error: True, CallAborted(), False),
        (ConnectionError, ConnectionResetError(), True),
        (ConnectionError, ValueError(), False),
        ((ConnectionError, ValueError), ValueError(), True),
        (TimeoutError, CallTimeout(""), True),
        (CallTimeout, TimeoutError(), False),
        (CallError, CallTimeout(""), True),
        (OSError, CallTimeout(""), False),  # though Python's TimeoutError is an OSError
        (OSError, TimeoutError(), True),  # the tool's own, of a socket
        (OSError, ConnectionResetError(), True),
        ((OSError, ValueError), CallTimeout(""), False),
        ((OSError, TimeoutError), CallTimeout(""), True),
        ((OSError, CallTimeout), CallTimeout(""), True),
        (lambda error: isinstance(error, OSError), CallTimeout(""), True),
        (is_busy, ValueError("busy now"), True),
        (is_busy, ValueError("broken"), False),
    ],
)
def test_which_errors_are_worth_another_attempt(on: Any, error: BaseException, wanted: bool) -> None:
    assert Retry(2, on=on).wants(error) is wanted
    assert (Retry(2, on=on, wait=1).delay(1, error)[0] is not None) is wanted


@pytest.mark.parametrize(
    ("attempt", "left", "expected"),
    [
        (1, None, 2.0),
        (2, None, 2.0),
        (3, None, None),  # all attempts are used up
        (4, None, None),
        (1, 10.0, 2.0),
        (1, 2.1, 2.0),
        (1, 2.0, None),  # the sleep would end when the deadline does
        (1, 1.0, None),
        (1, 0.0, None),
        (1, -1.0, None),
    ],
)
def test_a_sleep_that_cannot_end_before_the_deadline_is_refused(
    attempt: int, left: float | None, expected: float | None
) -> None:
    assert Retry(3, wait=2).delay(attempt, ValueError(), left=left) == (expected, None)


@pytest.mark.parametrize(
    ("error", "left", "expected"),
    [
        (Told(7), None, (7, 7)),
        (Told(0), None, (0, 0)),
        (Told(None), None, (2, None)),  # not told: the retry's own wait
        (Told(7), 5.0, (None, 7)),
        (Told(7), 8.0, (7, 7)),
    ],
)
def test_a_delay_that_the_error_tells_counts_before_the_wait(error: Told, left: float | None, expected: Any) -> None:
    retry = Retry(3, wait=2, after=lambda error: getattr(error, "seconds", None))
    assert retry.delay(1, error, left=left) == expected


def test_what_the_error_tells_is_asked_after_the_last_attempt_too_and_of_no_error_that_is_not_wanted() -> None:
    retry = Retry(3, on=Told, after=lambda error: error.seconds)  # type: ignore[attr-defined]
    assert retry.delay(3, Told(7)) == (None, 7)
    assert retry.delay(1, ValueError()) == (None, None)
    with pytest.raises(ValueError, match="what Retry\\(after\\) gives must be at least 0"):
        retry.delay(1, Told(-1))


@pytest.mark.parametrize(
    ("wait", "draw", "expected"),
    [
        (linear(0.5), 0.0, [0.5, 1.0, 1.5, 2.0]),
        (linear(0.5, 2.0), 0.0, [0.5, 2.5, 4.5, 6.5]),
        (linear(0.5, 2.0, cap=3.0), 0.0, [0.5, 2.5, 3.0, 3.0]),
        (linear(1.0), 0.5, [0.5, 1.0, 1.5, 2.0]),
        (linear(1.0, jitter=0.2), 0.5, [0.9, 1.8, 2.7, 3.6]),
        (linear(2.0, 0.0, jitter=0.5), 1.0, [1.0, 1.0, 1.0, 1.0]),  # fixed, with jitter
        (exponential(2.0, 1.0, jitter=0.5), 1.0, [1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_waits_that_grow_by_a_step(wait: Any, draw: float, expected: list[float]) -> None:
    retry = Retry(9, wait=wait)
    delays = [retry.delay(attempt, ValueError(), draw=lambda: draw)[0] for attempt in (1, 2, 3, 4)]
    assert delays == pytest.approx(expected)


def test_linear_waits_are_values() -> None:
    wait = linear(1, 2, cap=9, jitter=0.5)
    assert repr(wait) == "linear(1, 2, cap=9, jitter=0.5)"
    assert pickle.loads(pickle.dumps(wait)) == wait
    assert hash(linear(1, 2, cap=9, jitter=0.5)) == hash(wait)
    assert wait != linear(1)
    with pytest.raises(ValueError, match=r"linear\(jitter\) is a share"):
        linear(jitter=1.5)
    with pytest.raises(ValueError, match=r"linear\(step\) must be at least 0"):
        linear(step=-1)


def test_the_wait_may_be_a_function_of_the_failed_attempt() -> None:
    retry = Retry(4, wait=lambda attempt: 10.0 * attempt)
    assert [retry.delay(attempt, ValueError())[0] for attempt in (1, 2, 3, 4)] == [10, 20, 30, None]


@pytest.mark.parametrize(
    ("attempt", "draw", "expected"),
    [(1, 0.0, 0.5), (2, 0.0, 1.5), (3, 0.0, 4.5), (4, 0.0, 8.0), (5000, 0.0, 8.0), (3, 0.5, 2.25), (3, 1.0, 0.0)],
)
def test_exponential_waits_grow_up_to_their_cap_with_full_jitter(attempt: int, draw: float, expected: float) -> None:
    retry = Retry(10_000, wait=exponential(0.5, 3, cap=8))
    assert retry.delay(attempt, ValueError(), draw=lambda: draw)[0] == pytest.approx(expected)


def test_no_jitter_draws_nothing() -> None:
    assert {exponential(1, 2, jitter=0)(3, random.random) for _ in range(5)} == {4.0}


@pytest.mark.parametrize("delay", [math.nan, -1, math.inf])
def test_a_wait_function_that_gives_no_sensible_number_is_an_error(delay: float) -> None:
    with pytest.raises(ValueError, match="the delay of a Retry"):
        Retry(2, wait=lambda attempt: delay).delay(1, ValueError())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Retry(0), r"Retry\(attempts\) must be at least 1"),
        (lambda: Retry(-1), r"Retry\(attempts\) must be at least 1"),
        (lambda: Retry(1.5), r"Retry\(attempts\) must be a whole number"),
        (lambda: Retry(math.nan), r"Retry\(attempts\) must be a whole number"),
        (lambda: Retry(wait=-1), r"Retry\(wait\) must be at least 0"),
        (lambda: Retry(wait=math.nan), r"Retry\(wait\) must be a finite number"),
        (lambda: Retry(wait=True), r"Retry\(wait\) must be a number"),
        (lambda: Retry(wait="long"), r"Retry\(wait\) must be a number"),
        (lambda: Retry(on=3), r"Retry\(on\) is a type of Exception"),
        (lambda: Retry(on=(ValueError, 3)), r"Retry\(on\) is a type of Exception"),
        (lambda: Retry(on=int), r"Retry\(on\) is a type of Exception"),
        (lambda: Retry(while_running="no"), r"Retry\(while_running\) is True or False"),
        (lambda: Retry(after=30), r"Retry\(after\) is a function of the error"),
        (lambda: exponential(-1), r"exponential\(first\)"),
        (lambda: exponential(factor=0), r"exponential\(factor\) must be above 0"),
        (lambda: exponential(cap=math.nan), r"exponential\(cap\)"),
        (lambda: exponential(jitter=1.5), r"exponential\(jitter\) is a share"),
        (lambda: Policy(retry=0), "at least 1"),
        (lambda: Policy(retry="3"), r"Policy\(retry\) is a Retry"),
    ],
)
def test_misuse_is_refused_at_construction(make: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_a_retry_pickles() -> None:
    retry = pickle.loads(pickle.dumps(Retry(4, on=(ValueError, OSError), wait=exponential(2), while_running=True)))
    assert "on=(ValueError, OSError), " in repr(retry)
    assert repr(Retry(on=ConnectionError)).startswith("Retry(3, on=ConnectionError, ")
    assert repr(retry) == repr(Retry(4, on=(ValueError, OSError), wait=exponential(2)))
    assert retry.while_running


# --- the call


class Failing(KGASTool):
    """Fails as often as told, and remembers when."""

    def __init__(self, times: int, error: BaseException | None = None) -> None:
        self.left = [times]
        self.error = error
        self.begun: list[float] = []

    async def execute_async(self) -> str:
        self.begun.append(anyio.current_time())
        await checkpoint()
        if self.left[0]:
            self.left[0] -= 1
            raise self.error or ValueError(f"{self.left[0]} left")
        return "done"

    def gaps(self) -> list[float]:
        return [later - at for at, later in zip(self.begun, self.begun[1:], strict=False)]


async def test_a_failed_attempt_is_tried_again_after_the_wait() -> None:
    failing = Failing(2)
    async with ServiceManager(log=None) as manager:
        outcome = await manager.outcome(failing.using(retry=Retry(3, wait=lambda attempt: 10 * attempt)))
    assert (outcome.value, outcome.attempts) == ("done", 3)
    assert failing.gaps() == pytest.approx([10, 20])


async def test_after_the_last_attempt_its_own_error_is_raised_with_a_note_of_the_attempt() -> None:
    async with ServiceManager(log=None) as manager:
        with pytest.raises(CallFailed, match="0 left") as caught:
            await manager.execute(Failing(3).using(retry=Retry(3, wait=0)))
        assert manager.statistics().tools["Failing"].retried == 2
    assert caught.value.attempts == 3
    assert isinstance(caught.value.__cause__, ValueError)
    assert caught.value.__cause__.__notes__ == ["in tool 'Failing', attempt 3"]


async def test_a_number_is_that_many_attempts() -> None:
    failing = Failing(9)
    async with ServiceManager(log=None) as manager:
        outcome = await manager.outcome(failing.using(retry=2))
    assert (outcome.status, outcome.attempts, len(failing.begun)) == ("failed", 2, 2)


async def test_an_error_that_is_not_wanted_is_raised_at_once() -> None:
    failing = Failing(9, KeyError("no"))
    async with ServiceManager(log=None) as manager:
        outcome = await manager.outcome(failing.using(retry=Retry(3, on=ValueError)))
    assert outcome.attempts == 1


async def test_invalid_inputs_are_not_tried_again() -> None:
    failing = Failing(0)
    async with ServiceManager(log=None) as manager:
        with pytest.raises(InvalidInputs):
            await manager.execute(failing.using(retry=Retry(3)), nonsense=1)
    assert failing.begun == []


async def test_a_deadline_that_a_sleep_cannot_meet_raises_the_last_real_error_at_once() -> None:
    failing = Failing(9)
    async with ServiceManager(log=None) as manager:
        before = anyio.current_time()
        with pytest.raises(CallFailed, match="8 left") as caught:
            await manager.execute(failing.using(retry=Retry(5, wait=10), deadline=10))
        assert anyio.current_time() - before < 1
    assert caught.value.attempts == 1


async def test_a_deadline_that_passes_in_a_later_attempt_keeps_the_last_real_error_as_the_cause() -> None:
    @tool(policy=Policy(retry=Retry(5, wait=1), deadline=10))
    async def first_fails_then_hangs() -> None:
        if current_attempt():
            raise ValueError("the real one")
        await anyio.sleep_forever()

    tries = iter([True])

    def current_attempt() -> bool:
        return next(tries, False)

    async with ServiceManager(log=None) as manager:
        with pytest.raises(CallTimeout, match="deadline of 10 s") as caught:
            await manager.execute(first_fails_then_hangs)
    assert caught.value.attempts == 2
    assert str(caught.value.__cause__) == "the real one"


async def test_a_timed_out_attempt_is_tried_again() -> None:
    naps = iter([60, 60, 1])

    @tool(policy=Policy(timeout=5, retry=Retry(3, on=CallTimeout, wait=0)))
    async def slow_at_first() -> str:
        await anyio.sleep(next(naps))
        return "done"

    async with ServiceManager(log=None) as manager:
        before = anyio.current_time()
        assert await manager.execute(slow_at_first) == "done"
        assert anyio.current_time() - before == pytest.approx(11)  # the timeout is each attempt's own


async def test_a_token_is_given_back_before_the_retry_sleeps() -> None:
    limit = ConcurrencyLimit(1)
    failing = Failing(1)
    async with ServiceManager(log=None) as manager:
        call = manager.submit(failing.using(retry=Retry(2, wait=60), concurrency=limit))
        await anyio.sleep(30)
        assert limit.statistics().borrowed == 0
        assert await manager.execute(Failing(0).using(name="other", concurrency=limit)) == "done"
        assert await call.result() == "done"
    assert failing.gaps() == pytest.approx([60])
    assert_clean(manager, limit)


async def test_a_call_cancelled_while_its_retry_sleeps_makes_no_further_attempt() -> None:
    failing = Failing(9)
    async with ServiceManager(log=None) as manager:
        call = manager.submit(failing.using(retry=Retry(3, wait=60)))
        await anyio.sleep(30)
        call.cancel()
        await call.wait()
        await anyio.sleep(600)
    assert call.status == "cancelled"
    assert len(failing.begun) == 1


async def test_cancellation_is_never_tried_again() -> None:
    begun: list[int] = []

    @tool(policy=Policy(retry=Retry(3, on=lambda error: True, wait=0)))
    async def hangs() -> None:
        begun.append(1)
        await anyio.sleep_forever()

    async with ServiceManager(log=None) as manager:
        call = manager.submit(hangs)
        await anyio.sleep(1)
        call.cancel()
        await call.wait()
        assert call.status == "cancelled"
        assert manager.statistics().tools["hangs"].retried == 0
    assert begun == [1]


async def test_a_policy_function_that_raises_is_the_failure_of_the_call() -> None:
    def broken(error: BaseException) -> bool:
        raise ZeroDivisionError("in the policy")

    async with ServiceManager(log=None) as manager:
        with pytest.raises(CallFailed) as caught:
            await manager.execute(Failing(1).using(retry=Retry(3, on=broken)))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert isinstance(caught.value.__cause__.__context__, ValueError)


async def test_the_waits_are_drawn_from_the_managers_seed() -> None:
    async def gaps(seed: int) -> list[float]:
        failing = Failing(4)
        async with ServiceManager(log=None, seed=seed) as manager:
            await manager.execute(failing.using(retry=Retry(5)))
        return failing.gaps()

    assert await gaps(1) == pytest.approx(await gaps(1))
    assert await gaps(1) != pytest.approx(await gaps(2))


async def test_each_retry_is_on_record_with_its_error_and_delay() -> None:
    sink = MemorySink()
    async with ServiceManager(log=None, evidence=sink) as manager:
        await manager.execute(Failing(2).using(retry=Retry(3, wait=2)))
    retries = [record for record in sink.records if record["event"] == "call.retried"]
    assert [(record["attempt"], record["delay_us"]) for record in retries] == [(1, 2_000_000), (2, 2_000_000)]
    assert retries[0]["error"] == {"type": "ValueError", "message": "1 left"}
    assert len([record for record in sink.records if record["event"] == "call.succeeded"]) == 1


# --- attempts that were abandoned


class Sticky:
    """A sync tool whose first attempt hangs until it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.begun = 0

    def execute(self) -> int:
        self.begun += 1
        if self.begun == 1:
            self.let_go.wait(30)
        return self.begun


@pytest.mark.parametrize("while_running", [False, True])
async def test_a_call_whose_abandoned_attempt_still_runs_is_tried_again_only_if_told_so(while_running: bool) -> None:
    sticky = Sticky()
    policy = Policy(timeout=1, retry=Retry(2, wait=0, while_running=while_running))
    adapted = ToolAdapter(sticky, on_cancel="abandon", policy=policy)
    async with ServiceManager(log=None, abandoned="join") as manager:
        outcome = await manager.outcome(adapted)
        sticky.let_go.set()
    assert outcome.status == ("succeeded" if while_running else "timed_out")
    assert outcome.attempts == sticky.begun == (2 if while_running else 1)


async def test_an_attempt_that_was_waited_for_is_tried_again() -> None:
    begun: list[int] = []

    @tool(policy=Policy(timeout=1, retry=Retry(2, wait=0)))
    def polite() -> str:
        begun.append(1)
        while len(begun) == 1:
            check_cancelled()
            time.sleep(0.002)
        return "done"

    async with ServiceManager(log=None) as manager:
        assert await manager.execute(polite) == "done"
    assert len(begun) == 2


async def test_the_second_attempt_does_not_see_that_the_first_was_aborted() -> None:
    seen: list[bool] = []

    @tool(on_cancel="abandon", policy=Policy(timeout=1, retry=Retry(2, wait=0, while_running=True)))
    def stuck_at_first() -> str:
        if not seen:
            seen.append(False)
            let_go.wait(30)
            try:
                check_cancelled()
            except CallAborted:
                seen[0] = True
                raise
            return "first"
        check_cancelled()
        return "second"

    let_go = threading.Event()
    async with ServiceManager(log=None, abandoned="join") as manager:
        assert await manager.execute(stuck_at_first) == "second"
        let_go.set()
    assert seen == [True]


async def test_children_of_a_timed_out_attempt_end_with_it() -> None:
    children: list[Any] = []

    @tool
    async def child() -> None:
        await anyio.sleep_forever()

    @tool(policy=Policy(timeout=1))
    async def parent() -> None:
        children.append(current().submit(child))
        await anyio.sleep_forever()

    async with ServiceManager(log=None) as manager:
        assert (await manager.outcome(parent)).status == "timed_out"
        with anyio.move_on_after(5):
            await children[0].wait()
        assert children[0].status == "cancelled"
