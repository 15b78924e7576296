"""`ToolAdapter`: what it takes, what it refuses at construction, and what it makes of names, results and errors."""

from __future__ import annotations

import functools
from typing import Annotated, Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from pydantic import BaseModel, ConfigDict, Field, field_validator

from kgas_async import (
    CallFailed,
    InvalidInputs,
    KGASTool,
    Policy,
    Retry,
    ServiceManager,
    ToolAdapter,
    tool,
)


class Legacy:
    """What people have.

    With more lines.
    """

    def __init__(self, factor: int = 2) -> None:
        self.factor = factor

    def execute(self, x: int) -> int:
        return x * self.factor

    def extract(self, text: str, limit: int = 3) -> list[str]:
        return text.split()[:limit]


class Loose:
    def execute(self, **kwargs: Any) -> dict[str, Any]:
        return kwargs


class AsyncLegacy:
    async def execute(self, x: int) -> int:
        await checkpoint()
        return x + 1


class NeedsArgument:
    def __init__(self, path: str) -> None:
        self.path = path

    def execute(self) -> str:
        return self.path


class Meta(type):
    def named(cls, x: int) -> str:
        return f"{cls.__name__} {x}"


class Counting(metaclass=Meta):
    """What a class may be asked for without an object of it, and what not."""

    def __init__(self, x: int = 0) -> None:
        self.x = x

    @staticmethod
    def doubled(x: int) -> int:
        return 2 * x

    @classmethod
    def made(cls, x: int) -> str:
        return f"{cls.__name__}({x})"

    @functools.lru_cache  # noqa: B019
    def kept(self, x: int) -> int:
        return x

    def plus(self, y: int, x: int) -> int:
        return x + y

    halfway = functools.partialmethod(plus, 1)
    increased = functools.partial(lambda y, x: y + x, 1)

    class Inner:
        def __init__(self, x: int) -> None:
            self.x = x


class Request(BaseModel):
    text: str
    limit: int = 3


def free(x: int) -> int:
    """A free function."""
    return x


async def free_async(x: int) -> int:
    await checkpoint()
    return x


def loose(**kwargs: Any) -> dict[str, Any]:
    return kwargs


def make_legacy() -> Legacy:
    return Legacy(5)


def make_unknown():  # type: ignore[no-untyped-def]
    return Legacy(7)


class Namespace:
    """Keeps functions, and makes no objects."""

    def load(path: str) -> str:  # type: ignore[misc]  # noqa: N805  (what it is about)
        return path.upper()

    def nothing() -> str:  # type: ignore[misc]
        return "nothing"


async def run(adapted: KGASTool, **inputs: Any) -> Any:
    async with ServiceManager(log=None) as manager:
        return await manager.execute(adapted, **inputs)


async def test_a_function_that_a_class_only_keeps_is_given_itself() -> None:
    assert await run(ToolAdapter(Namespace.load), path="a") == "A"
    assert await run(ToolAdapter(Namespace.nothing)) == "nothing"


# --- what it refuses


