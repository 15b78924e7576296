"""A receiver gets every entry once, in order, before it is rendered; what it gives is recorded."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any

import anyio

from kgas_async import EvidenceError, MemorySink
from kgas_async._evidence import EvidenceLog
from kgas_async._mailbox import Mailbox


class Numbers:
    """Keeps the numbers that it was handed, and answers every tenth."""

    def __init__(self) -> None:
        self.got: list[int] = []
        self._one_at_a_time = Lock()

    def take(self, entries: Sequence[Any]) -> Sequence[dict[str, Any]]:
        assert self._one_at_a_time.acquire(blocking=False)
        new = [entry["number"] for entry in entries if "number" in entry]
        self.got += new
        self._one_at_a_time.release()
        return [{"event": "tenth", "of": number, "at_ns": 1} for number in new if number % 10 == 0]


def log_of(receiver: Any, *sinks: Any, failures: list[Any] | None = None) -> EvidenceLog:
    told = [] if failures is None else failures
    return EvidenceLog(list(sinks), [], "s", Mailbox.here(), {}, told.append, receiver)


async def test_entries_taken_in_early_are_not_handed_over_again() -> None:
    counted = range(5000)
    numbers, sink = Numbers(), MemorySink()
    log = log_of(numbers, sink)
    for number in counted:
        log.emit("entry", number=number)
        if number % 37 == 0:
            log.take_in()
            assert numbers.got == list(range(number + 1))
        if number % 1000 == 0:
            await anyio.sleep(0.001)  # the writer has its turn
    await log.begin_close().wait()
    assert numbers.got == list(counted)
    assert [record["number"] for record in sink.records if record["event"] == "entry"] == list(counted)
    assert [record["of"] for record in sink.records if record["event"] == "tenth"] == list(counted)[::10]
    assert [record["seq"] for record in sink.records] == list(range(1, len(sink.records) + 1))


async def test_a_receiver_needs_no_sink() -> None:
    numbers = Numbers()
    log = log_of(numbers)
    assert log.wants_calls
    assert not log.announces
    log.emit("entry", number=1)
    await log.begin_close().wait()
    assert numbers.got == [1]


async def test_a_receiver_that_fails_is_out_and_the_records_are_written() -> None:
    class Broken:
        def take(self, entries: Sequence[Any]) -> Sequence[dict[str, Any]]:
            raise ZeroDivisionError

    sink = MemorySink()
    failures: list[EvidenceError] = []
    log = log_of(Broken(), sink, failures=failures)
    log.emit("entry", number=1)
    log.emit("entry", number=2)
    await log.begin_close().wait()
    assert [record["event"] for record in sink.records if record["event"] != "evidence.failed"] == ["entry"] * 2
    assert len(failures) == 1
    assert isinstance(failures[0].__cause__, ZeroDivisionError)
