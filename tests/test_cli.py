"""`kgas-async run`: exit codes, messages, what is printed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from typer.testing import CliRunner

from kgas_async._cli import app
from kgas_async._suggest import extra_hint

from .programs import LOOPS, ROOT, Program

Run = Callable[..., Any]

PIPELINES = """
import sys, threading, time
from contextlib import asynccontextmanager
from kgas_async import Phase, Pipeline, Service, check_cancelled, tool
import anyio

@tool
async def double(x: int) -> int:
    return 2 * x

@tool
def picky(x: int) -> int:
    if x % 2:
        raise LookupError(f"{x} is odd")
    return x

@tool
async def table(xs: list[int]) -> list[dict]:
    return [{"name": f"n{x}", "score": x / 3, "count": x} for x in xs]

@tool
async def total(xs: list[int]) -> int:
    return sum(xs)

def numbers(upto="3"):
    return [{"x": x} for x in range(int(upto))]

def nothing_given():
    return [{"x": 1}]

async def slowly():
    for x in range(3):
        yield {"x": x}

def torn():
    yield {"x": 0}
    yield {"x": 2}
    raise OSError("the disk is gone")

def asking(folder):
    return []

def refusing():
    raise PermissionError("not for you")

good = Pipeline("good", Phase("twice", double), Phase("sum", total, collect=True, bind={"xs": "twice"}),
                item=["x"], key="x", source=numbers)
tabled = Pipeline("tabled", Phase("twice", double), Phase("rows", table, collect=True, bind={"xs": "twice"}),
                  item=["x"], source=numbers)
