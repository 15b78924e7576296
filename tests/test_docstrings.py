"""What the docstrings of public names must say: what is taken, given and raised, and what a cancellation does.

`docs/_sphinx/names.py` is what the site's reference is made of; so what is asked here is what a reader finds there.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

import kgas_async

pytest.importorskip("sphinx", reason="the dependency group docs is not installed")

NAMES = importlib.util.spec_from_file_location(
    "docs_sphinx_names", Path(__file__).parent.parent / "docs" / "_sphinx" / "names.py"
)
assert NAMES is not None
assert NAMES.loader is not None
names = importlib.util.module_from_spec(NAMES)
NAMES.loader.exec_module(names)

EXPORT = ("lineage", "mcp", "otel", "prometheus", "prov", "trace")
MODULES = ("kgas_async", "kgas_async.testing", *(f"kgas_async.export.{name}" for name in EXPORT))

REFERS = re.compile(r"\bAs (of )?`")  # "As `Call.cancel`": it is said there
SAYS_WHAT_IS_GIVEN = re.compile(r"(A|An|The|This|What|Whether|How|Which)\b")


def public() -> dict[str, Any]:
    """Each public name, and each member of a public class, by its dotted name."""
    found: dict[str, Any] = {}
    for module in MODULES:
        for name in importlib.import_module(module).__all__:
            value = getattr(importlib.import_module(module), name)
            found[f"{module}.{name}"] = value
            if inspect.isclass(value):
                found |= {f"{module}.{name}.{member}": of for member, of in names.members(value).items()}
    return found


PUBLIC = public()


def function_of(value: Any) -> Callable[..., Any] | None:
    if isinstance(value, property):
        return value.fget
    if isinstance(value, (staticmethod, classmethod)):
        return value.__func__
    return value if inspect.isfunction(value) else None


FUNCTIONS = {name: function for name, value in PUBLIC.items() if (function := function_of(value)) is not None}
CLASSES = {name: value for name, value in PUBLIC.items() if inspect.isclass(value)}


def doc_of(value: Any) -> str:
    return inspect.cleandoc(value.__doc__ or "")


def says(word: str, doc: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", doc) is not None


def parameters(signature: inspect.Signature) -> list[str]:
    """Those that are given by name. (``*args`` is there for type checkers.)"""
    return [name for name in signature.parameters if name not in ("self", "cls", "args")]


@pytest.mark.parametrize("name", sorted(FUNCTIONS | CLASSES))
def test_there_is_one_and_it_begins_with_a_sentence(name: str) -> None:
    doc = doc_of({**CLASSES, **FUNCTIONS}[name])
    assert re.match(r"[^\n]+[.:?]($|\n)|Raises:", doc), f"the first line of {name} is no sentence: {doc[:80]!r}"


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_it_says_what_a_function_takes_gives_and_raises(name: str) -> None:
    function = FUNCTIONS[name]
    doc = doc_of(function)
    if REFERS.search(doc):
        return
    signature = names.signature_of(function)
    assert [word for word in parameters(signature) if not says(word, doc)] == [], "parameters that it does not name"
    gives = signature.return_annotation not in (None, type(None), "None", NoReturn, "NoReturn")
    if gives and parameters(signature) and not isinstance(PUBLIC[name], property):
        assert "Returns:" in doc or SAYS_WHAT_IS_GIVEN.match(doc), "it does not say what is returned"
    if raises(function):
        assert "Raises:" in doc, "it raises, and does not say what"


def raises(function: Callable[..., Any]) -> bool:
    """Whether it raises something by itself, and not only what it has caught."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    return any(isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) for node in ast.walk(tree))


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_it_says_what_a_cancellation_does(name: str) -> None:
    function = inspect.unwrap(FUNCTIONS[name])
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        doc = doc_of(function)
        assert "Cancellation:" in doc or REFERS.search(doc)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_it_says_what_a_class_is_made_of(name: str) -> None:
    cls = CLASSES[name]
    doc = doc_of(cls)
    if "Args:" in doc:
        missing = [word for word in parameters(names.signature_of(cls)) if not says(word, doc)]
        assert missing == [], "parameters that it does not name"
    elif dataclasses.is_dataclass(cls) and not issubclass(cls, kgas_async.KGASTool):
        told = {field for base in cls.__mro__ if names.is_ours(base) for field in names.attributes(base)}
        fields = {field.name for field in dataclasses.fields(cls) if not field.name.startswith("_")}
        assert fields - told - set(names.members(cls)) == set(), "fields that it does not describe"


def test_the_reference_has_each_name_in_one_place() -> None:
    listed = [name for group in names.groups().values() for name in group]
    assert sorted(listed) == sorted(kgas_async.__all__)


def test_what_the_reference_leaves_out_is_there() -> None:
    """A name in `INTERNAL` that no longer exists would hide the next one of that name."""
    for cls, left_out in names.INTERNAL.items():
        if left_out != names.LIMIT:
            assert [name for name in left_out.split() if not hasattr(getattr(kgas_async, cls), name)] == []
