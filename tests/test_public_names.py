"""The public front: what `kgas_async` exports, and that each name is documented and says where it comes from."""

from __future__ import annotations
import __future__

import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

import kgas_async

REFERENCE = Path(__file__).parent.parent / "docs" / "reference.md"


def test_all_is_sorted_and_without_repeats() -> None:
    assert list(kgas_async.__all__) == sorted(set(kgas_async.__all__))


def test_nothing_else_is_public() -> None:
    stray = {
        name
        for name, value in vars(kgas_async).items()
        if not name.startswith("_") and not isinstance(value, ModuleType | __future__._Feature)
    }
    assert stray - set(kgas_async.__all__) == set()


@pytest.mark.parametrize("name", kgas_async.__all__)
def test_name_is_there_documented_and_of_this_package(name: str) -> None:
    value = getattr(kgas_async, name)
    if inspect.isclass(value) or inspect.isroutine(value):
        assert value.__module__ == "kgas_async"
        assert vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__, "no docstring of its own"


def test_reference_names_every_public_name() -> None:
    named = set(re.findall(r"`(?:kgas_async\.)?(\w+)", REFERENCE.read_text(encoding="utf-8")))
    assert set(kgas_async.__all__) - named == set()
