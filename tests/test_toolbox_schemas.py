"""`Toolbox`: the schemas of its tools, and their arguments as JSON gives them."""

from __future__ import annotations

import datetime as dt
import enum
import json
import math
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import anyio
import pytest
from pydantic import BaseModel, Field

from kgas_async import (
    CallCancelled,
    CallTimeout,
    InvalidInputs,
    KGASTool,
    Policy,
    ServiceManager,
    ToolAdapter,
    Toolbox,
    UnknownTool,
    tool,
)


class Colour(enum.Enum):
    RED = "red"


class Author(BaseModel):
    name: str
    born: dt.date
    tags: tuple[str, ...] = ()


ADA = Author(name="Ada", born=dt.date(1815, 12, 10), tags=("x",))


@dataclass
class Place:
    folder: Path


class Span(NamedTuple):
    start: int
    label: str


class NoSchema:
    pass


@tool
def echo(value: Any) -> Any:
    return value


def echoing(kind: Any) -> KGASTool:
    """A tool with one input of this type, which gives it back as it arrived."""

    def echoed(value: Any) -> Any:
        return value

    echoed.__annotations__["value"] = kind
    return tool(echoed)


@pytest.mark.parametrize(
    ("kind", "as_json", "expected"),
    [
        (Path, "/tmp/a.pdf", Path("/tmp/a.pdf")),
        (dt.date, "2026-11-21", dt.date(2026, 11, 21)),
        (dt.timedelta, "PT90S", dt.timedelta(seconds=90)),
        (Colour, "red", Colour.RED),
        (list[Colour], ["red"], [Colour.RED]),
        (Author, {"name": "Ada", "born": "1815-12-10", "tags": ["x"]}, ADA),
        (list[Author], [{"name": "A", "born": "1815-12-10"}], [Author(name="A", born=dt.date(1815, 12, 10))]),
        (Place, {"folder": "here"}, Place(Path("here"))),
        (tuple[int, Path], [1, "a"], (1, Path("a"))),
        (Span, [3, "x"], Span(3, "x")),
        (set[int], [1, 2, 2], {1, 2}),
        (dict[int, str], {"1": "a"}, {1: "a"}),  # keys of JSON objects are strings
        (bytes, "abc", b"abc"),
        (uuid.UUID, "12345678-1234-5678-1234-567812345678", uuid.UUID("12345678-1234-5678-1234-567812345678")),
        (Decimal, "1.10", Decimal("1.10")),
        (int, 3.0, 3),
        (int | None, None, None),
        (Literal["a", "b"], "b", "b"),
    ],
)
async def test_arguments_as_json_gives_them_are_coerced(kind: Any, as_json: Any, expected: Any) -> None:
    toolbox = Toolbox(echoing(kind))
    arguments = json.loads(json.dumps({"value": as_json}))
    async with ServiceManager() as manager:
        value = await manager.execute(toolbox["echoed"], **arguments)
    assert value == expected
    assert type(value) is type(expected)


@tool
def search(
    query: str, limit: Annotated[int, Field(ge=1, description="How many")] = 10, within: Path | None = None
) -> str:
    """Search the library.

    Not part of the description.
    """
    return f"{query} {limit} {within}"


async def test_wrong_arguments_name_their_places_and_run_nothing() -> None:
    toolbox = Toolbox(search, echoing(Author))
    async with ServiceManager() as manager:
        with pytest.raises(InvalidInputs) as caught:
            await manager.execute(toolbox["search"], query=["x"], limit=0, folder="a")
        assert {one["field"] for one in caught.value.errors} == {"query", "limit", "folder"}
        with pytest.raises(InvalidInputs, match=r"value\.born"):
            await manager.execute(toolbox["echoed"], value={"name": "A", "born": "soon"})
        assert manager.statistics().tools["search"].threads_used == 0


def test_schemas_have_the_shape_that_function_calling_takes() -> None:
    (schema,) = Toolbox(search).schemas()
    assert schema.keys() == {"name", "description", "parameters"}
    assert (schema["name"], schema["description"]) == ("search", "Search the library.")
    parameters = schema["parameters"]
    assert parameters["type"] == "object"
    assert parameters["required"] == ["query"]
    assert parameters["additionalProperties"] is False
    assert parameters["properties"]["limit"] == {
        "type": "integer", "minimum": 1, "description": "How many", "title": "Limit", "default": 10,
    }  # fmt: skip
    json.dumps(schema)


