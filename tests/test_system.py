"""What the machine gives us."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from kgas_async import _guard, _system


@pytest.mark.parametrize(
    ("own", "quotas", "expected"),
    [
        ("0::/\n", {}, 8),
        ("0::/\n", {".": "150000 100000"}, 2),
        ("0::/\n", {".": "max 100000"}, 8),
        ("0::/a/b\n", {"a": "300000 100000", "a/b": "max 100000"}, 3),
        ("0::/a/b\n", {"a": "300000 100000", "a/b": "50000 100000"}, 1),
        ("1:cpu:/\n", {".": "100000 100000"}, 1),
        ("0::/\n", {".": "nonsense"}, 8),
        ("0::/../outside\n", {}, 8),
    ],
)
def test_cpus_are_those_of_the_affinity_within_the_quotas_of_our_cgroups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, quotas: dict[str, str], expected: int
) -> None:
    for folder, quota in quotas.items():
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "cpu.max").write_text(quota)
    file = tmp_path / "own"
    file.write_text(own)
    monkeypatch.setattr(_system, "_CGROUPS", tmp_path)
    monkeypatch.setattr(_system, "_OWN_CGROUP", file)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert _system.cpus() == expected


def test_where_there_are_no_cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_system, "_CGROUPS", tmp_path / "nothing")
    monkeypatch.setattr(_system, "_OWN_CGROUP", tmp_path / "nothing")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    assert _system.cpus() == 3


MARK = f"TESTS_{secrets.token_hex(8)}"  # there may be others of these tests
NOBODYS = 4_200_000  # a session id, and more than there can be
FAMILY = """
import os, time
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
    os.write(1, b"%d\\n" % os.getpid())
    time.sleep(1000)
os.write(1, b"%d\\n" % os.getpid())
os.fork()
os.write(1, b"%d\\n" % os.getpid())
time.sleep(1000)
"""


@pytest.fixture
def family() -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A process in a session of its own with three descendants, one of which has left the session."""
    leader = subprocess.Popen(
        [sys.executable, "-c", FAMILY], env={**os.environ, MARK: "1"}, start_new_session=True, text=True,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert leader.stdout is not None
    pids = {int(leader.stdout.readline()) for _ in range(5)}
    yield leader, sorted(pids - {leader.pid})
    leader.stdout.close()
    for pid in filter(_is_alive, pids):
        os.kill(pid, signal.SIGKILL)
    leader.wait()


def test_kill_session_kills_all_but_the_leader(family: tuple[subprocess.Popen[str], list[int]]) -> None:
    leader, others = family
    assert len(others) == 3
    assert _system.kill_session(leader.pid, MARK) == 3
    assert leader.poll() is None
    assert not any(_is_alive(pid) for pid in others)
    assert _system.kill_session(leader.pid, MARK) <= 3  # zombies at the most


def test_the_guard_kills_a_whole_session_with_its_leader(family: tuple[subprocess.Popen[str], list[int]]) -> None:
    leader, others = family
    guard = subprocess.Popen([sys.executable, "-I", "-S", _guard.__file__], stdin=subprocess.PIPE)
    assert guard.stdin is not None
    guard.stdin.write(f"+ 4000000 NOTHING\n- 4000000 -\n+ {leader.pid} {MARK}\n".encode())
    guard.stdin.close()
    assert guard.wait(20) == 0
    assert leader.wait(5) == -signal.SIGKILL
    assert not any(_is_alive(pid) for pid in others)


@pytest.fixture
def restless(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Starts processes that are in the middle of an exec a good part of the time, in sessions of their own."""
    script = tmp_path / "again"
    script.write_text('exec /bin/sh "$0"\n')
    started = []

    def start(mark: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, mark: "1"}
        started.append(subprocess.Popen(["/bin/sh", str(script)], start_new_session=True, env=environment))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_kill_session_finds_what_has_left_it_in_the_middle_of_an_exec(
    restless: Callable[[str], subprocess.Popen[bytes]],
) -> None:
    for number in range(60):
        mark = f"{MARK}_{number}"
        process = restless(mark)
        time.sleep(0.003 + number % 7 / 1000)
        assert _system.kill_session(NOBODYS, mark) == 1
        assert process.wait(5) == -signal.SIGKILL


def test_the_guard_finds_what_has_left_a_session_in_the_middle_of_an_exec(
    restless: Callable[[str], subprocess.Popen[bytes]],
) -> None:
    for number in range(60):
        mark = f"{MARK}_{number}"
        process = restless(mark)
        time.sleep(0.003 + number % 7 / 1000)
        _guard._kill(NOBODYS, mark.encode())
        assert process.wait(5) == -signal.SIGKILL


def test_a_process_without_an_environment_is_left_alone_and_not_waited_for() -> None:
    with subprocess.Popen(["/bin/sleep", "1000"], env={}, start_new_session=True) as process:
        assert _system.kill_session(NOBODYS, MARK) == 0
        _guard._kill(NOBODYS, MARK.encode())
        assert process.poll() is None
        process.kill()


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
