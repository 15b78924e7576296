"""Where evidence goes: files that are continued and never truncated, memory, sinks of the user's."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import EvidenceError, JsonlSink, MemorySink, ServiceManager, tool, verify_evidence
from kgas_async._chain import GENESIS, head_path

from .test_evidence import check_whole, double, ends

Rows = Sequence[Mapping[str, Any]]


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def unchained(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As other sinks see them."""
    return [{name: value for name, value in record.items() if name != "previous_sha256"} for record in records]


def open_files() -> list[str]:
    """What this process has open, but for the folder that says so."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(descriptor.readlink()))
        except FileNotFoundError:
            continue
    return sorted(one for one in found if not one.startswith("/proc"))


async def one_session(evidence: Any, calls: int = 1) -> None:
    async with ServiceManager(evidence=evidence, log=None) as manager:
        for number in range(calls):
            await manager.execute(double, x=number)


# --- files


@pytest.mark.parametrize("give", [str, Path, JsonlSink, lambda path: [path], lambda path: (str(path),)])
async def test_a_path_in_any_form_names_a_file_of_json_lines(tmp_path: Path, give: Any) -> None:
    file = tmp_path / "evidence.jsonl"
    await one_session(give(file))
    check_whole(read(file))
    assert len(ends(read(file))) == 1


async def test_an_existing_log_is_continued_and_never_truncated(tmp_path: Path) -> None:
    file = tmp_path / "evidence.jsonl"
    lengths = []
    for _ in range(3):
        before = file.read_bytes() if file.exists() else b""
        await one_session(file)
        assert file.read_bytes().startswith(before)
        lengths.append(len(before))
    assert len({record["session_id"] for record in read(file)}) == 3
    assert lengths == sorted(set(lengths))
    assert verify_evidence(file).ok


@pytest.mark.parametrize("where", ["missing/evidence.jsonl", "", "file/evidence.jsonl", "nul\0", "half\ud800"])
async def test_a_file_that_cannot_be_written_is_said_on_entering(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    wrong = tmp_path / where
    manager = ServiceManager(evidence=[tmp_path / "good.jsonl", wrong], log=None)
    before = open_files()
    with pytest.raises(EvidenceError) as caught:
        async with manager:
            raise AssertionError("entered")
    assert repr(str(wrong)) in str(caught.value)
    assert "evidence=" in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError | ValueError)
    assert open_files() == before
    if where.startswith("missing"):
        wrong.parent.mkdir()
        async with manager:  # the same manager, once that is mended
            await manager.execute(double, x=1)
        check_whole(read(wrong))


async def test_a_relative_path_is_that_of_the_working_directory_at_construction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @tool
    def moves() -> None:
        monkeypatch.chdir(tmp_path / "elsewhere")

    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "before").mkdir()
    monkeypatch.chdir(tmp_path)
    manager = ServiceManager(evidence="evidence.jsonl", log=None)
    monkeypatch.chdir(tmp_path / "before")
    async with manager:
        await manager.execute(moves)
        await manager.execute(double, x=1)
    assert len(ends(read(tmp_path / "evidence.jsonl"))) == 2
    assert not list((tmp_path / "before").iterdir()) + list((tmp_path / "elsewhere").iterdir())
    assert Path.cwd() == tmp_path / "elsewhere"


async def test_a_second_session_in_the_same_file_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "evidence.jsonl"
    async with ServiceManager(evidence=file, log=None) as manager:
        await manager.execute(double, x=1)
        for _ in range(2):
            with pytest.raises(EvidenceError, match=r"evidence\.jsonl.*another session writes to it.*evidence= path"):
                await one_session(str(file))
        await manager.execute(double, x=2)
    check_whole(read(file))
    assert len(ends(read(file))) == 2
    assert verify_evidence(file).ok
    await one_session(file)  # it is free again


async def test_one_sink_is_of_one_session_at_a_time(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "evidence.jsonl")
    other = JsonlSink(tmp_path / "other.jsonl")
    async with ServiceManager(evidence=sink, log=None) as manager:
        with pytest.raises(EvidenceError, match=r"evidence\.jsonl.*is in use.*its own path"):
            async with ServiceManager(evidence=[other, sink], log=None):
                raise AssertionError("entered")
        await manager.execute(double, x=1)
    with pytest.raises(EvidenceError, match="is in use"):
        await one_session([other, other])
    await one_session([sink, other])  # one after the other they may
    assert not [one for one in open_files() if str(tmp_path) in one]
    for written in (sink, other):
        assert verify_evidence(written.path).ok
    assert verify_evidence(sink.path).sessions == 2


async def test_the_file_is_closed_when_the_manager_is_left_and_readable_before(tmp_path: Path) -> None:
    file = tmp_path / "evidence.jsonl"
    before = open_files()
    async with ServiceManager(evidence=file, log=None) as manager:
        await manager.execute(double, x=1)
        while b"call.succeeded" not in file.read_bytes():  # noqa: ASYNC110  (the writer's delay)
            await anyio.sleep(0.005)
    assert open_files() == before


def test_a_file_sink_may_be_used_alone(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "x.jsonl")
    sink.write([{"b": "ü", "a": [1, {"d": None, "c": True}]}])
    sink.close()
    sink.write([{"more": "\udc80"}])
    sink.close()
    sink.close()
    assert sink.path.read_text(encoding="utf-8") == (
        f'{{"a":[1,{{"c":true,"d":null}}],"b":"ü","previous_sha256":"{GENESIS}"}}\n'
        f'{{"more":"\\\\udc80","previous_sha256":"{read(sink.path)[1]["previous_sha256"]}"}}\n'
    )
    assert verify_evidence(sink.path).ok


# --- memory, and sinks of the user's


async def test_each_of_several_sinks_gets_the_same_records(tmp_path: Path) -> None:
    file, one, two = tmp_path / "evidence.jsonl", MemorySink(), MemorySink()
    await one_session([one, str(file), [two]], calls=700)
    assert one.records == two.records == unchained(read(file))
    check_whole(one.records)
    assert all(type(record) is dict for record in one.records)


async def test_a_sink_gets_mappings_in_order_and_is_closed_once_at_the_end() -> None:
    class Plain:
        def __init__(self) -> None:
            self.log: list[Any] = []

        def write(self, records: Rows) -> None:
            assert isinstance(records, Sequence)
            for record in records:
                assert isinstance(record, Mapping)
                assert dict(record) == {name: record[name] for name in record}
                assert len(record) == len(dict(record))
                assert "event" in record
                assert record.get("nothing") is None
                self.log.append(record["seq"])

        def close(self) -> None:
            self.log.append("closed")

    sink = Plain()
    await one_session(sink, calls=5)
    assert sink.log == [*range(1, 8), "closed"]


async def test_a_subclass_of_the_file_sink_that_writes_in_its_own_way_is_asked(tmp_path: Path) -> None:
    class Upper(JsonlSink):
        def write(self, records: Rows) -> None:
            super().write([{"tool": record.get("tool", "").upper()} for record in records])

    await one_session(Upper(tmp_path / "x.jsonl"))
    assert [record["tool"] for record in read(tmp_path / "x.jsonl")] == ["", "DOUBLE", ""]


@pytest.mark.parametrize("wrong", [5, b"x.jsonl", MemorySink, [MemorySink(), None, 7], {"a": 1}])
def test_what_is_no_evidence_is_refused_at_construction(wrong: Any) -> None:
    with pytest.raises(TypeError, match="evidence= is a path, a sink"):
        ServiceManager(evidence=wrong)


# --- sinks that fail


class Failing:
    """Raises where it is told to, and notes what it was asked for."""

    def __init__(self, where: str, error: type[BaseException] = OSError, after: int = 0) -> None:
        self.where, self.error, self.after = where, error, after
        self.got: list[str] = []
        self.closed = 0

    def __repr__(self) -> str:
        return "the failing sink"

    def write(self, records: Rows) -> None:
        if self.where == "write" and len(self.got) >= self.after:
            raise self.error("it is broken")
        self.got.extend(record["event"] for record in records)

    def close(self) -> None:
        self.closed += 1
        if self.where == "close":
            raise self.error("it is broken")


@pytest.mark.parametrize("error", [OSError, RuntimeError, SystemExit, KeyboardInterrupt, anyio.EndOfStream])
async def test_a_sink_that_raises_stops_the_session_and_says_so_on_leaving(error: type[BaseException]) -> None:
    failing, kept = Failing("write", error), MemorySink()
    manager = ServiceManager(evidence=[failing, kept], log=None)
    ended: list[str] = []
    with pytest.raises(EvidenceError, match=r"the failing sink failed .* it is broken") as caught:
        async with manager:
            try:
                await anyio.sleep_forever()  # cancelled at once, with no call of ours
            finally:
                ended.append("the body")
    assert type(caught.value.__cause__) is error
    assert ended == ["the body"]
    assert failing.closed == 1
    check_whole(kept.records)
    assert [record["event"] for record in kept.records] == ["session.started", "evidence.failed", "session.ended"]
    assert "it is broken" in kept.records[1]["error"]["message"]
    assert kept.records[-1]["status"] == "failed"


async def test_a_failed_sink_gets_nothing_more_while_the_session_goes_on_if_it_is_told_to() -> None:
    failing, kept = Failing("write", after=3), MemorySink()
    async with ServiceManager(evidence=[failing, kept], log=None, on_sink_error="continue") as manager:
        for number in range(3000):
            await manager.execute(double, x=number)
    check_whole(kept.records)
    assert len(ends(kept.records)) == 3000
    assert [record["event"] for record in kept.records].count("evidence.failed") == 1
    assert "session.ended" not in failing.got
    assert failing.closed == 1


@pytest.mark.parametrize("where", ["write", "close"])
async def test_a_failure_at_the_very_end_is_not_lost(where: str) -> None:
    def sinks() -> list[Any]:
        return [Failing(where, after=1 if where == "write" else 0), MemorySink()]

    ours = sinks()
    with pytest.raises(EvidenceError, match="it is broken"):
        async with ServiceManager(evidence=ours, log=None) as manager:
            while not ours[1].records:  # noqa: ASYNC110  (the writer's delay)
                await anyio.sleep(0.002)
            await manager.execute(double, x=1)
    ours = sinks()
    async with ServiceManager(evidence=ours, log=None, on_sink_error="continue") as manager:
        while not ours[1].records:  # noqa: ASYNC110
            await anyio.sleep(0.002)
        await manager.execute(double, x=1)
    assert ours[1].records[-1]["event"] == "evidence.failed"
    assert ours[0].closed == 1


async def test_the_error_of_the_body_is_beside_the_reason_of_the_evidences() -> None:
    failing = Failing("close")
    with pytest.raises(EvidenceError) as caught:
        async with ServiceManager(evidence=failing, log=None):
            raise LookupError("the body's")
    assert isinstance(caught.value.__cause__, OSError)
    assert isinstance(caught.value.__context__, LookupError)
    assert 'LookupError("the body\'s")' in caught.value.__notes__[0]


@pytest.mark.parametrize("where", ["write", "close"])
async def test_where_nothing_else_listens_a_failure_is_said_by_logging(
    caplog: pytest.LogCaptureFixture, where: str
) -> None:
    async with ServiceManager(evidence=Failing(where), log=None, on_sink_error="continue") as manager:
        await manager.execute(double, x=1)
    assert [(record.levelname, record.name) for record in caplog.records] == [("ERROR", "kgas_async")]
    assert "the failing sink failed and gets no further records: it is broken" in caplog.text


async def test_two_sinks_that_fail_leave_the_third_to_say_so() -> None:
    kept = MemorySink()
    async with ServiceManager(
        evidence=[Failing("write"), kept, Failing("write", SystemExit)], log=None, on_sink_error="continue"
    ) as manager:
        await manager.execute(double, x=1)
    check_whole(kept.records)
    assert [record["event"] for record in kept.records].count("evidence.failed") == 2


async def test_a_stopped_session_cancels_calls_in_threads_too() -> None:
    began, release = threading.Event(), threading.Event()

    @tool
    def stuck() -> None:
        began.set()
        release.wait()

    class Patient(Failing):
        def write(self, records: Rows) -> None:
            began.wait()
            super().write(records)

    kept = MemorySink()
    try:
        with pytest.raises(EvidenceError):
            async with ServiceManager(evidence=[Patient("write"), kept], log=None, grace=0.05) as manager:
                await manager.execute(stuck)
    finally:
        release.set()
    check_whole(kept.records)
    assert [(one["status"], one.get("abandoned")) for one in ends(kept.records)] == [("cancelled", True)]


# --- disks that fill


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder where a file cannot grow above 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() == 0 and os.system(f"mount -t tmpfs -o size=256k tmpfs {folder} 2>/dev/null") == 0:
        yield folder
        os.system(f"umount -l {folder}")
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256 * 1024, hard))  # Python ignores SIGXFSZ: it is an OSError
    yield folder
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def whole_lines(file: Path) -> list[dict[str, Any]]:
    *lines, torn = file.read_bytes().split(b"\n")
    assert len(torn) < 1000
    return [json.loads(line) for line in lines]


async def test_a_disk_that_fills_stops_the_session_at_once(small_disk: Path) -> None:
    file, kept = small_disk / "evidence.jsonl", MemorySink()
    begun = done = 0

    @tool
    async def count(x: int) -> int:
        nonlocal begun
        begun += 1
        await checkpoint()
        return x

    with pytest.raises(EvidenceError, match=r"evidence\.jsonl") as caught:
        async with ServiceManager(evidence=[file, kept], log=None) as manager:
            async with manager.map(count, range(100_000), arg="x") as outcomes:
                async for outcome in outcomes:
                    done += outcome.ok
            raise AssertionError("the map ran to its end")
    assert isinstance(caught.value.__cause__, OSError)
    check_whole(kept.records)
    records = whole_lines(file)
    assert [record["seq"] for record in records] == list(range(1, len(records) + 1))
    assert file.stat().st_size > 200_000
    assert len(ends(records)) <= begun < 50_000  # at once: not even begun, let alone taken
    assert done <= begun


async def test_a_disk_that_fills_is_said_and_the_session_goes_on_if_it_is_told_to(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = small_disk / "evidence.jsonl"
    done = 0
    async with (
        ServiceManager(evidence=file, log=None, on_sink_error="continue") as manager,
        manager.map(double, range(5_000), arg="x") as outcomes,
    ):
        async for outcome in outcomes:
            done += outcome.ok
    assert done == 5_000
    assert "evidence.jsonl" in caplog.text
    assert not verify_evidence(file).ok
    # Once there is room again the file is continued behind its torn line, which is noted.
    size = file.stat().st_size
    copy = Path(shutil.copy(file, small_disk.parent))
    shutil.copy(head_path(file), small_disk.parent)
    await one_session(copy)
    note, *records = [json.loads(line) for line in copy.read_bytes()[size:].splitlines() if line]  # noqa: ASYNC240
    check_whole(unchained(records))
    assert note["event"] == "evidence.recovered"
    assert verify_evidence(copy).ok


async def test_a_device_that_takes_nothing_is_said() -> None:
    with pytest.raises(EvidenceError, match="/dev/full"):
        await one_session("/dev/full")
