"""Every line of evidence is canonical JSON (RFC 8785), whatever the names, keys and messages are made of."""

from __future__ import annotations

import datetime as dt
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from kgas_async import (
    CallFailed,
    CallTimeout,
    InvalidInputs,
    MemorySink,
    Phase,
    Pipeline,
    Policy,
    Retry,
    ServiceManager,
    _records,
    tool,
)
from kgas_async._call import Call
from kgas_async._chain import GENESIS, hash_of
from kgas_async._records import Record, call_fields, error_fields, line_of, render_call, render_fields, rfc3339

NANOS = st.integers(0, 10**16)
TIMES = st.integers(0, 4_000_000_000 * 10**9)
# Weighted to what breaks templates, JSON and UTF-8; lone surrogates are what undecodable file names have. Not st.text:
# it makes one set of both and all but forgets the rare ones.
ODD = st.sampled_from('%{}"\\/\x00\x1f\x7f\x80\u2028\ud800\udc80\udfff\ue000😀dux80s')
TEXT = st.lists(ODD | st.characters(), min_size=1, max_size=12).map("".join)
ENDS = st.sampled_from(("succeeded", "failed", "timed_out", "cancelled", "rejected", "skipped", "reused"))
HASHES = st.binary(min_size=32, max_size=32).map(bytes.hex)
ZEROS = GENESIS.encode()
SESSION = "0123456789ab"


@st.composite
def calls(draw: st.DrawFn, status: st.SearchStrategy[str] = ENDS) -> Any:
    waited = draw(st.booleans())
    waits = draw(st.tuples(NANOS, NANOS, NANOS, NANOS)) if waited else (0, 0, 0, 0)
    ended = draw(status)
    serial = draw(st.integers(1, 10**9))
    return Said(
        bound=draw(bounds()),
        serial=serial,
        id=f"{SESSION}-{serial}",
        attempt=draw(st.integers(0, 1000)),
        status=ended,
        item=draw(st.none() | TEXT),
        parent=draw(st.none() | parents()),
        error=None if ended == "succeeded" else draw(st.none() | st.builds(ValueError, TEXT)),
        reason="" if ended == "succeeded" else draw(st.just("") | TEXT),
        abandoned=ended != "succeeded" and draw(st.booleans()),
        given_name=draw(st.none() | TEXT.filter(bool)),
        batch_id=draw(st.none() | st.builds(lambda n: f"{SESSION}-{n}", st.integers(1, 99))),
        batch_size=draw(st.integers(0, 99)),
        answered_by=draw(st.none() | TEXT.filter(bool)),
        reused_from=draw(st.none() | st.just(f"{SESSION}-2")) if ended == "reused" else None,
        winner=draw(st.integers(0, 3)),
        waited=waited,
        wait_concurrency_ns=waits[0],
        wait_rate_ns=waits[1],
        wait_retry_ns=waits[2],
        wait_thread_ns=waits[3],
        wait_service_ns=draw(st.just(0) | NANOS) if waited else 0,
        cpu_ns=draw(st.none() | NANOS),
        noted=draw(st.none() | st.fixed_dictionaries({"inputs_sha256": HASHES, "inputs": st.dictionaries(TEXT, TEXT)})),
        rss_peak=draw(st.integers(0, 2**53 - 1)),
        run_ns=draw(NANOS),
        ended_ns=draw(TIMES),
    )  # fmt: skip


class Said(SimpleNamespace):
    """What a record says of a call."""

    placed = Call.placed


@st.composite
def parents(draw: st.DrawFn) -> Any:
    number = draw(st.integers(1, 99))
    return Said(id=f"{SESSION}-{number}", bound=draw(bounds()), item=draw(st.none() | TEXT), parent=None)


@st.composite
def bounds(draw: st.DrawFn) -> Any:
    is_of_phase = draw(st.booleans())
    return SimpleNamespace(
        name=draw(TEXT),
        tool=SimpleNamespace(version=draw(TEXT)),
        pipeline=draw(TEXT) if is_of_phase else None,
        phase=draw(TEXT) if is_of_phase else None,
        run_id=draw(TEXT) if is_of_phase else None,
        home=SimpleNamespace(session=SESSION, tracing=None),
        template=None,
    )


def no_nulls(value: Any) -> bool:
    if isinstance(value, dict):
        return all(no_nulls(one) for one in value.values())
    return all(no_nulls(one) for one in value) if isinstance(value, list) else value is not None


def parsed(line: bytes) -> dict[str, Any]:
    """The record of a line, which must be exactly the canonical form of what it says, and one line."""
    assert b"\n" not in line
    record: dict[str, Any] = json.loads(line)
    assert rfc8785.dumps(record) == line
    assert no_nulls(record)
    return record


