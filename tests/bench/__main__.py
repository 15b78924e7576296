"""``python -m tests.bench``: prints all tables; ``--quick`` with fewer rounds and items; names of tables print those.

Each table is measured in a process of its own: how fast a call is depends on what the interpreter has specialised its
code for, so on what ran in the process before.

Imports by full names: AnyIO's worker processes, which ours are compared with, run this file outside of its package.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.bench.blocking import blocking_table
from tests.bench.cases import LOOPS, item_cases, thread_cases
from tests.bench.evidence import evidence_cases
from tests.bench.idle import idle_table
from tests.bench.journal import item_cases as journaled_cases
from tests.bench.journal import row_cases
from tests.bench.measure import Case, Row, compare, table
from tests.bench.pipelines import diamond_cases, waiting_cases
from tests.bench.policies import policies_table
from tests.bench.processes import beside_anyio_table, cpu_table, kill_table
from tests.bench.startup import startup_table
from tests.bench.view import view_table


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    items: int = 10_000
    calls: int = 3_000
    rounds: int = 9
    pairs: int = 15
    kills: int = 40
    idle_s: float = 5.0


QUICK = Size(items=2_000, calls=500, rounds=3, pairs=3, kills=5, idle_s=1.0)
Missed = Sequence[str]  # the rows whose goals were missed


def map_table(size: Size) -> Missed:
    return shown("An item, over asyncio TaskGroup + Semaphore in the same round", item_cases(size.items), size)


def record_table(size: Size) -> Missed:
    return shown("A record, over template + sha256 + write in the same round", evidence_cases(size.items * 5), size)


def sync_table(size: Size) -> Missed:
    missed: list[str] = []
    for loop in LOOPS:
        for in_flight in (100, 8):
            title = f"A sync call in a thread, {in_flight} in flight, over anyio.to_thread on {loop}"
            missed += shown(title, thread_cases(loop, size.calls, in_flight), size)
    return missed


def waiting_table(size: Size) -> Missed:
    rows = compare(waiting_cases(LOOPS), size.rounds)
    title = "1,000 items: 5 ms of waiting (50 at once), 50 us of CPU, 5 ms of waiting (50 at once); per run"
    missed = [*told(table(title, rows)), *missed_of(rows)]
    ratios = {row.name: row.ratio for row in rows}
    for loop in LOOPS:
        share = ratios[f"ours ({loop})"] / ratios[f"a barrier per phase ({loop})"]
        told(f"  ours over a barrier per phase ({loop}): {share:.2f}x, goal 0.50")
        missed += [f"ours ({loop}), over a barrier per phase"] if share > 0.5 else []
    return missed


def diamond_table(size: Size) -> Missed:
    missed: list[str] = []
    for loop, where in LOOPS.items():
        missed += shown(f"A diamond, over a line on {loop}", diamond_cases(loop, where, size.items), size)
    return missed


def journal_table(size: Size) -> Missed:
    missed: list[str] = []
    for loop, where in LOOPS.items():
        rows = row_cases(loop, where, size.items, durable=False)
        missed += shown(f"A row of the journal on {loop}", rows, size)
        missed += shown("The same, durable", row_cases(loop, where, size.items, durable=True), size)
        items = journaled_cases(loop, where, size.items)
        missed += shown(f"An item of three phases with a journal on {loop}", items, size)
    return missed


TABLES: dict[str, Callable[[Size], Missed]] = {
    "map": map_table,
    "record": record_table,
    "sync": sync_table,
    "waiting": waiting_table,
    "diamond": diamond_table,
    "journal": journal_table,
    "policies": lambda size: told(*policies_table(size.items, size.pairs)),
    "cpu": lambda size: told(*cpu_table(size.pairs)),
    "kill": lambda size: told(kill_table(size.kills)),
    "processes": lambda size: told(beside_anyio_table(size.calls // 10, size.rounds)),
    "blocking": lambda size: told(*blocking_table(size.pairs)),
    "idle": lambda size: told(*idle_table(size.idle_s)),
    "startup": lambda size: told(*startup_table(size.rounds)),
    "view": lambda size: told(*view_table(size.idle_s)),
}


def main(arguments: Sequence[str]) -> int:
    names = [argument for argument in arguments if argument != "--quick"]
    quick = len(names) < len(arguments)
    if unknown := set(names) - set(TABLES):
        raise SystemExit(f"no table named {', '.join(sorted(unknown))}; there are {', '.join(TABLES)}")
    if len(names) == 1:
        missed = TABLES[names[0]](QUICK if quick else Size())
        return 1 if told(f"goals missed: {', '.join(missed)}" if missed else "", missed) and not quick else 0
    size = QUICK if quick else Size()
    print(f"Python {platform.python_version()}, {size.items} items, {size.rounds} to {size.pairs} interleaved rounds")
    print("Medians. The items do nothing: with real work the differences hide behind it.", flush=True)
    flags = ["--quick"] if quick else []
    failed = [name for name in names or TABLES if subprocess.call([sys.executable, "-m", "tests.bench", name, *flags])]
    print(f"\ntables that missed a goal: {', '.join(failed)}" if failed else "\nall goals met")
    return 1 if failed else 0


def shown(title: str, cases: Sequence[Case], size: Size) -> Missed:
    rows = compare(cases, size.rounds)
    return [*told(table(title, rows)), *missed_of(rows)]


def missed_of(rows: list[Row]) -> Missed:
    return [row.name for row in rows if row.goal is not None and row.ratio > row.goal]


def told(text: str, missed: Missed = ()) -> Missed:
    if text:
        print("\n" + text, flush=True)
    return missed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
