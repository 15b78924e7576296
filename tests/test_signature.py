"""`Signature`: names, types, defaults and results, read from functions, methods, names and models; what it refuses."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import pytest
from pydantic import AliasChoices, AliasPath, BaseModel, ConfigDict, Field, model_validator

from kgas_async import InvalidInputs, KGASTool, Phase, Pipeline, ServiceManager, ToolAdapter, tool
from kgas_async._signature import Signature, request_builder, result_type

T = TypeVar("T")


def read(function: Any) -> Signature:
    return Signature.of_callable("reader", function)


class Holder:
    def method(self, text: str, *, limit: int = 3) -> list[str]:
        return text.split()[:limit]

    @classmethod
    def of_class(cls, text: str) -> int:
        return len(text)

    @staticmethod
    def static(text: bytes) -> None: ...

    def __call__(self, path: Path) -> str:
        return str(path)


class Constructed:
    x: list[str]  # of the attribute; the constructor takes another type

    def __init__(self, x: int, *rest: int, **more: int) -> None:
        self.x = [str(x)]


@dataclass
class Data:
    x: int
    y: str = ""


class Request(BaseModel):
    text: str
    limit: int = 3
    data: list[int] = Field(default_factory=list)


class Sub(Holder):
    pass


def plain(text: str, limit: int = 3, anything=None) -> bool:  # type: ignore[no-untyped-def]
    return bool(text)


async def asynchronous(*, text: str) -> dict[str, int]:
    return {}


def decorated(function: Any) -> Any:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


# --- what is read


@pytest.mark.parametrize(
    ("function", "types", "required", "returns"),
    [
        (plain, {"text": str, "limit": int, "anything": Any}, {"text"}, bool),
        (asynchronous, {"text": str}, {"text"}, dict[str, int]),
        (decorated(plain), {"text": str, "limit": int, "anything": Any}, {"text"}, bool),
        (Holder().method, {"text": str, "limit": int}, {"text"}, list[str]),
        (Sub().method, {"text": str, "limit": int}, {"text"}, list[str]),
        (Holder.of_class, {"text": str}, {"text"}, int),
        (Holder.static, {"text": bytes}, {"text"}, type(None)),
        (Holder(), {"path": Path}, {"path"}, str),
        (functools.partial(plain, "a"), {"limit": int, "anything": Any}, set(), bool),
        (functools.partial(plain, limit=4), {"text": str, "limit": int, "anything": Any}, {"text"}, bool),
        (functools.partial(Holder().method, limit=4), {"text": str, "limit": int}, {"text"}, list[str]),
        (Data, {"x": int, "y": str}, {"x"}, Data),
        (lambda: 1, {}, set(), Any),
    ],
)
def test_names_types_and_defaults_are_those_of_the_callable(
    function: Any, types: dict[str, Any], required: set[str], returns: Any
) -> None:
    signature = read(function)
    assert list(signature.types.items()) == list(types.items())  # the order is that of positional inputs
    assert signature.required == required
    assert signature.returns == returns


def test_a_class_is_read_by_its_constructor() -> None:
    class Named(Constructed):
        def __init__(self, x: int) -> None:
            super().__init__(x)

    assert read(Named).types == {"x": int}
    assert read(Named).returns is Named
    assert read(Request).types == {"text": str, "limit": int, "data": list[int]}
    assert ToolAdapter(Named).execute(x="3").x == ["3"]  # type: ignore[arg-type]


def test_an_annotation_that_cannot_be_resolved_takes_anything_and_the_others_count() -> None:
    def function(x: NoSuchName, y: int) -> NoSuchName: ...  # type: ignore[name-defined]  # noqa: F821

    signature = read(function)
    assert (signature.types, signature.returns) == ({"x": Any, "y": int}, Any)
    assert signature.validate({"x": object, "y": "3"}) == {"x": object, "y": 3}


def test_a_class_that_only_the_function_knows_is_found() -> None:
    class Local:
        pass

    one = Local()

    def function(x: Local) -> None:
        print(Local)

    assert read(function).types == {"x": Local}
    assert read(function).validate({"x": one}) == {"x": one}


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda *args: 1, r"\*args has no named inputs"),
        (lambda **inputs: 1, r"\*\*inputs has no named inputs"),
        (lambda x, /: 1, "positional-only parameter 'x' has no named inputs"),
        (dict.fromkeys, "(positional-only parameter 'iterable'|cannot be read)"),
        (max, r"(cannot be read .*params=\[...\]|has no named inputs)"),
        (Constructed, r"\*rest has no named inputs"),
    ],
)
def test_inputs_without_names_are_refused_with_the_mend(function: Any, said: str) -> None:
    with pytest.raises(TypeError, match=rf"^tool 'reader': .*{said}"):
        read(function)


def test_an_alias_on_a_parameter_is_refused_since_calls_use_the_parameters_name() -> None:
    def search(text: Annotated[str, Field(alias="queryText")]) -> None: ...
    def find(text: Annotated[str, Field(validation_alias="queryText")]) -> None: ...
    def look(text: Annotated[str, Field(description="what for", serialization_alias="t")]) -> None: ...

    for function in (search, find):
        with pytest.raises(TypeError, match=r"input 'text' has an alias, .*ToolAdapter\(..., inputs=Model\)"):
            tool(function)
    assert tool(look).input_schema()["properties"]["text"]["description"] == "what for"


def test_names_are_inputs_of_any_type_that_are_all_required() -> None:
    signature = Signature.of_names("reader", ["b", "a"], None)
    assert (list(signature.types), signature.required) == (["b", "a"], frozenset("ab"))
    assert signature.validate({"a": object, "b": None}) == {"a": object, "b": None}


# --- models


class Aliased(BaseModel):
    text: str = Field(alias="queryText")
    limit: int = Field(3, validation_alias=AliasChoices(AliasPath("options", 0), "max", "most"))
    free: str = ""


def test_a_models_fields_are_the_inputs_by_the_names_of_its_schema() -> None:
    signature = Signature.of_model("reader", Aliased)
    assert signature.types == {"queryText": str, "max": int, "free": str}
    assert signature.required == {"queryText"}
    assert signature.validate({"queryText": "a", "max": "5"}) == {"queryText": "a", "max": 5}
    assert signature.input_schema()["properties"].keys() == {"queryText", "max", "free"}
    assert request_builder(Aliased)(queryText="a", max=5) == Aliased(queryText="a", max=5)  # type: ignore[call-arg]


def test_a_field_is_not_asked_for_by_its_own_name_where_it_has_an_alias() -> None:
    with pytest.raises(InvalidInputs, match="queryText: missing") as caught:
        Signature.of_model("reader", Aliased).validate({"text": "a"})
    assert [one["field"] for one in caught.value.errors] == ["queryText"]

    class Both(Aliased):
        model_config = ConfigDict(populate_by_name=True)

    assert Signature.of_model("reader", Both).validate({"text": "a"})["queryText"] == "a"


def test_a_model_takes_what_it_does_not_know_only_if_it_says_so() -> None:
    class Open(Request):
        model_config = ConfigDict(extra="allow")

    given = {"text": "a", "other": 1}
    with pytest.raises(InvalidInputs, match="other: no such input; it takes text, limit, data"):
        Signature.of_model("reader", Request).validate(given)
    checked = Signature.of_model("reader", Open).validate(given)
    assert checked == {"text": "a", "other": 1}
    assert request_builder(Open)(**checked).model_extra == {"other": 1}


async def test_the_request_object_is_as_if_the_caller_had_made_it() -> None:
    class Made(BaseModel):
        text: str
        limit: int = 3
        tags: list[str] = Field(default_factory=list)
        path: Path = Field("a/b", validate_default=True)

        @model_validator(mode="after")
        def longer_for_all(self) -> Made:
            if self.text == "all":
                self.limit = 1000
            return self

    requests: list[Made] = []
    asks: ToolAdapter[..., None] = ToolAdapter(requests.append, name="asks", inputs=Made)
    async with ServiceManager(log=None) as manager:
        for text in ("a", "all"):
            await manager.execute(asks, text=text)
            own = Made.model_validate({"text": text})
            assert requests[-1].model_dump() == own.model_dump()
        await asks.execute_async(text="a", limit="7")
    assert [one.model_dump(exclude_unset=True, exclude={"path"}) for one in requests] == [
        {"text": "a"},
        {"text": "all", "limit": 1000},
        {"text": "a", "limit": 7},
    ]
    assert requests[0].tags is not requests[1].tags


# --- results


class Maker(Generic[T]):
    def make(self, x: int) -> T: ...  # type: ignore[empty-body]


@pytest.mark.parametrize(
    ("function", "result"),
    [(plain, bool), (str, str), (Request, Request), (abs, Any), (lambda x: x, Any), (asynchronous, dict[str, int])],
)
def test_the_type_of_a_result_is_the_annotated_one_or_the_class(function: Any, result: Any) -> None:
    assert result_type(function) == result


def loose(**inputs: Any) -> list[int]:
    return []


def with_request(request: Request) -> list[int]:
    return []


@pytest.mark.parametrize(
    ("one", "schema"),
    [
        (ToolAdapter(plain), {"type": "boolean"}),
        (ToolAdapter(plain, returns=str), {"type": "string"}),
        (ToolAdapter(plain, returns=lambda raw: raw, name="mapped"), {}),
        (ToolAdapter(loose, params=["a"]), {"type": "array", "items": {"type": "integer"}}),
        (ToolAdapter(with_request, inputs=Request), {"type": "array", "items": {"type": "integer"}}),
        (ToolAdapter(with_request, inputs=Request, returns=len), {}),
        (ToolAdapter(factory=Holder, method="method"), {"type": "array", "items": {"type": "string"}}),
        (ToolAdapter(tool(plain), name="again"), {"type": "boolean"}),
        (ToolAdapter(tool(plain), returns=str, name="again"), {"type": "string"}),
        (ToolAdapter(tool(asynchronous), returns=bool, name="again"), {"type": "boolean"}),
    ],
)
def test_an_adapters_result_is_of_the_type_that_its_callers_see(one: KGASTool, schema: dict[str, Any]) -> None:
    assert one.output_schema() == schema


def test_a_pipeline_takes_the_mapped_result_for_what_a_phase_gives() -> None:
    @tool
    async def counts(words: list[str]) -> int:
        return len(words)

    def load(path: Path) -> str:
        return ""

    def words_of(text: str) -> list[str]:
        return text.split()

    with pytest.raises(TypeError, match=r"'words' is a list\[str\], but 'words' gives str"):
        Pipeline("p", Phase("words", tool(load)), Phase("counts", counts))
    Pipeline("p", Phase("words", ToolAdapter(load, returns=words_of)), Phase("counts", counts))


def test_a_method_of_a_generic_class_gives_anything() -> None:
    assert Signature.of_callable("reader", Maker[int]().make).output_schema() == {}


# --- positional inputs


def test_positional_inputs_get_their_names_in_order() -> None:
    signature = read(plain)
    assert signature.named((1, 2), {"anything": 3}) == {"text": 1, "limit": 2, "anything": 3}
    assert signature.named((), {"other": 3}) == {"other": 3}  # validation is where it is refused
    with pytest.raises(InvalidInputs, match="tool 'reader': 4 positional inputs, it takes 3") as caught:
        signature.named((1, 2, 3, 4), {})
    assert caught.value.tool == "reader"
    with pytest.raises(InvalidInputs, match="tool 'reader': text is given twice"):
        signature.named((1,), {"text": 2})
