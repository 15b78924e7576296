"""`KGASTool`: what a tool says of itself, what it checks, and what its copies and pickles are."""

from __future__ import annotations

import pickle
import threading
from abc import abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from kgas_async import (
    ConcurrencyLimit,
    InvalidInputs,
    KGASTool,
    Policy,
    Retry,
    Service,
    ServiceManager,
    ToolAdapter,
    tool,
)


class Plain(KGASTool):
    async def execute_async(self, *, x: int = 1) -> int:
        await checkpoint()
        return 2 * x


class Told(KGASTool):
    """Says it all.

    With more lines.
    """

    name = "told"
    version = "3"
    policy = Policy(timeout=5)
    idempotent = True
    backend = "trio"

    async def execute_async(self, *, x: int) -> int:
        return x


class Store(Service):
    def __init__(self, path: str = "") -> None:
        self.path = path

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        yield


class Uses(KGASTool):
    def __init__(self, store: Store, factor: int, *, label: str = "none") -> None:
        self.store = store
        self.factor = factor
        self.label = label

    async def execute_async(self, *, x: int) -> int:
        return x * self.factor


@dataclass
class AsData(KGASTool):  # it compares by its fields and has no hash
    factor: int

    async def execute_async(self, *, x: int) -> int:
        return x * self.factor


@tool
def at_top(x: int) -> int:
    return x


# --- what a tool says of itself


def test_what_a_class_does_not_say_has_its_default() -> None:
    plain = Plain()
    assert (plain.name, plain.version, plain.description) == ("Plain", "0", "")
    assert (plain.policy, plain.idempotent, plain.backend, plain.requires) == (Policy(), False, "asyncio", ())


def test_a_class_says_what_it_is() -> None:
    told = Told()
    assert (told.name, told.version, told.description) == ("told", "3", "Says it all.")
    assert (told.policy.timeout, told.idempotent, told.backend) == (5, True, "trio")


def test_a_subclass_has_a_name_of_its_own_and_inherits_the_rest() -> None:
    class Further(Told):
        pass

    assert (Further().name, Further().description, Further().version) == ("Further", "Says it all.", "3")
    assert Further().policy.timeout == 5


def test_it_requires_the_services_among_its_attributes_unless_it_says_which() -> None:
    store, other = Store(), Store()
    assert Uses(store, 2).requires == (store,)

    class Fewer(Uses):
        requires = (other,)

    assert Fewer(store, 2).requires == (other,)


def test_an_adapter_requires_what_the_wrapped_tool_does() -> None:
    store = Store()
    assert ToolAdapter(Uses(store, 2), name="wrapped").requires == (store,)


def test_it_prints_its_name() -> None:
    assert (repr(Plain()), repr(Told())) == ("<tool 'Plain'>", "<Told 'told'>")


async def test_a_tool_may_be_a_dataclass() -> None:
    async with ServiceManager(log=None) as manager:
        assert await manager.execute(AsData(3), x=2) == 6
    assert pickle.loads(pickle.dumps(AsData(4))) == AsData(4)


# --- misuse


def without_method() -> Any:
    class Empty(KGASTool):
        pass

    return Empty()  # type: ignore[abstract]


def still_abstract() -> Any:
    class Base(KGASTool):
        @abstractmethod
        async def execute_async(self, *, x: int) -> int: ...

    return Base()  # type: ignore[abstract]


def sync_method() -> Any:
    class Sync(KGASTool):
        def execute_async(self, *, x: int) -> int:  # type: ignore[override]
            return x

    return Sync()


def any_inputs() -> Any:
    class Loose(KGASTool):
        async def execute_async(self, **inputs: Any) -> Any: ...

    return Loose()


def by_position() -> Any:
    class Positional(KGASTool):
        async def execute_async(self, x: int, /) -> Any: ...

    return Positional()


def with_class(**attributes: Any) -> Any:
    async def execute_async(self: Any, *, x: int) -> int:
        return x

    return lambda: type("Wrong", (KGASTool,), {"execute_async": execute_async, **attributes})


