"""Each session of every test writes to one sink more, which counts the ends of calls: each call has one.

A test that is about sessions without evidence has the mark ``unwatched``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from kgas_async._recording import Recording

watched: list[Counting] = []
is_on = False


class Counting:
    """Counts the ends of calls by number."""

    def __init__(self, session: str) -> None:
        self.session = session
        self.ends: Counter[str] = Counter()
        self.calls: int | None = None  # how many were made, once the session has ended

    def __repr__(self) -> str:
        return "the sink of the tests"

    def write(self, records: Sequence[Mapping[str, Any]]) -> None:
        for record in records:
            event = record["event"]
            if event == "session.ended":
                self.calls = record["calls"]
            elif event == f"call.{record.get('status')}":
                self.ends[record["call_id"]] += 1

    def close(self) -> None: ...

    def check(self) -> None:
        if self.calls is None:  # it was not left
            return
        expected = {f"{self.session}-{number}" for number in range(1, self.calls + 1)}
        assert set(self.ends) == expected, (
            f"without an end: {expected - set(self.ends)}; made up: {set(self.ends) - expected}"
        )
        assert set(self.ends.values()) <= {1}, f"ended more than once: {self.ends.most_common(3)}"


def watch() -> None:
    """Have the sessions of this process watched, while a test that wants it runs."""
    opened = Recording.open

    def open_watched(self: Recording, sinks: Sequence[Any], quiet: Sequence[Any]) -> None:
        if is_on:
            sink = Counting(self._session.session)
            watched.append(sink)
            sinks = [*sinks, sink]
        opened(self, sinks, quiet)

    Recording.open = open_watched  # type: ignore[method-assign]


@contextmanager
def checked(*, on: bool) -> Iterator[None]:
    """Around a test."""
    global is_on
    is_on = on
    watched.clear()
    try:
        yield
    finally:
        is_on = False
    for sink in watched:
        sink.check()
