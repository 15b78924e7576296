"""Files of evidence that are continued, recovered, cut in segments; and disks that fail at every call in turn."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kgas_async import EvidenceError, JsonlSink, MemorySink, ServiceManager, _disk, verify_evidence
from kgas_async._chain import GENESIS, Head, hash_of, head_path

from .faulty_disk import WATCHED, FaultyOs, FillsUp, fails, is_short
from .test_evidence import check_whole, double
from .test_sinks import one_session, open_files, read, unchained

ROOT = Path(__file__).parent.parent


def record(seq: int, session: str = "s") -> dict[str, Any]:
    return {"event": "x", "schema": 2, "seq": seq, "session_id": session, "text": "t" * 50}


def written(path: Path, count: int = 5, session: str = "s", **options: Any) -> Path:
    sink = JsonlSink(path, **options)
    sink.write([record(seq, session) for seq in range(1, count + 1)])
    sink.close()
    return path


def left_open(path: Path) -> Path:
    """A log whose session was killed."""
    written(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines))
    head_path(path).write_bytes(Head("open", 1, GENESIS, 3, sum(map(len, lines[:3])), hash_of(lines[2][:-1])).line())
    assert verify_evidence(path).state == "open"
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in folder.iterdir()}


# --- continued


def test_each_record_has_the_hash_of_the_one_before_over_sessions(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    for session in "abc":
        written(path, session=session)
    hashes = [GENESIS, *(hash_of(line) for line in path.read_bytes().splitlines())]
    assert [one["previous_sha256"] for one in read(path)] == hashes[:-1]
    report = verify_evidence(path)
    assert report.ok
    assert (report.records, report.last_sha256) == (15, hashes[-1])


def refused(path: Path, expected: str) -> None:
    """Opening it is an error that says so and names the mend, and changes nothing."""
    before, opened = files(path.parent), open_files()
    for sink in (JsonlSink(path), JsonlSink(path, max_bytes=100)):
        with pytest.raises(EvidenceError) as caught:
            sink.open()
        assert expected in str(caught.value), caught.value
        assert repr(str(path)) in str(caught.value)
        assert " evidence= path" in str(caught.value)
    assert files(path.parent) == before
    assert open_files() == opened


def test_evidence_of_an_older_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(b'{"event":"session.started","schema":1,"seq":1,"session_id":"a","time":"x"}\n')
    refused(path, "it is evidence of schema 1, and this is 2; move it away")


@pytest.mark.parametrize("content", [b'{"somebody":"else"}\n', b"name,age\n", b"\0" * 50, b"{"])
def test_what_is_no_evidence_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(content)
    refused(path, "it is no record of evidence; move it away")


def test_a_log_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "run.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    flipped = lines[2].replace(b"ttt", b"tut", 1)
    for changed, kind in (
        (lines[:-1], "truncated"),
        ([], "truncated"),
        ([*lines[:-1], lines[-1][:20]], "torn"),
        ([*lines[:-1], lines[-1][:-1]], "torn"),
        ([*lines[:2], *lines[3:]], "lost"),
        ([*lines[:2], flipped, *lines[3:]], "edited"),
        ([lines[0], lines[2], lines[1], *lines[3:]], "reordered"),
        ([*lines, lines[-1]], "duplicated"),
        ([*lines, b"{}\n"], "added"),
    ):
        path.write_bytes(b"".join(changed))
        refused(path, f" is {kind}: ")


def test_a_log_without_its_head_or_with_a_wrong_one_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "run.jsonl")
    content = head_path(path).read_bytes()
    head_path(path).unlink()
    refused(path, "run.jsonl.head is missing, and with it how the log ends; restore that file")
    for wrong in (b"", b"{}", content[:-1], content.replace(b'"schema":2', b'"schema":3')):
        head_path(path).write_bytes(wrong)
        refused(path, "run.jsonl.head is no head of evidence of schema 2")
    head_path(path).write_bytes(content.replace(b'"segment":1', b'"segment":2'))
    refused(path, "run.jsonl.head is of another segment")


def test_a_log_that_lacks_a_segment_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "run.jsonl", 20, max_bytes=700)
    assert verify_evidence(path).segments > 4
    (tmp_path / "run.jsonl.3").unlink()
    refused(path, "run.jsonl.2 goes on in run.jsonl.3, which is missing; restore it")
    sealed = head_path(tmp_path / "run.jsonl.2")
    sealed.write_bytes(sealed.read_bytes().replace(b"continued", b"sealed"))
    refused(path, "run.jsonl.3 is missing, though there is run.jsonl.4; restore it")


def test_a_log_that_lacks_its_last_segment_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "run.jsonl", 20, max_bytes=600)
    last = tmp_path / f"run.jsonl.{verify_evidence(path).segments}"
    last.unlink()
    refused(path, f" goes on in {last.name}, which is missing")
    head_path(last).unlink()
    refused(path, f" goes on in {last.name}, which is missing")
    assert verify_evidence(path).problem == "truncated"


@pytest.mark.parametrize("name", ["run.jsonl.20261129", "run.jsonl.2", "run.jsonl.3", "run.jsonl.bak", "run.jsonl.02"])
def test_a_copy_beside_a_log_is_no_segment_of_it(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / "run.jsonl")
    copy = tmp_path / name
    copy.write_bytes(path.read_bytes())
    copied = tmp_path / f"{name}.head" if name == "run.jsonl.20261129" else tmp_path / f"{name}.head.old"
    copied.write_bytes(head_path(path).read_bytes())
    assert verify_evidence(path).segments == 1
    written(path, session="next")
    report = verify_evidence(path)
    assert (report.ok, report.segments, report.records) == (True, 1, 10), str(report)
    assert copy.read_bytes()
    if name == "run.jsonl.2":  # where the next segment is to be
        with pytest.raises(EvidenceError, match=r"run.jsonl.2 has the name of its next segment, and is none of it"):
            JsonlSink(path, max_bytes=100).open()
    else:
        written(path, 1, "more", max_bytes=10)
        assert verify_evidence(path).ok


def test_a_log_whose_last_head_but_one_is_sealed_is_not_continued(tmp_path: Path) -> None:
    path = written(tmp_path / "run.jsonl", 3, max_bytes=400)
    assert verify_evidence(path).segments == 2
    head = head_path(path)
    head.write_bytes(head.read_bytes().replace(b"continued", b"sealed"))
    refused(path, "run.jsonl is not whole")


@pytest.mark.parametrize("number", [2, 3])
def test_a_session_killed_between_two_segments_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = tmp_path / "run.jsonl"
    replace = _disk.replace

    class Killed(BaseException): ...

    def killed(head: Path, data: bytes, *, synced: bool) -> None:
        if b"continued" in data and b'"segment":%d' % (number - 1) in data:
            raise Killed
        replace(head, data, synced=synced)

    sink = JsonlSink(path, max_bytes=600)
    with monkeypatch.context() as patch:
        patch.setattr(_disk, "replace", killed)
        with pytest.raises(Killed):
            for seq in range(1, 20):
                sink.write([record(seq)])
    sink.close()  # it has failed: nothing is sealed
    report = verify_evidence(path)
    assert (report.problem, report.state, report.segments) == (None, "open", number)
    before = report.records
    written(path, 3, "next", max_bytes=600)
    report = verify_evidence(path)
    assert (report.ok, report.records) == (True, before + 4)
    assert b'"continued"' in head_path(path).read_bytes()


def test_only_one_writes_also_in_another_process_and_a_killed_one_gives_it_free(tmp_path: Path) -> None:
    path = written(tmp_path / "run.jsonl")
    program = f"""
