"""Killed with SIGKILL at any moment a run with a journal resumes: nothing lost, nothing twice, nothing repeated.

KGAS_CRASH_MOMENTS says how many moments are tried on each event loop: a few, or 300 in `nox -s crash`.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import anyio
import pytest

from kgas_async._journal_file import JournalFile

from . import crash_pipelines
from .crash_pipelines import outcome, shown
from .loops import chosen
from .programs import Program

MOMENTS = int(os.environ.get("KGAS_CRASH_MOMENTS", "6"))
KILLS = 2  # of one journal, one after the other
GROUP = 6  # moments in one test
CHILD = ("-c", "import sys; from tests.crash_pipelines import main; main(*sys.argv[1:])")
KINDS = ("before", "after", "tool", "time", "group")


def moment(seed: int) -> str:
    chance = random.Random(seed)
    kind = KINDS[seed % len(KINDS)]
    if kind in ("time", "group"):
        return f"{kind}:{chance.uniform(0.0, 0.4):.3f}"
    return f"{kind}:{chance.randint(1, 150 if kind == 'tool' else 12)}"


@cache
def uninterrupted() -> str:
    report = anyio.run(outcome, None)
    assert report.ok
    return shown(report)


def held(path: Path) -> set[str]:
    """What the journal holds: ``phase|item|place`` of each finished phase."""
    if not path.exists():
        return set()
    file = JournalFile(str(path))
    file.open(None)
    try:
        found = file.database.execute("SELECT phase, item, place FROM results")
        rows = {"|".join(row) for row in found}
        # The elements of an expansion are rows of its phase; it has finished where its own row is there.
        return {row for row in rows if not (row.startswith("pieces|") and not row.endswith("|"))}
    finally:
        file.break_off()


def noted(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def attempt(folder: Path, number: int, loop: str, when: str, wrapper: tuple[str, ...] = ()) -> tuple[int, list[str]]:
    """One process; its exit code and what it said. What the journal held before was not run in it."""
    journal, log = folder / "run.db", folder / f"log{number}"
    before = held(journal)
    command = [*CHILD, loop, str(journal), str(log), when]
    with Program(command=command, loop=loop) if not wrapper else _wrapped(wrapper, command) as program:
        said = program.rest()
        code = program.code()
        if code not in (0, -signal.SIGKILL):
            raise AssertionError(f"it ended with {code} at {when}: {program.errors()}")
    repeated = before.intersection(noted(log))
    assert not repeated, f"{when}: run again though the journal holds it: {sorted(repeated)}"
    return code, said


def _wrapped(wrapper: tuple[str, ...], command: list[str]) -> Program:
    run = f"import os; os.execvp({wrapper[0]!r}, {[*wrapper, sys.executable, *command]!r})"
    return Program(command=["-c", run])


def survives(folder: Path, loop: str, moments: list[str], wrapper: tuple[str, ...] = ()) -> int:
    """Killed at these moments, one after the other, then let run: it is as if nothing had been. How many kills hit."""
    hits = 0
    for number, when in enumerate(moments):
        code, _ = attempt(folder, number, loop, when, wrapper)
        hits += code != 0
    code, said = attempt(folder, len(moments), loop, "never")
    assert code == 0
    assert said == [uninterrupted()], moments
    code, said = attempt(folder, len(moments) + 1, loop, "never")
    assert said == [uninterrupted()]
    assert noted(folder / f"log{len(moments) + 1}") == []  # the journal holds all of it
    return hits


@pytest.mark.parametrize("loop", chosen())
@pytest.mark.parametrize("seed", range(0, MOMENTS, GROUP))
def test_killed_at_seeded_moments_it_resumes(tmp_path: Path, loop: str, seed: int) -> None:
    hits = 0
    for first in range(seed, seed + GROUP, KILLS):
        folder = tmp_path / str(first)
        folder.mkdir()
        hits += survives(folder, loop, [moment(first + number) for number in range(KILLS)])
    assert hits, "none of the moments came before the end"


@pytest.mark.parametrize("loop", chosen())
@pytest.mark.parametrize("outcomes", [1, 5])
def test_an_outcome_that_was_seen_is_in_the_journal(tmp_path: Path, loop: str, outcomes: int) -> None:
    journal = tmp_path / "run.db"
    command = [*CHILD, loop, str(journal), str(tmp_path / "log"), "streamed"]
    with Program(command=command, loop=loop) as program:
        seen = [program.line() for _ in range(outcomes)]
        program.kill(signal.SIGKILL)
        program.code()
        seen += program.rest()
    there = held(journal)
    assert len(seen) >= outcomes
    for key in seen:
        assert {f"{phase}|{key}|" for phase in ("load", "pieces", "merged", "marked")} <= there


def _can_trace() -> bool:
    tracer = shutil.which("strace")
    if tracer is None:
        return False
    return subprocess.run([tracer, "-o", os.devnull, "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not _can_trace(), reason="strace is not there, or may not trace")
@pytest.mark.parametrize("loop", chosen())
def test_killed_between_a_write_and_its_fsync_it_resumes(tmp_path: Path, loop: str) -> None:
    tracer = shutil.which("strace") or ""
    for first in range(0, max(2, MOMENTS // 30), 2):
        moments = [random.Random(first + number).randint(3, 20) for number in range(2)]
        folder = tmp_path / str(first)
        folder.mkdir()
        for number, count in enumerate(moments):
            inject = f"inject=fdatasync,fsync:signal=KILL:when={count}"
            attempt(folder, 100 + number, loop, "durable", (tracer, "-f", "-o", os.devnull, "-e", inject))
        survives(folder, loop, [])
        shutil.rmtree(folder)


def test_the_moments_are_of_all_kinds() -> None:
    kinds = {moment(seed).partition(":")[0] for seed in range(MOMENTS)}
    assert kinds == set(KINDS[:MOMENTS])


def test_the_uninterrupted_run_has_values_of_each_kind() -> None:
    found: Any = uninterrupted()
    assert found.count("succeeded") == crash_pipelines.ITEMS
    assert '"odd"' in found
    assert '"marked"' in found
    assert '"total"' in found
