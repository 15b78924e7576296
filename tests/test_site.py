"""The documentation site: it is built without a warning, its links and anchors lead somewhere, and it needs no network.

KGAS_TEST_SITE names a site that is built already; CI does, for the step before.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

from .test_docstrings import PUBLIC

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
BUILD = ("-q", "-W", "--keep-going", "-b", "html")

pytestmark = pytest.mark.slow  # building it takes twenty seconds


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if built := os.environ.get("KGAS_TEST_SITE"):
        return ROOT / built
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *BUILD, "-d", str(folder / "doctrees"), str(DOCS), str(folder / "html")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return folder / "html"


class Page(HTMLParser):
    """What a page names, what it links, and what a browser loads for it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.anchors.add(given["id"])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload"):
            self.loads.append(given["href"])
        elif "src" in given:
            self.loads.append(given["src"])


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    found = {path: Page(path) for path in site.rglob("*.html")}
    assert len(found) > 30
    return found


def is_outside(link: str) -> bool:
    return link.startswith(("http:", "https:", "//", "mailto:"))


def test_each_link_leads_to_a_page_and_each_anchor_is_there(site: Path, pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        for link in page.links:
            if is_outside(link):
                continue
            target, anchor = urldefrag(link)
            leads_to = (path.parent / unquote(target)).resolve() if target else path
            known = pages.get(leads_to)
            if not leads_to.exists() or (anchor and known is not None and unquote(anchor) not in known.anchors):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert broken == []


def test_pages_load_nothing_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    outside = [f"{path.relative_to(site)}: {load}" for path, page in pages.items() for load in page.loads]
    assert [load for load in outside if is_outside(load.partition(": ")[2])] == []
    styles = "".join(path.read_text(encoding="utf-8") for path in (site / "_static").rglob("*.css"))
    assert "url(http" not in styles
    assert "@import" not in styles


def test_the_reference_has_every_public_name(pages: dict[Path, Page]) -> None:
    entries = {anchor for path, page in pages.items() if path.parent.name == "api" for anchor in page.anchors}
    assert set(PUBLIC) - entries == set()


def test_code_on_pages_leads_to_the_reference(site: Path, pages: dict[Path, Page]) -> None:
    links = pages[site / "policies.html"].links
    assert "api/policies.html#kgas_async.RetryBudget" in links


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium")
def test_search_finds_from_files_alone(site: Path, tmp_path: Path) -> None:
    """As a reader without network has it: the pages are files, and no server answers."""
    assert BROWSER is not None
    asked = f"{(site / 'search.html').resolve().as_uri()}?q=jitter"
    options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom", "--virtual-time-budget=20000")
    done = subprocess.run(
        [BROWSER, *options, f"--user-data-dir={tmp_path}", asked],
        capture_output=True,
        text=True,
        timeout=120,
    )
    page = tmp_path / "found.html"
    page.write_text(done.stdout, encoding="utf-8")
    found = {urldefrag(link)[0] for link in Page(page).links}
    assert "api/policies.html" in found, done.stdout[-2000:]