failing = Pipeline("failing", Phase("check", picky), item=["x"], key="x", source=numbers)
streamed = Pipeline("streamed", Phase("twice", double), item=["x"], source=slowly)
fixed = Pipeline("fixed", Phase("twice", double), item=["x"], source=nothing_given)
broken_source = Pipeline("broken_source", Phase("twice", double), item=["x"], source=torn)
refused = Pipeline("refused", Phase("twice", double), item=["x"], source=refusing)
asking = Pipeline("asking", Phase("twice", double), item=["x"], source=asking)
sourceless = Pipeline("sourceless", Phase("twice", double), item=["x"])
no_pipeline = 5
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(PIPELINES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs the command line here; what it imports is forgotten again."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def invoke(*arguments: str, more: str = "") -> Any:
        with (folder / "mine.py").open("a") as file:
            file.write(dedent(more))
        return CliRunner().invoke(app, ["run", *arguments])

    yield invoke
    for name in set(sys.modules) - before:
        if name == "mine":
            del sys.modules[name]


def report_of(result: Any) -> str:
    return result.stderr.splitlines()[-1]


# --- exit codes and what is printed


@pytest.mark.parametrize("backend", LOOPS)
def test_0_where_all_succeeded_with_the_results_and_a_report(run: Run, backend: str) -> None:
    result = run("mine:good", "--backend", backend)
    assert result.exit_code == 0, result.output
    assert result.stdout == "sum: 6\n"
    assert report_of(result).startswith("good: 3 items in ")
    assert report_of(result).endswith(": 3 succeeded")


def test_the_input_is_given_to_the_source(run: Run) -> None:
    result = run("mine:good", "--input", "5")
    assert (result.exit_code, result.stdout) == (0, "sum: 20\n")
    result = run("mine:good", "--input", "0")
    assert (result.exit_code, result.stdout) == (0, "sum: 0\n")
    assert "0 items" in report_of(result)


TYPED = """
    from pathlib import Path

    def files(folder: Path, most: int = 9):
        return [{"x": len(one.name)} for one in sorted(folder.glob("*.txt"))][:most]

    def first(count: int):
        return [{"x": x} for x in range(count)]

    filed = Pipeline("filed", Phase("sum", total, collect=True, bind={"xs": "twice"}), Phase("twice", double),
                     item=["x"], source=files)
    firsts = Pipeline("firsts", Phase("twice", double), item=["x"], source=first)
    """
FILED = """
[pipeline]
name = "filed"
source = "mine:files"
item = ["x"]
with = { folder = "elsewhere", most = 1 }
[[phase]]
name = "twice"
tool = "mine:double"
[[phase]]
name = "sum"
tool = "mine:total"
collect = true
bind = { xs = "twice" }
"""


@pytest.mark.parametrize("given", ["mine:filed", "filed.toml", "bare.toml"])
def test_the_input_becomes_what_the_source_says_that_it_takes(run: Run, folder: Path, given: str) -> None:
    Path("notes").mkdir()
    for name in ("a.txt", "bb.txt"):
        Path("notes", name).touch()
    Path("filed.toml").write_text(FILED)
    Path("bare.toml").write_text("".join(line for line in FILED.splitlines(True) if not line.startswith("with")))
    result = run(given, "--input", "notes", more=TYPED)
    assert (result.exit_code, result.stdout) == (0, "sum: 10\n" if given == "filed.toml" else "sum: 22\n"), (
        result.output
    )


def test_an_input_that_the_source_cannot_take_is_told(run: Run) -> None:
    result = run("mine:firsts", "--input", "many", more=TYPED)
    assert result.exit_code == 2
    assert (
        "error: --input 'many' is nothing that the source of 'mine:firsts' takes: Input should be a valid integer"
        in (result.stderr)
    )


def test_an_async_source_is_taken(run: Run) -> None:
    result = run("mine:streamed")
    assert (result.exit_code, report_of(result)[:17]) == (0, "streamed: 3 items")


def test_1_where_some_failed_with_the_first_of_them(run: Run) -> None:
    result = run("mine:failing", "--input", "4")
    assert result.exit_code == 1
    first, second, report = result.stderr.splitlines()
    assert first == "failed: 1 in phase check: tool 'picky' failed: LookupError: 1 is odd"
    assert second.startswith("failed: 3 in phase check")
    assert report.endswith("2 succeeded, 2 failed")


def test_of_many_failures_ten_are_shown_and_the_others_counted(run: Run) -> None:
    result = run("mine:failing", "--input", "3000")
    lines = result.stderr.splitlines()
    assert [line.startswith("failed: ") for line in lines].count(True) == 10
    assert "... and 1490 more that did not succeed" in lines
    assert report_of(result).endswith("1500 succeeded, 1500 failed")


def test_1_where_a_phase_of_the_run_failed(run: Run) -> None:
    more = """
    @tool
    async def bad(xs: list[int]) -> int:
        raise LookupError("no rank")

    ranked = Pipeline("ranked", Phase("twice", double), Phase("rank", bad, collect=True, bind={"xs": "twice"}),
                      item=["x"], source=numbers)
    """
    result = run("mine:ranked", more=more)
    assert result.exit_code == 1
    assert "3 succeeded; phase 'rank' failed: tool 'bad' failed: LookupError: no rank" in report_of(result)


def test_1_where_the_source_broke_off_with_what_was_done_until_then(run: Run) -> None:
    result = run("mine:broken_source")
    assert result.exit_code == 1
    assert "error: the source of items raised after 2 items: OSError('the disk is gone')" in result.stderr
    assert report_of(result).endswith("2 succeeded")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing:x"], "there is no module 'missing'"),
        (["mine:good", "--input", ""], "--input is empty"),
        (["mine:good", "--evidence", ""], "--evidence is empty"),
        (["mine:goood"], "module 'mine' has no 'goood'; did you mean 'good'?"),
        (["mine"], "'mine' is not of the form module:attribute"),
        (["mine:no_pipeline"], "'mine:no_pipeline' is no Pipeline but int"),
        (["mine:sourceless"], "'mine:sourceless' has no source="),
        (["mine:good", "--backend", "curio"], "--backend 'curio' is not known; use one of asyncio, uvloop, trio"),
        (["mine:good", "--evidence", "nowhere/run.jsonl"], "nowhere/run.jsonl': No such file or directory"),
        (["mine:fixed", "--input", "x"], "the source of 'mine:fixed' could not be called with --input 'x': TypeError"),
        (["mine:refused"], "could not be called: PermissionError: not for you\n"),
        (["mine:asking"], "missing 1 required positional argument: 'folder'; give --input\n"),
        (["./mine:good"], "'./mine' is a path; give the module's name, without ./ and .py: mine:good"),
        (["./mine.py:good"], "without ./ and .py: mine:good"),
        (["mine.py:good"], "'mine.py' is a path; give the module's name, without ./ and .py: mine:good"),
        (["mine:good", "--grace", "-1"], "--grace must be at least 0, not -1.0"),
        (["mine:good", "--input", "many"], "with --input 'many': ValueError: invalid literal for int()"),
    ],
)
def test_2_where_it_could_not_start_with_the_reason(run: Run, arguments: list[str], said: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert said in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


@pytest.mark.parametrize("arguments", [["--nonsense"], ["mine:good", "--backend"], []])
def test_2_where_the_command_is_wrong(run: Run, arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


def test_2_where_a_service_does_not_start(run: Run) -> None:
    more = """
    class Store(Service):
        @asynccontextmanager
        async def running(self):
            raise ConnectionError("nobody listens")
            yield

    stored = Pipeline("stored", Phase("twice", double), item=["x"], source=numbers)
    double.store = Store()
    """
    result = run("mine:stored", more=more)
    assert result.exit_code == 2
    assert "error: service 'Store' did not start: ConnectionError('nobody listens')" in result.stderr


def test_2_where_the_event_loop_is_not_installed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    result = run("mine:good", "--backend", "uvloop")
    assert result.exit_code == 2
    assert "error: --backend uvloop cannot be used" in result.stderr
    assert extra_hint("uvloop") in result.stderr


def test_2_where_the_extra_is_not_installed(folder: Path) -> None:
    code = "import sys, runpy; sys.modules['typer'] = None; sys.argv[0] = 'kgas-async'; "
    code += "runpy.run_module('kgas_async', run_name='__main__')"
    with Program(command=["-c", code], cwd=folder) as program:
        assert program.code() == 2
        assert program.errors() == f"error: kgas-async needs typer; {extra_hint('cli')}\n"


def test_how_to_install_an_extra_works_where_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    begin = "install the extra `report`: python -m pip install"
    monkeypatch.chdir(ROOT)
    assert extra_hint("report") == f"{begin} -e '.[report]'"
    monkeypatch.chdir(tmp_path)
    assert extra_hint("report") == f"{begin} -e {shlex.quote(f'{ROOT.resolve()}[report]')}"
    for folder in ("site-packages", "another project"):  # not in a clone of ours
        there = tmp_path / folder / "kgas_async"
        there.mkdir(parents=True)
        shutil.copy(ROOT / "kgas_async" / "_suggest.py", there)
        (there / "__init__.py").touch()
    (tmp_path / "another project" / "pyproject.toml").write_text('[project]\nname = "another"\n')
    for folder in ("site-packages", "another project"):
        code = "from kgas_async._suggest import extra_hint; print(extra_hint('report'))"
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=tmp_path / folder, env={}, capture_output=True, text=True, check=True)
        assert done.stdout == f"{begin} 'kgas-async[report]'\n"


def test_1_and_not_2_where_the_evidence_breaks_off_later(run: Run) -> None:
    result = run("mine:good", "--evidence", "/dev/full", "--input", "100000")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: --evidence /dev/full failed and gets no further records: ")
    assert "JsonlSink" not in result.stderr


@pytest.mark.parametrize("code", [0, 3, 256, -1])
def test_1_at_least_where_a_tool_ends_the_session(run: Run, code: int) -> None:
    more = f"""
    @tool
    async def leave(x: int) -> int:
        sys.exit({code})

    leaving = Pipeline("leaving", Phase("leave", leave), item=["x"], source=numbers)
    """
    result = run("mine:leaving", more=more)
    assert result.exit_code == (3 if code == 3 else 1)
    assert f"error: a tool ended the session by SystemExit({code})" in result.stderr


@pytest.mark.parametrize("backend", LOOPS)
@pytest.mark.parametrize("how", ["SystemExit(2)", "SystemExit(130)", "SystemExit(143)", "KeyboardInterrupt()"])
def test_1_where_a_tool_raises_what_a_wrong_command_or_a_signal_would(run: Run, how: str, backend: str) -> None:
    more = f"""
    @tool
    async def leave(x: int) -> int:
        raise {how}

    leaving = Pipeline("leaving", Phase("leave", leave), item=["x"], source=numbers)
    """
    result = run("mine:leaving", "--backend", backend, "--json", more=more)
    assert result.exit_code == 1, result.output
    assert f"error: a tool ended the session by {how}" in result.stderr
    assert "interrupted" not in result.stderr
    found = json.loads(result.stdout)
    assert (found["exit_code"], found["interrupted"]) == (1, None)


def test_a_source_without_items_is_warned_of(run: Run) -> None:
    for more in ([], ["--json"]):
        result = run("mine:good", "--input", "0", *more)
        assert result.exit_code == 0
        assert "warning: the source of pipeline 'good' gave no items\n" in result.stderr
    assert "warning" not in run("mine:good").stderr
    assert "warning" not in run("mine:broken_source").stderr


def test_the_evidence_is_written_and_continued(run: Run, folder: Path) -> None:
    for _ in range(2):
        result = run("mine:good", "--evidence", "run.jsonl")
        assert result.exit_code == 0
        assert "evidence: run.jsonl" in result.stderr
    records = [json.loads(line) for line in (folder / "run.jsonl").read_text().splitlines()]
    assert [record["event"] for record in records].count("call.succeeded") == 8
    assert len({record["session_id"] for record in records}) == 2


def test_it_says_its_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.stdout.split()[0]) == (0, "kgas-async")
    assert result.stdout.count("\n") == 1