def escaped(text: str) -> str:
    """How text is shown: as it is, but for what is no Unicode."""
    return text.encode("utf-8", "backslashreplace").decode()


# --- lines


@settings(deadline=None)
@given(calls(st.just("succeeded")) | calls(), st.integers(1, 2**53 - 1), HASHES)
def test_the_line_of_a_call_is_canonical_and_says_what_the_record_says(call: Any, seq: int, previous: str) -> None:
    line = render_call(call, seq, 0, previous.encode())
    record = parsed(line)
    assert record["previous_sha256"] == previous
    said = dict(Record.of(call, seq, SESSION, 0))
    assert line_of(said, previous) == line  # templates, and the slow way
    assert record["tool"] == escaped(call.bound.name)
    assert record["event"] == f"call.{call.status}"
    placed = call.placed
    assert record.get("item") == (None if placed.item is None else escaped(placed.item))
    assert record.get("call_name") == (None if call.given_name is None else escaped(call.given_name))
    assert (record.get("batch_id"), record.get("batch_size", 0)) == (call.batch_id, call.batch_size)
    assert record.get("answered_by") == (None if call.answered_by is None else escaped(call.answered_by))
    assert record.get("winner", 0) == call.winner
    assert record.get("reused_from") == call.reused_from
    assert record.get("parent_id") == (None if call.parent is None else call.parent.id)
    where = (placed.bound.pipeline, placed.bound.phase, placed.bound.run_id)
    said_where = (record.get("pipeline"), record.get("phase"), record.get("run_id"))
    assert said_where == tuple(None if one is None else escaped(one) for one in where)
    assert record["wait_us"] == {
        "concurrency": call.wait_concurrency_ns // 1000,
        "rate": call.wait_rate_ns // 1000,
        "retry": call.wait_retry_ns // 1000,
        "thread": call.wait_thread_ns // 1000,
        **({"service": call.wait_service_ns // 1000} if call.wait_service_ns else {}),
    }
    assert record["seq"] == seq
    assert record["run_us"] == call.run_ns // 1000


@settings(deadline=None)
@given(calls(st.just("succeeded")), calls(st.just("succeeded")))
def test_a_template_is_used_again_without_anything_left_of_the_call_before(first: Any, second: Any) -> None:
    render_call(first, 1, 0, ZEROS)
    second.bound = first.bound  # its template is made
    fresh = Said(**vars(second))
    fresh.bound = SimpleNamespace(**{**vars(first.bound), "template": None})
    assert render_call(second, 2, 0, ZEROS) == render_call(fresh, 2, 0, ZEROS)


@settings(deadline=None)
@given(calls(), TEXT, st.integers(0, 10**9))
def test_other_events_are_canonical_too(call: Any, text: str, count: int) -> None:
    retried = call_fields(call, "call.retried", ValueError(text)) | {"delay_us": count, "at_ns": 5}
    record = parsed(render_fields(retried, 7, SESSION, 0, ZEROS))
    assert record["error"] == {"type": "ValueError", "message": escaped(text)}
    event = {"event": "service.failed", "service": text, "error": {"type": "X", "message": text}, "at_ns": 0}
    parsed(render_fields({**event, "run_id": None, "abandoned": [text, "b"], "flag": True}, 1, SESSION, 0, ZEROS))


def test_a_backslash_beside_a_lone_surrogate_stays_readable() -> None:
    call = SimpleNamespace(message="\udc80 and \\udc80 and \\ud")
    line = render_fields({"event": "x", "message": call.message, "at_ns": 0}, 1, SESSION, 0, ZEROS)
    assert parsed(line)["message"] == "\\udc80 and \\udc80 and \\ud"


# --- times


@settings(deadline=None)
@given(TIMES)
def test_times_are_rfc_3339_in_utc_with_microseconds(unix_ns: int) -> None:
    text = rfc3339(unix_ns)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", text)
    # Exact: a float of seconds would round.
    seconds, micros = divmod(unix_ns // 1000, 1_000_000)
    assert text.endswith(f".{micros:06d}Z")

    whole = dt.datetime.fromtimestamp(seconds, dt.UTC)
    assert text[:19] == whole.strftime("%Y-%m-%dT%H:%M:%S")


def test_two_sessions_at_once_do_not_give_each_other_their_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    formatted = _records.strftime

    def interrupted(form: str, when: Any) -> str:  # another writer's thread comes between
        monkeypatch.setattr(_records, "strftime", formatted)
        try:
            assert rfc3339(5_000_000_000).startswith("1970-01-01T00:00:05")
        finally:
            monkeypatch.setattr(_records, "strftime", interrupted)
        return formatted(form, when)

    monkeypatch.setattr(_records, "strftime", interrupted)

    class Cache(tuple):  # noqa: SLOT001
        """The shared last second, which another thread replaces just after it was looked at."""

        def __getitem__(self, index: Any) -> Any:
            found = tuple.__getitem__(self, index)
            if index == 0:
                _records._second = (9, "1970-01-01T00:00:09", b"")
            return found

    monkeypatch.setattr(_records, "_second", Cache((7, "1970-01-01T00:00:07", b"1970-01-01T00:00:07")))
    assert rfc3339(7_000_000_000) == "1970-01-01T00:00:07.000000Z"
    assert rfc3339(8_000_000_000) == "1970-01-01T00:00:08.000000Z"


# --- errors


class Untellable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


class WithErrors(Exception):
    """Has what `InvalidInputs` has, and is none."""

    errors = ("a", {"b": 1})


class Model(BaseModel):
    pin: int


def invalid(value: Any) -> Exception:
    try:
        Model(pin=value)
    except ValueError as error:
        return error
    raise AssertionError


def chained(outer: Exception, cause: BaseException) -> Exception:
    outer.__cause__ = cause
    return outer


SECRET = "hunter2"
WRONG = InvalidInputs(
    f"pin: not {SECRET}", errors=[{"field": "pin", "type": "int_parsing", "message": "m", "value": SECRET}]
)
PLACE = [{"field": "pin", "type": "int_parsing"}]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("x"), {"type": "ValueError", "message": "x"}),
        (ValueError(), {"type": "ValueError", "message": ""}),
        (chained(CallFailed("tool 'a' failed"), KeyError("k")), {"type": "KeyError", "message": "'k'"}),
        (CallTimeout("late"), {"type": "CallTimeout", "message": "late"}),
        (chained(RuntimeError("mine"), KeyError("k")), {"type": "RuntimeError", "message": "mine"}),
        (Untellable(), {"type": "Untellable", "message": "(its __str__ raised RuntimeError)"}),
        (WithErrors("w"), {"type": "WithErrors", "message": "w"}),
        (WRONG, {"type": "InvalidInputs", "errors": PLACE}),
        (chained(CallFailed(f"not {SECRET}"), WRONG), {"type": "InvalidInputs", "errors": PLACE}),
        (
            chained(CallFailed(SECRET), chained(CallFailed(SECRET), WRONG)),
            {"type": "CallFailed", "errors": PLACE},
        ),
        (chained(CallFailed("x"), invalid(SECRET)), {"type": "ValidationError", "errors": PLACE}),
        (ValueError("x" * 5000), {"type": "ValueError", "message": "x" * 1997 + "..."}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_is_shown_by_type_and_message_and_a_validation_error_by_type_and_place(
    error: Exception, expected: dict[str, Any]
) -> None:
    assert error_fields(error) == expected
    assert SECRET not in json.dumps(error_fields(error))


def test_an_error_in_a_circle_of_causes_is_shown() -> None:
    error = ValueError("a")
    error.__cause__ = chained(ValueError("b"), error)
    assert error_fields(error) == {"type": "ValueError", "message": "a"}


# --- of real calls


@tool
async def plain(path: str) -> str:
    await anyio.lowlevel.checkpoint()
    return path


@tool
def slow_to_start(path: str) -> str:
    if "\udc80" in path:
        raise OSError(f"cannot read {path}")
    return path


async def test_a_run_of_real_calls_writes_canonical_lines_and_the_same_to_memory(tmp_path: Path) -> None:
    file = tmp_path / "evidence.jsonl"
    memory = MemorySink()
    strange = plain.using(name='100% {"plain"}\n\u2028', concurrency=1)
    retried = slow_to_start.using(name="läuft\x7f", retry=Retry(2, wait=0), timeout=30)
    pipeline = Pipeline("p%d{}", Phase("ä", strange), Phase("b", retried, policy=Policy(deadline=60)), item=["path"])
    items = [{"path": path} for path in ("x", "50%", "a\nb", "\udc80", "\\ud \udc80", "ü😀", "{}")]
    async with ServiceManager(evidence=[file, memory], log=None) as manager:
        report = await manager.run(pipeline, items, in_flight=3)
    assert (report.succeeded, report.failed) == (5, 2)
    lines = file.read_bytes().removesuffix(b"\n").split(b"\n")
    records = [parsed(line) for line in lines]
    chain = [GENESIS, *map(hash_of, lines)]
    assert [line_of(record, previous) for record, previous in zip(memory.records, chain, strict=False)] == lines
    ends = [record for record in records if record["event"].startswith("call.") and "status" in record]
    assert len(ends) == 14
    assert {record["run_id"] for record in ends} == {report.run_id}
