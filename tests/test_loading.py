"""`load`: what ``module:attribute`` names, and what is said when there is no such thing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from kgas_async import LoadError
from kgas_async._loading import load


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory, with a package in it; what is imported from it is forgotten again."""
    (tmp_path / "kgpkg").mkdir()
    (tmp_path / "kgpkg" / "__init__.py").write_text("pipeline = 'of the package'\n")
    (tmp_path / "kgpkg" / "inner.py").write_text("class Holder:\n    pipeline = 'held'\n_hidden = 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(folder: Path, name: str, code: str) -> None:
    (folder / f"{name}.py").write_text(dedent(code))


@pytest.mark.parametrize(
    ("name", "value"),
    [("kgpkg:pipeline", "of the package"), ("kgpkg.inner:Holder.pipeline", "held"), ("math:pi", 3.141592653589793)],
)
def test_a_name_is_a_module_and_an_attribute(name: str, value: object) -> None:
    assert load(name) == value


def test_the_working_directory_is_looked_in_before_what_is_installed(folder: Path) -> None:
    write(folder, "rfc8785", "mine = True")
    sys.modules.pop("rfc8785", None)
    assert load("rfc8785:mine") is True
    path = list(sys.path)
    load("kgpkg:pipeline")
    assert sys.path == path  # entered once


@pytest.mark.parametrize("name", ["", "kgpkg", "kgpkg:", ":pipeline", ":", "kgpkg.pipeline"])
def test_another_form_is_refused_with_an_example(name: str) -> None:
    with pytest.raises(LoadError, match="is not of the form module:attribute, as in") as caught:
        load(name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["kgmissing:x", "kgpkg.missing:x", "kgmissing.deeper.still:x"])
def test_a_module_that_is_not_there_is_said_with_where_was_looked(folder: Path, name: str) -> None:
    with pytest.raises(LoadError) as caught:
        load(name)
    assert f"there is no module {name.partition(':')[0]!r} in {folder}" in str(caught.value)


@pytest.mark.parametrize("name", ["kgpkg/inner.py:x", "./kgpkg/inner:x"])
def test_a_path_is_told_the_modules_name(folder: Path, name: str) -> None:
    with pytest.raises(LoadError, match=r"is a path; give the module's name, without \./ and \.py: kgpkg\.inner:x"):
        load(name)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import kgneeded", "module 'kgmod' needs kgneeded, which is not installed"),
        ("import kgpkg.other", "module 'kgmod' needs kgpkg.other, which is not installed"),
        ("raise ModuleNotFoundError('the driver')", "module 'kgmod' needs the driver, which is not installed"),
        ("raise RuntimeError('no disk')", "module 'kgmod' cannot be imported: RuntimeError: no disk"),
        ("x = = 1", "module 'kgmod' cannot be imported: SyntaxError: invalid syntax"),
        ("import sys; sys.exit(3)", "module 'kgmod' cannot be imported: SystemExit: 3"),
        ("from kgpkg import nothing", "module 'kgmod' cannot be imported: ImportError: cannot import name 'nothing'"),
    ],
)
def test_a_module_that_cannot_be_imported_is_said_with_the_reason(folder: Path, code: str, said: str) -> None:
    write(folder, "kgmod", code)
    with pytest.raises(LoadError) as caught:
        load("kgmod:pipeline")
    assert said in str(caught.value)
    assert caught.value.__cause__ is not None


def test_a_missing_attribute_is_said_with_the_nearest(folder: Path) -> None:
    with pytest.raises(LoadError, match=r"module 'kgpkg' has no 'pipelin'; did you mean 'pipeline'\?"):
        load("kgpkg:pipelin")
    with pytest.raises(LoadError, match=r"has no 'Holder.pipe_line'; did you mean 'pipeline'\?"):
        load("kgpkg.inner:Holder.pipe_line")
    with pytest.raises(LoadError, match=r"has no 'hidden'$"):
        load("kgpkg.inner:hidden")
    with pytest.raises(LoadError, match=r"has no 'a:b'$"):
        load("kgpkg:a:b")


@pytest.mark.parametrize(("name", "meant"), [("kgpgk:x", "kgpkg"), ("kgpkg.iner:pipeline", "kgpkg.inner")])
def test_the_nearest_module_is_named(name: str, meant: str) -> None:
    with pytest.raises(LoadError, match=f"did you mean '{meant}'"):
        load(name)
