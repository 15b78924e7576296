"""Writes `docs/images/live.svg`, a picture of the live view: ``python docs/make_live.py``.

The figures are those of a run that might have been; they go through the same code as real ones.
"""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from kgas_async._cli_picture import lines_of
from kgas_async._picture import (
    BreakerSeen,
    FailureSeen,
    InFlight,
    ItemsSeen,
    LimitSeen,
    PhaseSeen,
    Picture,
    ProcessSeen,
    StallsSeen,
)

IMAGE = Path(__file__).parent / "images" / "live.svg"
COLUMNS = 96


def picture() -> Picture:
    """A run of the kind that the README has, in the middle."""
    phases = (
        PhaseSeen("text", "load", "item", 812, 3, 0, 0, 0, 1200, 8, 8, 41.2, 9.4, 0.011, 0.064, {"thread": 4.2}, 21.4, 0),
        PhaseSeen("chunks", "split", "item", 809, 0, 0, 0, 0, 1197, 0, 0, 41.0, 9.5, 0.001, 0.003, {}, 1.6, 0),
        PhaseSeen(
            "entities", "ner", "item/chunk", 6214, 0, 0, 0, 0, None, 46, 4, 316.0, None, 0.012, 0.031,
            {"concurrency": 211.0, "thread": 3.0}, 92.0, 0,
        ),
        PhaseSeen("merged", "merge", "item", 771, 0, 0, 0, 0, 1197, 0, 0, 39.1, 10.9, 0.001, 0.002, {}, 0.9, 0),
        PhaseSeen(
            "links", "Link", "item", 764, 5, 0, 0, 0, 1197, 7, 5, 38.4, 11.3, 0.044, 0.182, {"rate": 18.0, "retry": 6.0},
            41.0, 17,
        ),
        PhaseSeen("rank", "PageRank", "run", 0, 0, 0, 0, 0, 1, 0, 0, None, None, 0.0, 0.0, {}, 0.0, 0),
    )  # fmt: skip
    return Picture(
        state="running",
        session_id="5b0c6f3e9a1d",
        run_id="5b0c6f3e9a1d-run1",
        pipeline="papers",
        elapsed_s=19.8,
        items=ItemsSeen(764, 8, 0, 1200, 38.4, 11.4),
        phases=phases,
        in_flight=(InFlight("ner", 46, 0.9), InFlight("load", 8, 0.1), InFlight("Link", 7, 0.3)),
        limits=(LimitSeen("ner", "concurrency", 4, 4, 42), LimitSeen("Link", "rate", None, 40.0, 2)),
        breakers=(BreakerSeen("graph", "half_open", "recovery is over", 1.2),),
        retries=17,
        stalls=StallsSeen(1, 0.31, "split"),
        failures=(
            FailureSeen("links (Link)", "ConnectionError", 5, "graph.example.org: connection reset", "p-0712.pdf", 0.4),
            FailureSeen("text (load)", "PdfError", 3, "no text in this file", "p-0655.pdf", 2.1),
        ),
        process=ProcessSeen(1.62, 412 * 2**20, 21),
    )


def svg() -> str:
    """The picture's text."""
    console = Console(
        record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor",
        legacy_windows=False,
    )  # fmt: skip
    prompt = Text.assemble(("$ ", "dim"), "kgas-async run mine:papers --input papers/ --evidence run.jsonl")
    for line in [prompt, *lines_of(picture(), COLUMNS - 1)]:
        console.print(line, highlight=False, soft_wrap=True)
    return console.export_svg(title="kgas-async run", theme=MONOKAI, unique_id="live")


def main() -> None:
    """Write it."""
    IMAGE.parent.mkdir(exist_ok=True)
    IMAGE.write_text(svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
