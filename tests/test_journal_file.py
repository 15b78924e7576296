"""The journal's file by itself: what is committed is there, and what is no journal of ours is refused untouched."""

from __future__ import annotations

import errno
import os
import random
import sqlite3
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from kgas_async import JournalError
from kgas_async._disk import name_new
from kgas_async._journal_file import APPLICATION, SCHEMA, Ended, JournalFile, Row, Source, error_of

from .programs import Program


def row(item: str, value: bytes = b"1", place: str = "", phase: str = "a", source: int = 1) -> Row:
    return Row(item, place, phase, source, b"i" * 16, value)


def made(path: Path, rows: int = 20) -> bytes:
    """A journal with some rows; its bytes."""
    file = JournalFile(str(path))
    file.open("papers", "run1")
    number = file.number_of(Source("a", "tool", "0", "json", ""))
    file.begin()
    file.write(
        [row(f"k{n}", b'"%d"' % n, source=number) for n in range(rows)], [("k0", Ended("succeeded", None, None))]
    )
    file.commit()
    file.close("ended")
    return path.read_bytes()


def test_what_was_committed_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    made(path)
    file = JournalFile(str(path))
    file.open("papers", "run2")
    found = file.recorded("k3")
    assert (found.times, found.ended, found.rows) == (0, None, {("", "a"): row("k3", b'"3"')})
    assert file.recorded("k0").ended == Ended("succeeded", None, None)
    assert file.recorded("k3").times == 1
    assert file.recorded("new", numbers=True).item == "new"
    assert file.recorded("new", numbers=True).item == "new#1"
    assert file.run == 2
    file.close("ended")
    assert list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_that_a_full_disk_has_broken_off_harms_nothing(tmp_path: Path) -> None:
    made(tmp_path / "run.db")
    file = JournalFile(str(tmp_path / "run.db"))
    file.open("papers", "run2")
    number = file.number_of(Source("a", "tool", "0", "json", ""))
    file.begin()
    file.write([row(f"new{n}", b"9" * 1000, source=number) for n in range(100)], [])
    file.commit()
    path = tmp_path / "cut" / "run.db"
    path.parent.mkdir()
    for ending in ("", "-wal"):  # as a kill leaves it
        path.with_name(f"run.db{ending}").write_bytes((tmp_path / f"run.db{ending}").read_bytes())
    file.close("ended")
    log = path.with_name("run.db-wal").read_bytes()
    size = int.from_bytes(log[8:12], "big")
    frames = [log[at : at + 24 + size] for at in range(32, len(log), 24 + size)]
    first = [frame[24:] for frame in frames if frame[:4] == (1).to_bytes(4, "big")][-1]
    with path.open("r+b") as begun:  # the first page is in the file, and says how many there are; there was no room
        begun.write(first)
    assert int.from_bytes(first[28:32], "big") * size > path.stat().st_size
    file = JournalFile(str(path))
    file.open("papers", "run3")
    assert file.recorded("new99").rows == {("", "a"): row("new99", b"9" * 1000, source=number)}
    assert file.recorded("k3").rows
    file.close("ended")


def test_what_was_not_committed_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    made(path)
    file = JournalFile(str(path))
    file.open("papers", "run2")
    file.begin()
    file.write([row("late")], [])
    file.break_off()
    file.open("papers", "run3")
    assert file.recorded("late").rows == {}
    file.close("ended")


def test_keys_that_no_encoding_has_are_kept(tmp_path: Path) -> None:
    file = JournalFile(str(tmp_path / "run.db"))
    file.open("papers", "run1")
    file.begin()
    file.write([row("caf\udce9"), row("né"), row("")], [("caf\udce9", Ended("failed", "a", "no"))])
    file.commit()
    file.close("ended")
    file.open("papers", "run2")
    for key in ("caf\udce9", "né", ""):
        assert len(file.recorded(key).rows) == 1
    file.close("ended")


def refused(path: Path, words: str, pipeline: str = "papers") -> None:
    """It is refused with these words, and nothing is changed by that."""
    before = {one: one.read_bytes() for one in path.parent.iterdir() if one.is_file()}
    file = JournalFile(str(path))
    with pytest.raises(JournalError, match=words) as caught:
        file.open(pipeline, "run9")
    assert caught.value.path == str(path)
    assert {one: one.read_bytes() for one in path.parent.iterdir() if one.is_file()} == before