@pytest.mark.parametrize(
    ("make", "mend"),
    [
        (ToolAdapter, "either something to wrap or a factory="),
        (lambda: ToolAdapter(Legacy(), factory=Legacy), "either something to wrap or a factory="),
        (lambda: ToolAdapter(Legacy), r"is a class with .execute; pass an object, or factory=Legacy"),
        (
            lambda: ToolAdapter(Legacy, method="extract"),
            r"this is the class, and 'extract' is a method of its objects; give an object, "
            r"ToolAdapter\(Legacy\(\), method='extract'\), or ToolAdapter\(factory=Legacy, method='extract'\)$",
        ),
        (
            lambda: ToolAdapter(NeedsArgument, method="execute"),
            r"ToolAdapter\(NeedsArgument\(...\), method='execute'\), or "
            r"ToolAdapter\(factory=functools.partial\(NeedsArgument, ...\), method='execute'\)$",
        ),
        (lambda: ToolAdapter(AsyncLegacy, method="execute"), r"ToolAdapter\(AsyncLegacy\(\), method='execute'\)$"),
        (
            lambda: ToolAdapter(Namespace, method="load"),
            r"give the function itself, ToolAdapter\(Namespace.load\), or make it a staticmethod$",
        ),
        (lambda: ToolAdapter(Namespace, method="nothing"), r"ToolAdapter\(Namespace.nothing\)"),
        (lambda: ToolAdapter(Counting, method="kept"), "'kept' is a method of its objects"),
        (lambda: ToolAdapter(Counting, method="halfway"), "'halfway' is a method of its objects"),
        (lambda: ToolAdapter(str, method="upper"), r"give an object, ToolAdapter\(str\("),
        (lambda: ToolAdapter(factory=3), r"ToolAdapter\(factory\) is a callable without arguments"),
        (lambda: ToolAdapter(object()), r"no method 'execute'.*ToolAdapter\(obj, method=...\)"),
        (lambda: ToolAdapter(Legacy(), method="extrct"), "did you mean 'extract'"),
        (lambda: ToolAdapter(factory=Legacy, method="extrct"), r"no method 'extrct'"),
        (lambda: ToolAdapter(factory=Legacy, method="extrct", params=["text"]), r"no method 'extrct'"),
        (lambda: ToolAdapter(Legacy(), method=3), "method= is a name"),
        (lambda: ToolAdapter(tool(free), method="execute"), "method= does not apply to a KGASTool"),
        (lambda: ToolAdapter(loose), r"params=\['text', ...\]\) or inputs=Model"),
        (lambda: ToolAdapter(Loose()), r"params=\['text', ...\]\) or inputs=Model"),
        (lambda: ToolAdapter(factory=Loose), r"params=\['text', ...\]\) or inputs=Model"),
        (lambda: ToolAdapter(print), r"params=\['text', ...\]\) or inputs=Model"),
        (lambda: ToolAdapter(len), "positional-only parameter 'obj' has no named inputs"),
        (lambda: ToolAdapter(factory=make_unknown), r"params=\[...\], or annotate the factory's return type"),
        (lambda: ToolAdapter(loose, params="text"), "params is a list of names"),
        (lambda: ToolAdapter(loose, params=["a b"]), "params is a list of names"),
        (lambda: ToolAdapter(loose, params=["a", "a"]), "names an input twice"),
        (lambda: ToolAdapter(free, params=["y"]), "does not take 'y'"),
        (lambda: ToolAdapter(Legacy(), method="extract", params=["limit"]), "needs 'text'"),
        (lambda: ToolAdapter(loose, params=["text"], inputs=Request), "give one of them"),
        (lambda: ToolAdapter(loose, inputs=Request(text="")), "inputs= is a pydantic model class"),
        (lambda: ToolAdapter(loose, inputs=dict), "inputs= is a pydantic model class"),
        (lambda: ToolAdapter(free, returns=3), "returns= is a function of the result"),
        (lambda: ToolAdapter(free, error_when="error"), "error_when= is a function of the result"),
        (
            lambda: ToolAdapter(free, offload="threads"),
            "use one of 'thread', 'process', 'inline'; did you mean 'thread'",
        ),
        (lambda: ToolAdapter(Legacy(), offload="process"), "does not travel to worker processes.*factory=Legacy"),
        (lambda: ToolAdapter(free, on_cancel="kill"), "use 'wait' or 'abandon'"),
        (lambda: ToolAdapter(free, offload="inline", on_cancel="wait"), "takes no on_cancel"),
        (lambda: ToolAdapter(free_async, offload="thread"), "is async: offload= and on_cancel= do not apply"),
        (lambda: ToolAdapter(AsyncLegacy(), on_cancel="wait"), "is async: offload= and on_cancel= do not apply"),
        (lambda: ToolAdapter(tool(free_async), on_cancel="wait"), "is async: offload= and on_cancel= do not apply"),
        (lambda: ToolAdapter(factory=AsyncLegacy), "is async: pass an object"),
        (lambda: ToolAdapter(Legacy(), instances="many"), "use one of shared, serial, per_thread, dedicated"),
        (lambda: ToolAdapter(Legacy(), instances="dedicated"), "give factory= instead of an object"),
        (lambda: ToolAdapter(Legacy(), instances="per_thread"), "give factory= instead of an object"),
        (lambda: ToolAdapter(factory=Legacy, instances="dedicated", offload="inline"), "needs offload='thread'"),
        (lambda: ToolAdapter(free, policy={"timeout": 1}), r"policy= is a Policy\(...\)"),
        (lambda: ToolAdapter(free, timeout=1), r"no option 'timeout'.*policy=Policy\(timeout=...\)"),
        (lambda: ToolAdapter(free, instance="serial"), "did you mean 'instances'"),
        (lambda: ToolAdapter(lambda x: x), "give name='...'"),
        (lambda: ToolAdapter(free, name=3), "name= is a non-empty string"),
        (lambda: ToolAdapter(free, name=""), "name= is a non-empty string"),
        (lambda: ToolAdapter(free, backend="twisted"), "backend= is 'asyncio' or 'trio'"),
    ],
)
def test_misuse_is_refused_at_construction_with_the_mend(make: Any, mend: str) -> None:
    with pytest.raises((TypeError, ValueError), match=mend):
        make()


