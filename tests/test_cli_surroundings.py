"""What the code of users and the surroundings do to the command line: prints, closed streams, hooks at exit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from .test_cli_streams import MINE as NUMBERS
from .test_cli_streams import PYTHON, environment, piped

MINE = """
import atexit, os, sys, time
from kgas_async import Phase, Pipeline, Policy, tool

print("imported")
os.write(1, b"imported raw\\n")

def source(count="3"):
    print("asked for items")
    return [{"x": x} for x in range(int(count))]

@tool
async def double(x: int) -> int:
    return 2 * x

@tool(on_cancel="abandon", policy=Policy(timeout=0.1))
def chatter(x: int) -> None:
    while True:
        print("chatter")
        time.sleep(0.0005)

@tool
def closes_stdout(x: int) -> None:
    sys.stdout.close()

@tool
def closes_stderr(x: int) -> None:
    sys.stderr.close()

@tool
def lingers(x: int) -> None:
    atexit.register(time.sleep, 60)
    atexit.register(print, "leaving", file=sys.stderr, flush=True)

@tool(offload="process")
def writes(x: int) -> None:
    os.write(1, b"out")
    os.write(2, b"err")

@tool
async def evil(double: list[int]) -> str:
    return "\\x1b[2J\\rtext"

@tool
async def evil_rows(double: list[int]) -> list[dict]:
    return [{"na\\x1bme": "\\x1b]0;title\\x07"}]

@tool
async def evil_fields(double: list[int]) -> dict:
    return {"na\\x1bme": "\\x1b[2J"}

def of(function):
    return Pipeline("mine", Phase("only", function), item=["x"], key="x", source=source)

numbers, chattering, lingering, writing = of(double), of(chatter), of(lingers), of(writes)
no_stdout, no_stderr = of(closes_stdout), of(closes_stderr)
evils = Pipeline("evils", Phase("double", double), Phase("text", evil, collect=True),
                 Phase("rows", evil_rows, collect=True), Phase("fields", evil_fields, collect=True),
                 item=["x"], source=source)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


def test_what_a_module_or_a_source_prints_does_not_come_into_the_json(folder: Path) -> None:
    ran = piped(folder, "run", "mine:numbers", "--json")
    assert json.loads(ran.stdout)["items"]["succeeded"] == 3
    assert {"imported", "imported raw", "asked for items"} <= set(ran.stderr.splitlines())
    for arguments in (["--json"], ["--graph", "svg"], ["--graph", "mermaid"], []):
        checked = piped(folder, "check", "mine:numbers", *arguments)
        assert checked.returncode == 0
        assert "imported" not in checked.stdout
        assert {"imported", "imported raw"} <= set(checked.stderr.splitlines())
        assert "double" in checked.stdout


def test_what_a_thread_that_was_left_behind_prints_does_not_come_into_the_json(folder: Path) -> None:
    found = piped(folder, "run", "mine:chattering", "--input", "1", "--json")
    assert json.loads(found.stdout)["items"]["timed_out"] == 1
    assert found.stderr.count("chatter") > 1


@pytest.mark.parametrize("name", ["no_stdout", "no_stderr"])
def test_a_tool_that_closes_a_stream_does_not_end_the_run(folder: Path, name: str) -> None:
    ended = piped(folder, "run", f"mine:{name}", "--input", "1", "--evidence", "run.jsonl")
    assert (ended.returncode, "Traceback" in ended.stderr) == (0, False)
    assert "lost sys.stderr" not in ended.stderr
    assert piped(folder, "evidence", "verify", "run.jsonl").returncode == 0


def test_ctrl_c_ends_what_hangs_at_exit_and_the_code_stays(folder: Path) -> None:
    with subprocess.Popen(
        [*PYTHON, "run", "mine:lingering", "--input", "1"], cwd=folder, env=environment(), stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        while process.stderr.readline() != "leaving\n":
            pass
        # One that comes just before the sleep, after the last line of Python, is seen only when that has ended.
        for _ in range(60):
            process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.5)
                break
        _, errors = process.communicate(timeout=1)
    assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize("closed", [[2], [1, 2], [0, 1, 2]])