from kgas_async import JsonlSink
sink = JsonlSink({str(path)!r}); sink.open(); print("open", flush=True); input()
"""
    other = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        refused(path, "another session writes to it")
        other.kill()
    written(path, session="next")
    report = verify_evidence(path)
    assert (report.ok, report.records, report.recovered) == (True, 11, 0)


def test_a_process_that_a_tool_has_forked_does_not_keep_the_lock(tmp_path: Path) -> None:
    program = """
import os, signal, sys, time
from kgas_async import JsonlSink
sink = JsonlSink(sys.argv[1])
sink.open()
child = os.fork()
if child == 0:
    time.sleep(60)
    os._exit(0)
try:
    sink.close()
    JsonlSink(sys.argv[1]).open()
finally:
    os.kill(child, signal.SIGKILL)
"""
    path = tmp_path / "run.jsonl"
    done = subprocess.run([sys.executable, "-c", program, path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


FORKING = """
import multiprocessing, os, sys, warnings
import anyio
from kgas_async import EvidenceError, JsonlSink, ServiceManager, tool, verify_evidence

warnings.simplefilter("ignore")  # of forks in programs that have threads
backend, path = sys.argv[1:]
sink = JsonlSink(path, max_bytes=2000)

def meddle():
    sink.close()
    try:
        sink.write([{"event": "x", "schema": 2, "seq": 1, "session_id": "child"}])
    except EvidenceError as error:
        assert "was opened by another process, of which this one is a fork" in str(error)
    else:
        raise AssertionError("written")
    try:
        sink.open()
    except EvidenceError as error:
        assert "another session writes to it" in str(error)
    else:
        raise AssertionError("opened")
    sink.close()

