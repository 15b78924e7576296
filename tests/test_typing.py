"""What type checkers say of user code: nothing about accepted.py, an error on each marked line of rejected.py."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
SAMPLES = Path(__file__).parent / "typing"
Errors = dict[int, str]  # messages by line, from 1


def run(module: str, *arguments: str) -> str:
    pytest.importorskip(module, reason="the dependency group `types` is not installed")
    done = subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 1), f"{module} itself failed:\n{done.stdout}{done.stderr}"
    return done.stdout


def mypy(sample: Path) -> Errors:
    output = run("mypy", "--output=json", "--no-error-summary", str(sample))
    found: list[dict[str, Any]] = [json.loads(line) for line in output.splitlines()]
    # Errors of the package itself are reported too; they are the business of a plain `mypy`.
    return {one["line"]: one["message"] for one in found if one["severity"] == "error" and sample.match(one["file"])}


def pyright(sample: Path) -> Errors:
    # Its own environment discovery knows nothing of the one that these tests run in.
    output = json.loads(run("pyright", "--outputjson", "--pythonpath", sys.executable, str(sample)))
    found: list[dict[str, Any]] = output["generalDiagnostics"]
    return {one["range"]["start"]["line"] + 1: one["message"] for one in found if one["severity"] == "error"}


@pytest.fixture(params=[mypy, pyright], ids=["mypy", "pyright"])
def check(request: pytest.FixtureRequest) -> Callable[[Path], Errors]:
    checker: Callable[[Path], Errors] = request.param
    return checker


def test_right_uses_are_accepted(check: Callable[[Path], Errors]) -> None:
    assert check(SAMPLES / "accepted.py") == {}


def test_wrong_uses_are_rejected_and_nothing_else(check: Callable[[Path], Errors]) -> None:
    sample = SAMPLES / "rejected.py"
    lines = sample.read_text(encoding="utf-8").splitlines()
    expected = {number for number, line in enumerate(lines, 1) if line.endswith("# rejected")}
    found = check(sample)
    assert expected, "no line is marked"
    assert {line: found[line] for line in found.keys() - expected} == {}
    assert {line: lines[line - 1].strip() for line in expected - found.keys()} == {}