# --- what it takes


@pytest.mark.parametrize(
    ("adapted", "name", "inputs", "value"),
    [
        (ToolAdapter(Legacy()), "Legacy", {"x": 3}, 6),
        (ToolAdapter(Legacy(), method="extract"), "Legacy.extract", {"text": "a b"}, ["a", "b"]),
        (ToolAdapter(Legacy().extract), "extract", {"text": "a b", "limit": 1}, ["a"]),
        (ToolAdapter(factory=Legacy), "Legacy", {"x": 3}, 6),
        (ToolAdapter(factory=make_legacy), "make_legacy", {"x": 3}, 15),
        (ToolAdapter(factory=make_unknown, params=["x"]), "make_unknown", {"x": 3}, 21),
        (ToolAdapter(factory=functools.partial(Legacy, 4), params=["x"]), "Legacy", {"x": 3}, 12),
        (ToolAdapter(functools.partial(free), name="bound"), "bound", {"x": 3}, 3),
        (ToolAdapter(loose, params=["a", "b"]), "loose", {"a": 1, "b": 2}, {"a": 1, "b": 2}),
        (ToolAdapter(Loose(), params=[]), "Loose", {}, {}),
        (ToolAdapter(free_async), "free_async", {"x": 3}, 3),
        (ToolAdapter(AsyncLegacy()), "AsyncLegacy", {"x": 3}, 4),
        (ToolAdapter(tool(free), name="again"), "again", {"x": 3}, 3),
        (ToolAdapter(free, offload="inline"), "free", {"x": 3}, 3),
        (ToolAdapter(lambda x: x, name="short"), "short", {"x": 3}, 3),
    ],
)
async def test_what_is_wrapped_is_called_by_name(adapted: KGASTool, name: str, inputs: Any, value: Any) -> None:
    assert adapted.name == name
    assert await run(adapted, **inputs) == value


def test_the_description_is_the_first_line_of_what_is_wrapped() -> None:
    assert ToolAdapter(free).description == "A free function."
    assert ToolAdapter(Legacy()).description == "What people have."
    assert ToolAdapter(functools.partial(free), name="bound").description == "A free function."
    assert ToolAdapter(free, description="Another").description == "Another"


def test_a_wrapped_tool_keeps_its_policy_with_the_adapters_laid_over_it() -> None:
    wrapped = tool(policy=Policy(timeout=5, retry=2))(free)
    assert ToolAdapter(wrapped, policy=Policy(timeout=7)).policy.given.keys() == {"timeout", "retry"}
    assert ToolAdapter(wrapped, policy=Policy(timeout=7)).policy.timeout == 7


