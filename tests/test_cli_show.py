"""`kgas-async evidence show`: records by their names, and what is said of names that no record has."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from typer.testing import CliRunner, Result

from kgas_async import Phase, Pipeline, ServiceManager, tool
from kgas_async._cli import app

from .test_cli_streams import piped


@tool
async def double(x: int) -> int:
    return 2 * x


@tool
async def triple(twice: int) -> int:
    if twice == 4:
        raise LookupError("four")
    return 3 * twice


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("evidence") / "run.jsonl"
    phases = Phase("twice", double), Phase("thrice", triple)
    pipeline = Pipeline("numbers", *phases, item=["x", "name"], key="name")

    async def record() -> None:
        async with ServiceManager(evidence=path, log=None) as manager:
            await manager.run(pipeline, [{"x": x, "name": f"number-{x}"} for x in range(3)])

    anyio.run(record)
    return path


def show(log: Path, *options: str) -> Result:
    result = CliRunner().invoke(app, ["evidence", "show", str(log), *options])
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tool", "duoble"], "no tool 'duoble' is on record in {}; there are double, triple; did you mean 'double'?"),
        (["--phase", "twise"], "no phase 'twise' is on record in {}; there are twice, thrice; did you mean 'twice'?"),
        (["--phase", "zzz"], "no phase 'zzz' is on record in {}; there are twice, thrice"),
        (["--item", "number_2"], "no item 'number_2' is on record in {}; did you mean 'number-2'?"),
        (["--event", "call.faild"], "did you mean 'call.failed'?"),
        (["--event", "call.timedout"], "did you mean 'call.timed_out'?"),  # not on record, but there is such an event
        (["--event", "calls"], "did you mean 'call'?"),
        (["--event", "breaker"], "no event 'breaker' is on record in {}; there are session.started, "),
        (["--run", "latest"], "no run 'latest' is on record in {}; there are "),
        (["--tool", "duoble", "--phase", "twice"], "did you mean 'double'?"),
        # Names that are on record, but not together.
        (["--tool", "double", "--failed"], "no such records"),
        (["--tool", "double", "--phase", "thrice"], "no such records"),
        (["--item", "number-1", "--event", "session"], "no such records"),
    ],
)
def test_a_name_that_no_record_has_is_told_with_the_nearest(log: Path, options: list[str], said: str) -> None:
    for more in ([], ["--json"], ["-n", "3"]):
        result = show(log, *options, *more)
        assert result.stdout == ""
        (line,) = result.stderr.splitlines()
        assert said.format(log) in line


def test_each_name_that_no_record_has_is_told(log: Path) -> None:
    first, second = show(log, "--tool", "duoble", "--event", "call.succeded").stderr.splitlines()
    assert first.endswith("did you mean 'call.succeeded'?")
    assert second.endswith("did you mean 'double'?")


@pytest.mark.parametrize(
    ("options", "count"),
    [(["--tool", "double"], 3), (["--item", "number-2"], 2), (["--event", "call"], 6), (["--failed"], 1),
     (["--event", "call.failed", "--item", "number-2", "--tool", "triple", "--phase", "thrice"], 1)],
)  # fmt: skip
def test_those_that_were_asked_for_are_shown_and_nothing_is_said(log: Path, options: list[str], count: int) -> None:
    result = show(log, *options)
    assert (result.stdout.count("\n"), result.stderr) == (count, "")


def test_of_many_names_twenty_are_told(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"

    async def record() -> None:
        async with ServiceManager(evidence=path, log=None) as manager:
            for number in range(30):
                await manager.execute(double.using(name=f"tool{number}"), x=1)

    anyio.run(record)
    said = show(path, "--tool", "other").stderr
    assert "tool0, tool1, " in said
    assert said.endswith("tool19 and 10 more\n")


def test_through_a_pipe_names_cannot_act_on_the_terminal(log: Path) -> None:
    result = piped(log.parent, "evidence", "show", "run.jsonl", "--tool", "dou\x1b[2Jble")
    assert (result.returncode, result.stdout, "\x1b" in result.stderr) == (0, "", False)
    assert "there are double, triple" in result.stderr
