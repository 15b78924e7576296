"""Each command through a pipe and on a terminal; readers that go, disks that are full, Ctrl-C in the first moments."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import anyio
import pytest

from kgas_async import Journal, Phase, Pipeline, ServiceManager, tool, verify_evidence

from .programs import ROOT
from .terminal import Terminal

PYTHON = [sys.executable, "-m", "kgas_async"]
MINE = """
from kgas_async import Phase, Pipeline, tool

@tool
async def double(x: int) -> int:
    return 2 * x

@tool
async def table(doubled: list[int]) -> list[dict]:
    return [{"name": f"n{x}", "twice": x} for x in doubled]

numbers = Pipeline("numbers", Phase("doubled", double), Phase("rows", table, collect=True), item=["x"], key="x",
                   source=lambda count="5": [{"x": x} for x in range(int(count))])
"""


@tool
async def double(x: int) -> int:
    return 2 * x


CLOSING = """
from kgas_async import Phase, Pipeline, tool

@tool
async def closing(x: int) -> int:
    LINE; return x

@tool
async def rows(xs: list[int]) -> list[dict]:
    return [{"x": x, "double": 2 * x} for x in xs]

@tool
async def total(xs: list[int]) -> int:
    return sum(xs)

def of(*phases):
    return Pipeline("p", Phase("xs", closing), *phases, item=["x"], source=lambda: [{"x": 1}])

