"""`_fit`: never refuses two types between which a value could pass, and refuses where none can."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from datetime import date
from decimal import Decimal
from enum import Enum, IntEnum
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NewType, Protocol, TypeVar
from uuid import UUID

import pytest
from pydantic import BaseModel, BeforeValidator, RootModel, ValidationError
from typing_extensions import TypedDict  # pydantic refuses typing's below Python 3.12

from kgas_async._fit import cannot_fit, element_type, list_of
from kgas_async._signature import Signature

T = TypeVar("T")
Name = NewType("Name", str)


class Number(IntEnum):
    ONE = 1


class Colour(str, Enum):  # noqa: UP042  (a str that is an Enum, as code from before StrEnum has it)
    RED = "red"


class Point(NamedTuple):
    x: int


class Spot(TypedDict):
    x: int


class Model(BaseModel):
    x: int


class Names(RootModel[list[str]]):
    pass


class Text(str):
    __slots__ = ()


class Speaks(Protocol):
    def speak(self) -> str: ...


SAMPLES: dict[Any, list[Any]] = {  # types, with some values of each
    str: ["", "3", "red", "a,b", "2024-02-29", "{}"],
    Text: [Text("3")],
    Name: ["3"],
    bytes: [b"", b"3"],
    int: [0, 1, 7],
    bool: [True],
    float: [1.0, 2.5],
    complex: [1j],
    Decimal: [Decimal(1)],
    Fraction: [Fraction(1)],
    Number: [Number.ONE],
    Colour: [Colour.RED],
    Path: [Path("a")],
    date: [date(2024, 2, 29)],
    UUID: [UUID(int=1)],
    type(None): [None],
    list[int]: [[], [1, 2]],
    list[str]: [["a"]],
    tuple[int, ...]: [(), (1,)],
    set[int]: [{1}],
    frozenset[str]: [frozenset("a")],
    deque[int]: [deque([1])],
    dict[str, int]: [{}, {"x": 1}],
    OrderedDict[str, int]: [OrderedDict(x=1)],
    Point: [Point(1)],
    Spot: [{"x": 1}],
    Model: [Model(x=1)],
    Names: [Names(["a"])],
    str | None: [None, "3"],
    int | list[int]: [1, [1]],
    Any: [None, "3", [1]],
    object: [3],
}
WANTED: list[Any] = [
    *SAMPLES,
    list,
    dict,
    tuple,
    set,
    Iterable[int],
    Sequence[str],
    Mapping[str, int],
    Literal["3"],
    Annotated[list[str], BeforeValidator(str)],
    T,
]


@pytest.mark.parametrize("target", WANTED)
def test_types_between_which_a_value_passes_are_never_refused(target: Any) -> None:
    check = Signature("t", {"x": target}, ["x"]).checker()
    for source, values in SAMPLES.items():
        for value in values:
            try:
                check({"x": value})
            except ValidationError:
                continue
            assert not cannot_fit(source, target), f"{value!r}, a {source}, passes"


@pytest.mark.parametrize("scalar", [str, bytes, int, float, bool, complex, Number, Colour, Text])
@pytest.mark.parametrize("container", [list, list[int], tuple[int, ...], set, frozenset[str], dict[str, int], Point])
def test_a_single_value_is_no_collection_and_a_collection_no_single_value(scalar: Any, container: Any) -> None:
    assert cannot_fit(scalar, container)
    assert cannot_fit(container, scalar)


@pytest.mark.parametrize("kind", [str, int, list[int], Path, Model])
def test_nothing_is_no_value_of_a_class_and_none_is_nothing(kind: Any) -> None:
    for nothing in (None, type(None)):
        assert cannot_fit(nothing, kind)
        assert cannot_fit(kind, nothing)
        assert not cannot_fit(nothing, nothing)
        assert not cannot_fit(nothing, kind | None)


@pytest.mark.parametrize(
    "open_",
    [
        Any,
        object,
        T,
        Name,
        Speaks,
        Spot,
        str | list[int],
        Literal["a"],
        Annotated[str, "tag"],
        Callable[[int], int],
        Iterable[int],
        AsyncIterator[int],
        "str",
    ],
)
def test_what_is_not_one_class_fits_everything(open_: Any) -> None:
    for kind in (str, list[int], None, Model, Path, dict):
        assert not cannot_fit(open_, kind)
        assert not cannot_fit(kind, open_)


@pytest.mark.parametrize("kind", WANTED)
def test_each_type_fits_itself_and_a_list_of_it_a_list(kind: Any) -> None:
    assert not cannot_fit(kind, kind)
    assert not cannot_fit(list_of(kind), list)
    assert cannot_fit(list_of(kind), str)


@pytest.mark.parametrize(
    ("kind", "element"),
    [
        (list[int], int),
        (set[str], str),
        (frozenset[bytes], bytes),
        (deque[int], int),
        (tuple[int, ...], int),
        (Iterator[int], int),
        (Iterable[list[int]], list[int]),
        (AsyncIterator[int], int),
        (Sequence[str], str),
        (str, str),
        (list, Any),
        (Any, Any),
        (int, Any),
        (tuple[int, str], Any),
        (tuple[()], Any),
        (dict[str, int], Any),
        (list[int] | None, Any),
        (Names, Any),
        (None, Any),
    ],
)
def test_the_type_of_an_element_is_what_iterating_gives_where_the_annotation_says_so(kind: Any, element: Any) -> None:
    assert element_type(kind) == element


def test_the_list_of_a_type_is_a_list_that_knows_its_elements() -> None:
    assert list_of(int) == list[int]
    assert list_of(Any) is list
    assert element_type(list_of(list[int])) == list[int]
    assert element_type(list_of(Any)) is Any
