"""``python -m tests.bench.against PATH``: what a call with no policy costs here over another checkout, in pairs.

PATH is the other checkout, of an older commit, say: ``git worktree add PATH COMMIT``. Each figure is of a process of
its own, here and there in turns, for how a process lies in memory stays for all its life. What the ratio is made of
nobody can tell from it: it holds all that lies between the two commits.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from .measure import Interval

HERE = Path(__file__).resolve().parents[2]

# Only what all commits know.
PROGRAM = """
import json, sys
from time import perf_counter
import anyio
from kgas_async import Phase, Pipeline, ServiceManager, tool

ITEMS, ROUNDS = int(sys.argv[1]), int(sys.argv[2])

@tool
async def nothing(x: int) -> int:
    return x

@tool
async def second(first: int) -> int:
    return first

@tool
def nothing_sync(x: int) -> int:
    return x

LINE = Pipeline("line", Phase("first", nothing), Phase("second", second), item=["x"])

async def mapped(manager, what, items):
    async with manager.map(what, range(items), arg="x") as outcomes:
        values = [outcome.unwrap() async for outcome in outcomes]
    assert values == list(range(items))

async def executed(manager, items):
    for x in range(items):
        assert await manager.execute(nothing, x=x) == x

async def lined(manager, items):
    report = await manager.run(LINE, ({"x": x} for x in range(items)))
    assert report.succeeded == items

async def main():
    ways = {
        "map": (mapped, ITEMS, nothing),
        "execute, one at a time": (executed, ITEMS // 5),
        "a pipeline of two phases": (lined, ITEMS // 2),
        "map of a sync tool": (mapped, ITEMS // 10, nothing_sync),
    }
    best = {}
    async with ServiceManager(log=None) as manager:
        for number in range(ROUNDS + 1):
            for name, (work, items, *args) in ways.items():
                began = perf_counter()
                await work(manager, *args, items)
                seconds = (perf_counter() - began) / items
                if number:
                    best[name] = min(seconds, best.get(name, seconds))
    print(json.dumps(best))

anyio.run(main, backend=sys.argv[3])
"""


def measured(checkout: Path, items: int, backend: str) -> dict[str, float]:
    """Seconds per item of each way, the best of three rounds in one process."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(items), "3", backend],
        cwd=checkout,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.against", description=__doc__)
    parser.add_argument("path", type=Path, help="the other checkout")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--backend", choices=("asyncio", "trio"), default="asyncio")
    parser.add_argument("--goal", type=float, default=1.03, help="for the lower end of the interval")
    given = parser.parse_args()
    there = given.path.resolve()
    if not (there / "kgas_async").is_dir():
        parser.error(f"{there} is no checkout: there is no kgas_async in it")
    ours: dict[str, list[float]] = {}
    theirs: dict[str, list[float]] = {}
    for number in range(given.pairs):
        for checkout, times in ((HERE, ours), (there, theirs)) if number % 2 else ((there, theirs), (HERE, ours)):
            for name, seconds in measured(checkout, given.items, given.backend).items():
                times.setdefault(name, []).append(seconds)
    print(f"A call that does nothing, no policy, on {given.backend}: here over {given.path}, {given.pairs} pairs")
    print(f"  {'':30} {'here us':>9} {'there us':>9} {'ratio':>7} {'95 %':>15} {'goal':>6}  (of the lower end)")
    is_missed = False
    for name, times in ours.items():
        interval = Interval.of([one / other for one, other in zip(times, theirs[name], strict=True)])
        micros = f"{statistics.median(times) * 1e6:9.2f} {statistics.median(theirs[name]) * 1e6:9.2f}"
        verdict = f"{given.goal:.2f}" + (" MISSED" if interval.low > given.goal else "")
        is_missed = is_missed or interval.low > given.goal
        print(f"  {name:30} {micros} {interval.median:6.3f}x {interval.low:6.3f} to {interval.high:5.3f} {verdict:>6}")
    return int(is_missed)


if __name__ == "__main__":
    sys.exit(main())