def test_another_pipelines_journal_is_refused(tmp_path: Path) -> None:
    made(tmp_path / "run.db")
    refused(tmp_path / "run.db", "is of pipeline 'papers', not of 'books'", pipeline="books")


def test_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    made(path)
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode=DELETE")
        database.execute(f"PRAGMA user_version={SCHEMA + 1}")
    refused(path, f"has schema {SCHEMA + 1}, and this version of kgas_async writes schema {SCHEMA}")


def test_a_database_of_somebody_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE mine(x)")
    refused(path, "is a database, but no journal of kgas_async")


@pytest.mark.parametrize("content", [b"", b"no database", b"\0" * 5000])
def test_what_is_no_database_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.db"
    path.write_bytes(content)
    refused(path, "is empty, so it is none|damaged|no journal of kgas_async")


def test_a_folder_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "run.db").mkdir()
    refused(tmp_path / "run.db", "run.db")
    file = JournalFile(str(tmp_path / "none" / "run.db"))
    with pytest.raises(JournalError, match=r"none/run\.db"):
        file.open("papers", "run1")


def intact(path: Path, rows: int = 20) -> bool:
    """Whether it opens and gives what was written; what it gives is right, or it raises a `JournalError`."""
    file = JournalFile(str(path))
    try:
        file.open("papers", "run2")
    except JournalError:
        return False
    try:
        for number in range(rows):
            for found in file.recorded(f"k{number}").rows.values():
                assert found.value == b'"%d"' % number
    except (JournalError, sqlite3.DatabaseError):  # the second, the journal's thread makes a JournalError of
        return False
    finally:
        file.break_off()
    return True


def test_truncated_at_any_byte_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    whole = made(path)
    sizes = {*range(200), *range(0, len(whole), 97), *range(len(whole) - 50, len(whole))}
    for size in sorted(sizes):
        path.write_bytes(whole[:size])
        before = path.read_bytes()
        assert not intact(path), f"cut to {size} of {len(whole)}"
        assert path.read_bytes() == before


def test_a_flipped_bit_never_gives_a_wrong_value(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    whole = made(path)
    seen = 0
    for place in random.Random(1).sample(range(len(whole)), 300):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place % 8)
        path.write_bytes(flipped)
        seen += not intact(path)
    values = [whole.index(b'"%d"' % number) for number in range(20)]
    for place in values:
        flipped = bytearray(whole)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        assert not intact(path)


