"""A log of evidence with a million records, written in seconds: what a run of three phases would have put there.

It is told from arithmetic instead of running the calls, which takes minutes, and rendered by templates. That the log is
evidence none the less, chained and sealed, `verify_evidence` says in the tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

from kgas_async._chain import GENESIS, Head, head_path

BEGIN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
EVERY_US = 300  # an item
FAILING = 997  # every so manieth item
AT_ONCE = 8  # places for parsing
FETCH_US, PARSE_US, LONG_US, INDEX_US = 60, 40, 4000, 12
SAMPLED_US = 500_000

# What each has, in canonical order; what is the same in all records of the log is in there already.
_FRAME = '"schema":2,"seq":%(seq)d,"session_id":"0123456789ab"'
_CHAIN = '"previous_sha256":"%(previous)s"'
_OF_RUN = '"run_id":"0123456789ab-run1"'
_PHASE = (
    '"level":"item","needs":[%(needs)s],"offload":"%(offload)s","phase":"%(name)s","tool":"%(name)s","version":"0"}'
)
_PLAN = ",".join((
    '{"inputs":[{"field":"x","input":"x"}],' + _PHASE % {"needs": "", "offload": "async", "name": "fetch"},
    '{"concurrency":8,"inputs":[{"input":"fetch","result":"fetch"}],'
    + _PHASE % {"needs": '"fetch"', "offload": "async", "name": "parse"},
    '{"inputs":[{"input":"parse","result":"parse"}],'
    + _PHASE % {"needs": '"parse"', "offload": "inline", "name": "index"},
))  # fmt: skip
STARTED = f'{{"cpus":2,"event":"session.started",{_CHAIN},"processes":2,{_FRAME},"threads":6,"time":"%(time)s"}}\n'
RUN_STARTED = (
    f'{{"event":"run.started","in_flight":100,"pipeline":"mill","plan":[{_PLAN}],{_CHAIN},{_OF_RUN},{_FRAME},'
    '"time":"%(time)s"}\n'
)
CALL = (
    '{"attempt":1,"call_id":"0123456789ab-%(call)d",%(error)s"event":"call.%(status)s","item":"%(item)d",'
    f'"phase":"%(phase)s","pipeline":"mill",{_CHAIN},{_OF_RUN},"run_us":%(run_us)d,{_FRAME},"status":"%(status)s",'
    '"time":"%(time)s","tool":"%(phase)s","version":"0",'
    '"wait_us":{"concurrency":%(waited_us)d,"rate":0,"retry":0,"thread":0}}\n'
)
ERROR = '"error":{"message":"no %d","type":"ValueError"},'
SAMPLED = (
    f'{{"cpu_us":%(cpu_us)d,"event":"resource.sampled",{_CHAIN},"rss_bytes":%(rss)d,{_FRAME},"span_us":{SAMPLED_US},'
    '"threads":5,"time":"%(time)s"}\n'
)
RUN_ENDED = (
    f'{{"event":"run.ended","failed":%(failed)d,"items":%(items)d,"pipeline":"mill",{_CHAIN},{_OF_RUN},{_FRAME},'
    '"skipped":0,"time":"%(time)s"}\n'
)
ENDED = (
    f'{{"calls":%(calls)d,"event":"session.ended",{_CHAIN},{_FRAME},"status":"succeeded","time":"%(time)s"}}\n'
)  # fmt: skip


def write_log(path: Path, items: int) -> int:
    """Write the log and its head; gives how many records there are, some three an item."""
    last, size, count, second, clock = GENESIS, 0, 0, -1, ""
    with path.open("wb", buffering=1 << 20) as file:
        for at_us, template, fields in _records(items):
            if at_us // 1_000_000 != second:
                second = at_us // 1_000_000
                clock = (BEGIN + timedelta(seconds=second)).strftime("%Y-%m-%dT%H:%M:%S")
            count += 1
            fields.update(previous=last, seq=count, time=f"{clock}.{at_us % 1_000_000:06}Z")
            line = (template % fields).encode()
            last = sha256(line[:-1]).hexdigest()
            size += len(line)
            file.write(line)
    head_path(path).write_bytes(Head("sealed", 1, GENESIS, count, size, last).line())
    return count


def _records(items: int) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """When each is written, in microseconds since the begin; its template, and what goes into it."""
    yield 0, STARTED, {}
    yield 100, RUN_STARTED, {}
    sampled = until_us = calls = failed = 0
    for until_us, item, phase, run_us, waited_us in _ends(items):
        while (sampled + 1) * SAMPLED_US <= until_us:
            sampled += 1
            rss = (60 << 20) + (sampled % 64 << 16)
            yield sampled * SAMPLED_US, SAMPLED, {"cpu_us": 300_000 + sampled % 7 * 20_000, "rss": rss}
        calls += 1
        is_bad = phase == "fetch" and item % FAILING == 0
        failed += is_bad
        fields = {"call": calls, "item": item, "phase": phase, "run_us": run_us, "waited_us": waited_us}
        status, error = ("failed", ERROR % item) if is_bad else ("succeeded", "")
        yield until_us, CALL, {**fields, "status": status, "error": error}
    yield until_us + 50, RUN_ENDED, {"failed": failed, "items": items}
    yield until_us + 100, ENDED, {"calls": calls}


def _ends(items: int) -> Iterator[tuple[int, int, str, int, int]]:
    """When calls end, in this order: of which item and phase, how long it ran, and waited for a place."""
    ahead: list[tuple[int, int, str, int, int]] = []
    free_us = [0] * AT_ONCE
    for item in range(items):
        fetched_us = 200 + item * EVERY_US + FETCH_US
        while ahead and ahead[0][0] <= fetched_us:
            yield heappop(ahead)
        heappush(ahead, (fetched_us, item, "fetch", FETCH_US, 0))
        if item % FAILING:
            begin_us = max(heappop(free_us), fetched_us)
            run_us = LONG_US if item % 50 < AT_ONCE + 2 else PARSE_US  # more than there are places for
            heappush(free_us, begin_us + run_us)
            heappush(ahead, (begin_us + run_us, item, "parse", run_us, begin_us - fetched_us))
            heappush(ahead, (begin_us + run_us + INDEX_US, item, "index", INDEX_US, 0))
    while ahead:
        yield heappop(ahead)
