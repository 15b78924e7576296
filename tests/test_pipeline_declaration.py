"""Pipelines as declared: what cannot run is refused at construction, with the phase, the input and the nearest name."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal, TypedDict

import pytest
from pydantic import BaseModel

from kgas_async import KGASTool, Phase, Pipeline, Policy, Service, ToolAdapter, tool
from kgas_async._fit import cannot_fit


@tool
async def load(path: Path) -> str:
    return ""


@tool
async def split(text: str) -> list[str]:
    return []


@tool
async def embed(chunk: str) -> list[float]:
    return []


@tool
async def merge(vectors: list[list[float]]) -> dict[str, float]:
    return {}


@tool
async def rank(merged: list[dict[str, float]]) -> int:
    return 0


@tool
async def anything(x: Any, y: Any = None) -> Any:
    return x


def papers(**changes: Any) -> list[Phase]:
    """A sound pipeline's phases, by name, with some of them changed."""
    phases = {
        "text": Phase("text", load),
        "chunks": Phase("chunks", split, expand="chunk"),
        "vectors": Phase("vectors", embed),
        "merged": Phase("merged", merge, collect="chunk"),
        "rank": Phase("rank", rank, collect=True),
    }
    return list({**phases, **changes}.values())


def test_a_sound_pipeline_says_what_runs_where() -> None:
    plan = Pipeline("papers", *papers(), item=["path"]).plan
    assert [planned.phase.name for planned in plan.item.phases] == ["text", "chunks", "merged"]
    assert [planned.phase.name for planned in plan.phases["chunks"].children.phases] == ["vectors"]
    assert [planned.phase.name for planned in plan.run.phases] == ["rank"]
    assert plan.leaves == ("merged",)
    assert plan.assumed == ()


def test_unbound_names_are_taken_for_item_fields_unless_those_are_declared() -> None:
    assert Pipeline("papers", *papers()).plan.assumed == ("path",)
    with pytest.raises(ValueError, match=r"'papers', phase 'text': input 'path' of tool 'load' has no source 'path'"):
        Pipeline("papers", *papers(), item=["name"])


def test_the_services_of_a_pipeline_are_those_of_its_tools_each_once() -> None:
    class Store(Service):
        @asynccontextmanager
        async def running(self) -> AsyncIterator[None]:
            yield

    class Reads(KGASTool):
        def __init__(self, store: Store) -> None:
            self.store = store

        async def execute_async(self, x: int) -> int:
            return x

    one, two = Store(), Store()
    phases = [Phase("a", Reads(one)), Phase("b", Reads(two)), Phase("c", Reads(one))]
    assert Pipeline("p", *phases).services == (one, two)


class Declared(TypedDict):
    path: Path


class Modelled(BaseModel):
    path: Path


@dataclasses.dataclass
class Classed:
    path: Path


@pytest.mark.parametrize("item", [["path"], ("path",), Declared, Modelled, Classed])
def test_item_fields_are_names_a_typeddict_a_model_or_a_dataclass(item: Any) -> None:
    pipeline = Pipeline("papers", *papers(), item=item, key="path")
    assert list(pipeline.fields or ()) == ["path"]


@pytest.mark.parametrize("item", ["path", str, 7, [], ["two words"], [1], {"path": Path}.values()])
def test_other_things_are_refused_as_item_fields(item: Any) -> None:
    with pytest.raises(TypeError, match=r"pipeline 'papers': item= is a list of field names, a TypedDict"):
        Pipeline("papers", *papers(), item=item)