async def test_a_wrapped_tool_keeps_the_policy_it_was_given_by_using() -> None:
    slow = ToolAdapter(tool(free_async).using(timeout=5, concurrency=2), name="other")
    async with ServiceManager(log=None) as manager:
        await manager.execute(slow, x=1)
        call = manager.submit(slow, x=1)
        assert (call.bound.timeout, call.bound.policy.concurrency) == (5, 2)
        await call.wait()


async def test_a_preset_wraps_many_with_the_same_options() -> None:
    wrap = ToolAdapter.preset(method="extract", policy=Policy(timeout=9), version="3")
    first, second = wrap(Legacy()), wrap(Legacy(), name="second", version="4")
    assert (first.name, first.version, first.policy.timeout) == ("Legacy.extract", "3", 9)
    assert (second.name, second.version) == ("second", "4")
    assert await run(second, text="a b c d") == ["a", "b", "c"]


def test_a_preset_refuses_what_the_adapter_would() -> None:
    with pytest.raises(TypeError, match="did you mean 'method'"):
        ToolAdapter.preset(metod="run")


# --- inputs


async def test_types_of_the_signature_coerce_what_the_tool_gets() -> None:
    assert await run(ToolAdapter(Legacy()), x="21") == 42
    assert await run(ToolAdapter(factory=Legacy), x="21") == 42


@pytest.mark.parametrize("adapted", [ToolAdapter(free), ToolAdapter(loose, params=["x"])])
async def test_unknown_and_missing_inputs_are_named(adapted: KGASTool) -> None:
    with pytest.raises(InvalidInputs, match="y: no such input; it takes x") as caught:
        await run(adapted, x=1, y=2)
    assert [(one["field"], one["type"]) for one in caught.value.errors] == [("y", "extra_forbidden")]
    with pytest.raises(InvalidInputs, match="x: missing"):
        await run(adapted)


async def test_a_class_may_be_what_is_called_or_have_what_is_called() -> None:
    assert (await run(ToolAdapter(Counting), x=3)).x == 3  # constructing it is the call
    assert (await run(ToolAdapter(Counting, method="__call__", params=["x"]), x=3)).x == 3
    assert await run(ToolAdapter(Counting, method="doubled"), x=3) == 6
    assert await run(ToolAdapter(Counting, method="made"), x=3) == "Counting(3)"
    assert await run(ToolAdapter(Counting, method="named"), x=3) == "Counting 3"
    assert await run(ToolAdapter(Counting, method="increased"), x=3) == 4
    assert (await run(ToolAdapter(Counting, method="Inner"), x=3)).x == 3


async def test_a_request_object_is_built_from_its_fields() -> None:
    class Extractor:
        def execute(self, request: Request) -> Request:
            return request

    adapted = ToolAdapter(Extractor(), inputs=Request)
    assert await run(adapted, text="a", limit="7") == Request(text="a", limit=7)
    assert await run(adapted, text="a") == Request(text="a", limit=3)
    with pytest.raises(InvalidInputs, match="text: missing"):
        await run(adapted)
    assert adapted.input_schema()["properties"].keys() == {"text", "limit"}


async def test_an_input_that_the_request_object_does_not_know_is_refused() -> None:
    adapted = ToolAdapter(lambda request: request, name="ask", inputs=Request)  # a model ignores it by default
    with pytest.raises(InvalidInputs, match=r"limt: no such input.*did you mean 'limit'"):
        await run(adapted, text="a", limt=1)


async def test_a_request_object_is_validated_once() -> None:
    class Tags(BaseModel):
        tags: list[str]

        @field_validator("tags", mode="before")
        @classmethod
        def split(cls, value: str) -> list[str]:
            return value.split(",")  # takes no list: a second validation would fail

    assert (await run(ToolAdapter(lambda request: request.tags, name="ask", inputs=Tags), tags="a,b")) == ["a", "b"]


