"""Random pipelines with failures at random calls give what a plain sequential interpreter gives, on both loops."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import anyio
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from kgas_async import KGASTool, Outcome, Phase, Pipeline, PipelineError, ServiceManager, tool
from kgas_async.testing import assert_clean, virtual_backend

BACKENDS = ("asyncio", "trio")


class BrokenError(Exception):
    """What a step of a random pipeline raises."""


# --- what a step does: a pure function of its name and its input, for the pipeline and for the interpreter


def drawn(name: str, value: Any) -> int:
    return crc32(repr((name, value)).encode())


def applied(name: str, value: Any, rarity: int) -> int:
    number = drawn(name, value)
    if number % rarity == 0:
        raise BrokenError(name)
    return number % 1_000


def elements_of(name: str, value: Any, rarity: int) -> Iterator[int]:
    """Lazy; some raise before the first element, some half way."""
    number = drawn(name, value)
    count = number % 4
    if number % rarity == 0:
        raise BrokenError(name)
    for index in range(count):
        if index == 1 and number % rarity == 1:
            raise BrokenError(name)
        yield number % 97 + index


# --- declarations


@dataclass(frozen=True)
class Step:
    """A phase that takes the value so far; a side step gives its own to nobody."""

    name: str
    flavour: str
    is_side: bool


@dataclass(frozen=True)
class Split:
    """An expansion, what runs per element, and whether and how that is collected."""

    name: str
    flavour: str
    body: tuple[Any, ...]
    missing: str | None


STEP_FLAVOURS = ("at once", "checkpoints", "thread", "isolated")
SPLIT_FLAVOURS = ("list", "thread list", "generator", "thread generator", "async generator")


@dataclass
class Names:
    used: int = 0

    def new(self, letter: str) -> str:
        self.used += 1
        return f"{letter}{self.used}"


@st.composite
def chains(draw: Any, names: Names | None = None, depth: int = 0) -> tuple[Any, ...]:
    names = names or Names()
    chain: list[Any] = []
    for _ in range(draw(st.integers(0 if depth else 1, 3))):
        if depth < 2 and draw(st.booleans()):
            name, flavour = names.new("e"), draw(st.sampled_from(SPLIT_FLAVOURS))
            body = draw(chains(names, depth + 1))
            chain.append(Split(name, flavour, body, draw(st.sampled_from(["skip", "ignore", None]))))
        else:
            chain.append(Step(names.new("s"), draw(st.sampled_from(STEP_FLAVOURS)), draw(st.integers(0, 3)) == 0))
    return tuple(chain)


# --- as a pipeline


def step_tool(name: str, flavour: str, rarity: int, calls: Counter[Any]) -> KGASTool:
    @tool(name=name)
    async def on_loop(value: Any) -> int:
        calls[name, repr(value)] += 1
        for _ in range(drawn(name, value) % 3 if flavour != "at once" else 0):
            await checkpoint()
        return applied(name, value, rarity)

    @tool(name=name)
    def in_thread(value: Any) -> int:
        calls[name, repr(value)] += 1
        return applied(name, value, rarity)

    chosen: KGASTool = in_thread if flavour == "thread" else on_loop
    return chosen.using(isolated=True) if flavour == "isolated" else chosen


def split_tool(name: str, flavour: str, rarity: int, calls: Counter[Any]) -> KGASTool:
    def made(value: Any) -> Any:
        calls[name, repr(value)] += 1
        found = elements_of(name, value, rarity)
        return list(found) if flavour.endswith("list") else found

    @tool(name=name)
    def in_thread(value: Any) -> Any:
        return made(value)

    @tool(name=name)
    async def on_loop(value: Any) -> Any:
        async def later(elements: Iterator[int]) -> AsyncIterator[int]:
            for element in elements:
                await checkpoint()
                yield element

        return later(made(value)) if flavour == "async generator" else made(value)

    return in_thread if flavour.startswith("thread") else on_loop


def phases_of(chain: tuple[Any, ...], value: str, rarity: int, calls: Counter[Any]) -> tuple[list[Phase], str]:
    """The phases of a chain that begins with what is named ``value``, and the name of what it ends with."""
    phases: list[Phase] = []
    for node in chain:
        if isinstance(node, Step):
            phases.append(Phase(node.name, step_tool(node.name, node.flavour, rarity, calls), bind={"value": value}))
            value = value if node.is_side else node.name
            continue
        element = f"{node.name}_element"
        made = split_tool(node.name, node.flavour, rarity, calls)
        phases.append(Phase(node.name, made, bind={"value": value}, expand=element))
        inner, last = phases_of(node.body, element, rarity, calls)
        phases += inner
        if node.missing is not None:
            collect = step_tool(f"{node.name}_all", "at once", rarity, calls)
            options: Any = {"collect": element, "missing": node.missing}
            phases.append(Phase(collect.name, collect, bind={"value": last}, **options))
            value = collect.name
    return phases, value


# --- as a plain sequential interpreter


@dataclass
class Frame:
    """What came of an item or an element."""

    results: dict[str, Any] = field(default_factory=dict)
    leaves: dict[str, list[Any]] = field(default_factory=dict)  # of this frame and those below, flat
    failures: list[tuple[str, set[str]]] = field(default_factory=list)  # (the phase to name, the phases that failed)


_NOTHING = object()


def declared_names(chain: tuple[Any, ...]) -> list[str]:
    names: list[str] = []
    for node in chain:
        names.append(node.name)
        if isinstance(node, Split):
            names += declared_names(node.body)
            names += [] if node.missing is None else [f"{node.name}_all"]
    return names


def interpret(chain: tuple[Any, ...], value: Any, rarity: int, calls: Counter[Any]) -> tuple[Frame, Any]:
    """Run a chain on a value; `_NOTHING` stands for a value that there is none of, here and in the result."""
    frame = Frame()
    unsettled: list[tuple[str, set[str]]] = []
    for node in chain:
        if isinstance(node, Step):
            result = call(frame, node.name, value, rarity, calls)
            value = value if node.is_side else result
            continue
        children, is_whole = split(frame, node, value, rarity, calls)
        inner = [interpret(node.body, element, rarity, calls) for element in children or ()]
        frame.leaves.setdefault(node.name, []).extend(children or ())
        lost = together([one for one, _ in inner if one.failures])
        for one, _ in inner:
            for name, values in one.leaves.items():
                frame.leaves.setdefault(name, []).extend(values)
        if node.missing is None:
            unsettled += lost
            continue
        found = [last for _, last in inner if last is not _NOTHING]
        value_there = is_whole and children is not None
        if value_there and len(found) < len(inner) and node.missing == "skip":
            frame.failures += lost
            value_there = False
        value = call(frame, f"{node.name}_all", found if value_there else _NOTHING, rarity, calls)
        excused = upstream(node.body) if node.missing == "ignore" else set()
        unsettled += together([one for one, _ in inner if any(not f[1] <= excused for f in one.failures)])
    frame.failures += unsettled
    order = declared_names(chain)
    frame.failures.sort(key=lambda failure: order.index(failure[0]))  # the first as declared is the one that is named
    return frame, value


def together(failed: list[Frame]) -> list[tuple[str, set[str]]]:
    """What failed elements are to their parent: one failure, named by the first, of all that failed in them."""
    names = {name for frame in failed for _, inner in frame.failures for name in inner}
    return [(failed[0].failures[0][0], names)] if failed else []


def call(frame: Frame, name: str, value: Any, rarity: int, calls: Counter[Any]) -> Any:
    if value is _NOTHING:
        return _NOTHING
    calls[name, repr(value)] += 1
    try:
        result = applied(name, value, rarity)
    except BrokenError:
        frame.failures.append((name, {name}))
        return _NOTHING
    frame.results[name] = result
    frame.leaves.setdefault(name, []).append(result)
    return result


def split(frame: Frame, node: Split, value: Any, rarity: int, calls: Counter[Any]) -> tuple[list[int] | None, bool]:
    """The elements (None where the phase did not run or gave nothing), and whether that was all of them."""
    if value is _NOTHING:
        return None, False
    calls[node.name, repr(value)] += 1
    found: list[int] = []
    try:
        found.extend(elements_of(node.name, value, rarity))  # as far as they come
    except BrokenError:
        frame.failures.append((node.name, {node.name}))
        return (None if node.flavour.endswith("list") else found), False
    return found, True


def upstream(body: tuple[Any, ...]) -> set[str]:
    """The phases that the last value of a body rests on."""
    names: set[str] = set()
    for node in body:
        if isinstance(node, Step):
            names |= set() if node.is_side else {node.name}
        elif node.missing is not None:
            names |= {node.name, f"{node.name}_all"} | upstream(node.body)
    return names


def leaf_names(chain: tuple[Any, ...], level: int = 0, *, is_taken: bool = False) -> list[tuple[str, int]]:
    """The leaves with their levels, in declared order; ``is_taken`` says whether the chain's last value is taken."""
    leaves: list[tuple[str, int]] = []
    last = max((n for n, node in enumerate(chain) if gives(node)), default=-1)
    for position, node in enumerate(chain):
        is_end = position == last and not is_taken
        if isinstance(node, Step):
            leaves += [(node.name, level)] if node.is_side or (is_end and not has_taker(chain, position)) else []
            continue
        if not node.body and node.missing is None:
            leaves.append((node.name, level))
        leaves += leaf_names(node.body, level + 1, is_taken=node.missing is not None)
        if node.missing is not None and is_end and not has_taker(chain, position):
            leaves.append((f"{node.name}_all", level))
    return leaves