@pytest.mark.parametrize(
    ("make", "mend"),
    [
        (KGASTool, r"KGASTool has no execute_async; write 'async def execute_async\(self, \*, ...\)'"),
        (without_method, "Empty has no execute_async"),
        (still_abstract, "Base has no execute_async"),
        (sync_method, "must be 'async def'; wrap sync code: ToolAdapter"),
        (any_inputs, r"Loose.execute_async\(\*\*inputs: .*\) has no named inputs.*name them"),
        (by_position, r"Positional.execute_async\(x: .*\) has no named inputs"),
        (with_class(policy={"timeout": 1}), r"Wrong.policy is a Policy\(...\), not \{'timeout': 1\}"),
        (with_class(backend="twisted"), "Wrong.backend is 'asyncio' or 'trio', not 'twisted'"),
        (lambda: Plain().using(name=""), r"using\(name=...\) is a non-empty string"),
        (lambda: Plain().using(name=3), r"using\(name=...\) is a non-empty string"),  # type: ignore[arg-type]
        (lambda: Plain().using(timeuot=3), "no field 'timeuot'.*did you mean 'timeout'"),
        (lambda: Plain().using(timeout=-1), r"Policy\(timeout\) must be at least 0"),
        (lambda: tool(Plain()), "is a tool already; tool.using"),  # type: ignore[call-overload]
        (lambda: tool(3), "@tool takes a function, not 3"),  # type: ignore[call-overload]
        (lambda: tool(staticmethod(at_top)), "@tool takes a function"),
        (lambda: tool(method="run"), r"no method=; use ToolAdapter\(method=...\)"),  # type: ignore[call-overload]
    ],
)
def test_misuse_says_the_mend(make: Any, mend: str) -> None:
    with pytest.raises((TypeError, ValueError), match=mend):
        make()


async def test_a_policy_of_an_instance_that_is_none_is_refused_before_anything_runs() -> None:
    wrong = Plain()
    wrong.policy = {"timeout": 1}  # type: ignore[assignment]
    async with ServiceManager(log=None) as manager:
        with pytest.raises(TypeError, match=r"is a Policy\(...\), not \{'timeout': 1\}"):
            await manager.execute(wrong)
        assert (await manager.outcome(wrong)).status == "rejected"


def test_a_tool_made_of_a_method_says_how_to_do_it_when_it_is_used() -> None:
    class Agent:
        @tool
        def load(self, x: int) -> int:
            return x

    assert Agent.load.name == "load"
    with pytest.raises(TypeError, match=r"does not bind to the object; .*ToolAdapter\(obj, method='load'\)"):
        _ = Agent().load


# --- inputs and the raw function


async def test_inputs_are_coerced_by_the_signature() -> None:
    assert await Plain().validate_inputs(x="21") == {"x": 21}
    assert await Plain().validate_inputs() == {}
    with pytest.raises(InvalidInputs, match=r"tool 'Plain': x: .*, not 'a'") as caught:
        await Plain().validate_inputs(x="a")
    assert caught.value.tool == "Plain"
    (entry,) = caught.value.errors
    assert (entry["field"], entry["value"]) == ("x", "a")


async def test_checks_that_a_tool_adds_run_before_it_and_what_they_give_is_what_runs() -> None:
    class Even(Plain):
        async def validate_inputs(self, /, **inputs: Any) -> dict[str, Any]:
            checked = await super().validate_inputs(**inputs)
            await checkpoint()
            if checked["x"] % 2:
                raise InvalidInputs("x must be even")
            return {"x": checked["x"] + 100}

    async with ServiceManager(log=None) as manager:
        assert await manager.execute(Even(), x="4") == 208  # type: ignore[arg-type]
        with pytest.raises(InvalidInputs, match="must be even") as caught:
            await manager.execute(Even().using(retry=Retry(3, wait=0)), x=3)
        assert (caught.value.tool, caught.value.attempts) == ("Even", 0)


async def test_an_input_may_be_named_self_wherever_it_is_given() -> None:
    @tool
    async def selfish(self: int) -> int:
        return self

    assert await selfish.validate_inputs(self="1") == {"self": 1}
    assert await selfish.execute_async(self=1) == 1
    assert await selfish(self=1) == 1
    async with ServiceManager(log=None) as manager:
        assert await manager.execute(selfish, self=1) == 1


def test_the_signature_is_built_once() -> None:
    plain = Plain()
    assert plain.signature is plain.signature
    assert plain.using(timeout=1).signature is plain.signature