async def test_a_request_object_with_aliases_is_asked_for_by_them() -> None:
    class Query(BaseModel):
        model_config = ConfigDict(frozen=True)
        text: Annotated[str, Field(alias="queryText")]

    adapted = ToolAdapter(lambda request: request.text, name="ask", inputs=Query)
    assert list(adapted.input_schema()["properties"]) == ["queryText"]
    assert await run(adapted, queryText="a") == "a"


async def test_inputs_may_have_any_name() -> None:
    def odd(self: int, mapped: int, function: int, tool: int, func: int) -> int:
        return self + mapped + function + tool + func

    async def odd_async(mapped: int, tool: int) -> int:
        return mapped + tool

    names = {"self": 1, "mapped": 2, "function": 3, "tool": 4, "func": 5}
    assert await run(ToolAdapter(odd), **names) == 15
    assert await run(ToolAdapter(odd, returns=abs), **names) == 15
    assert await run(ToolAdapter(odd_async, returns=abs), mapped=1, tool=2) == 3


# --- results


@pytest.mark.parametrize("function", [free, free_async])
async def test_the_result_is_mapped(function: Any) -> None:
    assert await run(ToolAdapter(function, returns=str), x=3) == "3"


def bad_when_negative(raw: int) -> str | None:
    return f"{raw} is negative" if raw < 0 else None


@pytest.mark.parametrize("function", [free, free_async])
async def test_a_returned_error_as_a_message_is_a_failure_that_keeps_the_result(function: Any) -> None:
    adapted = ToolAdapter(function, error_when=bad_when_negative, returns=str)
    assert await run(adapted, x=1) == "1"
    with pytest.raises(CallFailed, match="-1 is negative") as caught:
        await run(adapted, x=-1)
    assert caught.value.result == -1
    assert caught.value.__cause__ is None


async def test_a_returned_error_as_an_exception_is_the_cause_and_what_a_retry_looks_at() -> None:
    answers = iter([ConnectionError("busy"), ConnectionError("busy"), "fine"])
    adapted = ToolAdapter(
        lambda: next(answers),
        name="asks",
        error_when=lambda raw: raw if isinstance(raw, Exception) else None,
        policy=Policy(retry=Retry(3, on=ConnectionError, wait=0)),
    )
    assert await run(adapted) == "fine"

    failing = ToolAdapter(lambda: 3, name="fails", error_when=KeyError)
    with pytest.raises(CallFailed) as caught:
        await run(failing)
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("option", ["returns", "error_when"])
@pytest.mark.parametrize("offload", ["thread", "inline"])
async def test_a_mapping_function_that_raises_is_the_failure_of_the_call(option: str, offload: Any) -> None:
    def broken(raw: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(CallFailed) as caught:
        await run(ToolAdapter(free, offload=offload, **{option: broken}), x=1)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


async def test_awaiting_execute_async_is_the_function_itself_in_a_thread() -> None:
    assert await ToolAdapter(Legacy()).execute_async(3) == 6
    assert await ToolAdapter(free_async, returns=str).execute_async(x=3) == "3"
    assert await ToolAdapter(free, offload="inline").execute_async(x=3) == 3
    with pytest.raises(ZeroDivisionError):
        await ToolAdapter(lambda: 1 / 0, name="fails").execute_async()


async def test_an_error_of_a_factory_is_the_failure_of_the_call_and_tried_again_by_the_next() -> None:
    built: list[int] = []

    def make() -> Legacy:
        built.append(1)
        if len(built) == 1:
            raise OSError("not yet")
        return Legacy()

    adapted = ToolAdapter(factory=make, params=["x"])
    async with ServiceManager(log=None) as manager:
        with pytest.raises(CallFailed, match="not yet"):
            await manager.execute(adapted, x=1)
        assert await manager.execute(adapted, x=1) == 2
        with anyio.fail_after(5):
            assert await manager.execute(adapted, x=2) == 4
    assert len(built) == 2
