"""A changed function is noticed: by its code, and by what it was made with; what is the same is not."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kgas_async import KGASTool, ToolAdapter, tool
from kgas_async._fingerprint import differ, fingerprint


def repeated(text: str, times: int = 1) -> str:
    return text * times


def by_partial(times: int) -> KGASTool:
    return ToolAdapter(functools.partial(repeated, times=times), name="t")


def by_closure(times: int) -> KGASTool:
    def inner(text: str) -> str:
        return text * times

    return tool(inner)


def by_default(times: int) -> KGASTool:
    def inner(text: str, times: int = times, names: Any = ("a", times)) -> str:
        return text * times

    return tool(inner)


def by_returns(times: int) -> KGASTool:
    returns: Callable[[str], str] = (lambda text: text) if times == 1 else (lambda text: text + "!")
    return ToolAdapter(repeated, returns=returns)


def by_wrapping(times: int) -> KGASTool:
    return ToolAdapter(by_returns(times))


@pytest.mark.parametrize("made", [by_partial, by_closure, by_default, by_returns, by_wrapping])
def test_what_a_function_was_made_with_counts(made: Callable[[int], KGASTool]) -> None:
    assert fingerprint(made(1)) == fingerprint(made(1))
    assert differ(fingerprint(made(1)), fingerprint(made(2)))


def counting() -> KGASTool:
    count = 0

    def inner(text: str) -> str:
        nonlocal count
        count += 1
        return text

    return tool(inner)


def test_what_a_function_sets_itself_does_not() -> None:
    made: Any = counting()
    before = fingerprint(made)
    made("a")
    assert fingerprint(made) == before


SOMETHING = (object(),)


def strange(text: str, names: Any = SOMETHING) -> str:
    return text


def test_what_looks_otherwise_in_each_process_does_not() -> None:
    script = (
        "from kgas_async import tool; from kgas_async._fingerprint import fingerprint; "
        "from tests.test_fingerprint import strange; print(fingerprint(tool(strange)))"
    )
    root = Path(__file__).parent.parent
    seen = {
        subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, check=True, text=True).stdout
        for _ in range(2)
    }
    assert seen == {fingerprint(tool(strange)) + "\n"}
