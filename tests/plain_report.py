"""The figures of a report once more, from a list of all records and in the plainest way, for the tests to compare."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kgas_async._reading import ENDS, unix_us

Record = Mapping[str, Any]
BAD = ("failed", "timed_out", "rejected")


def place(record: Record) -> str:
    """What the row of a call is called; of a phase only where the call is no part of another one."""
    if "phase" not in record:
        return str(record["tool"])
    return str(record["phase"]) if "parent_id" not in record else f"{record['tool']} in {record['phase']}"


def ends(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if record["event"] in ENDS]


def rows(records: Iterable[Record]) -> dict[str, list[Record]]:
    """The ended calls by row, without those that were run in batches."""
    found: dict[str, list[Record]] = defaultdict(list)
    for record in ends(records):
        if "batch_id" not in record:
            found[place(record)].append(record)
    return found


def nearest_rank(values: Sequence[float], share: float) -> float:
    return sorted(values)[math.ceil(share * len(values)) - 1]


def most_at_once(calls: Iterable[Record], rounding_us: int = 2) -> int:
    """How many ran at once; what seems to overlap by its rounded begin does not."""
    steps = []
    for call in calls:
        end = unix_us(call["time"])
        if call["run_us"] > rounding_us:
            steps += [(end - call["run_us"] + rounding_us, 1), (end, -1)]
    now = most = 0
    for _, step in sorted(steps):
        now += step
        most = max(most, now)
    return most


def critical_path(records: Sequence[Record], depths: Mapping[str, int], threaded: set[str]) -> Counter[tuple[str, str]]:
    """Walked back from the call that ended last, by looking at all that ended before it."""
    begin = unix_us(records[0]["time"])
    until = max(unix_us(record["time"]) for record in records) - begin
    calls = [
        (unix_us(call["time"]) - begin, number, call)
        for number, call in enumerate(ends(records))
        if "batch_id" not in call and "parent_id" not in call
    ]

    def root(call: Record) -> str | None:
        depth = depths.get(call.get("phase", ""), 0)
        return call["item"].rsplit("/", depth)[0] if "item" in call else None

    def last(number: int, at: int, wanted: Any) -> tuple[int, int, Record] | None:
        found = [one for one in calls if one[1] < number and one[0] <= at and wanted(one[2])]
        return max(found, key=lambda one: one[:2], default=None)

    pieces: Counter[tuple[str, str]] = Counter()
    step = max(calls, key=lambda one: one[:2])
    pieces["", "between"] += until - step[0]
    while True:
        end, number, call = step
        row, waits = place(call), call["wait_us"]
        pieces[row, "run"] += call["run_us"]
        pieces[row, "retry"] += waits["retry"]
        at = end - call["run_us"] - waits["retry"]
        before = None
        for kind in ("thread", "rate", "concurrency", "service"):
            waited = waits.get(kind, 0)
            if not waited:
                continue
            freed = None
            if kind == "thread":
                freed = last(number, at, lambda one: place(one) in threaded)
            elif kind == "concurrency":
                freed = last(number, at, lambda one, row=row: place(one) == row)
            if freed is not None and freed[0] > at - waited:
                pieces[row, kind] += at - freed[0]
                before = freed
                break
            pieces[row, kind] += waited
            at -= waited
        else:
            own, name = root(call), "handover"
            before = None if own is None else last(number, at, lambda one, own=own: root(one) == own)
            if before is None:
                before = last(number, at, lambda one: True)
                name = "between" if "item" in call else "handover"
            pieces["", name] += at - (0 if before is None else before[0])
        if before is None:
            return Counter({piece: length for piece, length in pieces.items() if length})
        step = before