@tool
async def forks() -> int:
    child = os.fork()
    if child == 0:
        try:
            meddle()
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]

@tool
def starts() -> int:
    process = multiprocessing.get_context("fork").Process(target=meddle)
    process.start()
    process.join()
    return process.exitcode

async def main() -> None:
    async with ServiceManager(evidence=sink, log=None) as manager:
        for _ in range(3):
            assert await manager.execute(forks) == 0
            assert await manager.execute(starts) == 0
            assert verify_evidence(path).state == "open"

anyio.run(main, backend=backend)
report = verify_evidence(path)
assert report.ok and report.segments > 1, str(report)
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_process_that_a_tool_has_forked_neither_seals_the_log_nor_writes_to_it(tmp_path: Path, backend: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKING, backend, tmp_path / "run.jsonl"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_fork_does_not_keep_the_lock_of_a_program_that_was_killed(tmp_path: Path) -> None:
    program = """
import os, signal, sys, time
from kgas_async import JsonlSink
sink = JsonlSink(sys.argv[1])
sink.open()
if os.fork() == 0:
    print(os.getpid(), flush=True)
    os.close(1)
    time.sleep(60)
    os._exit(0)
os.kill(os.getpid(), signal.SIGKILL)
"""
    path = tmp_path / "run.jsonl"
    done = subprocess.run([sys.executable, "-c", program, path], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert done.returncode == -signal.SIGKILL
    try:
        written(path, session="next")
        assert verify_evidence(path).ok
    finally:
        os.kill(int(done.stdout), signal.SIGKILL)


@pytest.mark.parametrize("max_bytes", [0, -1, True, "1", 1.5])
def test_a_size_that_is_none_is_refused(tmp_path: Path, max_bytes: Any) -> None:
    with pytest.raises(ValueError, match="max_bytes= is a number of bytes above 0"):
        JsonlSink(tmp_path / "x", max_bytes=max_bytes)


def test_fsync_is_a_flag(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="fsync= is True or False"):
        JsonlSink(tmp_path / "x", fsync="yes")  # type: ignore[arg-type]


def test_a_pipe_gets_chained_lines_and_nothing_else() -> None:
    reading, writing = os.pipe()
    path = Path(f"/proc/self/fd/{writing}")
    try:
        written(path, 2)
        lines = os.read(reading, 10_000).splitlines()
        assert json.loads(lines[1])["previous_sha256"] == hash_of(lines[0])
    finally:
        os.close(reading)
        os.close(writing)


# --- recovered


def test_a_line_torn_at_any_byte_is_kept_and_noted(tmp_path: Path) -> None:
    source = left_open(tmp_path / "source.jsonl")
    content, head = source.read_bytes(), head_path(source).read_bytes()
    begin = content.rindex(b"\n", 0, -1) + 1
    for kept in range(begin, len(content) + 1):
        path = tmp_path / "run.jsonl"
        path.write_bytes(content[:kept])
        head_path(path).write_bytes(head)
        written(path, session="next")
        assert path.read_bytes().startswith(content[:kept])
        report = verify_evidence(path)
        assert report.ok, (kept, report)
        whole = kept >= len(content) - 1
        assert report.recovered == (not whole and kept > begin)
        assert report.records == 4 + whole + 1 + 5
        note = json.loads(path.read_bytes()[kept:].lstrip(b"\n").splitlines()[0])
        assert note["event"] == "evidence.recovered"
        torn = b"" if whole or kept == begin else content[begin:kept] + b"\n"
        assert (note["torn_bytes"], note["torn_sha256"]) == (len(torn), hash_of(torn))


@pytest.mark.parametrize("torn", [b'{"event":"x', b"", b"no record\n"])
def test_what_was_torn_in_a_full_segment_is_noted_in_it(tmp_path: Path, torn: bytes) -> None:
    path = left_open(tmp_path / "run.jsonl")
    with path.open("ab") as file:
        file.write(torn)
    written(path, 2, "next", max_bytes=path.stat().st_size)
    report = verify_evidence(path)
    assert (report.ok, report.records, report.recovered, report.segments) == (True, 8, bool(torn), 2), str(report)


def test_a_torn_piece_that_is_removed_or_changed_later_is_found(tmp_path: Path) -> None:
    path = left_open(tmp_path / "run.jsonl")
    path.write_bytes(path.read_bytes()[:-30])
    written(path, session="next")
    lines = path.read_bytes().splitlines(keepends=True)
    for changed, kind in (
        ([*lines[:4], *lines[5:]], "lost"),
        ([*lines[:4], lines[4].replace(b"x", b"y", 1), *lines[5:]], "edited"),
        ([*lines[:5], *lines[6:]], "edited"),
        ([*lines[:3], *lines[4:]], "lost"),
    ):
        path.write_bytes(b"".join(changed))
        assert verify_evidence(path).problem == kind


def test_what_an_open_head_knows_must_be_there(tmp_path: Path) -> None:
    path = left_open(tmp_path / "run.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + lines[2][:30])
    refused(path, " is torn: ")
    path.write_bytes(b"".join(lines[:2]))
    refused(path, " is truncated: ")


def test_a_recovery_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = left_open(tmp_path / "run.jsonl")
    path.write_bytes(path.read_bytes()[:-30])
    written(path, session="next")
    assert "run.jsonl was not closed by its last session; " in caplog.text
    assert "torn bytes are kept in it, and noted" in caplog.text
    caplog.clear()
    written(path)
    assert not caplog.records


@pytest.mark.real_time
def test_killed_at_any_call_of_the_system_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.evidence_crashes", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert int(done.stdout) > 300


# --- segments


@pytest.mark.parametrize("max_bytes", [1, 500, 1999, 100_000])
def test_segments_are_no_larger_than_said_but_for_one_record(tmp_path: Path, max_bytes: int) -> None:
    path = tmp_path / "run.jsonl"
    for session in "ab":
        written(path, 23, session, max_bytes=max_bytes)
    report = verify_evidence(path)
    assert report.ok
    assert report.records == 46
    parts = [one for one in tmp_path.iterdir() if one.suffix != ".head"]
    assert len(parts) == report.segments
    assert len(parts) == {1: 46, 500: 23, 100_000: 1}.get(max_bytes, len(parts))
    for part in parts:
        content = part.read_bytes()
        assert len(content) <= max_bytes or content.count(b"\n") == 1
        assert not list(tmp_path.glob("*.new"))


def test_a_value_that_is_named_as_the_link_breaks_no_segment(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    sink = JsonlSink(path, max_bytes=600)
    sink.write([record(seq) | {"inputs": {"previous_sha256": "text"}} for seq in range(1, 10)])
    sink.close()
    report = verify_evidence(path)
    assert (report.ok, report.records) == (True, 9), str(report)
    assert report.segments > 2


# --- disks that fail


async def session(path: Path, **options: Any) -> MemorySink:
    kept = MemorySink()
    async with ServiceManager(evidence=[JsonlSink(path, **options), kept], log=None) as manager:
        for number in range(12):
            await manager.execute(double, x=number)
    return kept


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        *[(name, lambda: fails(errno.EIO)) for name in WATCHED],
        ("write", lambda: fails(errno.ENOSPC)),
        ("open", lambda: fails(errno.EROFS)),
        ("write", FillsUp),
    ],
)
async def test_whichever_call_fails_the_session_does_not_end_as_if_nothing_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, fault: Callable[[], Any]
) -> None:
    at = 0
    while True:
        at += 1
        path = tmp_path / str(at) / "run.jsonl"
        path.parent.mkdir()
        written(path)
        before, opened = path.read_bytes(), open_files()
        faulty = FaultyOs((name,), at, fault(), lasting=fault is FillsUp)
        monkeypatch.setattr(_disk, "os", faulty)
        try:
            kept = await session(path, max_bytes=1500, fsync=True)
        except EvidenceError as error:
            failed: EvidenceError | None = error
        else:
            failed = None
        finally:
            monkeypatch.undo()
        assert open_files() == opened
        if not faulty.struck:
            assert failed is None
            check_whole(kept.records)
            report = verify_evidence(path)
            assert report.ok
            assert report.records == 5 + len(kept.records)
            break
        assert failed is not None, f"{name} failed at {at}, and nobody said so"
        assert str(path) in str(failed)
        assert path.read_bytes().startswith(before)
        report = verify_evidence(path)
        # A log is whole only if the session did not begin, or had ended when the fault came.
        assert not report.ok or report.records in (5, 5 + 14), report
        assert report.problem in (None, "torn", "truncated"), report
        written(path, session="next")
        assert verify_evidence(path).ok
    assert at > 3


async def test_writes_that_take_a_part_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_disk, "os", FaultyOs(("write",), 1, is_short, lasting=True))
    kept = await session(tmp_path / "run.jsonl", max_bytes=1500)
    monkeypatch.undo()
    report = verify_evidence(tmp_path / "run.jsonl")
    assert (report.ok, report.records) == (True, len(kept.records))


