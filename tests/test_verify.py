"""Whatever is done to evidence afterwards is found, by our verifier and by one written from the documentation alone."""

from __future__ import annotations

import json
import random
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kgas_async import EvidenceError, EvidenceReport, JsonlSink, ServiceManager, _verify, verify_evidence
from kgas_async._chain import GENESIS, Head, hash_of, head_path

from .test_evidence import double, forever

EXAMPLE = Path(__file__).parent.parent / "examples" / "verify_evidence.py"
RECORDS = 1000
independent: Callable[[Path], bool] = runpy.run_path(str(EXAMPLE))["check"]


def both(path: Path) -> EvidenceReport:
    """What ours says; the other must say the same."""
    report = verify_evidence(path)
    try:
        other = "sealed" if independent(path) else "unsealed"
    except (ValueError, KeyError, TypeError):
        other = "wrong"
    assert other == ("wrong" if report.problem else "sealed" if report.ok else "unsealed"), report
    return report


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The lines of a log of 1,000 records, of several sessions."""
    path = tmp_path_factory.mktemp("whole") / "run.jsonl"
    lines: list[bytes] = []
    session = 0
    while len(lines) < RECORDS:
        session += 1
        sink = JsonlSink(path)
        count = min(RECORDS - len(lines), 3 if session % 3 else 90)
        records: list[dict[str, Any]] = [
            {
                "event": "call.succeeded",
                "schema": 2,
                "seq": seq,
                "session_id": f"s{session}",
                "call_id": f"s{session}-{seq}",
            }
            for seq in range(1, count + 1)
        ]
        records[0]["event"] = "session.started"
        records[-1]["event"] = "session.ended"
        sink.write(records)
        sink.close()
        lines = path.read_bytes().splitlines(keepends=True)
    assert both(path).ok
    assert both(path).sessions == session > 20
    return lines


@pytest.fixture
def log(tmp_path: Path, whole: list[bytes]) -> Path:
    path = tmp_path / "run.jsonl"
    path.write_bytes(b"".join(whole))
    content = Head("sealed", 1, GENESIS, RECORDS, path.stat().st_size, hash_of(whole[-1][:-1])).line()
    head_path(path).write_bytes(content)
    return path


def said(log: Path, lines: list[bytes]) -> tuple[str | None, int | None]:
    log.write_bytes(b"".join(lines))
    report = both(log)
    assert not report.ok
    assert report.reason
    assert report.file == log.name
    assert report.line is not None
    if report.problem != "schema" and report.reason != "its newline is missing":
        good = b"".join(lines).split(b"\n")[: report.records]
        assert (report.records, report.last_sha256) == (report.line - 1, hash_of(good[-1]) if good else GENESIS)
    return report.problem, report.line


# --- each record


def test_every_edit_of_one_record_is_found_and_named(log: Path, whole: list[bytes]) -> None:
    for number in range(RECORDS):
        edited = whole[number].replace(b'"call_id":"s', b'"call_id":"t')
        assert edited != whole[number]
        assert said(log, [*whole[:number], edited, *whole[number + 1 :]]) == ("edited", number + 1)


def test_every_edit_of_one_records_link_is_found_and_named(log: Path, whole: list[bytes]) -> None:
    for number in range(RECORDS):
        record = json.loads(whole[number])
        wrong = whole[number].replace(record["previous_sha256"].encode(), hash_of(b"something else").encode())
        assert said(log, [*whole[:number], wrong, *whole[number + 1 :]]) == ("edited", number + 1)


def test_every_deletion_of_one_record_is_found_and_named(log: Path, whole: list[bytes]) -> None:
    for number in range(RECORDS):
        expected = ("truncated" if number == RECORDS - 1 else "lost", number + 1)
        assert said(log, whole[:number] + whole[number + 1 :]) == expected


def test_every_swap_of_two_neighbours_is_found_and_named(log: Path, whole: list[bytes]) -> None:
    for number in range(RECORDS - 1):
        lines = [*whole[:number], whole[number + 1], whole[number], *whole[number + 2 :]]
        assert said(log, lines) == ("reordered", number + 1)


def test_swaps_of_any_two_are_found_and_named(log: Path, whole: list[bytes]) -> None:
    chosen = random.Random(5)
    for _ in range(300):
        first, second = sorted(chosen.sample(range(RECORDS), 2))
        lines = list(whole)
        lines[first], lines[second] = lines[second], lines[first]
        assert said(log, lines) == ("reordered", first + 1)


def test_every_duplication_of_one_record_is_found_and_named(log: Path, whole: list[bytes]) -> None:
    chosen = random.Random(6)
    for number in range(RECORDS):
        behind = number + 1 if number % 2 else chosen.randint(number + 1, RECORDS)
        lines = [*whole[:behind], whole[number], *whole[behind:]]
        assert said(log, lines) == ("duplicated", behind + 1)


def test_truncation_at_every_byte_of_the_last_record_is_found_and_named(log: Path, whole: list[bytes]) -> None:
    for kept in range(len(whole[-1])):
        lines = [*whole[:-1], whole[-1][:kept]]
        assert said(log, lines) == ("torn" if kept else "truncated", RECORDS)


def test_truncation_anywhere_is_found(log: Path, whole: list[bytes]) -> None:
    content, chosen = b"".join(whole), random.Random(7)
    for size in [0, 1, *(chosen.randrange(len(content)) for _ in range(100))]:
        assert said(log, [content[:size]])[0] in ("torn", "truncated")


def test_flipped_bits_are_found_wherever_they_are(log: Path, whole: list[bytes]) -> None:
    content, chosen = b"".join(whole), random.Random(8)
    first, last = range(len(whole[0])), range(len(content) - len(whole[-1]), len(content))
    for place in [*first, *last, *(chosen.randrange(len(content)) for _ in range(300))]:
        flipped = bytearray(content)
        flipped[place] ^= 1 << chosen.randrange(8)
        assert said(log, [bytes(flipped)])[0] is not None


def test_a_record_put_in_is_found_and_named(log: Path, whole: list[bytes]) -> None:
    for number in (0, 1, 500, RECORDS):
        previous = hash_of(whole[number - 1][:-1]) if number else GENESIS
        forged = b'{"event":"call.succeeded","previous_sha256":"%s","schema":2}\n' % previous.encode()
        assert said(log, [*whole[:number], forged, *whole[number:]]) == ("added", number + 1)


@pytest.mark.parametrize("put_in", [b"\n", b"null\n", b"{}\n", b'{"event":"x"}\n', b"\xff\xfe\n", b"[" * 5000 + b"\n"])
def test_what_is_no_record_is_found_and_named(log: Path, whole: list[bytes], put_in: bytes) -> None:
    for number in (1, 2, 500, RECORDS):
        kind = "added" if number == RECORDS else "edited"
        assert said(log, [*whole[:number], put_in, *whole[number:]]) == (kind, number + 1)


# --- the head


def test_the_head_is_checked_byte_for_byte(log: Path) -> None:
    head = head_path(log)
    content = head.read_bytes()
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1
        head.write_bytes(changed)
        report = verify_evidence(log)
        assert report.problem is not None, changed
        head.write_bytes(content[:place])
        assert verify_evidence(log).problem == "head"
    head.write_bytes(content * 30)
    assert verify_evidence(log).problem == "head"


@pytest.mark.parametrize("name", ["records", "bytes", "segment", "last_sha256", "previous_sha256", "state"])
@pytest.mark.parametrize("value", [None, "1", False, -1, 1.5, [1], {}])
def test_a_head_of_other_types_is_said_and_not_stumbled_over(log: Path, name: str, value: Any) -> None:
    head = head_path(log)
    fields = json.loads(head.read_bytes()) | {name: value}
    head.write_bytes(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode() + b"\n")
    assert both(log).problem is not None
    with pytest.raises(EvidenceError):
        JsonlSink(log).open()


def test_without_its_head_a_log_is_intact_but_not_ok(log: Path) -> None:
    head_path(log).unlink()
    report = both(log)
    assert (report.ok, report.problem, report.state, report.records) == (False, None, "unsealed", RECORDS)
    assert "may be missing at the end" in str(report)


def test_an_open_head_asks_for_what_was_there_at_least(log: Path, whole: list[bytes]) -> None:
    size = sum(map(len, whole[:600]))
    head_path(log).write_bytes(Head("open", 1, GENESIS, 600, size, hash_of(whole[599][:-1])).line())
    for records in (600, 601, RECORDS):
        log.write_bytes(b"".join(whole[:records]))
        report = both(log)
        assert (report.ok, report.problem, report.state, report.records) == (False, None, "open", records)
    assert said(log, whole[:599]) == ("truncated", 600)
    assert said(log, [*whole[:599], whole[599].replace(b"call_id", b"Call_id")]) == ("edited", 600)
    assert said(log, [*whole[:700], whole[700][:50]]) == ("torn", 701)
    assert said(log, [*whole[:700], *whole[701:]]) == ("lost", 701)
    changed = whole[700].replace(b'"call_id":"s', b'"call_id":"t')
    assert said(log, [*whole[:700], changed, *whole[701:]]) == ("edited", 701)


# --- other files


def test_what_is_no_evidence_is_said(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    for content in (b'{"somebody":"else"}\n', b"SQLite format 3\0", b"name,age\na,1\n"):
        path.write_bytes(content)
        report = verify_evidence(path)
        assert (report.problem, report.line) == ("format", 1)
    path.write_bytes(b'{"event":"session.started","schema":1,"seq":1,"session_id":"a","time":"x"}\n')
    report = verify_evidence(path)
    assert (report.problem, report.line) == ("schema", 1)
    assert "schema 1, and this is 2" in str(report)


@pytest.mark.parametrize("where", ["missing.jsonl", "missing/run.jsonl", ".", "nul\0"])
def test_what_cannot_be_read_is_an_error(tmp_path: Path, where: str) -> None:
    with pytest.raises(EvidenceError, match=r"cannot be read: .*; give the path of evidence") as caught:
        verify_evidence(tmp_path / where)
    assert isinstance(caught.value.__cause__, OSError | ValueError)


def test_an_empty_log_of_a_session_that_wrote_nothing_is_whole(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "run.jsonl")
    sink.open()
    sink.close()
    assert both(sink.path).ok
    assert both(sink.path).records == 0


# --- segments


@pytest.fixture
def parts(tmp_path: Path, whole: list[bytes]) -> list[Path]:
    """A log in segments."""
    path = tmp_path / "run.jsonl"
    for half in range(2):
        sink = JsonlSink(path, max_bytes=12_000)
        for start in range(0, 500, 50):
            sink.write([json.loads(line) for line in whole[half * 500 + start :][:50]])
        sink.close()
    report = both(path)
    assert report.ok
    assert report.records == RECORDS
    found = [path, *sorted(path.parent.glob("run.jsonl.?")), *sorted(path.parent.glob("run.jsonl.??"))]
    assert len(found) == report.segments > 10
    assert all(one.stat().st_size <= 12_000 for one in found)
    return found


def test_each_segment_can_be_checked_alone_with_its_head(parts: list[Path], tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    counted = 0
    for part in parts[1:]:
        shutil.copy(part, alone)
        shutil.copy(head_path(part), alone)
        report = verify_evidence(alone / part.name)
        assert (report.problem, report.segment) == (None, int(part.suffix[1:]))
        assert not report.ok, "the others were not looked at"
        is_last = part == parts[-1]
        assert report.state == ("sealed" if is_last else "continued")
        assert ("the log goes on in another segment, which was not looked at" in str(report)) is not is_last
        assert "nothing before this segment was looked at" in str(report)
        assert verify_evidence(part) == report, "the others are beside it"
        counted += report.records
        content = part.read_bytes()
        (alone / part.name).write_bytes(content[: content.rindex(b"\n", 0, -1) + 1])
        assert verify_evidence(alone / part.name).problem == "truncated"
    assert counted + verify_evidence(parts[0]).records > RECORDS  # the first is the log


def test_a_later_segment_does_not_pass_for_the_log(parts: list[Path], tmp_path: Path) -> None:
    path, last = tmp_path / "only" / "run.jsonl", parts[-1]
    path.parent.mkdir()
    shutil.copy(last, path)
    shutil.copy(head_path(last), head_path(path))
    assert both(path).problem == "lost"


def test_what_is_done_to_segments_is_found(parts: list[Path]) -> None:
    path, second, last = parts[0], parts[1], parts[-1]
    kept = {one: one.read_bytes() for part in parts for one in (part, head_path(part))}

    def after(change: Callable[[], object]) -> EvidenceReport:
        change()
        report = both(path)
        for one, content in kept.items():
            one.write_bytes(content)
        assert not report.ok
        return report

    def without(*gone: Path) -> Callable[[], object]:
        return lambda: [one.unlink() for part in gone for one in (part, head_path(part))]

    def cut(part: Path, records: int) -> Callable[[], object]:
        return lambda: part.write_bytes(b"".join(kept[part].splitlines(keepends=True)[:-records]))

    def swapped() -> None:
        second.write_bytes(kept[parts[2]])
        parts[2].write_bytes(kept[second])

    assert after(without(last)).problem == "truncated"
    report = after(without(second))
    assert (report.problem, report.file) == ("truncated", "run.jsonl")
    assert "run.jsonl.2, which is missing" in str(report)
    for part in parts:
        report = after(cut(part, 1))
        assert (report.problem, report.file) == ("truncated", part.name)
    assert after(swapped).file == second.name
    assert after(lambda: shutil.copy(head_path(second), head_path(parts[2]))).file == parts[2].name
    assert after(lambda: [cut(second, 1)(), head_path(second).unlink()]).file == parts[2].name  # the next tells
    for part in parts[:-1]:
        for state in ("sealed", "open"):
            said = kept[head_path(part)].replace(b"continued", state.encode())
            report = after(lambda part=part, said=said: head_path(part).write_bytes(said))  # type: ignore[misc]
            assert (report.problem, report.file) == ("head", part.name), str(report)
            assert f"says that it is {state}, and not that the log goes on in " in str(report)
    report = after(lambda: [without(second)(), head_path(path).unlink()])
    assert (report.problem, report.reason) == ("lost", "run.jsonl.2 is missing, though there is run.jsonl.3")
    report = after(lambda: [without(second, last)(), head_path(path).unlink()])
    assert report.problem == "lost"


def test_segments_without_their_heads_are_read_as_one_log_whose_end_is_not_known(parts: list[Path]) -> None:
    for part in parts:
        head_path(part).unlink()
    report = both(parts[0])
    assert (report.problem, report.state, report.records) == (None, "unsealed", RECORDS)


def test_heads_missing_between_others_hide_nothing(parts: list[Path]) -> None:
    head_path(parts[1]).unlink()
    assert both(parts[0]).ok
    head_path(parts[2]).unlink()
    assert both(parts[0]).ok


def test_a_log_that_goes_on_while_it_is_read_is_not_said_to_lack_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.jsonl"
    sink = JsonlSink(path, max_bytes=300)
    sink.write([{"event": "x", "schema": 2, "seq": 1}])
    number = 1

    def writing(real: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any) -> Any:
            nonlocal number
            if number < 40:
                number += 1
                sink.write([{"event": "x", "schema": 2, "seq": number}])
            return real(*arguments)

        return called

    for name in ("goes_on", "head_of", "gap_after", "own_number"):
        monkeypatch.setattr(_verify, name, writing(getattr(_verify, name)))
    monkeypatch.setattr(_verify.Segment, "scan", writing(_verify.Segment.scan))
    for _ in range(3):
        report = verify_evidence(path)
        assert (report.problem, report.state) == (None, "open"), str(report)
    assert report.segments > 3
    sink.close()
    assert both(path).ok


def test_a_lost_first_segment_cannot_be_read(parts: list[Path]) -> None:
    parts[0].unlink()
    with pytest.raises(EvidenceError):
        verify_evidence(parts[0])


# --- of real sessions


async def test_the_evidence_of_sessions_is_whole_whatever_they_did(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    for _ in range(3):
        async with ServiceManager(evidence=JsonlSink(path, max_bytes=5000), log=None, grace=0.01) as manager:
            manager.submit(forever)
            async with manager.map(double, ["a", *range(50)], arg="x") as outcomes:
                async for _ in outcomes:
                    pass
    report = both(path)
    assert report.ok
    assert (report.sessions, report.recovered) == (3, 0)
    assert report.records >= 3 * 54  # and a call.started of each call that is open when something is written
    assert report.segments > 5


# --- the verifier in examples/


def test_the_verifier_in_the_examples_is_short_and_needs_nothing_of_ours(log: Path) -> None:
    source = EXAMPLE.read_text(encoding="utf-8")
    assert "kgas_async" not in source
    assert sum(bool(line.strip()) and not line.strip().startswith("#") for line in source.splitlines()) <= 70

    def run() -> tuple[int, str]:
        done = subprocess.run([sys.executable, "-I", EXAMPLE, log], capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    assert run() == (0, "intact and sealed\n")
    content = head_path(log).read_bytes()
    head_path(log).unlink()
    assert run()[0] == 3
    head_path(log).write_bytes(content)
    log.write_bytes(log.read_bytes()[:-1])
    assert run() == (1, "not intact: run.jsonl: its end is torn\n")
    log.unlink()
    assert run()[0] == 2