def test_schemas_are_those_of_the_signature() -> None:
    assert Plain().input_schema() == {
        "type": "object",
        "title": "Plain",
        "properties": {"x": {"title": "X", "type": "integer", "default": 1}},
        "additionalProperties": False,
    }
    assert Told().input_schema()["required"] == ["x"]
    assert Plain().output_schema() == {"type": "integer"}


async def test_awaiting_execute_async_runs_no_policy() -> None:
    limit = ConcurrencyLimit(1)
    bounded = Plain().using(timeout=0, concurrency=limit)
    assert await bounded.execute_async(x=2) == 4
    assert limit.statistics().peak == 0


# --- using


async def test_a_copy_of_the_same_name_shares_limits_and_statistics() -> None:
    gate = anyio.Event()

    @tool(policy=Policy(concurrency=1))
    async def gated() -> None:
        await gate.wait()

    async with ServiceManager(log=None) as manager:
        calls = [manager.submit(gated), manager.submit(gated.using(timeout=9)), manager.submit(gated.using(name="b"))]
        await anyio.wait_all_tasks_blocked()
        assert sorted(call.status for call in calls[:2]) == ["running", "waiting"]
        assert calls[2].status == "running"
        gate.set()
        for call in calls:
            await call.result()
        assert {name: one.calls for name, one in manager.statistics().tools.items()} == {"gated": 2, "b": 1}


def test_a_copy_leaves_the_original_as_it_was() -> None:
    plain = Plain()
    copy = plain.using(name="copy", timeout=3)
    assert (plain.name, plain._using, copy.name) == ("Plain", None, "copy")
    assert copy.using(deadline=9)._using == Policy(timeout=3, deadline=9)
    assert copy.using(timeout=None)._using == Policy(timeout=None)
    assert type(copy) is Plain


async def test_messages_name_a_copy_by_its_own_name() -> None:
    _ = at_top.signature
    with pytest.raises(InvalidInputs, match="tool 'other'"):
        await at_top.using(name="other").validate_inputs(x="a")
    with pytest.raises(InvalidInputs, match="tool 'other'"):
        await ToolAdapter(at_top, name="other").validate_inputs(x="a")


def test_calling_a_function_tool_is_calling_the_function() -> None:
    idents = []

    @tool(policy=Policy(timeout=0))
    def where() -> None:
        idents.append(threading.get_ident())

    assert where() is None
    assert idents == [threading.get_ident()]


# --- pickling


def test_a_tool_pickles_by_its_constructors_arguments() -> None:
    one = Uses(Store("a.db"), 3, label="kept").using(timeout=4, name="again")
    one.factor = 99  # what became of it is not what it was made of
    copy = pickle.loads(pickle.dumps(one))
    assert (type(copy), copy.factor, copy.label, copy.store.path) == (Uses, 3, "kept", "a.db")
    assert (copy.name, copy._using, copy.requires) == ("again", Policy(timeout=4), (copy.store,))


def test_a_function_tool_pickles_as_the_global_it_is_with_its_using_fields() -> None:
    copy = pickle.loads(pickle.dumps(at_top.using(timeout=4, name="again")))
    assert (copy.name, copy._using, copy(3)) == ("again", Policy(timeout=4), 3)
    assert copy._plain is at_top._plain
    assert pickle.loads(pickle.dumps(at_top))._using is None


def test_a_function_tool_that_is_no_global_is_refused_when_it_is_pickled() -> None:
    @tool
    def local(x: int) -> int:
        return x

    def plain(x: int) -> int:
        return x

    plain.__qualname__ = "at_top"  # there is a tool of that name, and it is another
    for one in (local, tool(plain)):
        with pytest.raises(pickle.PicklingError, match=r"is not it; decorate a function at the top level"):
            pickle.dumps(one)


@dataclass(frozen=True)
class Frozen(KGASTool):
    factor: int

    async def execute_async(self, *, x: int) -> int:
        return x * self.factor


async def test_a_frozen_dataclass_is_a_tool_too() -> None:
    async with ServiceManager(log=None) as manager:
        assert await manager.execute(Frozen(3), x=2) == 6
        assert await manager.execute(Frozen(3).using(name="other", timeout=3.0), x=2) == 6
    assert pickle.loads(pickle.dumps(Frozen(3))).factor == 3