def gives(node: Any) -> bool:
    return not node.is_side if isinstance(node, Step) else node.missing is not None


def has_taker(chain: tuple[Any, ...], position: int) -> bool:
    """Whether a later node takes the value that this one gives; the first that follows it does."""
    return position + 1 < len(chain)


def expected(chain: tuple[Any, ...], value: int, rarity: int, calls: Counter[Any]) -> tuple[str, str | None, Any]:
    frame, _ = interpret(chain, value, rarity, calls)
    if frame.failures:
        return "failed", frame.failures[0][0], None
    leaves = leaf_names(chain)
    values = {name: frame.leaves.get(name, []) if level else frame.results.get(name) for name, level in leaves}
    for name, level in leaves:
        if name.startswith("e") and not name.endswith("_all") and not level:
            values[name] = frame.leaves.get(name, [])
    return "succeeded", None, next(iter(values.values())) if len(values) == 1 else values


# --- the properties

DRAWN = {
    "chain": chains(),
    "values": st.lists(st.integers(0, 60), max_size=4),
    "rarity": st.sampled_from([2, 3, 5, 9, 10**9]),
    "in_flight": st.integers(1, 4),
    "seed": st.integers(0, 9),
}


def run_to_the_end(
    backend: str, seed: int, pipeline: Pipeline, values: list[int], in_flight: int
) -> list[Outcome[Any]]:
    manager = ServiceManager(log=None, threads=2)

    async def main() -> list[Outcome[Any]]:
        items = ({"x": value} for value in values)
        async with manager:
            report = await manager.run(pipeline, items, in_flight=in_flight, keep="all")
        return report.outcomes

    library, options = virtual_backend(backend, seed)
    outcomes = anyio.run(main, backend=library, backend_options=options)
    assert_clean(manager)
    return outcomes