def test_one_item_is_one_item(run: Run) -> None:
    assert report_of(run("mine:fixed")).startswith("fixed: 1 item in ")


# --- tables


def test_rows_are_printed_as_a_table(run: Run) -> None:
    lines = [line.strip() for line in run("mine:tabled").stdout.splitlines()]
    assert lines[0] == "rows"
    assert [cell.strip() for cell in lines[2].strip("┃").split("┃")] == ["name", "score", "count"]
    assert [cell.strip() for cell in lines[6].strip("│").split("│")] == ["n4", "1.333333", "4"]
    assert len(lines) == 8


def test_of_many_rows_fifty_are_printed_and_the_others_counted(run: Run) -> None:
    out = run("mine:tabled", "--input", "200").stdout
    assert "n98 " in out
    assert "n100 " not in out
    assert "... and 150 more rows" in out


def test_what_looks_like_markup_is_the_users_text(run: Run) -> None:
    more = """
    @tool
    async def named(xs: list[int]) -> list[dict]:
        return [{"[red]a": "[/b] x", "b": 1}, {"b": 2, "[red]a": "[bold]", "c": 3}, {"b": 3}]

    @tool
    async def plain(xs: list[int]) -> list[str]:
        return ["[/b]", "[bold]y"]

    marked = Pipeline("marked", Phase("twice", double), Phase("rows", named, collect=True, bind={"xs": "twice"}),
                      Phase("list", plain, collect=True, bind={"xs": "twice"}), item=["x"], source=numbers)
    """
    result = run("mine:marked", more=more)
    assert result.exit_code == 0
    assert result.stdout.endswith("list:\n  [/b]\n  [bold]y\n")
    lines = [line.replace("┃", "│") for line in result.stdout.splitlines() if "┃" in line or "│" in line]
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    assert cells == [["[red]a", "b"], ["[/b] x", "1"], ["[bold]", "2"], ["", "3"]]