# Each row: what is wrong, how it is declared, and what the message must say.
WRONG: list[tuple[str, Any, type[Exception], str]] = [
    ("no phases", lambda: Pipeline("p"), ValueError, "'p' has no phases"),
    ("no name", lambda: Pipeline("", Phase("a", load)), ValueError, "non-empty string"),
    ("a tool for a phase", lambda: Pipeline("p", load), TypeError, r"takes phases, not .*Phase\('name', tool\)"),
    ("a function for a tool", lambda: Phase("a", print), TypeError, r"'a' takes a tool.*tool\(\.\.\.\) or ToolAdapter"),
    ("a name that is none", lambda: Phase("two words", load), ValueError, "identifier.*'two words'"),
    ("two phases of one name", lambda: papers(rank=Phase("text", rank)), ValueError, "phase 'text' has a name.*taken"),
    (
        "an element with a phase's name",
        lambda: papers(chunks=Phase("chunks", split, expand="text")),
        ValueError,
        "element that phase 'chunks' expands into has a name that is taken: 'text'",
    ),
    (
        "an unknown input bound",
        lambda: Phase("vectors", embed, bind={"chunks": "chunk"}),
        TypeError,
        "'vectors' binds 'chunks', which is no input of tool 'embed'; it takes chunk; did you mean 'chunk'",
    ),
    (
        "an unknown source",
        lambda: papers(vectors=Phase("vectors", embed, bind={"chunk": "chunc"})),
        ValueError,
        "'vectors': input 'chunk' of tool 'embed' has no source 'chunc'.*did you mean 'chunk'.*bind=",
    ),
    (
        "a circle",
        lambda: [Phase("a", anything, bind={"x": "b"}), Phase("b", anything, bind={"x": "a"})],
        ValueError,
        "phases need each other in a circle: a -> b -> a",
    ),
    (
        "itself",
        lambda: [Phase("a", anything, bind={"x": "a"})],
        ValueError,
        "'a': input 'x' binds 'a', which is of this phase itself",
    ),
    ("after nothing", lambda: papers(rank=Phase("rank", rank, collect=True, after="merge")), ValueError,
     "after='merge' is no other phase; there are .*did you mean 'merged'"),
    ("after what comes after it", lambda: papers(text=Phase("text", load, after="rank")), ValueError,
     "in a circle: text -> rank -> merged -> vectors -> chunks -> text"),
    (
        "what is expanded, whole",
        lambda: papers(vectors=Phase("vectors", embed, bind={"chunk": "chunks"})),
        ValueError,
        "binds 'chunks', which is expanded; bind its element 'chunk'",
    ),
    (
        "a collect of no expansion",
        lambda: papers(merged=Phase("merged", merge, collect="chunks")),
        ValueError,
        "'merged': collect='chunks' is no expansion of another phase; there are chunk; did you mean 'chunk'",
    ),
    (
        "item values after a run-level phase",
        lambda: [*papers(), Phase("late", anything, bind={"x": "rank", "y": "text"})],
        ValueError,
        "'late': comes after collect=True, so it runs once per run and may not bind item values",
    ),
    (
        "elements in a run-level collect",
        lambda: papers(rank=Phase("rank", anything, bind={"x": "vectors"}, collect=True)),
        ValueError,
        "'rank': collect=True takes values of items; 'vectors' is one of each 'chunk'.*collect='chunk'",
    ),
    (
        "a collect per parent after a run-level phase",
        lambda: [*papers(), Phase("late", merge, bind={"vectors": "vectors"}, collect="chunk", after="rank")],
        ValueError,
        "'late': comes after collect=True, so it runs once per run and may not collect 'chunk'",
    ),
    (
        "an expansion once per run",
        lambda: [*papers(), Phase("late", anything, bind={"x": "rank"}, expand="row")],
        ValueError,
        "'late': runs once per run, so it cannot expand",
    ),
    (
        "values of two expansions",
        lambda: [
            Phase("a", anything, expand="one", bind={"x": "path"}),
            Phase("b", anything, expand="two", bind={"x": "path"}),
            Phase("c", anything, bind={"x": "one", "y": "two"}),
        ],
        ValueError,
        "'c': binds values of two expansions, ('one' and 'two'|'two' and 'one'): collect one",
    ),
    ("expand that is no name", lambda: Phase("a", split, expand="a b"), ValueError, "expand= names one element"),
    ("collect that is none", lambda: Phase("a", merge, collect=3), TypeError, "collect= is the name of an expansion"),
    ("bind that is none", lambda: Phase("a", load, bind={"path": 3}), TypeError, "'path': .* names a source"),
    ("bind that is a list", lambda: Phase("a", load, bind=["path"]), TypeError, "bind= is a mapping of inputs"),
    ("after a number", lambda: Phase("a", load, after=3), TypeError, "after= is the name of a phase or several, not 3"),
    ("after numbers", lambda: Phase("a", load, after=[3]), TypeError, "after= is the name of a phase or several"),
    ("missing without collect", lambda: Phase("a", merge, missing="skip"), TypeError, "missing= belongs to a collect"),
    ("missing that is none", lambda: Phase("a", merge, collect=True, missing="x"), ValueError, "'skip' or 'ignore'"),
    ("a policy that is none", lambda: Phase("a", load, policy=3), TypeError, r"'a': policy= is a Policy\(\.\.\.\)"),
    ("a key that is none", lambda: Pipeline("p", Phase("a", load), key=3), TypeError, "key= is a field or a function"),
    ("a source that is none", lambda: Pipeline("p", Phase("a", load), source=[]), TypeError, "source= is a function"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "kind", "message"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_a_wrong_declaration_is_refused(make: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        made = make()
        if isinstance(made, list):
            Pipeline("papers", *made, item=["path"])


def test_the_key_is_one_of_the_declared_fields() -> None:
    with pytest.raises(ValueError, match="key 'paht' is no item field; there are path; did you mean 'path'"):
        Pipeline("papers", *papers(), item=["path"], key="paht")


def test_a_phase_or_element_may_not_have_the_name_of_a_declared_field() -> None:
    with pytest.raises(ValueError, match="phase 'text' has the name of an item field"):
        Pipeline("papers", *papers(), item=["path", "text"])
    with pytest.raises(ValueError, match=r"element .* has the name of an item field: 'chunk'"):
        Pipeline("papers", *papers(), item=["path", "chunk"])


def test_a_phase_may_have_the_name_of_its_own_input() -> None:
    @tool
    async def text(text: str) -> str:
        return text

    plan = Pipeline("p", Phase("text", text), Phase("chunks", split)).plan
    assert plan.assumed == ("text",)
    assert plan.leaves == ("chunks",)


def test_an_expansion_whose_elements_need_what_collects_them_is_refused() -> None:
    phases = [
        Phase("rows", anything, expand="row", bind={"x": "path"}),
        Phase("cells", anything, bind={"x": "row"}),
        Phase("sum", anything, bind={"x": "cells"}, collect="row"),
        Phase("share", anything, bind={"x": "row", "y": "sum"}),
    ]
    with pytest.raises(ValueError, match=r"phase 'rows': what runs per 'row' needs .*'sum'.*collects 'row' itself"):
        Pipeline("p", *phases)


# --- types


def typed(returns: Any, takes: Any, **collect: Any) -> None:
    async def source(path: Any) -> Any: ...

    async def target(x: Any) -> Any: ...

    source.__annotations__ = {"return": returns}
    target.__annotations__ = {"x": takes}
    Pipeline("p", Phase("a", tool(source)), Phase("b", tool(target), bind={"x": "a"}, **collect))


@pytest.mark.parametrize(
    ("returns", "takes", "shown"),
    [
        (str, list[int], r"'x' is a list\[int\], but 'a' gives str"),
        (list[str], int, r"'x' is a int, but 'a' gives list\[str\]"),
        (dict, str, "'x' is a str, but 'a' gives dict"),
        (None, int, "'x' is a int, but 'a' gives None"),
        (int, None, "'x' is a None.*, but 'a' gives int"),
    ],
)
def test_types_that_can_never_fit_are_refused(returns: Any, takes: Any, shown: str) -> None:
    with pytest.raises(TypeError, match=f"pipeline 'p', phase 'b': input {shown}"):
        typed(returns, takes)


def test_the_element_and_the_list_of_a_collect_are_checked_too() -> None:
    @tool
    async def counts(chunk: list[int]) -> int:
        return 0

    @tool
    async def one(vectors: str) -> int:
        return 0

    with pytest.raises(TypeError, match=r"phase 'vectors': input 'chunk' is a list\[int\], but 'chunk' gives str"):
        Pipeline("papers", *papers(vectors=Phase("vectors", counts)), item=["path"])
    with pytest.raises(TypeError, match=r"phase 'merged': input 'vectors' is a str, but 'vectors' gives list"):
        Pipeline("papers", *papers(merged=Phase("merged", one, collect="chunk")), item=["path"])
    with pytest.raises(TypeError, match=r"phase 'rank': input 'vectors' is a str, but 'text' gives list\[str\]"):
        Pipeline("p", Phase("text", load), Phase("rank", one, bind={"vectors": "text"}, collect=True))


@pytest.mark.parametrize(
    ("returns", "takes"),
    [
        (str, str),
        (str, Path),
        (str, int),
        (int, float),
        (list[int], tuple[int, ...]),
        (list[int], set),
        (dict, BaseModel),
        (Any, list[int]),
        (list[int], Any),
        (object, int),
        (str | None, str),
        (int | str, list[int]),
        (int | None, int),
        (str, Literal["a"]),
        (dict[str, int], Modelled),
        (bool, int),
    ],
)
def test_types_that_may_fit_are_accepted(returns: Any, takes: Any) -> None:
    typed(returns, takes)


def test_when_in_doubt_types_fit() -> None:
    class Mine:
        pass

    class Yours:
        pass

    assert not cannot_fit(Mine, Yours)
    assert not cannot_fit(Mine, str)
    assert not cannot_fit(AsyncIterator[int], list[int])
    assert not cannot_fit(Iterator[int], list[int])


def test_a_value_below_a_dot_is_not_checked_by_the_type_above_it() -> None:
    @tool
    async def source(path: Any) -> dict[str, Any]:
        return {}

    @tool
    async def target(x: str) -> str:
        return x

    Pipeline("p", Phase("a", source), Phase("b", target, bind={"x": "a.text"}))


def test_optional_inputs_need_no_source() -> None:
    @tool
    async def optional(path: Path, language: str = "en") -> str:
        return language

    assert Pipeline("p", Phase("a", optional), item=["path"]).plan.item.phases[0].bindings[0].name == "path"
    assert Pipeline("p", Phase("a", optional)).plan.assumed == ("path",)


def test_a_bound_source_must_exist_even_for_an_optional_input() -> None:
    @tool
    async def optional(path: Path, language: str = "en") -> str:
        return language

    with pytest.raises(ValueError, match="no source 'lang'"):
        Pipeline("p", Phase("a", optional, bind={"language": "lang"}), item=["path"])


def test_an_adapter_with_named_params_is_bound_by_them() -> None:
    class Legacy:
        def execute(self, **kwargs: Any) -> Any:
            return kwargs

    adapter = ToolAdapter(Legacy(), params=["text"], policy=Policy(timeout=1))
    Pipeline("p", Phase("text", load), Phase("ner", adapter), item=["path"])
    with pytest.raises(TypeError, match="which is no input of tool 'Legacy'; it takes text"):
        Phase("ner", adapter, bind={"txt": "text"})


class Clock(Service):
    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        yield


def test_services_may_be_given_beside_those_that_tools_require() -> None:
    clock, other = Clock(), Clock()
    assert Pipeline("p", Phase("text", load), services=[clock, other, clock]).services == (clock, other)
    assert Pipeline("p", Phase("text", load)).services == ()


@pytest.mark.parametrize("services", [5, "clock", [Clock], [object()], Clock()])
def test_what_is_no_service_is_refused(services: Any) -> None:
    with pytest.raises(TypeError, match=r"pipeline 'p': (services= is a tuple of services|.* is no service)"):
        Pipeline("p", Phase("text", load), services=services)