def test_nested_models_are_in_the_schema() -> None:
    (schema,) = Toolbox(echoing(Author)).schemas()
    assert schema["parameters"]["$defs"]["Author"]["required"] == ["name", "born"]


def test_schemas_of_some_tools_in_the_order_asked_for() -> None:
    toolbox = Toolbox(search, echo, search.using(name="other"))
    assert [one["name"] for one in toolbox.schemas()] == ["search", "echo", "other"]
    assert [one["name"] for one in toolbox.schemas("other", "search")] == ["other", "search"]
    with pytest.raises(UnknownTool, match="search"):
        toolbox.schemas("serach")


def test_schemas_are_the_callers_to_change() -> None:
    toolbox = Toolbox(search)
    toolbox.schemas()[0]["parameters"]["properties"].clear()
    assert toolbox.schemas()[0]["parameters"]["properties"]


def test_a_default_that_json_cannot_hold_is_left_out() -> None:
    marker = object()

    @tool
    def marked(text: str = "a", given: Any = marker) -> bool:
        return given is marker

    properties = marked.input_schema()["properties"]
    assert properties["text"]["default"] == "a"
    assert "default" not in properties["given"]


def takes_live_object(path: str, frame: NoSchema) -> None: ...


def takes_function(path: str, then: Callable[[], int]) -> None: ...


class Legacy:
    def execute(self, path: str, frame: NoSchema) -> None: ...


@pytest.mark.parametrize(
    ("bad", "parameter"),
    [
        (tool(takes_live_object), "frame"),
        (tool(takes_function), "then"),
        (ToolAdapter(Legacy(), name="legacy"), "frame"),
    ],
    ids=["live-object", "function", "adapter"],
)
def test_a_tool_without_a_schema_is_refused_by_the_toolbox(bad: KGASTool, parameter: str) -> None:
    with pytest.raises(TypeError, match=rf"tool '{bad.name}', parameter '{parameter}': no JSON Schema") as caught:
        Toolbox(search, bad)
    assert "https://" not in str(caught.value)
    with pytest.raises(TypeError, match=parameter):
        bad.input_schema()


def test_a_model_that_is_not_complete_is_named_with_its_parameter() -> None:
    class Incomplete(BaseModel):
        later: NotYet  # type: ignore[name-defined]  # noqa: F821

    def unfinished(text: str, model: Any) -> None: ...

    unfinished.__annotations__["model"] = Incomplete
    with pytest.raises(TypeError, match="tool 'unfinished', parameter 'model'"):
        Toolbox(tool(unfinished))


def test_a_result_without_a_schema_is_no_obstacle_until_it_must_be_json() -> None:
    @tool
    def gives(text: str) -> NoSchema:
        return NoSchema()

    assert Toolbox(gives)["gives"].output_schema() == {}
    with pytest.raises(TypeError, match="tool 'gives': no JSON Schema can be made of its result, NoSchema"):
        gives.signature.check_result_has_json()
    with pytest.raises(TypeError, match="the result of tool 'gives' cannot be given as JSON"):
        gives.signature.result_as_json(NoSchema())


def test_defaults_stay_in_the_schema_of_an_adapter_with_another_name() -> None:
    assert ToolAdapter(search, name="find").input_schema()["properties"]["limit"]["default"] == 10
    find = ToolAdapter(search, name="find", returns=len)
    assert find.input_schema()["properties"]["limit"]["default"] == 10
    assert (find.output_schema(), search.output_schema()) == ({}, {"type": "string"})


def test_the_output_schema_of_a_mapped_result_is_the_mapped_one() -> None:
    def count(text: str) -> int:
        return len(text)

    def as_text(number: int) -> str:
        return str(number)

    assert ToolAdapter(count).output_schema() == {"type": "integer"}
    assert ToolAdapter(count, returns=as_text).output_schema() == {"type": "string"}
    assert ToolAdapter(count, returns=str).output_schema() == {"type": "string"}
    assert ToolAdapter(count, name="any", returns=lambda number: [number]).output_schema() == {}
    assert ToolAdapter(ToolAdapter(count), name="twice", returns=str).input_schema()["required"] == ["text"]


