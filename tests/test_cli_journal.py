"""`kgas-async run --journal`, `journal show` and `journal prune`."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from typer.testing import CliRunner

from kgas_async import Journal, JournalError, Phase, Pipeline, RunReport, ServiceManager, ToolAdapter, tool
from kgas_async._cli import app

ran: list[str] = []
broken: set[str] = set()


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    ran.clear()
    broken.clear()


@tool
async def upper(text: str) -> str:
    ran.append(text)
    if text in broken:
        raise ValueError(f"{text} is broken")
    return text.upper()


@tool
async def joined(uppers: list[str]) -> str:
    ran.append("joined")
    return "".join(uppers)


def texts(given: str = "abc") -> list[dict[str, str]]:
    return [{"text": text} for text in given]


PHASES = (Phase("upper", upper), Phase("joined", joined, bind={"uppers": "upper"}, collect=True))
pipeline = Pipeline("cli", *PHASES, item=["text"], key="text", source=texts)
other = Pipeline("other", *PHASES, item=["text"], key="text", source=texts)
ME = f"{__name__}:pipeline"


def said(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_same_line_again_resumes(tmp_path: Path, backend: str) -> None:
    line = ("run", ME, "--journal", str(tmp_path / "run.db"), "--backend", backend)
    broken.add("b")
    assert "2 succeeded, 1 failed" in said(*line, code=1)
    ran.clear()
    assert "(2 from the journal)" in said(*line, "--retry", "none", code=1)
    assert ran == []
    broken.clear()
    assert "3 succeeded (2 from the journal)" in said(*line, "--retry", "failed")
    assert ran == ["b", "joined"]


def test_2_where_the_journal_cannot_be_used(tmp_path: Path) -> None:
    path = str(tmp_path / "run.db")
    said("run", ME, "--journal", path)
    assert "is of pipeline 'cli', not of 'other'" in said(
        "run", f"{__name__}:other", "--journal", path, code=2
    )  # fmt: skip
    assert "--retry failed needs --journal" in said("run", ME, "--retry", "failed", code=2)
    assert "--retry 'some' is not known" in said("run", ME, "--journal", path, "--retry", "some", code=2)


def test_show_tells_what_is_in_it(tmp_path: Path) -> None:
    path = str(tmp_path / "run.db")
    broken.add("b")
    said("run", ME, "--journal", path, code=1)
    lines = said("journal", "show", path).splitlines()
    assert lines[0] == "pipeline cli"
    assert lines[1].startswith("run ")
    assert ", ended after " in lines[1]
    assert lines[2] == "items: 2 succeeded, 1 failed"
    assert lines[3:] == [
        "phase upper: 2 results of tool upper version 0, 6 bytes of json",
        "phase joined: 1 result of tool joined version 0, 4 bytes of json",
    ]
    found = json.loads(said("journal", "show", path, "--json"))
    assert (found["pipeline"], found["items"], found["phases"][0]["results"]) == (
        "cli", {"failed": 1, "succeeded": 2}, 2,
    )  # fmt: skip


def test_what_is_no_journal_is_no_journal(tmp_path: Path) -> None:
    assert "there is no journal" in said("journal", "show", str(tmp_path / "none.db"), code=2)
    (tmp_path / "text").write_text("text")
    assert "damaged" in said("journal", "prune", str(tmp_path / "text"), "--failed", code=2)
    said("run", ME, "--journal", str(tmp_path / "run.db"))
    assert "say what to forget" in said("journal", "prune", str(tmp_path / "run.db"), code=2)
    assert "has no phase 'uper'; it has upper, joined; did you mean 'upper'?" in said(
        "journal", "prune", str(tmp_path / "run.db"), "--phase", "uper", code=2
    )
    assert "has no item 'x'" in said("journal", "prune", str(tmp_path / "run.db"), "--item", "x", code=2)


@pytest.mark.parametrize("given", ["d02.txt", "papers/d02.txt", "d2.txt", "/data/a/long/path/papers/d_02.txt"])
@pytest.mark.parametrize("command", ["evidence show", "evidence lineage", "journal prune"])
def test_of_an_item_that_is_not_there_the_nearest_is_named_also_by_the_end_of_its_path(
    tmp_path: Path, command: str, given: str
) -> None:
    keys = [f"/data/a/long/path/papers/d{number:02}.txt" for number in range(4)]
    files = {"evidence": str(tmp_path / "run.jsonl"), "journal": str(tmp_path / "run.db")}

    async def record() -> None:
        async with ServiceManager(evidence=files["evidence"], log=None) as manager:
            await manager.run(pipeline, [{"text": key} for key in keys], journal=Journal(files["journal"]))

    anyio.run(record)
    result = CliRunner().invoke(app, [*command.split(), files[command.split(maxsplit=1)[0]], "--item", given])
    assert result.exit_code == (0 if command == "evidence show" else 2)
    assert f" item {given!r}" in result.stderr
    assert result.stderr.endswith(f"; did you mean {keys[2]!r}?\n")
    assert result.stderr.count("\n") == 1


def test_of_an_item_that_was_given_as_a_path_the_name_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "run.db")
    said("run", ME, "--journal", path)
    assert "has no item 'x/long/path/b'; did you mean 'b'?" in said(
        "journal", "prune", path, "--item", "x/long/path/b", code=2
    )


def test_what_is_pruned_runs_again(tmp_path: Path) -> None:
    path = str(tmp_path / "run.db")
    line = ("run", ME, "--journal", path)
    said(*line)
    for arguments, again in (
        (("--phase", "joined"), ["joined"]),
        (("--item", "b"), ["b", "joined"]),
        (("--phase", "upper"), ["a", "b", "c", "joined"]),
    ):
        ran.clear()
        said("journal", "prune", path, *arguments)
        said(*line)
        assert ran == again


def test_prune_failed_forgets_how_they_ended(tmp_path: Path) -> None:
    path = str(tmp_path / "run.db")
    broken.add("b")
    said("run", ME, "--journal", path, code=1)
    assert said("journal", "prune", path, "--failed") == "forgot 0 results and how 1 item ended\n"
    broken.clear()
    assert "3 succeeded (2 from" in said("run", ME, "--journal", path, "--retry", "none")  # it is new


def test_prune_unseen_forgets_what_does_not_come_any_more(tmp_path: Path) -> None:
    path = str(tmp_path / "run.db")
    said("run", ME, "--journal", path)
    said("run", ME, "--journal", path, "--input", "ab")
    assert said("journal", "prune", path, "--unseen") == "forgot 1 result and how 1 item ended\n"
    assert said("journal", "prune", path, "--unseen") == "forgot 0 results and how 0 items ended\n"
    ran.clear()
    said("run", ME, "--journal", path)
    assert ran == ["c", "joined"]


@tool
async def hangs(upper: str) -> str:
    await anyio.sleep_forever()
    return upper


hanging = Pipeline("cli", *PHASES[:1], Phase("hangs", hangs), item=["text"], key="text")


async def go(path: Path, given: str = "abc", **options: Any) -> RunReport:
    async with ServiceManager(log=None) as manager:
        return await manager.run(pipeline, texts(given), journal=path, **options)


async def hung(manager: ServiceManager) -> list[Any]:
    """The calls that hang, once there are three."""
    found: list[Any] = []
    while len(found) < 3:
        await anyio.lowlevel.checkpoint()
        found = [call for call in manager.calls.values() if call.name == "hangs"]
    return found


async def cancelled(path: Path) -> None:
    """A run that comes to its end, and all of whose items are cancelled in their second phase."""
    async with ServiceManager(log=None) as manager, anyio.create_task_group() as tasks:
        tasks.start_soon(partial(manager.run, hanging, texts(), journal=path))
        for call in await hung(manager):
            call.cancel()


def shown(path: Path) -> Any:
    return json.loads(said("journal", "show", str(path), "--json"))


async def test_prune_unseen_keeps_what_came_and_was_cancelled(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    await cancelled(path)
    assert ([one["status"] for one in shown(path)["runs"]], shown(path)["items"]) == (["ended"], {"new": 3})
    assert said("journal", "prune", str(path), "--unseen") == "forgot 0 results and how 0 items ended\n"


async def test_prune_unseen_keeps_what_came_and_was_not_to_run(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    await cancelled(path)
    assert (await go(path, "ab", retry="failed")).skipped == 2
    assert said("journal", "prune", str(path), "--unseen") == "forgot 1 result and how 1 item ended\n"
    ran.clear()
    await go(path)
    assert ran == ["c", "joined"]


async def test_prune_unseen_forgets_what_never_came_to_an_end(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    async with ServiceManager(log=None) as manager, manager.stream(hanging, texts(), journal=path):
        await hung(manager)
    with closing(sqlite3.connect(path)) as database:  # as after a kill
        database.execute("DELETE FROM items")
        database.commit()
    await go(path, "a")
    assert said("journal", "prune", str(path), "--unseen") == "forgot 2 results and how 0 items ended\n"


async def test_an_item_that_was_cancelled_keeps_how_it_ended_before(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    broken.update("abc")
    await go(path)
    broken.clear()
    await cancelled(path)
    assert shown(path)["items"] == {"failed": 3}


@pytest.mark.parametrize(("retry", "again"), [("all", "abc"), ("failed", "abc"), ("none", "")])
async def test_failures_are_on_record_where_nothing_has_succeeded(tmp_path: Path, retry: str, again: str) -> None:
    path = tmp_path / "run.db"
    two = Pipeline("cli", *PHASES[:1], item=["text"], key="text")
    broken.update("abc")
    async with ServiceManager(log=None) as manager:
        await manager.run(two, texts(), journal=path)
        broken.clear()
        ran.clear()
        report = await manager.run(two, texts(), journal=path, retry=retry)  # type: ignore[arg-type]
    assert sorted(ran) == list(again)
    assert report.failed == (0 if again else 3)


async def cut_off(path: Path) -> None:
    async with ServiceManager(log=None) as manager, manager.stream(pipeline, texts(), journal=path) as outcomes:
        await anext(aiter(outcomes))


async def test_prune_unseen_wants_a_run_that_came_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    await cut_off(path)
    assert "did not come to the end of its source" in said("journal", "prune", str(path), "--unseen", code=2)
    assert ", cut off after" in said("journal", "show", str(path))


async def test_prune_stale_forgets_other_versions(tmp_path: Path) -> None:
    path = tmp_path / "run.db"

    async def run(version: str) -> RunReport:
        newer = Phase("upper", ToolAdapter(upper, name="upper", version=version))
        one = Pipeline("cli", newer, item=["text"], key="text")
        async with ServiceManager(log=None) as manager:
            return await manager.run(one, texts("ab" if version == "2" else "abc"), journal=Journal(path))

    await run("1")
    assert said("journal", "prune", str(path), "--stale").startswith("forgot 0 results")
    await run("2")
    assert said("journal", "prune", str(path), "--stale").startswith("forgot 1 result ")
    assert (await run("2")).reused == 2


async def test_a_journal_in_use_is_not_looked_into(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    async with ServiceManager(log=None) as manager, manager.stream(pipeline, texts(), journal=path) as outcomes:
        shown = said("journal", "show", str(path), code=2)
        assert "another run, or another program, has it open, and cannot be shown meanwhile; kgas-async status" in shown
        assert "run.jsonl shows that run, if it has --evidence run.jsonl, or wait for its end\n" in shown
        pruned = said("journal", "prune", str(path), "--failed", code=2)
        assert "has it open, and nothing can be forgotten meanwhile; wait for its end\n" in pruned
        assert "one run at a time" not in shown + pruned
        assert len([one async for one in outcomes]) == 3


def test_help_says_what_it_does() -> None:
    helped: Any = said("journal", "--help")
    assert "show" in helped
    assert "prune" in helped


async def test_a_run_that_was_refused_leaves_no_run_behind(tmp_path: Path) -> None:
    path = tmp_path / "run.db"

    async def run(function: Any, **options: Any) -> RunReport:
        one = Pipeline("cli", Phase("upper", ToolAdapter(function, name="upper")), item=["text"], key="text")
        async with ServiceManager(log=None) as manager:
            return await manager.run(one, texts("ab"), journal=Journal(path, **options))

    await run(upper)
    with pytest.raises(JournalError, match="has changed"):
        await run(lambda text: text.upper() + "!", on_change="refuse")
    assert len(json.loads(said("journal", "show", str(path), "--json"))["runs"]) == 1
    assert said("journal", "prune", str(path), "--stale").startswith("forgot 0 results")
    assert (await run(upper)).reused == 2