def test_two_at_once_are_refused_also_in_one_process(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    made(path)
    first = JournalFile(str(path))
    first.open("papers", "run2")
    refused_file = JournalFile(str(path))
    with pytest.raises(JournalError, match="another run, or another program, has it open"):
        refused_file.open("papers", "run3")
    first.begin()
    first.write([row("more")], [])
    first.commit()
    first.close("ended")
    second = JournalFile(str(path))
    second.open("papers", "run4")
    assert len(second.recorded("more").rows) == 1
    second.close("ended")


OTHER = """
import sys
from kgas_async._journal_file import JournalFile
try:
    JournalFile(sys.argv[1]).open("papers", "run4")
    say("open")
except JournalError as error:
    say(f"refused: {error}")
"""


def test_one_that_is_refused_leaves_the_first_its_lock_against_other_processes(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    made(path)
    (tmp_path / "same.db").symlink_to(path)
    first = JournalFile(str(path))
    first.open("papers", "run2")
    for name in ("run.db", "same.db"):
        with pytest.raises(JournalError, match="another run, or another program, has it open"):
            JournalFile(str(tmp_path / name)).open("papers", "run3")
    with Program(OTHER, str(path)) as other:
        assert "another run, or another program, has it open" in other.line()
    first.close("ended")
    with Program(OTHER, str(path)) as other:
        assert other.line() == "open"


HOLDER = """
import sys
from kgas_async._journal_file import JournalFile, Row
file = JournalFile(sys.argv[1])
file.open("papers", "run2")
file.begin()
file.write([Row("theirs", "", "a", 1, b"i" * 16, b"1")], [])
file.commit()
say("open")
time.sleep(60)
"""


def test_another_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    made(path)
    with Program(HOLDER, str(path)) as holder:
        holder.until("open")
        file = JournalFile(str(path))
        with pytest.raises(JournalError, match="another run, or another program, has it open"):
            file.open("papers", "run3")
        holder.kill(9)
        holder.code()
        file.open("papers", "run3")
        assert len(file.recorded("theirs").rows) == 1  # what a killed process had committed is there
        file.close("ended")


READER = """
import sys
from kgas_async._journal_file import JournalFile
os.setgid(65534)
os.setuid(65534)
try:
    JournalFile(sys.argv[1]).open("papers", "run2")
except JournalError as error:
    say(error)
"""


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can become somebody else")
def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    whole = made(path)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    path.chmod(0o444)
    with Program(READER, str(path)) as program:
        said = program.rest()
    assert len(said) == 1
    assert "it cannot be written to" in said[0]
    assert path.read_bytes() == whole


def test_half_of_a_new_file_is_never_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(*names: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", no_link)
    file = JournalFile(str(tmp_path / "run.db"))
    with pytest.raises(JournalError, match="No space left on device"):
        file.open("papers", "run1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK])
def test_where_there_are_no_hard_links_a_journal_is_made_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def no_link(*names: str) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", no_link)
    path = tmp_path / "run.db"
    made(path)
    assert intact(path)
    assert list(tmp_path.iterdir()) == [path]

    before = path.read_bytes()
    late = tmp_path / "late"
    late.write_bytes(b"of a run that was slower")
    with pytest.raises(FileExistsError):
        name_new(late, path)
    assert path.read_bytes() == before


RACER = """
import errno, sys
def no_link(*names):
    raise OSError(errno.EPERM, "Operation not permitted")
os.link = no_link
from kgas_async._journal_file import JournalFile
try:
    file = JournalFile(sys.argv[1])
    say("ready")
    while not os.path.exists(sys.argv[2]):
        pass
    file.open("papers", "run2")
    say(f"open as {file.run}")
    time.sleep(60)
except JournalError as error:
    say(f"refused: {error}")
"""


def test_of_those_who_make_it_at_once_without_hard_links_one_has_it(tmp_path: Path) -> None:
    for number in range(3):
        path = tmp_path / f"{number}.db"
        with ExitStack() as stack:
            racers = [stack.enter_context(Program(RACER, str(path), str(tmp_path / f"go {number}"))) for _ in range(4)]
            for racer in racers:
                racer.until("ready")
            (tmp_path / f"go {number}").touch()
            said = [racer.line() for racer in racers]
            assert said.count("open as 1") == 1, said
            assert sum("another run" in line for line in said) == 3, said
            for racer in racers:
                racer.kill(9)


def test_the_header_says_whose_it_is(tmp_path: Path) -> None:
    whole = made(tmp_path / "run.db")
    assert whole[68:72] == APPLICATION.to_bytes(4, "big")
    assert whole[60:64] == SCHEMA.to_bytes(4, "big")


def test_the_log_of_a_journal_that_is_gone_is_no_part_of_a_new_one(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    file = JournalFile(str(path))
    file.open("papers", "run1")
    file.begin()
    file.write([row(f"k{number}") for number in range(20)], [])
    file.commit()
    log = Path(f"{path}-wal").read_bytes()  # as a kill leaves it
    file.close("ended")
    path.unlink()
    Path(f"{path}-wal").write_bytes(log)
    refused(path, "run.db-wal.*is not there any more")
    Path(f"{path}-wal").unlink()
    assert intact(path, 0)


@pytest.mark.parametrize("kind", ["pipe", "device", "link to nothing"])
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "run.db"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/null" if kind == "device" else tmp_path / "none" / "run.db")
    with pytest.raises(JournalError, match="is no file"):
        JournalFile(str(path)).open("papers", "run1")


def test_a_journal_in_a_folder_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match=r"there is no folder '.*none'; make it first"):
        JournalFile(str(tmp_path / "none" / "run.db")).open("papers", "run1")


def test_what_the_system_says_is_not_read_out_of_the_path() -> None:
    error = PermissionError(1, "Operation not permitted", "/data/full/locked/run.db")
    assert "disk is full" not in str(error_of("/data/full/locked/run.db", error))
    assert "another run" not in str(error_of("/data/full/locked/run.db", error))
