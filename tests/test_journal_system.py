"""System calls of a journal that fail, one after the other: said at once, nothing reported that is not there, resumed.

A few of them each time; all in `nox -s crash` (KGAS_CRASH_MOMENTS).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from .loops import chosen
from .programs import PREAMBLE, Program
from .test_journal_crash import MOMENTS, _can_trace
from .test_journal_failing import FILLING, held

FAULTS = {
    "write": "inject=pwrite64:error=ENOSPC:when={}+",
    "short write": "inject=pwrite64:error=EIO:when={}",
    "sync": "inject=fdatasync,fsync:error=EIO:when={}+",
    "open": "inject=openat:error=EMFILE:when={}",
    "link": "inject=link,linkat:error=EPERM:when={}",
    "truncate": "inject=ftruncate:error=EIO:when={}",
}
SMALL = FILLING.replace("SIZE = 400", "SIZE = 15")


def traced(inject: str, path: Path, loop: str) -> list[str]:
    """What the program says while these calls, on the journal's own files, fail."""
    files = [part for name in ("", "-wal", "-journal") for part in ("-P", f"{path}{name}")]
    folder = ["-P", str(path.parent)] if inject.startswith("inject=link") else []
    tracer = [shutil.which("strace") or "", "-f", "-o", os.devnull, *files, *folder, "-e", inject]
    wanted = [*tracer, sys.executable, "-c", PREAMBLE + SMALL, str(path)]
    command = f"import os; os.execvp({tracer[0]!r}, {wanted!r})"
    with Program(command=["-c", command], loop=loop) as program:
        said = program.rest()
        assert program.code() == 0, program.errors()
    return said


@pytest.mark.skipif(not _can_trace(), reason="strace is not there, or may not trace")
@pytest.mark.parametrize("loop", chosen())
@pytest.mark.parametrize(
    "fault", [name if name == "write" else pytest.param(name, marks=pytest.mark.slow) for name in FAULTS]
)
def test_a_call_that_fails_is_said_and_nothing_is_lost(tmp_path: Path, loop: str, fault: str) -> None:
    failed = 0
    numbers = [2, 6] if MOMENTS < 100 else range(1, 40)
    for number in numbers:
        path = tmp_path / f"run{number}.db"
        said = traced(FAULTS[fault].format(number), path, loop)
        failed += said[0].startswith("error journal")
        assert said[0].startswith(("error journal", "done 15")), said
        reported = set(json.loads(said[1]))
        assert reported <= (held(path) if path.exists() else set())
        with Program(SMALL, str(path), loop=loop) as program:
            assert program.rest()[0] == "done 15"
    if fault in ("write", "sync"):
        assert failed > 0
