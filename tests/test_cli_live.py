"""The live view on a real terminal: what it shows, at which width, how it is left."""

from __future__ import annotations

import re
import signal
import termios
from pathlib import Path

import pytest

from .terminal import Terminal

MINE = """
import itertools, sys, time
import anyio
from kgas_async import Phase, Pipeline, Policy, Retry, tool

@tool
def load(x: int) -> int:
    time.sleep(0.01)
    return x

@tool(policy=Policy(concurrency=3, retry=Retry(attempts=2, on=ConnectionError, wait=0.01)))
async def parse(load: int) -> int:
    await anyio.sleep(0.02)
    if load % 10 == 3:
        raise ConnectionError(f"no page {load} \\x1b[2J\\n")
    return load

@tool
async def total(parse: list[int]) -> int:
    return sum(parse)

@tool
def deaf(x: int) -> int:
    print("taken", flush=True)
    time.sleep(60)

@tool
def chatty(x: int) -> int:
    sys.stdout.write(f"chatter {x}\\n")  # one write: threads do it at once
    sys.stdout.flush()
    time.sleep(0.05)
    return x

def some(count="150"):
    return [{"x": x} for x in range(int(count))]

def endless():
    return ({"x": x} for x in itertools.count())

phases = [Phase("load", load), Phase("parse", parse), Phase("total", total, collect=True)]
papers = Pipeline("papers", *phases, item=["x"], key="x", source=some)
steady = Pipeline("steady", *phases, item=["x"], key="x", source=endless)
@tool
async def forever(x: int) -> int:
    if x == 7:
        raise LookupError("seven")
    if x == 4:
        print("taken", flush=True)
    await anyio.sleep_forever()

sleeping = Pipeline("sleeping", Phase("forever", forever), item=["x"], key="x",
                    source=lambda count="5": [{"x": x} for x in range(int(count))])
stuck = Pipeline("stuck", Phase("deaf", deaf), item=["x"], source=lambda: [{"x": 1}])
talking = Pipeline("talking", Phase("chatty", chatty), item=["x"], source=some)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


def command(name: str, *more: str) -> list[str]:
    return ["-m", "kgas_async", "run", f"mine:{name}", "--evidence", "run.jsonl", *more]


def is_as_it_was(terminal: Terminal) -> bool:
    """Whether the cursor is shown, no other screen is up, colours are off, and the modes are those of before."""
    shown = terminal.shown
    hidden = shown.rfind(b"\x1b[?25l") > shown.rfind(b"\x1b[?25h")
    colours = re.findall(rb"\x1b\[([\d;]*)m", shown)
    same = termios.tcgetattr(terminal._theirs) == terminal.modes
    return same and not hidden and b"\x1b[?1049h" not in shown and (not colours or colours[-1] in (b"", b"0"))


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_it_shows_phases_as_they_go_and_leaves_a_summary(folder: Path, columns: int) -> None:
    with Terminal(command("papers"), cwd=folder, columns=columns) as terminal:
        assert terminal.code() == 1  # some pages are not there
        frames = terminal.frames()
        assert all(len(line) <= columns for frame in frames for line in frame)
        live = [frame for frame in frames if frame[0].startswith("papers running")]
        assert live
        heads = [line for frame in live for line in frame if line.startswith("phase ")]
        assert all("done" in line for line in heads)
        assert ("waits for" in heads[-1]) == (columns >= 80)
        assert any(line.startswith("load ") for line in live[-1])
        text = "\n".join(live[-1])
        assert ("concurrency" in text) == (columns >= 80)
        assert "limits: parse" in "\n".join(line for frame in live for line in frame)
        end = terminal.screen()
        assert sum(line.startswith("papers ended") for line in end) == 1
        assert not any("running" in line for line in end)
        assert any(line.startswith("total: ") for line in end)
        assert "parse: ConnectionError x15" in "\n".join(end)
        assert end[-1] == "evidence: run.jsonl"
        assert is_as_it_was(terminal)


def test_what_an_error_says_cannot_act_on_the_terminal(folder: Path) -> None:
    with Terminal(command("papers"), cwd=folder, columns=160) as terminal:
        terminal.code()
        live = next(part for part in terminal.shown.split(b"\n") if b"parse: ConnectionError" in part)
        assert b"\\x1b[2J\\n" in live


def test_no_color_leaves_out_the_colours(folder: Path) -> None:
    with Terminal(command("papers"), cwd=folder, NO_COLOR="1") as terminal:
        terminal.code()
        codes = {int(code) for found in re.findall(rb"\x1b\[([\d;]+)m", terminal.shown) for code in found.split(b";")}
        assert not [code for code in codes if 30 <= code <= 49 or 90 <= code <= 107]
        assert any(line.startswith("papers ended") for line in terminal.screen())


def test_a_dumb_terminal_gets_lines(folder: Path) -> None:
    with Terminal(command("papers"), cwd=folder, TERM="dumb") as terminal:
        assert terminal.code() == 1
        assert b"\x1b" not in terminal.shown.replace(b"\x1b[999;1H", b"")
        assert b"papers: 150 items in" in terminal.shown


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_the_first_signal_drains_and_the_terminal_is_left_as_it_was(folder: Path, number: int, code: int) -> None:
    with Terminal(command("steady"), cwd=folder, columns=120) as terminal:
        terminal.until("parse: ConnectionError")
        terminal.kill(number)
        assert terminal.code() == code
        end = terminal.screen()
        name = signal.Signals(number).name
        assert any(line.startswith(f"steady ended after {name}") for line in end)
        assert end[-2].startswith(f"interrupted by {name}: what was in flight has ended, the rest of the source")
        assert is_as_it_was(terminal)


def test_it_says_what_a_drain_waits_for_then_what_a_cancellation_does(folder: Path) -> None:
    with Terminal(command("stuck", "--grace", "60"), cwd=folder, columns=120) as terminal:
        terminal.until("taken")
        terminal.kill()
        terminal.until("draining after SIGINT, up to 60 s (once more cancels)")
        terminal.until("1 call in flight: deaf 1 (")
        terminal.kill()
        terminal.until("cancelling, up to 60 s (once more ends the process)")
        terminal.kill()
        assert terminal.code() == 130
        assert is_as_it_was(terminal)


@pytest.mark.parametrize("ended_by", ["Ctrl-C", "--on-error raise"])
def test_what_was_cancelled_is_not_shown_as_failed(folder: Path, ended_by: str) -> None:
    more = ["--grace", "0"] if ended_by == "Ctrl-C" else ["--on-error", "raise", "--input", "8"]
    with Terminal(command("sleeping", *more), cwd=folder, columns=120) as terminal:
        terminal.until("taken")
        if ended_by == "Ctrl-C":
            terminal.kill()
        assert terminal.code() == (130 if ended_by == "Ctrl-C" else 1)
        end = terminal.screen()
        failed = "" if ended_by == "Ctrl-C" else "1 failed, "
        counts = next(line for line in end if line.startswith("sleeping ended"))
        assert f"{failed}{5 if not failed else 7} cancelled" in counts
        assert "failed" in counts or not failed
        heading = next(number for number, line in enumerate(end) if line.startswith("phase "))
        titles, values = end[heading].split(), end[heading + 1].split()
        assert ("failed" in titles) == bool(failed)
        assert values[titles.index("cancelled")] == ("7" if failed else "5")
        assert not any(line.startswith("cancelled: ") for line in end)
        report = next(line for line in end if line.startswith("sleeping: "))
        assert report.endswith(f"0 succeeded, {failed}{7 if failed else 5} cancelled")


def test_it_needs_nothing_to_be_put_right_after_a_kill(folder: Path) -> None:
    with Terminal(command("steady"), cwd=folder) as terminal:
        terminal.until("parse: ConnectionError")
        terminal.kill(signal.SIGKILL)
        assert terminal.code() == -signal.SIGKILL
        assert b"\x1b[?25l" not in terminal.shown
        assert termios.tcgetattr(terminal._theirs) == terminal.modes


def test_what_tools_print_stands_above_it(folder: Path) -> None:
    with Terminal(command("talking", "--input", "60"), cwd=folder) as terminal:
        assert terminal.code() == 0
        lines = terminal.shown.decode().replace("\r\n", "\n").split("\n")
        said = [line for line in lines if "chatter" in line]
        assert len(said) == 60
        assert all(re.fullmatch(r"(.*\x1b\[2K)?(\x1b\[\d*m)*chatter \d+(\x1b\[\d*m)*", line) for line in said)


def test_what_tools_print_into_a_file_stays_there(folder: Path) -> None:
    code = "import subprocess, sys; run = [sys.executable, *sys.argv[1:]]; "
    code += "sys.exit(subprocess.call(run, stdout=open('out.txt', 'w')))"
    with Terminal(["-c", code, *command("talking", "--input", "40")], cwd=folder) as terminal:
        assert terminal.code() == 0
        assert "talking ended" in "\n".join(terminal.screen())
        assert b"chatter" not in terminal.shown
    assert (folder / "out.txt").read_text().count("chatter") == 40
