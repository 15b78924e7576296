"""How values are kept: what is annotated comes back as it was, and what would not is refused."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterator, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, NamedTuple, Self
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr
from typing_extensions import TypedDict

from kgas_async._digest import digest
from kgas_async._journal_codec import codec_for, elements_of, named_codec, read_back


class Kind(Enum):
    A = "a"


class Point(NamedTuple):
    x: float
    y: float


@dataclass
class Score:
    value: float
    of: tuple[int, ...] = ()


class Typed(TypedDict):
    when: date
    scores: dict[int, float]


class Model(BaseModel):
    path: Path
    score: Score | None = None


class Exact(BaseModel):
    model_config = ConfigDict(ser_json_inf_nan="constants")
    x: float


class Base(BaseModel):
    x: int


class More(Base):
    y: int


class Aliased(BaseModel):
    read: int = Field(alias="r")
    both: int = Field(validation_alias="v", serialization_alias="s")


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Any, {"a": [1, 2.5, None, True, "né"], "b": {}}),
        (Any, float("nan")),
        (Any, -0.0),
        (str, "caf\u00e9 \U0001f600"),
        (float, math.nan),
        (list[float], [1.0, math.inf, -math.inf, math.nan]),
        (Score, Score(math.nan, (1, 2))),
        (Score | None, None),
        (Typed, {"when": date(2024, 2, 29), "scores": {1: math.inf}}),
        (bytes, b"\xff\x00no text"),
        (dict[str, bytes], {"a": b"\xfe"}),
        (tuple[int, str], (1, "a")),
        (set[int], {3, 1, 2}),
        (frozenset[str], frozenset({"a"})),
        (Kind, Kind.A),
        (Point, Point(1.0, 2.0)),
        (dict[int, Kind], {1: Kind.A}),
        (Path, Path("a/b")),
        (datetime, datetime(2024, 1, 1, 12, 30, 0, 5, tzinfo=UTC)),
        (timedelta, timedelta(days=-1, microseconds=7)),
        (Decimal, Decimal("1.10")),
        (UUID, UUID(int=7)),
        (complex, 1 + 2j),
        (Model, Model(path=Path("x"), score=Score(0.1))),
        (list[Model], [Model(path=Path("x"))]),
        (Exact, Exact(x=math.nan)),
        (Annotated[int, "note"], 7),
        (int | str, "7"),
        (list[Aliased], [Aliased(r=1, v=2)]),
        (None, None),
    ],
)
def test_what_is_annotated_comes_back(annotation: Any, value: Any) -> None:
    codec = codec_for(annotation)
    data, again = read_back(codec, value)
    assert digest(codec.decode(data)) == digest(again)
    assert again.__class__ is value.__class__
    assert again == value or digest(again) == digest(value)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Any, (1, 2)),
        (Any, {1: "a"}),
        (Any, {"a": {1, 2}}),
        (Any, Kind.A),
        (Any, object()),
        (dict, {"a": (1,)}),
        (Base, More(x=1, y=2)),  # half of it would come back
        (int, "1"),
        (list[int], (1,)),
        (Model, {"path": "x"}),
        (Any, (one for one in "abc")),
    ],
)
def test_what_would_not_come_back_is_refused(annotation: Any, value: Any) -> None:
    codec = codec_for(annotation)
    with pytest.raises(TypeError, match=r"cannot be kept as json|does not come back from json as it was"):
        read_back(codec, value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(json_values)
def test_any_json_value_comes_back(value: Any) -> None:
    codec = codec_for(Any)
    assert digest(codec.decode(read_back(codec, value)[0])) == digest(value)


def test_an_int_for_a_float_becomes_one() -> None:
    data, again = read_back(codec_for(float), 0)
    assert (data, repr(again)) == (b"0.0", "0.0")


class Unknown:
    pass


def test_an_annotation_that_pydantic_does_not_know_is_refused() -> None:
    with pytest.raises(TypeError, match=r"pydantic knows no JSON for <class .*Unknown'>"):
        codec_for(Unknown)


@pytest.mark.parametrize(
    ("annotation", "element"),
    [
        (list[int], int),
        (Iterator[str], str),
        (Generator[str, None, None], str),
        (AsyncIterator[bytes], bytes),
        (Sequence[Score], Score),
        (tuple[int, ...], int),
        (tuple[int, str], Any),
        (Annotated[list[int], "note"], int),
        (list[int | Exception], int),
        (list[int | ValueError | None], int | None),
        (list[list[str] | Exception], list[str]),
        (list[Exception], Exception),
        (list, Any),
        (str, Any),
        (Any, Any),
    ],
)
def test_the_element_of_an_annotated_iterable(annotation: Any, element: Any) -> None:
    assert elements_of(annotation) == element


class Broken:
    name = "broken"

    def encode(self, value: Any, /) -> Any:
        return "no bytes"

    def decode(self, data: bytes, /) -> Any:
        return data


def test_a_codec_that_gives_no_bytes_is_refused() -> None:
    codec = named_codec("Journal(codec)", Broken())
    assert codec is not None
    with pytest.raises(TypeError, match="its codec 'broken' gives str, not bytes"):
        read_back(codec, 1)


class Nameless(Broken):
    name = ""


@pytest.mark.parametrize("given", [Broken, Nameless(), 3, None])
def test_what_is_no_codec_is_refused(given: Any) -> None:
    with pytest.raises(TypeError, match=r"Journal\(codec\) is 'json', 'pickle', or an object with a name"):
        named_codec("Journal(codec)", given)


# --- what the value's own == does not tell


class Marked(BaseModel):
    text: str
    _seen: int = PrivateAttr(default=0)

    def seen(self, times: int) -> Self:
        self._seen = times
        return self


class Locked(BaseModel):
    text: str
    _lock: Any = PrivateAttr(default_factory=Lock)


class Known(BaseModel):
    """Two are the same if they have the same number, whatever else is in them."""

    number: int
    note: str = Field("", exclude=True)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Known) and self.number == other.number

    __hash__ = None  # type: ignore[assignment]


@dataclass
class Loose:
    kept: int
    counted: int = field(default=0, compare=False, init=False)

    @cached_property
    def twice(self) -> int:
        return 2 * self.kept

    def with_count(self, counted: int) -> Self:
        self.counted = counted
        return self

    def with_more(self) -> Self:
        self.more = 1
        return self


@pytest.mark.parametrize(
    ("annotation", "value", "says"),
    [
        (Marked, Marked(text="a").seen(5), r"where \._seen is 0 and was 5"),
        (dict[str, list[Marked]], {"x": [Marked(text="a").seen(5)]}, r"where \['x'\]\[0\]\._seen is 0 and was 5"),
        (Locked, Locked(text="a"), r"where \._lock is <.*> and was <"),
        (Known, Known(number=1, note="b"), r"where \.note is '' and was 'b'"),
        (Loose, Loose(1).with_count(2), r"where \.counted is 0 and was 2"),
        (list[Loose], [Loose(1).with_more()], r"where \[0\]\.more is not there and was 1"),
        (datetime, datetime(2026, 10, 25, 2, fold=1), "fold=1"),  # noqa: DTZ001
        (deque[int], deque([1], maxlen=3), "maxlen=3"),
        (dict[str, Any], {"a": {"b": (1,)}}, r"where \['a'\]\['b'\] is \[1\] and was \(1,\)"),
    ],
)
def test_what_equality_does_not_look_at_is_not_lost_silently(annotation: Any, value: Any, says: str) -> None:
    with pytest.raises(TypeError, match=f"does not come back from json as it was: .*{says}"):
        read_back(codec_for(annotation), value)


def computed() -> Loose:
    made = Loose(1)
    assert made.twice == 2
    return made


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (Marked, Marked(text="a")),
        (Known, Known(number=1)),
        (Loose, computed()),
        (list[float], [1, math.nan]),
        (dict[str, Any], {"a": {"b": [1, None, {}]}}),
    ],
)
def test_what_loses_nothing_is_kept(annotation: Any, value: Any) -> None:
    read_back(codec_for(annotation), value)


def test_pickle_keeps_private_attributes_and_what_contains_itself() -> None:
    codec = named_codec("Journal(codec)", "pickle")
    assert codec is not None
    assert read_back(codec, [Marked(text="a").seen(5)])[1][0]._seen == 5
    loop: list[Any] = [1]
    loop.append(loop)
    assert read_back(codec, loop)[1][1][1][0] == 1
