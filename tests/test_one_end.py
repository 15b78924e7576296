"""What checks all tests can fail."""

from __future__ import annotations

import pytest

from kgas_async import ServiceManager

from . import one_end
from .test_evidence import double


async def test_the_sessions_of_a_test_are_watched_also_without_evidence() -> None:
    async with ServiceManager(log=None) as manager:
        await manager.execute(double, x=1)
        session = manager.session_id
    (sink,) = one_end.watched
    assert (dict(sink.ends), sink.calls) == ({f"{session}-1": 1}, 1)


@pytest.mark.unwatched
async def test_one_that_does_not_want_it_is_not() -> None:
    async with ServiceManager(log=None) as manager:
        await manager.execute(double, x=1)
    assert not one_end.watched


@pytest.mark.parametrize(("ends", "said"), [([], "without an end"), ([1, 1], "more than once"), ([1, 2], "made up")])
def test_a_call_without_its_one_end_is_told(ends: list[int], said: str) -> None:
    sink = one_end.Counting("s")
    records = [{"event": "call.failed", "status": "failed", "call_id": f"s-{number}"} for number in ends]
    sink.write([*records, {"event": "session.ended", "calls": 1}])
    with pytest.raises(AssertionError, match=said):
        sink.check()
