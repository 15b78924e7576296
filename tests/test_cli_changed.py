"""`kgas-async run --journal` where the code of a tool has changed: warned of, run again, refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .programs import ROOT
from .terminal import Terminal

MINE = """
from kgas_async import Phase, Pipeline, tool

@tool
def upper(text: str) -> str:
    return text.upper()

@tool
async def joined(uppers: list[str]) -> str:
    return "".join(uppers)

pipeline = Pipeline("mine", Phase("upper", upper), Phase("joined", joined, bind={"uppers": "upper"}, collect=True),
                    item=["text"], key="text", source=lambda: [{"text": text} for text in "abc"])
"""
LINE = ("-m", "kgas_async", "run", "mine:pipeline", "--journal", "my run.db")
WARNING = (
    "warning: phase 'upper': its code changed since my run.db has its results, and those were used; to have it run "
    "again: kgas-async journal prune 'my run.db' --phase upper, or run with --on-change run"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a run has been, and where the body of a tool is another one now."""
    (tmp_path / "mine.py").write_text(MINE)
    assert said(tmp_path) == (0, "joined: ABC\n", "")
    change(tmp_path, "text.upper()", "2 * text.upper()")
    return tmp_path


def change(folder: Path, old: str, new: str) -> None:
    code = (folder / "mine.py").read_text()
    assert code.count(old) == 1
    (folder / "mine.py").write_text(code.replace(old, new))


def said(folder: Path, *more: str, line: tuple[str, ...] = LINE) -> tuple[int, str, str]:
    """The exit code, standard output, and standard error without the counts at its end."""
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *line, *more]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)
    lines = [one for one in done.stderr.splitlines() if not one.startswith("mine: ")]
    return done.returncode, done.stdout, "\n".join(lines)


def test_old_values_are_used_with_a_warning_until_they_are_pruned(folder: Path) -> None:
    for _ in range(2):
        assert said(folder) == (0, "joined: ABC\n", WARNING)
    mend = ("-m", "kgas_async", "journal", "prune", "my run.db", "--phase", "upper")
    assert said(folder, line=mend)[0] == 0
    assert said(folder) == (0, "joined: AABBCC\n", "")
    assert said(folder) == (0, "joined: AABBCC\n", "")


def test_the_warning_names_all_phases(folder: Path) -> None:
    change(folder, '"".join', '"-".join')
    code, out, errors = said(folder)
    assert (code, out) == (0, "joined: ABC\n")
    assert errors.startswith("warning: phases 'upper', 'joined': their code changed since my run.db has their results")
    assert "prune 'my run.db' --phase upper && kgas-async journal prune 'my run.db' --phase joined, or" in errors


def test_on_change_run_runs_it_again(folder: Path) -> None:
    assert said(folder, "--on-change", "run") == (0, "joined: AABBCC\n", "")
    assert said(folder) == (0, "joined: AABBCC\n", "")


def test_on_change_refuse_does_not_begin(folder: Path) -> None:
    said(folder)  # it has used the old ones
    code, out, errors = said(folder, "--on-change", "refuse")
    assert (code, out) == (2, "")
    assert "phase 'upper', tool 'upper': its function has changed since it gave what is recorded" in errors
    assert "or --on-change run, to run it again, or --on-change reuse to use what is there" in errors
    assert "on_change=" not in errors


@pytest.mark.parametrize("how", ["reuse", "run"])
def test_json_has_it_too(folder: Path, how: str) -> None:
    _, out, errors = said(folder, "--json", "--on-change", how)
    changed = {"phase": "upper", "tool": "upper", "changed": "code", "reused": how == "reuse"}
    assert json.loads(out)["code_changed"] == [changed]
    assert errors == (WARNING if how == "reuse" else "")


def test_it_is_said_below_the_live_view(folder: Path) -> None:
    with Terminal(list(LINE), cwd=folder, columns=200) as terminal:
        assert terminal.code() == 0
        screen = terminal.screen()
        assert screen.count(WARNING) == 1
        assert screen.index(WARNING) > next(i for i, line in enumerate(screen) if line.startswith("mine ended"))


def test_2_where_it_is_asked_for_without_a_journal_or_misspelt(folder: Path) -> None:
    line = LINE[:4]
    assert said(folder, "--on-change", "run", line=line)[::2] == (
        2, "error: --on-change run needs --journal, which says what a tool was before",
    )  # fmt: skip
    assert said(folder, "--on-change", "rerun")[2].startswith(
        "error: --on-change 'rerun' is not known; use one of reuse, run, refuse"
    )
