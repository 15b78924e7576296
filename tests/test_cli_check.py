"""`kgas-async check`, and what `run` does with a TOML file: plans, graphs, exit codes, messages."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from typer.testing import CliRunner

from kgas_async._cli import app
from kgas_async._toml_checked import schema

from .programs import LOOPS, ROOT

Run = Callable[..., Any]

FILE = """\
[pipeline]
name = "sums"
source = "tests.toml_pieces:numbers"
with = { upto = 4 }
item = ["x"]
key = "x"

[services.store]
use = "tests.toml_pieces:Store"
path = "a.db"
other = "$plain"

[services.plain]
use = "tests.toml_pieces:Plain"

[limits.calls]
rate = 1000
burst = 10

[limits.unused]
concurrency = 3

[[phase]]
name = "added"
tool = "tests.toml_pieces:Add"
with = { store = "$store", amount = 10 }
policy = { rate = "$calls", retry = 2 }

[[phase]]
name = "parts"
tool = "tests.toml_pieces:upto"
expand = "part"

[[phase]]
name = "doubled"
tool = "tests.toml_pieces:double"
bind = { x = "part" }
when = "tests.toml_pieces:is_odd"
policy.timeout = 9

[[phase]]
name = "less"
tool = "tests.toml_pieces:negated"
bind = { ys = "part" }
batch = 2
journal = false

[[phase]]
name = "sum"
tool = "tests.toml_pieces:total"
bind = { xs = "added" }
after = "parts"
collect = true

[profile.prod.phase.added.policy]
retry = 5
"""


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    (tmp_path / "sums.toml").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "path", list(sys.path))
    return lambda *arguments, command="check": CliRunner().invoke(app, [command, *arguments])


def test_the_plan_of_a_file(check: Run) -> None:
    result = check("sums.toml", "--profile", "prod", "--set", "phase.doubled.policy.timeout=3")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == dedent("""\
        pipeline sums (sums.toml, profile prod)
          source  tests.toml_pieces:numbers
          item    x: Any
          key     x

        5 phases, in order
          1 added  Add (async)  per item
              x <- item field x
              uses store
              retry = Retry(5, on=Exception, wait=exponential(0.1, 2, cap=30, jitter=1))  phase, \
