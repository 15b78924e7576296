"""The pages do what they say: their code runs on both event loops, their links and commands hold.

Each page's ```python blocks are run as one program, in order, in a folder of its own. `<!-- not run: reason -->` on
the line before a block leaves it out. `anyio.run` without a backend takes the one that is tested, and so does
`blocking("asyncio")`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]

README_LINES = 130
PAGE_SECONDS = 90.0  # below pytest's faulthandler_timeout, so that a page that hangs is named

NOT_RUN = re.compile(r"<!--\s*not run:(.*?)-->")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


class Block(NamedTuple):
    language: str
    line: int  # of its first line of code, from 1
    code: list[str]
    not_run: str | None  # the reason; "" if none is given


def blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    opened: Block | None = None
    before = ""
    for number, line in enumerate(lines, 1):
        if opened is not None:
            if line.strip() == "```":
                yield opened
                opened = None
            else:
                opened.code.append(line)
        elif line.startswith("```"):
            reason = NOT_RUN.search(before)
            opened = Block(line.removeprefix("```").strip(), number + 1, [], reason and reason[1].strip())
        if line.strip():
            before = line
    assert opened is None, f"{page.name}: the block at line {opened.line} is not closed"


def program(page: Path) -> str | None:
    """The page's code on the very lines it has on the page, so that a traceback points there; None if there is none."""
    runnable = [block for block in blocks(page) if block.language == "python" and block.not_run is None]
    if not runnable:
        return None
    lines = [""] * (runnable[-1].line + len(runnable[-1].code))
    for block in runnable:
        lines[block.line - 1 : block.line - 1 + len(block.code)] = block.code
    return "\n".join(lines) + "\n"


def prelude(backend: str, options: dict[str, object]) -> str:
    """One line, for the first line of the page, which is its heading."""
    return (
        f"import anyio; BACKEND = {backend!r}; "
        "anyio.run = lambda function, *args, backend=BACKEND, backend_options=None, run=anyio.run: "
        "run(function, *args, backend=backend, backend_options=backend_options or "
        f"({options!r} if backend == BACKEND else {{}}))"
    )


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.real_time
@pytest.mark.parametrize("page", [page for page in PAGES if program(page)], ids=page_id)
def test_code_of_page_runs(page: Path, anyio_backend: str | tuple[str, dict[str, object]], tmp_path: Path) -> None:
    backend, options = (anyio_backend, {}) if isinstance(anyio_backend, str) else anyio_backend
    code = program(page)
    assert code is not None
    code = code.replace('.blocking("asyncio")', f".blocking({backend!r})")
    script = tmp_path / f"{page.stem}.py"  # a file, since worker processes import the main module again
    script.write_text(prelude(backend, options) + code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", script.name],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PAGE_SECONDS,
    )
    assert done.returncode == 0, f"{page.name} on {backend}:\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_blocks_are_well_formed(page: Path) -> None:
    for block in blocks(page):
        at = f"{page.name}:{block.line}"
        assert block.language, f"{at}: a block says its language (text, if none)"
        assert block.not_run is None or block.not_run, f"{at}: `not run:` needs a reason"
        if block.language == "console":
            assert "".join(block.code[:1]).startswith("$ "), f"{at}: a console block starts with '$ '"
        elif block.language == "toml":
            tomllib.loads("\n".join(block.code))
        elif block.language == "python":
            compile("\n".join(block.code), at, "exec", flags=0, dont_inherit=True)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    targets = [target.partition("#")[0] for target in LINK.findall(page.read_text(encoding="utf-8"))]
    local = [target for target in targets if target and "://" not in target and not target.startswith("mailto:")]
    assert [target for target in local if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_to_headings_lead_to_one(page: Path) -> None:
    """As where Markdown is shown without a site; what is shown on the site, `tests/test_site.py` looks at."""
    missing = []
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        if anchor and "://" not in path:
            leads_to = (page.parent / path).resolve() if path else page
            if anchor not in anchors(leads_to):
                missing.append(target)
    assert missing == []


def anchors(page: Path) -> set[str]:
    """The names of its headings: small letters, hyphens for blanks, no other signs."""
    code = {line for block in blocks(page) for line in range(block.line, block.line + len(block.code))}
    lines = enumerate(page.read_text(encoding="utf-8").splitlines(), 1)
    headings = [line.lstrip("#").strip() for number, line in lines if line.startswith("#") and number not in code]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_readme_stays_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= README_LINES


def test_index_links_every_page() -> None:
    linked = {(DOCS / target.partition("#")[0]).resolve() for target in LINK.findall((DOCS / "index.md").read_text())}
    assert [page_id(page) for page in PAGES[1:] if page.name != "index.md" and page.resolve() not in linked] == []


def test_the_page_of_the_evidence_names_every_event() -> None:
    kinds = "session|call|thread|scope|run|item|phase|service|evidence|breaker|cache|journal"
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "kgas_async").glob("*.py"))
    page = (DOCS / "evidence.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    told = {event for row in rows for event in events_of(row)}
    found = set(re.findall(rf'"((?:{kinds})\.[a-z_]+)"', sources))
    assert found - told == set()


def events_of(row: str) -> Iterator[str]:
    r"""``\`a.b\`, \`.c\``` are a.b and a.c."""
    kind = ""
    for name in re.findall(r"`([a-z_]*\.[a-z_]+)`", row):
        kind = name.partition(".")[0] or kind
        yield f"{kind}.{name.partition('.')[2]}"


def test_ci_runs_the_commands_of_the_readme() -> None:
    """What the README tells people to type, after the installing, is what CI runs."""
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    commands = [
        line.removeprefix("$ ")
        for block in blocks(README)
        if block.language == "console"
        for line in block.code
        if line.startswith("$ ") and "&&" in line
    ]
    assert len(commands) == 2, "the README has two commands: the main job and the tests"
    for command in commands:
        assert command.rpartition("&& ")[2] in ci, f"not in .ci/run: {command}"