# --- sources and errors of the user's


@pytest.mark.parametrize("given", ["None", "3", "coroutine"])
def test_2_where_the_source_gives_no_items(run: Run, given: str) -> None:
    result = run(
        "mine:wrong",
        more=f"""
        async def coroutine():
            return []

        wrong = Pipeline("wrong", Phase("twice", double), item=["x"],
                         source=coroutine if {given!r} == "coroutine" else lambda: {given.replace("coroutine", "None")})
        """,
    )
    assert result.exit_code == 2
    kind = {"None": "NoneType", "3": "int"}.get(given, given)
    assert result.stderr.startswith(f"error: the source of 'mine:wrong' gives no items but {kind}: a source is a plain")


def test_2_where_two_tools_of_one_name_are_in_a_pipeline(run: Run) -> None:
    more = """
    twins = Pipeline("twins", Phase("a", double), Phase("b", picky.using(name="double")), item=["x"], source=numbers)
    """
    result = run("mine:twins", more=more)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: module 'mine' cannot be imported: ValueError: pipeline 'twins'")
    assert "both named 'double'" in result.stderr


def test_an_error_of_the_users_is_not_taken_for_a_missing_event_loop(run: Run) -> None:
    more = """
    class Items:
        def __iter__(self):
            raise KeyError("items")

    broken = Pipeline("broken", Phase("twice", double), item=["x"], source=Items)
    """
    result = run("mine:broken", more=more)
    assert "--backend" not in result.output
    assert result.exit_code == 1
    assert result.stderr == "error: the run broke off: KeyError: 'items'; --traceback shows where\n"
    result = run("mine:broken", "--traceback", more="")
    assert "in __iter__\n" in result.stderr