@settings(max_examples=150, deadline=None)
@given(**DRAWN)
def test_a_random_pipeline_gives_what_a_sequential_interpreter_gives(
    chain: tuple[Any, ...], values: list[int], rarity: int, in_flight: int, seed: int
) -> None:
    wanted_calls: Counter[Any] = Counter()
    wanted = [expected(chain, value, rarity, wanted_calls) for value in values]
    for backend in BACKENDS:
        calls: Counter[Any] = Counter()
        pipeline = Pipeline("p", *phases_of(chain, "x", rarity, calls)[0], item=["x"])
        outcomes = run_to_the_end(backend, seed, pipeline, values, in_flight)
        assert [(one.status, one.failed_phase, one.value) for one in outcomes] == wanted, backend
        assert calls == wanted_calls, backend


def run_until_cancelled(
    backend: str, seed: int, pipeline: Pipeline, in_flight: int, steps: int
) -> tuple[list[int], list[int]]:
    manager = ServiceManager(log=None, threads=2)
    pulled: list[int] = []
    came: list[int] = []

    def items() -> Iterator[dict[str, int]]:
        for index in range(30):
            pulled.append(index)
            yield {"x": index}

    async def cancel() -> None:
        for _ in range(steps):
            await checkpoint()
        await manager.cancel(reason="at random")

    async def main() -> None:
        async with manager, anyio.create_task_group() as group:
            group.start_soon(cancel)
            with suppress(PipelineError):  # cancelled before the end of the source
                async with manager.stream(pipeline, items(), in_flight=in_flight) as outcomes:
                    async for outcome in outcomes:
                        came.append(outcome.index)

    library, options = virtual_backend(backend, seed)
    anyio.run(main, backend=library, backend_options=options)
    assert_clean(manager)
    return pulled, came


@settings(max_examples=100, deadline=None)
@given(chain=DRAWN["chain"], rarity=DRAWN["rarity"], in_flight=DRAWN["in_flight"], seed=DRAWN["seed"],
       steps=st.integers(0, 60))  # fmt: skip
def test_a_random_pipeline_cancelled_at_a_random_moment_gives_each_pulled_item_one_outcome(
    chain: tuple[Any, ...], rarity: int, in_flight: int, seed: int, steps: int
) -> None:
    for backend in BACKENDS:
        pipeline = Pipeline("p", *phases_of(chain, "x", rarity, Counter())[0], item=["x"])
        pulled, came = run_until_cancelled(backend, seed, pipeline, in_flight, steps)
        assert came == pulled, backend
