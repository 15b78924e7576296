"""The page about the command line and the picture on it are what their scripts write."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parent.parent / "docs"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date() -> None:
    made = script("make_cli").page()
    assert (DOCS / "cli.md").read_text(encoding="utf-8") == made, "run: python docs/make_cli.py"


def test_the_picture_is_up_to_date() -> None:
    made, kept = (words(text) for text in (script("make_live").svg(), (DOCS / "images" / "live.svg").read_text()))
    assert made == kept, "run: python docs/make_live.py"
    for word in ("papers", "entities", "concurrency", "breaker", "ConnectionError"):
        assert word in made


def words(svg: str) -> str:
    """What can be read in it; how it is drawn differs between versions of rich."""
    return " ".join(re.sub(r"<style.*?</style>|<[^>]*>", " ", svg, flags=re.DOTALL).split())


@pytest.mark.parametrize("name", ["make_cli", "make_live"])
def test_the_scripts_write_their_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = script(name)
    target = tmp_path / "images" / "target"
    monkeypatch.setattr(module, "PAGE" if name == "make_cli" else "IMAGE", target)
    target.parent.mkdir()
    module.main()
    assert target.stat().st_size > 1000
