"""`Signature`: inputs are checked and coerced, errors name tool, field and value, and what schemas there are."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from datetime import date
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, List, Literal, NamedTuple, NewType, Protocol, TypeVar  # noqa: UP035

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from typing_extensions import TypedDict  # pydantic refuses typing's below Python 3.12

from kgas_async import InvalidInputs, Policy, Retry, ServiceManager, tool
from kgas_async._signature import Signature
from kgas_async._suggest import nearest

T = TypeVar("T")
UserId = NewType("UserId", int)


class Foreign:
    """No type that pydantic knows."""


class Colour(Enum):
    RED = "red"


class Point(NamedTuple):
    x: int
    y: int = 0


class Spot(TypedDict):
    x: int


class Item(BaseModel):
    n: int
    name: str = Field("", alias="itemName")


class Speaks(Protocol):
    def speak(self) -> str: ...


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no repr for you")


def of(*types: Any, returns: Any = Any, optional: tuple[str, ...] = ()) -> Signature:
    """A tool 'reader' that takes a, b, c... of these types."""
    names = "abcdefgh"[: len(types)]
    return Signature("reader", dict(zip(names, types, strict=True)), set(names) - set(optional), returns)


# --- coercion


@pytest.mark.parametrize(
    ("kind", "value", "coerced"),
    [
        (int, "3", 3),
        (float, 3, 3.0),
        (Path, "a/b", Path("a/b")),
        (date, "2024-02-29", date(2024, 2, 29)),
        (Colour, "red", Colour.RED),
        (Literal["a", "b"], "a", "a"),
        (int | None, None, None),
        (list[int], ("1", 2), [1, 2]),
        (tuple[int, str], ["1", "a"], (1, "a")),
        (set[int], ["1", 1], {1}),
        (dict[str, float], {"a": "1"}, {"a": 1.0}),
        (Point, {"x": "1"}, Point(1)),
        (Spot, {"x": "1"}, {"x": 1}),
        (Item, {"n": "1", "itemName": "b"}, Item(n=1, itemName="b")),
        (UserId, "7", 7),
        (T, Foreign, Foreign),
        (Any, Foreign, Foreign),
        (object, "a", "a"),
        (Annotated[int, Field(gt=2)], "3", 3),
        (None, None, None),
    ],
)
def test_values_are_coerced_to_the_annotated_type(kind: Any, value: Any, coerced: Any) -> None:
    (checked,) = of(kind).validate({"a": value}).values()
    assert checked == coerced
    assert type(checked) is type(coerced)


def test_an_object_of_a_class_of_ones_own_is_passed_on_as_it_is() -> None:
    one = Foreign()
    assert of(Foreign).validate({"a": one})["a"] is one
    with pytest.raises(InvalidInputs, match="a: Input should be an instance of Foreign, not 3"):
        of(Foreign).validate({"a": 3})
    assert of(list[Foreign]).validate({"a": [one]}) == {"a": [one]}
    assert of(Callable[[int], int]).validate({"a": abs}) == {"a": abs}


def test_defaults_are_left_to_the_tool() -> None:
    assert of(int, int, optional=("b",)).validate({"a": 1}) == {"a": 1}


@pytest.mark.parametrize("kind", [Iterable[int], Iterable[int] | None, Annotated[Iterable[int], Field()]])
def test_a_collection_given_for_an_iterable_is_checked_at_once_and_stays_a_collection(kind: Any) -> None:
    assert of(kind).validate({"a": ["1", 2]}) == {"a": [1, 2]}
    assert of(kind).validate({"a": (3,)}) == {"a": [3]}
    with pytest.raises(InvalidInputs, match=r"a\.1.*: Input should be a valid integer") as caught:
        of(Iterable[int]).validate({"a": ["1", "b"]})
    assert [one["value"] for one in caught.value.errors] == ["b"]


def test_a_lazy_iterable_is_not_pulled_by_the_check() -> None:
    pulled = []

    def lazy() -> Iterator[int]:
        pulled.append(1)
        yield 1

    checked = of(Iterable[int], Iterator[int]).validate({"a": lazy(), "b": lazy()})
    assert pulled == []
    assert (list(checked["a"]), list(checked["b"])) == ([1], [1])


async def test_each_attempt_sees_the_whole_of_an_iterable() -> None:
    seen = []

    @tool(policy=Policy(retry=Retry(2, wait=0)))
    async def sums(numbers: Iterable[int]) -> int:
        seen.append(list(numbers))
        if len(seen) == 1:
            raise ConnectionError
        return sum(seen[-1])

    async with ServiceManager(log=None) as manager:
        assert await manager.execute(sums, numbers=[1, 2]) == 3
    assert seen == [[1, 2], [1, 2]]


# --- errors


def test_each_wrong_input_is_named_with_its_value() -> None:
    signature = of(int, list[int], Item, str)
    with pytest.raises(InvalidInputs) as caught:
        signature.validate({"a": "one", "b": [1, "two"], "c": {"n": None}, "e": 5})
    error = caught.value
    assert error.tool == "reader"
    assert str(error).startswith("invalid inputs for tool 'reader': a: Input should be a valid integer")
    assert [(one["field"], one["type"]) for one in error.errors] == [
        ("a", "int_parsing"),
        ("b.1", "int_parsing"),
        ("c.n", "int_type"),
        ("d", "missing"),
        ("e", "extra_forbidden"),
    ]
    assert [one["value"] for one in error.errors][:3] == ["one", "two", None]
    assert "; d: missing; e: no such input; it takes a, b, c, d" in str(error)
    assert error.__cause__ is None


def test_an_unknown_input_is_told_the_nearest_one() -> None:
    signature = Signature("reader", {"language": str, "limit": int}, ())
    with pytest.raises(InvalidInputs, match=r"lmit: no such input; it takes language, limit; did you mean 'limit'\?$"):
        signature.validate({"lmit": 3})
    with pytest.raises(InvalidInputs, match=r"x: no such input; it takes none$"):
        Signature("reader", {}, ()).validate({"x": 3})


def test_a_long_value_is_cut_in_the_message_and_kept_in_the_errors() -> None:
    with pytest.raises(InvalidInputs) as caught:
        of(int).validate({"a": "x" * 10_000})
    assert len(str(caught.value)) < 300
    assert caught.value.errors[0]["value"] == "x" * 10_000


async def test_a_value_that_cannot_be_printed_is_refused_like_any_other() -> None:
    @tool
    async def takes(x: int) -> int:
        return x

    one = Hostile()
    async with ServiceManager(log=None) as manager:
        with pytest.raises(InvalidInputs, match=r"not \(a Hostile whose __repr__ raised RuntimeError\)") as caught:
            await manager.execute(takes, x=one)  # type: ignore[arg-type]
        assert caught.value.errors[0]["value"] is one
        assert manager.statistics().calls_open == 0


KINDS: dict[Any, tuple[Any, Any]] = {  # a type, a value that fits, and one that never does
    int: (3, "three"),
    str: ("a", 3),
    list[int]: ([1], "a"),
    bool: (True, "maybe"),
    Foreign: (Foreign(), 3),
}


@given(
    takes=st.dictionaries(st.sampled_from(["aa", "bb", "cc", "dd"]), st.sampled_from(list(KINDS))),
    optional=st.sets(st.sampled_from(["aa", "bb", "cc", "dd"])),
    how=st.dictionaries(st.sampled_from(["aa", "bb", "cc", "dd", "xx", "yy"]), st.sampled_from(["right", "wrong"])),
)
def test_exactly_the_fields_that_are_wrong_are_in_the_error(
    takes: dict[str, Any], optional: set[str], how: dict[str, str]
) -> None:
    signature = Signature("reader", takes, takes.keys() - optional)
    given_inputs = {name: KINDS[takes[name]][kind == "wrong"] if name in takes else 0 for name, kind in how.items()}
    expected = dict.fromkeys(takes.keys() - optional - how.keys(), "missing")
    expected |= dict.fromkeys(how.keys() - takes.keys(), "extra_forbidden")
    wrong = {name for name in how.keys() & takes.keys() if how[name] == "wrong"}
    message, types, checked = "", {}, None
    try:
        checked = signature.validate(given_inputs)
    except InvalidInputs as error:
        message, types = str(error), {one["field"]: one["type"] for one in error.errors}
    assert types.keys() == expected.keys() | wrong
    assert expected.items() <= types.items()
    assert all(f"{name}: " in message for name in types)
    assert checked == (None if types else given_inputs)


@given(st.text() | st.none() | st.integers(), st.lists(st.text(), max_size=5))
def test_the_nearest_name_is_a_known_one_or_nothing(name: Any, known: list[str]) -> None:
    found = nearest(name, known)
    assert found == "" or any(found == f"; did you mean {one!r}?" for one in known)
    if name in known:
        assert found == f"; did you mean {name!r}?"


# --- types without a schema


@pytest.mark.parametrize(
    "kind",
    [
        Speaks,  # isinstance() refuses it: it is not @runtime_checkable
        list["NoSuchName"],  # type: ignore[name-defined]  # noqa: F821
        List["NoSuchName"],  # type: ignore[name-defined]  # noqa: F821, UP006
        Annotated[str, Field(pattern="(")],
        (int, str),
    ],
)
def test_a_type_that_cannot_be_checked_is_misuse_that_names_the_tool(kind: Any) -> None:
    for use in (lambda one: one.checker(), lambda one: one.validate({"a": 1}), Signature.input_schema):
        with pytest.raises(TypeError, match=r"^tool 'reader', parameter 'a': no schema can be made of "):
            use(of(kind))


async def test_a_tool_whose_types_cannot_be_checked_is_refused_before_it_runs() -> None:
    @tool
    async def hears(one: Speaks) -> str:
        return one.speak()

    async with ServiceManager(log=None) as manager:
        with pytest.raises(TypeError, match="tool 'hears', parameter 'one': no schema can be made of Speaks"):
            manager.submit(hears, one=Foreign())  # type: ignore[arg-type]
        assert (await manager.outcome(hears, one=Foreign())).status == "rejected"  # type: ignore[arg-type]
        assert manager.statistics().calls_open == 0


# --- JSON schemas


@pytest.mark.parametrize(
    ("kind", "schema"),
    [
        (int, {"type": "integer"}),
        (Any, {}),
        (object, {}),
        (T, {}),
        (None, {"type": "null"}),
        (Path, {"type": "string", "format": "path"}),
        (Literal["a", "b"], {"type": "string", "enum": ["a", "b"]}),
        (Iterable[int], {"type": "array", "items": {"type": "integer"}}),
        (Annotated[int, Field(gt=2, description="many")], {"exclusiveMinimum": 2, "description": "many"}),
        (int | None, {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
    ],
)
def test_the_schema_of_an_input_is_that_of_its_annotation(kind: Any, schema: dict[str, Any]) -> None:
    whole = of(kind, int, optional=("b",)).input_schema()
    assert (whole["title"], whole["required"], whole["additionalProperties"]) == ("reader", ["a"], False)
    assert schema.items() <= whole["properties"]["a"].items()


def test_models_are_defined_once_and_named_by_their_aliases() -> None:
    whole = of(Item, list[Item]).input_schema()
    assert whole["properties"]["a"] == {"$ref": "#/$defs/Item"}
    assert whole["$defs"]["Item"]["properties"].keys() == {"n", "itemName"}


@pytest.mark.parametrize("kind", [Foreign, list[Foreign], Callable[[int], int], re.Match])
def test_an_input_that_json_cannot_give_is_said_with_the_tools_name_and_its_own(kind: Any) -> None:
    said = r"^tool 'reader', parameter 'a': no JSON Schema can be made of .*(Foreign|Callable|Match)"
    with pytest.raises(TypeError, match=said):
        of(kind).input_schema()


@pytest.mark.parametrize(
    ("returns", "schema"),
    [
        (Any, {}),
        (None, {"type": "null"}),
        (list[str], {"type": "array", "items": {"type": "string"}}),
        (Generator[int, None, None], {"type": "array", "items": {"type": "integer"}}),
        (Foreign, {}),
        (dict[str, Foreign], {}),
        (AsyncIterator[int], {}),
        (Speaks, {}),
        (Annotated[str, Field(pattern="(")], {}),
        (list["NoSuchName"], {}),  # type: ignore[name-defined]  # noqa: F821
    ],
)
def test_the_schema_of_a_result_is_empty_where_json_has_no_form_for_it(returns: Any, schema: dict[str, Any]) -> None:
    assert of(returns=returns).output_schema() == schema
