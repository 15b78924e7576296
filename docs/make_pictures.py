"""Makes the pictures of the documentation anew: `python docs/make_pictures.py`, from the root of a clone.

Needs the extras and Chromium (Debian: `apt-get install chromium`). The report is that of the main job, run for it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import anyio

IMAGES = Path(__file__).parent / "images"
SIZE = (1200, 1560)
LARGEST = 300_000  # bytes of a picture


async def run_main_job(evidence: Path) -> None:
    """The main job over the documentation of this Python, with a monitor, so that the report has all its parts."""
    from examples.knowledge_graph import pipeline  # noqa: PLC0415  (its path is set below)
    from kgas_async import PerformanceMonitor, ServiceManager  # noqa: PLC0415

    assert pipeline.source is not None
    monitor = PerformanceMonitor(sample_every=0.1)
    async with ServiceManager(evidence=evidence, monitor=monitor, log=None) as manager:
        await manager.run(pipeline, pipeline.source())


def photograph(page: Path, picture: Path) -> None:
    """A page as a browser shows it."""
    browser = shutil.which("chromium")
    if browser is None:
        sys.exit("chromium is not there: apt-get install chromium")
    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"]
        size = ",".join(map(str, SIZE))
        command = [browser, *options, f"--window-size={size}", f"--screenshot={picture}", page.resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True)
    assert picture.stat().st_size < LARGEST, f"{picture} has {picture.stat().st_size} bytes"


def make_report_picture() -> None:
    """The report of the main job."""
    from kgas_async.export.report import write_report  # noqa: PLC0415

    IMAGES.mkdir(exist_ok=True)
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # so that the page names the evidence as people do, and the graph goes here too
        try:
            anyio.run(run_main_job, Path("run.jsonl"))
            write_report("run.jsonl", "report.html")
            photograph(Path("report.html"), IMAGES / "report.png")
        finally:
            os.chdir(here)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent.resolve()))
    IMAGES = IMAGES.resolve()
    make_report_picture()