def test_streams_that_were_closed_before_are_nowhere_in_worker_processes_too(folder: Path, closed: list[int]) -> None:
    code = f"import os, sys; [os.close(number) for number in {closed}]; os.execv(sys.executable, sys.argv[1:])"
    command = [sys.executable, "-c", code, *PYTHON, "run", "mine:writing", "--evidence", "run.jsonl"]
    assert subprocess.run(command, cwd=folder, env=environment(), timeout=60).returncode == 0
    assert piped(folder, "evidence", "verify", "run.jsonl").returncode == 0


def test_where_colours_are_forced_nothing_is_painted_into_a_file(folder: Path) -> None:
    ended = subprocess.run(
        [*PYTHON, "run", "mine:numbers"], cwd=folder, env={**environment(), "FORCE_COLOR": "1"}, capture_output=True,
        text=True, timeout=60,
    )  # fmt: skip
    assert ended.returncode == 0
    assert "\x1b" not in ended.stderr


def test_what_results_say_cannot_act_on_the_terminal(folder: Path) -> None:
    ended = piped(folder, "run", "mine:evils")
    assert ended.returncode == 0
    assert not {"\x1b", "\r", "\x07"} & set(ended.stdout)
    assert "text: \\x1b[2J\\rtext\n" in ended.stdout
    assert "  na\\x1bme: \\x1b[2J\n" in ended.stdout
    assert json.loads(piped(folder, "run", "mine:evils", "--json").stdout)["results"]["text"] == "\x1b[2J\rtext"


EVIL_NAMES = """
from kgas_async import Phase, Pipeline, tool

@tool(name="to\\x1b[2Jol")
async def double(x: int) -> int:
    return 2 * x

evil = Pipeline("pa\\x1b[2Jper", Phase("phase", double), item=["x"], source=lambda: [{"x": 1}])
"""


def test_what_names_hold_cannot_act_on_the_terminal(folder: Path) -> None:
    (folder / "evil.py").write_text(EVIL_NAMES)
    ran = piped(folder, "run", "evil:evil", "--evidence", "run.jsonl")
    assert (ran.returncode, "pa\\x1b[2Jper: 1 item in" in ran.stderr) == (0, True)
    graph = ["check", "evil:evil", "--graph"]
    shown = [ran, *(piped(folder, *arguments) for arguments in (
        ["check", "evil:evil"], ["check", "evil:evil", "--json"], [*graph, "mermaid"], [*graph, "svg"],
        ["status", "run.jsonl"], ["evidence", "show", "run.jsonl"], ["evidence", "verify", "run.jsonl"],
    ))]  # fmt: skip
    for one in shown:
        assert one.returncode == 0, one.args
        assert not {"\x1b", "\x07"} & set(one.stdout + one.stderr), one.args
    assert "pipeline pa\\x1b[2Jper" in shown[1].stdout
    assert json.loads(shown[2].stdout)["pipeline"] == "pa\x1b[2Jper"


@pytest.mark.parametrize("command", ["run wide:numbers", "status run.jsonl", "evidence lineage run.jsonl --phase rows"])
def test_columns_says_how_wide_results_are_where_there_is_no_terminal(
    folder: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    (folder / "wide.py").write_text(NUMBERS.replace('f"n{x}"', '"wide " * 60'))
    assert piped(folder, "run", "wide:numbers", "--evidence", "run.jsonl").returncode == 0
    widest = {}
    for columns in ("", "0", "no number", "50", "75"):
        monkeypatch.setenv("COLUMNS", columns)
        shown = piped(folder, *command.split())
        assert shown.returncode == 0
        widest[columns] = max(len(line) for line in shown.stdout.splitlines() if not line.startswith(("run ", "item ")))
    assert widest["50"] <= 50 < widest["75"] <= 75 < widest[""]
    assert widest[""] == widest["0"] == widest["no number"]
