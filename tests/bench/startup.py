"""How long `kgas-async --help` takes to its end, beside a typer program that does nothing else."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter

GOAL = 2.0
BARE = '''
import typer

app = typer.Typer()

@app.command()
def hello(name: str = "x", count: int = typer.Option(1, help="how many")) -> None:
    """Say hello."""

@app.command()
def bye(name: str) -> None:
    """Say bye."""

app()
'''


def seconds(command: Sequence[str]) -> float:
    began = perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return perf_counter() - began


def startup_table(rounds: int) -> tuple[str, list[str]]:
    """The table, and the names of the rows that miss their goal. Rounds are interleaved."""
    with tempfile.TemporaryDirectory() as folder:
        bare = Path(folder) / "bare.py"
        bare.write_text(BARE)
        commands = {
            "a bare typer program, --help": [sys.executable, str(bare), "--help"],
            "kgas-async --help": [sys.executable, "-m", "kgas_async", "--help"],
            "kgas-async run --help": [sys.executable, "-m", "kgas_async", "run", "--help"],
            "python -c 'import kgas_async'": [sys.executable, "-c", "import kgas_async"],
        }
        for command in commands.values():  # compiles, and fills the file cache
            seconds(command)
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, command in commands.items():
                times[name].append(seconds(command))
    first, *_ = times
    lines = [f"Start to end of a command, {rounds} interleaved rounds", f"  {'':44} {'ms':>8} {'ratio':>6} {'goal':>6}"]
    missed = []
    for name, own in times.items():
        ratio = median(one / other for one, other in zip(own, times[first], strict=True))
        has_goal = name == "kgas-async --help"
        missed += [name] if has_goal and ratio > GOAL else []
        goal = (f"{GOAL:.2f}" + (" MISSED" if ratio > GOAL else "")) if has_goal else ""
        lines.append(f"  {name:44} {median(own) * 1e3:8.0f} {ratio:6.2f} {goal:>6}")
    return "\n".join(lines), missed
