"""``python -m tests.bench``: prints all tables; ``--quick`` with fewer rounds and items.

Imports by full names: AnyIO's worker processes, which ours are compared with, run this file outside of its package.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence

from tests.bench.blocking import blocking_table
from tests.bench.cases import LOOPS, item_cases, thread_cases
from tests.bench.evidence import evidence_cases
from tests.bench.idle import idle_table
from tests.bench.journal import item_cases as journaled_cases
from tests.bench.journal import row_cases
from tests.bench.measure import Row, compare, table
from tests.bench.pipelines import diamond_cases, waiting_cases
from tests.bench.policies import policies_table
from tests.bench.processes import beside_anyio_table, cpu_table, kill_table


def main() -> int:
    quick = "--quick" in sys.argv
    items, calls, rounds, pairs = (2_000, 500, 3, 3) if quick else (10_000, 3_000, 9, 15)
    print(f"Python {platform.python_version()}, {items} items, {rounds} to {pairs} interleaved rounds; medians")
    print("The items do nothing: with real work the differences hide behind it.")
    rows: list[Row] = []
    rows += shown("An item, over asyncio TaskGroup + Semaphore in the same round", compare(item_cases(items), rounds))
    title = "A record of evidence, over template + sha256 + write in the same round"
    rows += shown(title, compare(evidence_cases(items * 5), rounds))
    for loop in LOOPS:
        for in_flight in (100, 8):
            title = f"A sync call in a thread, {in_flight} in flight, over anyio.to_thread on {loop}"
            rows += shown(title, compare(thread_cases(loop, calls, in_flight), rounds))
    title = "1,000 items: 5 ms of waiting (50 at once), 50 us of CPU, 5 ms of waiting (50 at once); per run"
    waiting = shown(title, compare(waiting_cases(LOOPS), rounds))
    rows += waiting
    missed = [f"{name}, over a barrier per phase" for name in slower_than_half_a_barrier(waiting)]
    for loop, where in LOOPS.items():
        rows += shown(f"A diamond, over a line on {loop}", compare(diamond_cases(loop, where, items), rounds))
    for loop, where in LOOPS.items():
        rows += shown(f"A row of the journal on {loop}", compare(row_cases(loop, where, items, durable=False), rounds))
        rows += shown("The same, durable", compare(row_cases(loop, where, items, durable=True), rounds))
        rows += shown(
            f"An item of three phases with a journal on {loop}", compare(journaled_cases(loop, where, items), rounds)
        )
    missed += [row.name for row in rows if row.goal is not None and row.ratio > row.goal]
    missed += told(*policies_table(items, pairs))
    missed += told(*cpu_table(pairs))
    told(kill_table(5 if quick else 40))
    told(beside_anyio_table(calls // 10, rounds))
    missed += told(*blocking_table(pairs))
    missed += told(*idle_table(1.0 if quick else 5.0))
    print(f"\n{len(missed)} goals missed: {', '.join(missed)}" if missed else "\nall goals met")
    return 1 if missed and not quick else 0


def slower_than_half_a_barrier(rows: list[Row]) -> list[str]:
    """Our rows that take more than half of what a barrier per phase takes on the same loop."""
    ratios = {row.name: row.ratio for row in rows}
    barriers = {loop: ratios[f"a barrier per phase ({loop})"] for loop in LOOPS}
    for loop, barrier in barriers.items():
        print(f"  ours over a barrier per phase ({loop}): {ratios[f'ours ({loop})'] / barrier:.2f}x, goal 0.50")
    return [f"ours ({loop})" for loop, barrier in barriers.items() if ratios[f"ours ({loop})"] > barrier / 2]


def told(text: str, missed: Sequence[str] = ()) -> Sequence[str]:
    print("\n" + text, flush=True)
    return missed


def shown(title: str, rows: list[Row]) -> list[Row]:
    print("\n" + table(title, rows), flush=True)
    return rows


if __name__ == "__main__":
    sys.exit(main())
