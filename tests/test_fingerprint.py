"""A changed function is noticed: by its code, and by what it was made with; what is the same is not."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections import ChainMap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any
from xmlrpc.client import ServerProxy

import pytest

from kgas_async import Batcher, KGASTool, Service, ToolAdapter, tool
from kgas_async._fingerprint import MANY, difference, fingerprint


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
    assert difference(fingerprint(made(1)), fingerprint(made(2))) == "code"


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


# --- what a tool was made with


class Graph(Service):
    def __init__(self, path: str) -> None:
        self.path = path

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        yield


@dataclass
class Options:
    lang: str
    labels: tuple[str, ...] = ()


class Link(KGASTool):
    def __init__(
        self, lang: Any, graph: Any = None, *more: Any, labels: Any = ("PER",), score: Any = None, **rest: Any
    ) -> None:
        self.lang = lang

    async def execute_async(self, *, text: str) -> str:
        return text


class Legacy:
    def __init__(self, lang: Any, labels: Any = ()) -> None:
        self._lang = lang
        self.labels = labels
        self.calls = 0
        self.lock = Lock()

    def execute(self, text: str) -> str:
        self.calls += 1
        return text

    def other(self, text: str) -> str:
        return text


class Mine(ToolAdapter[..., Any]):
    def __init__(self, lang: str) -> None:
        super().__init__(repeated)


class Doubled:
    def __init__(self, times: int) -> None:
        self.times = times

    def __call__(self, text: str) -> str:
        return text * self.times


def lists(texts: list[str]) -> list[str]:
    return texts


WITH_METHOD = ToolAdapter.preset(method="other")
MADE: list[tuple[Callable[[Any], KGASTool], Any, Any]] = [
    (Link, "en", "de"),
    (Link, Options("en"), Options("en", ("PER",))),
    (Link, Path("a"), Path("b")),
    (Link, str, int),
    (Link, len, sum),
    (lambda labels: Link("en", labels=labels), ["PER"], ["PER", "ORG"]),
    (lambda more: Link("en", None, *more), (1, 2), (1, 3)),
    (lambda more: Link("en", more=more), 1, 2),
    (lambda lang: ToolAdapter(Legacy(lang)), "en", "de"),
    (lambda lang: ToolAdapter(Legacy(lang)).using(name="x"), "en", "de"),
    (lambda labels: ToolAdapter(Legacy("en", labels)), {"a": ["b"]}, {"a": ["c"]}),
    (lambda lang: ToolAdapter(Legacy(lang).other, name="other"), "en", "de"),
    (lambda lang: WITH_METHOD(Legacy(lang)), "en", "de"),
    (lambda method: ToolAdapter(Legacy("en"), method=method), "execute", "other"),
    (lambda lang: ToolAdapter(Link(lang)), "en", "de"),
    (lambda lang: Link(Link(lang)), "en", "de"),
    (lambda times: tool(Doubled(times), name="d"), 1, 2),
    (Mine, "en", "de"),
    (lambda lang: Batcher(BatchLink(lang)).tool, "en", "de"),
]


class BatchLink(Link):
    async def execute_async(self, *, texts: list[str]) -> list[str]:  # type: ignore[override]
        return texts


@pytest.mark.parametrize(("make", "one", "other"), MADE)
def test_what_a_tool_was_made_with_counts(make: Callable[[Any], KGASTool], one: Any, other: Any) -> None:
    assert fingerprint(make(one)) == fingerprint(make(one))
    assert difference(fingerprint(make(one)), fingerprint(make(other))) == "arguments"


def test_a_default_that_is_given_is_the_default() -> None:
    assert fingerprint(Link("en")) == fingerprint(Link(lang="en", labels=("PER",)))


def test_a_function_that_a_tool_was_given_is_code_of_it() -> None:
    one, other = Link("en", score=lambda text: len(text) - 1), Link("en", score=lambda text: len(text) + 1)
    assert difference(fingerprint(one), fingerprint(other)) == "code"
    assert fingerprint(one) == fingerprint(Link("en", score=lambda text: len(text) - 1))


def test_a_partial_that_a_tool_was_given_counts_with_its_arguments() -> None:
    one, other = (Link("en", score=functools.partial(repeated, times=times)) for times in (1, 2))
    assert difference(fingerprint(one), fingerprint(other)) == "code"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Graph("a"), Graph("b")),
        (object(), object()),
        (["x"] * MANY, ["y"] * MANY),
        ("x" * 1024 * MANY, "y" * 1024 * MANY),
        ({"a": object()}, {"a": object()}),
        (ServerProxy("http://a"), ServerProxy("http://b")),  # it has whatever attribute is asked for, such as __code__
        ([ChainMap({"a": 1})], [ChainMap({"a": 2})]),
    ],
)
def test_services_and_what_has_no_digest_or_is_too_big_do_not(one: object, other: object) -> None:
    assert fingerprint(Link("en", one)) == fingerprint(Link("en", other))


def test_what_changes_as_a_tool_works_does_not() -> None:
    legacy, labels = Legacy("en"), ["PER"]
    made, link = ToolAdapter(legacy), Link("en", labels=labels)
    before = fingerprint(link)
    legacy.execute("a")
    labels.append("ORG")
    assert fingerprint(made) == fingerprint(ToolAdapter(Legacy("en")))
    assert fingerprint(link) == before


def test_a_constant_of_the_class_is_code() -> None:
    def made(model: str, version: str = "0") -> KGASTool:
        return type("Tool", (Link,), {"model": model, "version": version})("en")

    assert difference(fingerprint(made("small")), fingerprint(made("large"))) == "code"
    assert fingerprint(made("small")) == fingerprint(made("small", "2"))


def test_nobody_can_tell_what_older_journals_do_not_say() -> None:
    now = fingerprint(Link("en"))
    tag, code, _ = now.split(":")
    assert difference(f"{tag}:{code}", now) == ""
    assert difference(f"{tag}:0123", now) == "code"
    assert difference("", now) == ""
    assert difference(f"other:0123:{now.split(':')[2]}", now) == ""
    assert difference("other:0123:4567", now) == "arguments"
