"""Digests: equal values have the same, others another, in every process; what cannot be told apart is refused."""

from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import KEEP, Enum, IntFlag
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter

from kgas_async._digest import digest


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Model(BaseModel):
    a: int
    b: str = "b"


@dataclass
class Data:
    a: int
    b: str = "b"


class Pair(NamedTuple):
    a: int
    b: int


class Text(str):
    __slots__ = ()


DIFFERENT: list[Any] = [
    None,
    *(True, 1, 1.0, "1", b"1", Text("1"), "True", "None"),
    *(0, 0.0, -0.0, "", b"", [], (), {}, set(), frozenset()),
    *(["a", "b"], ["ab"], ["a", ["b"]], [["a"], "b"], ("a", "b"), {"a": "b"}, {"b": "a"}, {"a", "b"}),
    *([1, [2]], [[1], 2], [[1, 2]], [12], [1, 2], {"a": 1, "b": 2}, {"a": [1, 2]}, {1: "a"}, {"1": "a"}),
    *(Colour.RED, Colour.BLUE, "RED", Model(a=1), Model(a=2), Data(1), Data(2), Pair(1, 2)),
    *(Path("a"), Path("b"), datetime(2026, 1, 1), datetime(2026, 1, 1, tzinfo=UTC)),  # noqa: DTZ001
    *(Decimal("1.0"), Decimal("1.00"), UUID(int=1), UUID(int=2), 1j, range(2), range(3), bytearray(b"1")),
    *("x" * 40, b"x" * 40, b"x" * 41, "s1:a", "a;", "]", "\ud800", "é", 10**30, float("inf"), float("nan")),
]


def test_no_two_different_values_have_the_same() -> None:
    assert len({digest(value) for value in DIFFERENT}) == len(DIFFERENT)


def test_the_order_of_keys_and_elements_that_have_none_does_not_matter() -> None:
    assert digest({"a": 1, "b": {"c": 2, "d": 3}}) == digest({"b": {"d": 3, "c": 2}, "a": 1})
    assert digest(set("abcdefgh")) == digest(set("hgfedcba"))
    assert digest({"a": OrderedDict(x=1, y=2)}) == digest({"a": OrderedDict(y=2, x=1)})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(JSON, JSON)
def test_two_values_have_the_same_if_they_are_written_the_same(one: Any, other: Any) -> None:
    def typed(value: Any) -> Any:  # 1 == 1.0 == True, which are three inputs
        if isinstance(value, list):
            return [typed(one) for one in value]
        if isinstance(value, dict):
            return {key: typed(one) for key, one in value.items()}
        return type(value).__name__, repr(value)

    assert (digest(one) == digest(other)) is (typed(one) == typed(other))


def test_it_is_the_same_in_every_process() -> None:
    program = "from kgas_async._digest import digest; print(digest({'b': {'x', 'y', 'z'}, 'a': [1, 2.5, None]}))"
    found = {
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
        for _ in range(2)  # each with a hash seed of its own
    }
    assert found == {digest({"a": [1, 2.5, None], "b": {"z", "y", "x"}})}


def test_a_prefix_goes_into_it() -> None:
    assert digest(1, "a") != digest(1, "b")


@pytest.mark.parametrize(
    ("value", "says"),
    [(object(), "a object has no digest"), ({"a": [test_a_prefix_goes_into_it]}, "a function has no digest")],
)
def test_what_cannot_be_told_apart_is_refused(value: object, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        digest(value)


def test_what_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(TypeError, match="contains itself"):
        digest(loop)


class Masked(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "***"


class Bits(IntFlag, boundary=KEEP):
    ONE = 1


class Lazy(BaseModel):
    a: int

    @cached_property
    def size(self) -> int:
        return self.a + 1


def test_how_a_text_shows_itself_is_not_its_digest() -> None:
    assert digest(Masked("a")) != digest(Masked("b"))


def test_flags_without_a_name_differ() -> None:
    assert len({digest(Bits(number)) for number in (0, 1, 2, 3, 4)}) == 5


def test_what_a_model_has_computed_does_not_count() -> None:
    one, other = Lazy(a=1), Lazy(a=1)
    assert one.size == 2
    assert digest(one) == digest(other)


def test_a_number_too_long_for_text_has_one() -> None:
    assert digest(10**5000) != digest(10**5000 + 1)


@dataclass
class Half:
    a: int
    b: int = field(init=False)


def test_what_cannot_be_read_has_none() -> None:
    with pytest.raises(TypeError, match=r"Half has no digest: AttributeError: .*'b'"):
        digest({"a": [Half(1)]})


NOON: Any = datetime(2026, 1, 1, 12, tzinfo=UTC)

# What each was on Python 3.11, 3.12 and 3.13, which have their paths in different modules.
KNOWN: list[tuple[Any, str]] = [
    (PurePosixPath("a/b"), "4e060a2718ad2e29"),
    (PureWindowsPath("c:/a"), "419ee21ce94642a6"),
    ({"path": [PurePosixPath("x")]}, "666b720625b5047e"),
    (NOON, "57f63d5d6bd04971"),
    (datetime(2026, 1, 1, tzinfo=ZoneInfo("Europe/Paris")), "b8414117a312270b"),
    (Decimal("1.10"), "3319476cb21910d6"),
    (UUID(int=7), "cf7f6fbe3b217462"),
    (Colour.RED, "8b827bf5ac91e54e"),
    (Model(a=1), "fee8d577ff8a7018"),
    (Data(1), "53a9e54820c27262"),
    (Pair(1, 2), "80de9785b1aaf766"),
    (OrderedDict(a=1.5), "2b5de99c1cefb7d8"),
    (range(1, 9, 2), "649a7b4824140ad5"),
]


@pytest.mark.parametrize(("value", "known"), KNOWN)
def test_it_is_the_same_on_every_python(value: Any, known: str) -> None:
    assert digest(value)[:16] == known


def test_a_zone_that_pydantic_has_read_is_the_zone() -> None:
    for said in ("2026-01-01T12:00:00Z", "2026-01-01T12:00:00+00:00"):
        assert digest(TypeAdapter(datetime).validate_json(f'"{said}"')) == digest(NOON)
    half = datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=5, minutes=30)))
    assert digest(TypeAdapter(datetime).validate_json('"2026-01-01T00:00:00+05:30"')) == digest(half)
    assert digest(TypeAdapter(time).validate_json('"12:00:00Z"')) == digest(time(12, tzinfo=UTC))