numbers, tabled = of(Phase("sum", total, collect=True)), of(Phase("rows", rows, collect=True))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With evidence, a journal and a pipeline."""
    path = tmp_path_factory.mktemp("files")
    (path / "mine.py").write_text(MINE)
    pipeline = Pipeline("numbers", Phase("doubled", double), item=["x"], key="x")

    async def record() -> None:
        async with ServiceManager(evidence=path / "run.jsonl", log=None, lineage=True) as manager:
            await manager.run(pipeline, [{"x": x} for x in range(3000)], journal=Journal(path / "run.db"))

    anyio.run(record)
    return path


def environment() -> dict[str, str]:
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, "PYTHONPATH": paths}


def piped(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PYTHON, *arguments], cwd=folder, env=environment(), capture_output=True, text=True, timeout=60
    )  # fmt: skip


COMMANDS = {
    "run": ["run", "mine:numbers"],
    "status": ["status", "run.jsonl"],
    "tools": ["tools"],
    "evidence show": ["evidence", "show", "run.jsonl", "-n", "20"],
    "evidence verify": ["evidence", "verify", "run.jsonl"],
    "evidence export": ["evidence", "export", "run.jsonl", "--format", "trace", "-o", "trace.json", "--force"],
    "evidence lineage": ["evidence", "lineage", "run.jsonl", "--item", "7", "--phase", "doubled"],
    "journal show": ["journal", "show", "run.db"],
    "journal prune": ["journal", "prune", "run.db", "--failed"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_through_a_pipe_is_plain_and_speaks_json(folder: Path, name: str) -> None:
    plain = piped(folder, *COMMANDS[name])
    assert (plain.returncode, "\x1b" in plain.stdout + plain.stderr) == (0, False)
    found = piped(folder, *COMMANDS[name], "--json")
    assert found.returncode == 0
    documents = found.stdout.splitlines() if name == "evidence show" else [found.stdout]
    assert all(isinstance(json.loads(document), dict) for document in documents)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_on_a_terminal_of_forty_columns(folder: Path, name: str) -> None:
    with Terminal(["-m", "kgas_async", *COMMANDS[name]], cwd=folder, columns=40) as terminal:
        assert terminal.code() == 0
        assert b"Traceback" not in terminal.shown
        assert b"\x1b[?25l" not in terminal.shown


def test_help_cuts_no_option_on_a_terminal_of_forty_columns(folder: Path) -> None:
    with Terminal(["-m", "kgas_async", "run", "--help"], cwd=folder, columns=40) as terminal:
        assert terminal.code() == 0
        shown = terminal.shown.decode()
        assert [
            one for one in ("--backend", "--evidence", "--on-error", "--traceback") if f"\n  {one} " not in shown
        ] == []


@pytest.mark.parametrize("name", [*COMMANDS, "evidence", "journal", ""])
def test_each_help_has_examples(folder: Path, name: str) -> None:
    said = piped(folder, *name.split(), "--help")
    assert said.returncode == 0
    assert "\x1b" not in said.stdout
    if name not in ("evidence", "journal"):
        assert "Examples:" in said.stdout
        assert f"kgas-async {name}".rstrip() in said.stdout


def test_json_of_a_run_stands_alone_whatever_tools_print(folder: Path) -> None:
    (folder / "loud.py").write_text(
        "import os, sys\n" + MINE.replace("    return 2 * x", "    print('loud'); os.write(1, b'raw\\n')\n    return x")
    )
    found = piped(folder, "run", "loud:numbers", "--json")
    document = json.loads(found.stdout)
    assert (document["exit_code"], document["items"]["succeeded"], document["interrupted"]) == (0, 5, None)
    assert document["results"]["rows"][1] == {"name": "n1", "twice": 1}
    assert found.stderr.count("loud") == found.stderr.count("raw") == 5


TO_A_FILE = {
    "check": ["check", "mine:numbers"],
    "check --graph": ["check", "mine:numbers", "--graph", "svg"],
    "check --schema": ["check", "--schema"],
    "report": ["report", "run.jsonl"],
    "export trace": ["evidence", "export", "run.jsonl", "--format", "trace"],
    "export prov": ["evidence", "export", "run.jsonl", "--format", "prov"],
}


@pytest.mark.parametrize("name", TO_A_FILE)
def test_an_output_of_a_dash_is_what_the_file_would_be(folder: Path, name: str) -> None:
    written = piped(folder, *TO_A_FILE[name], "-o", "./-", "--force")
    assert (written.returncode, written.stdout, written.stderr) == (0, "", "written: ./-\n")
    wanted = (folder / "-").read_text()
    (folder / "-").unlink()
    printed = piped(folder, *TO_A_FILE[name], "-o", "-")
    assert (printed.returncode, printed.stderr) == (0, "")
    assert printed.stdout == wanted.removesuffix("\n") + "\n"  # the page has no line end
    assert not (folder / "-").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["evidence", "show", "run.jsonl"],
        [*TO_A_FILE["export trace"], "-o", "-"],
        [*TO_A_FILE["export prov"], "-o", "-"],
        [*TO_A_FILE["report"], "-o", "-"],
        [*TO_A_FILE["check --schema"], "-o", "-"],
    ],
    ids=" ".join,
)
def test_a_reader_that_goes_is_no_error(folder: Path, arguments: list[str]) -> None:
    with subprocess.Popen(
        [*PYTHON, *arguments], cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(100)
        process.stdout.close()
        errors = process.stderr.read()
        assert (process.wait(30), errors) == (0, b"")


def test_a_reader_that_goes_leaves_the_run_and_its_evidence_whole(folder: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with subprocess.Popen(
        [*PYTHON, "run", "mine:numbers", "--evidence", "piped.jsonl"], cwd=folder, env=environment(),
        stdout=writer, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        os.close(writer)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in errors
    assert errors.splitlines()[-2].endswith("5 succeeded")
    assert verify_evidence(folder / "piped.jsonl").ok


def test_nobody_needs_to_read_either_stream(folder: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [*PYTHON, "run", "mine:numbers", "--evidence", "both.jsonl"], cwd=folder, env=environment(),
        stdout=writer, stderr=writer, timeout=60,
    )  # fmt: skip
    os.close(writer)
    assert ended.returncode == 0
    assert verify_evidence(folder / "both.jsonl").ok


def test_streams_that_were_closed_before_are_none(folder: Path) -> None:
    code = "import os, sys; os.close(1); os.close(2); os.execv(sys.executable, sys.argv[1:])"
    command = [sys.executable, "-c", code, *PYTHON, "run", "mine:numbers"]
    assert subprocess.run(command, cwd=folder, env=environment(), timeout=60).returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "run.jsonl"],
        ["run", "mine:numbers"],
        ["check", "mine:numbers"],
        [*TO_A_FILE["report"], "-o", "-"],
        TO_A_FILE["export trace"],
        TO_A_FILE["export prov"],
    ],
)
def test_a_full_disk_is_said(folder: Path, arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [*PYTHON, *arguments], cwd=folder, env=environment(), stdout=full, stderr=subprocess.PIPE, text=True,
            timeout=60,
        )  # fmt: skip
    assert ended.returncode == 1
    assert "error: standard output cannot be written: No space left on device\n" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_ctrl_c_while_it_is_imported_says_nothing(folder: Path) -> None:
    """From the moment that our first module is there; before that it is Python that is interrupted."""
    code = (
        "import os, runpy, signal, sys; import kgas_async._entry; sys.argv[1:] = ['run', 'mine:numbers']\n"
        "def on_import(event, arguments):\n"
        "    if event == 'import' and arguments[0] == sys.argv[0]: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.argv[0] = '{module}'\n"
        "sys.addaudithook(on_import)\n"
        "kgas_async._entry.main()\n"
    )
    for module in ("typer", "rich", "kgas_async._cli_running", "pydantic", "trio", "anyio"):
        ended = subprocess.run(
            [sys.executable, "-c", code.format(module=module)], cwd=folder, env=environment(), capture_output=True,
            text=True, timeout=60,
        )  # fmt: skip
        assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", ""), module


@pytest.mark.parametrize("command", [["--help"], ["check", "mine:numbers"]])
def test_ctrl_c_at_any_moment_after_our_first_line_says_nothing(folder: Path, command: list[str]) -> None:
    code = "import sys, kgas_async._entry as entry; sys.stderr.write('!'); sys.stderr.flush(); entry.main()"
    for delay_s in (0, 0.01, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3):
        with subprocess.Popen(
            [sys.executable, "-c", code, *command], cwd=folder, env=environment(), stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            assert process.stderr is not None
            assert process.stderr.read(1) == "!"
            time.sleep(delay_s)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=30)
        assert errors == ""
        assert process.returncode in (0, 130, -signal.SIGINT)  # it may have ended; at the last Python gives it back


def test_nothing_is_imported_before_ctrl_c_has_somebody_to_meet_it() -> None:
    code = "import os, sys, signal; before = set(sys.modules); import kgas_async._leaving; "
    code += "print(*sorted(set(sys.modules) - before))"
    said = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert set(said.stdout.split()) <= {"__future__", "kgas_async", "kgas_async._leaving"}


def test_ctrl_c_in_the_users_module_is_130_and_a_line(folder: Path) -> None:
    (folder / "slow.py").write_text("import time\nprint('here', flush=True)\ntime.sleep(60)\n")
    with subprocess.Popen(
        [*PYTHON, "run", "slow:x"], cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "error: interrupted before the run began\n")


@pytest.mark.parametrize("name", ["SIGHUP", "SIGINT"])  # nohup; a shell, for what a script has in the background
def test_a_signal_that_is_ignored_stays_so(folder: Path, name: str) -> None:
    (folder / "patient.py").write_text(
        MINE.replace("    return 2 * x", "    import anyio; print('here', flush=True); await anyio.sleep(1); return x")
    )
    code = f"import os, signal, sys; signal.signal(signal.{name}, signal.SIG_IGN); "
    code += "os.execv(sys.executable, sys.argv[1:])"
    with subprocess.Popen(
        [sys.executable, "-c", code, *PYTHON, "run", "patient:numbers"], cwd=folder, env=environment(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.Signals[name])
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "5 succeeded" in errors


def test_a_terminal_that_is_closed_hangs_up_and_the_evidence_is_whole(folder: Path) -> None:
    finite, infinite = '[{"x": x} for x in range(int(count))]', '({"x": x} for x in itertools.count())'
    endless = MINE.replace(finite, infinite)
    endless = endless.replace("    return 2 * x", "    import anyio; await anyio.sleep(0.01); return x")
    (folder / "long.py").write_text("import itertools\n" + endless)
    code = "import os, sys, pty; pid, ours = pty.fork()\n"
    code += "if not pid: os.execv(sys.executable, sys.argv[1:])\n"
    code += "while b'doubled' not in os.read(ours, 65536): pass\n"
    code += "os.close(ours); print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    ended = subprocess.run(
        [sys.executable, "-c", code, *PYTHON, "run", "long:numbers", "--evidence", "hung.jsonl"], cwd=folder,
        env={**environment(), "TERM": "xterm"}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ended.stdout == "129\n", ended.stderr
    assert verify_evidence(folder / "hung.jsonl").ok


@pytest.mark.parametrize("line", ["sys.stdout.close()", "sys.stdout = None", "sys.stdout = sys.stderr = None"])
@pytest.mark.parametrize("pipeline", ["numbers", "tabled"])
def test_results_that_a_tool_leaves_no_stream_for_are_missed(folder: Path, line: str, pipeline: str) -> None:
    name = f"closes{sum(line.encode())}"
    (folder / f"{name}.py").write_text("import sys\n" + CLOSING.replace("LINE", line))
    found = piped(folder, "run", f"{name}:{pipeline}", "--evidence", f"{name}.jsonl")
    assert (found.returncode, found.stdout, "Traceback" in found.stderr) == (1, "", False)
    assert "lost sys" not in found.stderr
    if "stderr" not in line:
        assert "error: standard output cannot be written: a tool has closed it" in found.stderr
    assert verify_evidence(folder / f"{name}.jsonl").ok


def test_an_exit_code_that_a_parent_would_see_as_0_is_1(folder: Path) -> None:
    (folder / "leaves.py").write_text(MINE.replace("    return 2 * x", "    raise SystemExit(256)"))
    found = piped(folder, "run", "leaves:numbers")
    assert found.returncode == 1
    assert "error: a tool ended the session by SystemExit(256)\n" in found.stderr


def test_a_forced_colour_paints_nothing_anew_in_a_file(folder: Path) -> None:
    command = [*PYTHON, "run", "mine:numbers"]
    found = subprocess.run(
        command, cwd=folder, env={**environment(), "FORCE_COLOR": "1"}, capture_output=True, text=True, timeout=60
    )
    assert found.returncode == 0
    assert "\x1b" not in found.stderr


def test_keys_and_names_cannot_act_on_the_terminal(folder: Path) -> None:
    pipeline = Pipeline("ev\x1b[2Jil", Phase("doubled", double), item=["x", "k"], key="k")

    async def record() -> None:
        async with ServiceManager(evidence=folder / "evil.jsonl", log=None, lineage=True) as manager:
            await manager.run(pipeline, [{"x": 1, "k": "k\x1b[31m\r\n"}], journal=Journal(folder / "evil.db"))

    anyio.run(record)
    for arguments in (["evidence", "lineage", "evil.jsonl", "--phase", "doubled"], ["journal", "show", "evil.db"]):
        found = piped(folder, *arguments)
        assert found.returncode == 0
        assert "\x1b" not in found.stdout
        assert "ev\\x1b[2Jil" in found.stdout