async def test_after_a_failed_write_nothing_more_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = JsonlSink(tmp_path / "run.jsonl")
    sink.write([record(1)])
    monkeypatch.setattr(_disk, "os", FaultyOs(("write",), 1, fails(errno.ENOSPC)))
    with pytest.raises(OSError, match="No space left"):
        sink.write([record(2)])
    monkeypatch.undo()
    with pytest.raises(EvidenceError, match="has failed and takes no further records"):
        sink.write([record(3)])
    sink.close()
    assert verify_evidence(sink.path).state == "open"
    sink.write([record(4)])  # opened again, it is recovered
    sink.close()
    report = verify_evidence(sink.path)
    assert (report.ok, report.records) == (True, 3)


@pytest.mark.parametrize("hours", [-1, 1])
async def test_a_clock_that_jumps_breaks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:  # fmt: skip
    path = tmp_path / "run.jsonl"
    await one_session(path)
    real = time.time_ns
    async with ServiceManager(evidence=path, log=None) as manager:
        await manager.execute(double, x=1)
        monkeypatch.setattr(time, "time_ns", lambda: real() + hours * 3600 * 10**9)
        await manager.execute(double, x=2)
    await one_session(path)
    assert verify_evidence(path).ok
    records = read(path)
    for name in {one["session_id"] for one in records}:
        ours = [one for one in records if one["session_id"] == name]
        check_whole(unchained(ours))
        ended = [one["time"] for one in ours if one["event"].startswith("call.") and "status" in one]
        assert ended == sorted(ended)
