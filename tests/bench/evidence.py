"""What evidence costs beside what it must cost: the same records by a template, hashed and written, in a plain loop."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from time import gmtime, perf_counter, strftime
from typing import Any

import anyio

from kgas_async import JsonlSink, ServiceManager, verify_evidence
from kgas_async._evidence import EvidenceLog
from kgas_async._mailbox import Mailbox
from tests.bench.cases import nothing
from tests.bench.measure import Case

BATCH = 512
TEMPLATE = (
    '{"attempt":%d,"call_id":"%s-%d","event":"call.succeeded","previous_sha256":"%s","run_us":%d,"schema":2,"seq":%d,'
    '"session_id":"%s","status":"succeeded","time":"%s.%06dZ","tool":"nothing","version":"%s",'
    '"wait_us":{"concurrency":0,"rate":0,"retry":0,"thread":0}}'
)


class Ended:
    """A sink that keeps the calls that ended."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def write(self, records: Sequence[Mapping[str, Any]]) -> None:
        self.calls += [record.call for record in records if record["event"] == "call.succeeded"]  # type: ignore[attr-defined]

    def close(self) -> None: ...


async def ended_calls(count: int) -> list[Any]:
    sink = Ended()
    async with (
        ServiceManager(log=None, evidence=sink) as manager,
        manager.map(nothing, range(count), arg="x") as outcomes,
    ):
        async for outcome in outcomes:
            outcome.unwrap()
    return sink.calls


def plain(calls: list[Any]) -> float:
    """Template, hash, write."""
    with tempfile.TemporaryDirectory() as folder:
        file = os.open(Path(folder) / "plain.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        session, version = calls[0].bound.home.session, calls[0].bound.tool.version
        began = perf_counter()
        previous, lines, last, date = "0" * 64, [], 0, ""
        for seq, call in enumerate(calls, 1):
            seconds, rest = divmod(call.ended_ns, 1_000_000_000)
            if seconds != last:
                last, date = seconds, strftime("%Y-%m-%dT%H:%M:%S", gmtime(seconds))
            line = (
                TEMPLATE
                % (
                    call.attempt, session, call.serial, previous, call.run_ns // 1000, seq, session, date, rest // 1000,
                    version,
                )
            ).encode()  # fmt: skip
            previous = sha256(line).hexdigest()
            lines.append(line)
            if len(lines) == BATCH:
                os.write(file, b"\n".join(lines) + b"\n")
                lines = []
        os.write(file, b"\n".join(lines) + b"\n")
        os.close(file)
        return (perf_counter() - began) / len(calls)


async def ours(calls: list[Any]) -> float:
    """Given to a session's log, until they are in the file and that is sealed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ours.jsonl"
        sink = JsonlSink(path)
        sink.open()
        began = perf_counter()
        log = EvidenceLog([sink], [], calls[0].bound.home.session, Mailbox.here(), {}, failed)
        for call in calls:
            log.append(call)
        await log.begin_close().wait()
        seconds = perf_counter() - began
        assert verify_evidence(path).records == len(calls), "a benchmark that loses records measures nothing"
        return seconds / len(calls)


def failed(error: BaseException) -> None:
    raise error


def evidence_cases(records: int) -> list[Case]:
    """The plain loop is the baseline."""
    calls = anyio.run(ended_calls, records)
    assert len(calls) == records
    return [
        Case("template + sha256 + write, in a loop", partial(plain, calls)),
        Case("evidence, until the file is sealed (asyncio)", partial(anyio.run, ours, calls), 1.3),
        Case("evidence, until the file is sealed (trio)", partial(anyio.run, ours, calls, backend="trio"), 1.3),
    ]
