"""Mistakes at the prompt: each gives one line that says what, where and the mend, and no traceback."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kgas_async._cli import app

MINE = """
from pathlib import Path
from kgas_async import Phase, Pipeline, tool

@tool
async def double(x: int) -> int:
    return 2 * x

def leaving():
    raise SystemExit("enough")

numbers = Pipeline("numbers", Phase("doubled", double), item=["x"], key="x", source=lambda: [{"x": 1}])
listed = [numbers]
exits = Pipeline("exits", Phase("doubled", double), item=["x"], source=leaving)
"""

MISUSE = [
    # Commands and options that are not there.
    ("rnu mine:numbers", "no such command 'rnu'; did you mean 'run'? see 'kgas-async --help'"),
    ("evidence shwo x", "no such command 'shwo'; did you mean 'show'? see 'kgas-async evidence --help'"),
    ("journal purne x", "no such command 'purne'; did you mean 'prune'? see 'kgas-async journal --help'"),
    ("frobnicate", "no such command 'frobnicate'; see 'kgas-async --help'"),
    ("--vresion", "no such option: --vresion; did you mean --version? see 'kgas-async --help'"),
    ("run mine:numbers --evidnce x", "no such option: --evidnce; did you mean --evidence? see 'kgas-async run --help'"),
    ("run mine:numbers --backand trio", "no such option: --backand; did you mean --backend"),
    ("status run.jsonl --jsno", "no such option: --jsno; did you mean --json?"),
    ("run mine:numbers more", "got unexpected extra argument(s) (more); see 'kgas-async run --help'"),
    # What an option needs.
    ("run", "missing argument 'pipeline'; see 'kgas-async run --help'"),
    ("run mine:numbers --backend", "option '--backend' requires an argument"),
    ("status", "missing argument"),
    ("evidence export run.jsonl", "missing option '--format'"),
    # Values that do not fit.
    ("run mine:numbers --backend tiro", "--backend 'tiro' is not known; use one of asyncio, uvloop, trio; did"),
    ("run mine:numbers --grace soon", "invalid value for '--grace'"),
    ("run mine:numbers --grace=-1", "--grace must be at least 0, not -1.0"),
    ("run mine:numbers --grace inf", "--grace must be a finite number, not inf"),
    ("run mine:numbers --grace nan", "--grace must be a finite number, not nan"),
    ("run mine:numbers --on-error colect", "--on-error 'colect' is not known; use collect, raise, or a share of"),
    ("run mine:numbers --on-error 10", "a share of failed items from 0.0 to 1.0"),
    ("run mine:numbers --on-error nan", "a share of failed items from 0.0 to 1.0"),
    ("run mine:numbers --retry", "option '--retry' requires an argument"),
    ("run mine:numbers --retry some --journal j.db", "--retry 'some' is not known; use one of all, failed, none"),
    ("run mine:numbers --retry failed", "--retry failed needs --journal, which says what failed before"),
    ("run mine:numbers --evidence ''", "--evidence is empty: a variable that is not set, perhaps; give a path, or"),
    ("run mine:numbers --journal ''", "--journal is empty: a variable that is not set, perhaps"),
    ("evidence show run.jsonl -n 0", "invalid value for '--last' / '-n'"),
    ("evidence export run.jsonl --format trce", "--format 'trce' is not known; use one of prov, trace; did you mean"),
    ("run mine:numbers --evidence -", "--evidence - : it is written to a file, and cannot be to standard output"),
    ("run mine:numbers --journal -", "--journal - : it is written to a file"),
    ("evidence show notes.txt", "'notes.txt' has no record of evidence; give the file that --evidence named"),
    ("evidence show notes.txt --failed --json", "'notes.txt' has no record of evidence; give the file that --evid"),
    ("evidence export notes.txt --format trace", "'notes.txt' has no record of evidence"),
    ("evidence export notes.txt --format prov", "'notes.txt' has no record of evidence"),
    ("evidence show empty.jsonl", "'empty.jsonl' has no record of evidence; give the file that --evidence named"),
    ("evidence export run.jsonl --format prov --json", "--json needs --output FILE: without it the export itself"),
    ("evidence export run.jsonl --format prov --json -o -", "--json needs --output FILE: without it the export itself"),
    ("report run.jsonl --json -o -", "--json and --output - would both be on standard output; give a file for the pag"),
    ("journal prune run.db", "say what to forget: --phase, --item, --failed, --unseen or --stale"),
    ("evidence lineage run.jsonl", "say whose lineage: --item KEY, --phase NAME or both"),
    # Pipelines that are none.
    ("run mine.py", "'mine.py' is a Python file; give the pipeline in it as mine:numbers or mine:exits"),
    ("check mine.py", "'mine.py' is a Python file; give the pipeline in it as mine:numbers or mine:exi"),
    ("run mine", "'mine' is not of the form module:attribute; give the pipeline in it as mine:numbers"),
    ("run ./sub/broken.py", "is a Python file; give the pipeline in it by its name, as sub.broken:pip"),
    ("check sub/many.py", "the pipeline in it as sub.many:p0 or sub.many:p1 or sub.many:p2 or sub.many:p3 or sub.many"),
    ("run ../aside.py", "'../aside.py' is a Python file; give the pipeline in it as aside:one, in the"),
    ("run nowhere.py", "there is no file 'nowhere.py'; give a TOML file, or Python's module:attribute"),
    ("run mine.py:numbers", "'mine.py' is a path; give the module's name, without ./ and .py: mine:numbers"),
    ("run mnie:numbers", "there is no module 'mnie' in"),
    ("run mine:nubmers", "module 'mine' has no 'nubmers'; did you mean 'numbers'?"),
    ("run mine:listed", "'mine:listed' is no Pipeline but list; give mine:numbers"),
    ("run mine:double", "'mine:double' is no Pipeline but FunctionTool; give mine:numbers"),
    ("run mine:exits", "the source of 'mine:exits' could not be called: it ends the process by SystemExit('enough')"),
    # Files.
    ("run mine:numbers --evidence nowhere/run.jsonl", "No such file or directory; give --evidence another path"),
    ("run mine:numbers --evidence notes.txt", "notes.txt"),
    ("run mine:numbers --evidence .", "Is a directory"),
    ("run mine:numbers --journal nowhere/run.db", "nowhere"),
    ("run mine:numbers --journal notes.txt", "notes.txt"),
    ("run mine:numbers --evidence a --journal ./a", "--evidence a and --journal a are one file; give another for the"),
    ("run mine:numbers --evidence notes.txt --input other.txt", "--evidence notes.txt and --input other.txt are one"),
    ("run mine:numbers --evidence a --journal a.head", "--evidence a and --journal a.head are one file"),
    ("status nowhere.jsonl", "evidence cannot be read from 'nowhere.jsonl': No such file or directory; give a file of"),
    ("status notes.txt", "'notes.txt' has no record of evidence; give the file that --evidence named"),
    ("status .", "Is a directory"),
    ("evidence show nowhere.jsonl", "'nowhere.jsonl': No such file or directory"),
    ("evidence verify nowhere.jsonl", "'nowhere.jsonl' cannot be read: No such file or directory"),
    ("evidence export nowhere.jsonl --format prov", "'nowhere.jsonl': No such file or directory"),
    ("journal show nowhere.db", "nowhere.db"),
    ("journal prune notes.txt --failed", "notes.txt"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "aside.py").write_text("one = Pipeline()\n")
    tmp_path = tmp_path / "here"
    tmp_path.mkdir()
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "broken.py").write_text("raise SystemExit('it was run')\nnothing(\n")
    many = "".join(f"p{number}: object = kgas_async.Pipeline()\n" for number in range(9))
    (tmp_path / "sub" / "many.py").write_text(f"raise SystemExit('it was run')\n{many}")
    (tmp_path / "notes.txt").write_text("not for you\n" * 1000)
    (tmp_path / "other.txt").symlink_to("notes.txt")
    (tmp_path / "empty.jsonl").touch()
    yield tmp_path
    for name in ("mine", "halves"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(("arguments", "said"), MISUSE, ids=[arguments for arguments, _ in MISUSE])
def test_a_mistake_is_told_in_one_line(folder: Path, arguments: str, said: str) -> None:
    result = CliRunner().invoke(app, shlex.split(arguments))
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert (folder / "notes.txt").read_text() == "not for you\n" * 1000


def test_with_traceback_its_place_is_told_too() -> None:
    for arguments in (["--traceback", "run", "mine:exits"], ["run", "mine:exits", "--traceback"]):
        result = CliRunner().invoke(app, arguments)
        assert "in leaving\n" in result.stderr
        assert result.stderr.splitlines()[-1].startswith("error: the source of 'mine:exits'")


def test_an_import_that_fails_is_told_with_its_place(folder: Path) -> None:
    (folder / "halves.py").write_text("import json\n\ndef half(x):\n    return json.loads(x)\n")
    (folder / "boom.py").write_text("import halves\nhalves.half('{')\n")
    told = "error: module 'boom' cannot be imported: JSONDecodeError: Expecting property name enclosed in "
    for command in ("run", "check"):
        result = CliRunner().invoke(app, [command, "boom:pipeline"])
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert result.stderr.startswith(told)
        assert result.stderr.endswith(" (at halves.py:4); --traceback shows more\n")
        for arguments in (["--traceback", command, "boom:pipeline"], [command, "boom:pipeline", "--traceback"]):
            result = CliRunner().invoke(app, arguments)
            assert "in half\n" in result.stderr
            assert result.stderr.endswith(" (at halves.py:4)\n")


def test_commands_that_take_no_traceback_say_where_it_goes() -> None:
    for command in ("status", "evidence verify"):
        result = CliRunner().invoke(app, [*command.split(), "run.jsonl", "--traceback"])
        assert result.exit_code == 2
        assert f"--traceback comes before this command: kgas-async --traceback {command}; see" in result.stderr


@pytest.mark.parametrize("arguments", [[], ["evidence"], ["journal"]])
def test_a_group_alone_shows_what_there_is(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "Commands" in result.output


@pytest.mark.parametrize("given", ["raise", "0.05"])
def test_a_run_that_is_to_stop_at_failures_stops(folder: Path, given: str) -> None:
    source = "lambda: [{'x': x} for x in range(5000)]"
    (folder / "mine.py").write_text(MINE.replace("    return 2 * x", "    raise LookupError(x)").replace(
        'source=lambda: [{"x": 1}]', f"source={source}"))  # fmt: skip
    result = CliRunner().invoke(app, ["run", "mine:numbers", "--on-error", given])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr
    line = result.stderr.splitlines()[0]
    if given == "raise":
        assert re.match(r"error: --on-error raise has stopped the run: item '\d+' in phase 'doubled': tool 'do", line)
    else:
        assert re.search(r"; the last: item '\d+' in phase 'doubled': tool 'double' failed: LookupError: \d+", line)