# --- why a run ended, said once

STOPPED = """
    @tool
    async def of_path(path: str) -> str:
        return path

    @tool
    async def pair(x: int):
        return (x, 1)

    misfit = Pipeline("misfit", Phase("text", of_path), source=numbers)
    unkept = Pipeline("unkept", Phase("pair", pair), key="x", source=numbers)
    """


@pytest.mark.parametrize("given", ["collect", "raise"])
@pytest.mark.parametrize("backend", LOOPS)
def test_items_that_do_not_fit_the_pipeline_are_not_blamed_on_on_error(run: Run, given: str, backend: str) -> None:
    result = run("mine:misfit", "--on-error", given, "--backend", backend, more=STOPPED)
    assert result.exit_code == 1
    error, counts = result.stderr.splitlines()
    assert error.startswith("error: pipeline 'misfit': the first item has no field 'path', which a phase takes as an")
    assert counts.startswith("misfit: 1 item in ")


@pytest.mark.parametrize("given", ["collect", "raise"])
@pytest.mark.parametrize("backend", LOOPS)
def test_a_result_that_cannot_be_kept_names_its_item_and_is_said_once(run: Run, given: str, backend: str) -> None:
    line = ("mine:unkept", "--input", "30", "--on-error", given, "--backend", backend)
    result = run(*line, "--journal", "run.db", more=STOPPED)
    assert result.exit_code == 1
    error, counts = result.stderr.splitlines()
    assert error.startswith("error: item '0': pipeline 'unkept': phase 'pair', tool 'pair': its result cannot be kept")
    assert counts.endswith(": 0 succeeded, 1 failed, 29 cancelled")


def test_the_failure_that_on_error_raise_has_stopped_the_run_for_is_said_once(run: Run) -> None:
    result = run("mine:failing", "--on-error", "raise")
    assert result.exit_code == 1
    error, counts = result.stderr.splitlines()
    assert error == (
        "error: --on-error raise has stopped the run: item '1' in phase 'check': tool 'picky' failed: "
        "LookupError: 1 is odd"
    )
    assert ", 1 failed" in counts


def test_a_share_of_failures_is_told_by_its_option(run: Run) -> None:
    result = run("mine:failing", "--on-error", "0.1", "--input", "100")
    assert re.search(r"error: \d+ of \d+ items have failed, more than --on-error 0.1 allows; the last: ", result.stderr)