sums.toml:56: profile.prod.phase.added.policy.retry
              rate = $calls  phase, sums.toml:27: phase.added.policy.rate
          2 parts  upto (async)  per item, expands into part
              x <- item field x
          3 doubled  double (async)  per part, when tests.toml_pieces:is_odd
              x <- each part
              timeout = 3  phase, --set phase.doubled.policy.timeout, over 5 of the tool
          4 less  negated (async)  per part, batches of 2, not journaled
              ys <- each part
          5 sum  total (async)  per run, collects all items (missing: ignore)
              xs <- phase added, a list
              after parts

        limits
          $calls  RateLimit(1000, per=1, burst=10)  used by added
          $unused  ConcurrencyLimit(3)  used by nobody

        services, in an order in which they can start
          plain  Plain  used by $store
          store  Store  used by added
        """)


def test_the_plan_as_json(check: Run) -> None:
    result = check("sums.toml", "--json")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert [phase["phase"] for phase in plan["phases"]] == ["added", "parts", "doubled", "less", "sum"]
    assert plan["phases"][2]["inputs"] == [{"input": "x", "from": "element", "name": "part"}]
    (timeout,) = plan["phases"][2]["policy"]
    assert timeout == {
        "field": "timeout", "value": 9.0, "from": "phase", "place": "sums.toml:39: phase.doubled.policy.timeout",
        "over": [{"value": 5.0, "from": "tool"}],
    }  # fmt: skip
    assert plan["limits"][0] == {"limit": "calls", "is": "RateLimit(1000, per=1, burst=10)", "used_by": ["added"]}


def test_what_is_taken_for_granted_of_items_is_said(check: Run) -> None:
    result = check("sums.toml", "--set", 'pipeline.item="tests.toml_pieces:Item"')
    assert "item    x: int, host: str" in result.stdout
    Path("bare.toml").write_text(
        '[pipeline]\nname = "p"\n[[phase]]\nname = "a"\ntool = "tests.toml_pieces:double"\nbind = { x = "number" }\n'
    )
    result = check("bare.toml")
    assert "source  none: kgas-async run needs one" in result.stdout
    assert "assumed number: taken for item fields, since no phase has these names" in result.stdout
    assert json.loads(check("bare.toml", "--json").stdout)["assumed"] == ["number"]


def test_a_pipeline_in_python_has_a_plan_too(check: Run) -> None:
    result = check("examples.knowledge_graph:pipeline")
    assert result.exit_code == 0, result.output
    assert "7 phases, in order" in result.stdout
    assert "concurrency = 8  tool" in result.stdout
    assert "GraphStore  GraphStore  used by links, graph" in result.stdout


def test_on_a_terminal_it_is_coloured_and_else_the_same(check: Run, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kgas_async", "check", "sums.toml"]
    plain = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    environment = {**plain, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "40"}
    piped = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60).stdout
    shown = on_a_terminal(command, tmp_path, environment)
    assert "\x1b[" in shown
    assert re.sub(r"\x1b\[[0-9;]*m", "", shown) == piped
    assert "5 phases, in order" in piped
    assert not re.search(r"\x1b\[[0-9;]*3\dm", on_a_terminal(command, tmp_path, {**environment, "NO_COLOR": "1"}))


def on_a_terminal(command: list[str], folder: Path, environment: dict[str, str]) -> str:
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # the other side is closed
            while some := os.read(ours, 4096):
                shown += some
    os.close(ours)
    assert process.returncode == 0
    return shown.decode().replace("\r\n", "\n")


# --- graphs


def test_the_graph_for_mermaid(check: Run) -> None:
    lines = check("sums.toml", "--graph", "mermaid").stdout.splitlines()
    assert lines[0] == "flowchart TD"
    ids = {match[2]: match[1] for line in lines if (match := re.match(r'    (n\d)[\[(]+"(\w+)', line))}
    assert set(ids) == {"item", "added", "parts", "doubled", "less", "sum", "store", "plain"}
    assert f'    {ids["parts"]} -->|"part as x"| {ids["doubled"]}' in lines
    assert f'    {ids["added"]} -->|"xs"| {ids["sum"]}' in lines
    assert f'    {ids["parts"]} -.->|"after"| {ids["sum"]}' in lines
    assert f'    {ids["store"]} -.->|"uses"| {ids["added"]}' in lines
    assert f'    {ids["plain"]} -.->|"required by"| {ids["store"]}' in lines


def test_the_graph_as_a_drawing_without_overlaps(check: Run) -> None:
    result = check("sums.toml", "--graph", "svg", "-o", "plan.svg")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "written: plan.svg\n")
    root = ET.parse("plan.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    texts = [text.text for text in root.iter(f"{space}text")]
    assert {"item", "added", "parts", "doubled", "less", "sum", "store", "plain", "part as x"} <= set(texts)
    left, top, width, height = map(float, root.attrib["viewBox"].split())
    boxes = [
        tuple(float(box.attrib[name]) for name in ("x", "y", "width", "height"))
        for box in root.iter(f"{space}rect")
        if box.attrib["class"] != "page"
    ]
    assert len(boxes) == 8
    for x, y, wide, high in boxes:
        assert left <= x < x + wide <= left + width
        assert top <= y < y + high <= top + height
    for number, (x1, y1, wide1, high1) in enumerate(boxes):
        for x2, y2, wide2, high2 in boxes[:number]:
            assert x1 + wide1 <= x2 or x2 + wide2 <= x1 or y1 + high1 <= y2 or y2 + high2 <= y1
    assert not re.search(r"<script|https?://(?!www\.w3\.org)", Path("plan.svg").read_text())


def test_an_output_that_exists_is_not_written_over_unless_told_so(check: Run) -> None:
    Path("plan.txt").write_text("mine")
    result = check("sums.toml", "-o", "plan.txt")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: plan.txt exists; --force writes over it, or give another name\n",
    )
    assert check("sums.toml", "-o", "plan.txt", "--force").exit_code == 0
    assert Path("plan.txt").read_text() == check("sums.toml").stdout
    result = check("sums.toml", "-o", "absent/plan.txt")
    assert (result.exit_code, result.stderr) == (
        2,
        "error: absent/plan.txt cannot be written: No such file or directory\n",
    )


def test_the_schema_is_printed(check: Run) -> None:
    assert json.loads(check("--schema").stdout) == schema()


# --- mistakes


@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sum.toml"], "there is no file 'sum.toml'"),
        (["sums.toml", "--profile", "prd"], "did you mean 'prod'?"),
        (
            ["sums.toml", "--set", "phase.added.policy.retries=3"],
            "--set phase.added.policy.retries: is no key of a policy",
        ),
        (["examples.knowledge_graph:pipeline", "--profile", "x"], "--profile is for pipelines in TOML files"),
        (["examples.knowledge_graph:pipeline", "--set", "a=b"], "--set is for pipelines in TOML files"),
        (["sums"], "did you mean 'sums.toml'?"),
        (["sums.toml:pipeline"], "a TOML file is one pipeline: give sums.toml"),
        (["examples.knowledge_graph:graph"], "is no Pipeline but GraphStore"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(check: Run, command: str, arguments: list[str], said: str) -> None:
    result = check(*arguments, command=command)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: ")
    assert said in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [([], "say which pipeline"), (["sums.toml", "--json", "--graph", "svg"], "two forms of one plan; choose one")],
)
def test_what_check_must_be_told(check: Run, arguments: list[str], said: str) -> None:
    result = check(*arguments)
    assert (result.exit_code, said in result.stderr) == (2, True)


# --- run


@pytest.mark.parametrize("backend", LOOPS)
def test_a_file_runs(check: Run, backend: str) -> None:
    result = check("sums.toml", "--backend", backend, command="run")
    assert (result.exit_code, result.stdout) == (0, "sum: 46\n"), result.output
    result = check(
        "sums.toml", "--backend", backend, "--input", "2", "--set", "phase.added.with.amount=0", command="run"
    )
    assert (result.exit_code, result.stdout) == (0, "sum: 1\n"), result.output


def test_a_file_without_a_source_does_not_run(check: Run) -> None:
    Path("bare.toml").write_text('[pipeline]\nname = "p"\n[[phase]]\nname = "a"\ntool = "tests.toml_pieces:double"\n')
    result = check("bare.toml", command="run")
    assert (result.exit_code, "bare.toml: pipeline.source is missing" in result.stderr) == (2, True)