def test_a_mapped_result_is_what_the_next_phase_takes() -> None:
    from kgas_async import Phase, Pipeline

    def count(text: str) -> int:
        return len(text)

    @tool
    def shout(count: str) -> str:
        return count.upper()

    Pipeline("p", Phase("count", ToolAdapter(count, returns=str)), Phase("loud", shout), item=["text"])


def test_row_9_a_registry_with_listing_descriptions_and_schemas() -> None:
    def count(text: str) -> int:
        return len(text)

    toolbox = Toolbox(search, ToolAdapter(count, description="Count", returns=str))
    assert list(toolbox) == ["search", "count"]
    assert {name: one.description for name, one in toolbox.items()} == {
        "search": "Search the library.", "count": "Count",
    }  # fmt: skip
    assert toolbox["count"].input_schema()["required"] == ["text"]
    assert toolbox["search"].output_schema() == toolbox["count"].output_schema() == {"type": "string"}
    with pytest.raises(UnknownTool, match="there are: count, search"):
        toolbox["find"]


@tool(policy=Policy(timeout=30.0))
async def wait(seconds: float) -> str:
    await anyio.sleep(seconds)
    return "waited"


async def test_a_policy_for_one_request() -> None:
    toolbox = Toolbox(wait)
    async with ServiceManager() as manager:
        with pytest.raises(CallTimeout):
            await manager.execute(toolbox["wait"].using(timeout=0.01), seconds=20)
        assert await manager.execute(toolbox["wait"], seconds=0) == "waited"
        assert manager.statistics().tools["wait"].calls == 2


async def test_cancel_by_id() -> None:
    toolbox = Toolbox(wait)
    async with ServiceManager() as manager:
        calls = {call.id: call for call in (manager.submit(toolbox["wait"], seconds=30) for _ in range(2))}
        first, second = calls
        assert await manager.cancel(first, "the user said stop")
        with pytest.raises(CallCancelled, match="the user said stop"):
            await calls[first].result()
        assert list(manager.calls) == [second]
        assert not await manager.cancel(first)
        await manager.cancel()


async def test_inputs_may_have_any_name() -> None:
    def odd(self: str, tool: str, manager: Sequence[int]) -> list[Any]:
        return [self, tool, *manager]

    toolbox = Toolbox(tool(odd))
    async with ServiceManager() as manager:
        assert await manager.execute(toolbox["odd"], self="a", tool="b", manager=[1]) == ["a", "b", 1]


class Bounds(BaseModel):
    low: float = -math.inf
    high: Annotated[float, Field(le=math.inf)] = 1.0


BOUNDS = Bounds()


def test_a_schema_is_json_whatever_its_defaults() -> None:
    @tool
    def within(top: float = math.inf, around: tuple[float, float] = (math.nan, 1.0), bounds: Bounds = BOUNDS) -> bool:
        return top > 1

    @tool
    def named(default: str = "\udcff", text: str = "a") -> Bounds:
        return Bounds()

    schemas = Toolbox(within, named).schemas()
    json.dumps([*schemas, named.output_schema()], allow_nan=False, ensure_ascii=False).encode()
    properties = schemas[0]["parameters"]["properties"]
    assert "default" not in properties["top"]
    assert "default" not in properties["around"]
    bounds = schemas[0]["parameters"]["$defs"]["Bounds"]["properties"]
    assert "default" not in bounds["low"]
    assert "maximum" not in bounds["high"]
    assert bounds["high"]["default"] == 1.0
    assert schemas[1]["parameters"]["properties"].keys() == {"default", "text"}
    assert "default" not in schemas[1]["parameters"]["properties"]["default"]


def test_a_result_that_is_any_iterable_is_a_list() -> None:
    @tool
    def numbers(n: int) -> Iterable[int]:
        return range(n)

    @tool
    def lazy(n: int) -> Annotated[Iterable[dt.date], "days"]:
        return (dt.date(2000, 1, day + 1) for day in range(n))

    assert numbers.output_schema() == {"type": "array", "items": {"type": "integer"}}
    assert numbers.signature.result_as_json(range(3)) == [0, 1, 2]
    assert numbers.signature.result_as_json(iter([1])) == [1]
    assert lazy.signature.result_as_json(lazy(1)) == ["2000-01-01"]
    with pytest.raises(TypeError, match="the result of tool 'numbers' cannot be given as JSON"):
        numbers.signature.result_as_json(["a"])
