"""A browser for the tests of pages: Debian's Chromium, without a window.

Where it is not there the tests are skipped; with KGAS_NEED_CHROMIUM=1, which .ci/run sets, that is a failure.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

PATIENCE_S = 100.0  # below pytest's faulthandler_timeout
NAMES = ("chromium", "chromium-browser", "google-chrome")


class Opened(NamedTuple):
    """What came of a page.

    Attributes:
        dom: As it is after everything in it was read.
        console: What the browser complained of.
        screenshot: As PNG.
    """

    dom: str
    console: list[str]
    screenshot: bytes


def chromium() -> str:
    """Its path; without it, the test is skipped or fails."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        say = pytest.fail if os.environ.get("KGAS_NEED_CHROMIUM") == "1" else pytest.skip
        say("chromium is not there: apt-get install chromium")
    return found


def opened(page: Path, folder: Path, *, width: int = 1200, height: int = 1600, dark: bool = False) -> Opened:
    """Open a page in a browser of its own, whose files go into the folder."""
    picture = folder / f"{page.stem}-{width}{'-dark' if dark else ''}.png"
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    common = [
        chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr",
        "--disable-dev-shm-usage", "--no-first-run", "--disable-background-networking", "--disable-component-update",
        f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}", *scheme,
    ]  # fmt: skip
    command = [*common, "--dump-dom", f"--screenshot={picture}", page.resolve().as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    console = [line for line in shown.stderr.splitlines() if ":CONSOLE" in line]
    return Opened(shown.stdout, console, picture.read_bytes())
