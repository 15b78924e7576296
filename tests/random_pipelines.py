"""Random declarations of pipelines, and what their phases do: pure functions of name and inputs, with failures.

`plain_interpreter` says what is to come of them, `test_random_pipelines` runs them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field, fields
from inspect import Parameter, Signature
from typing import Any, Literal
from zlib import crc32

import anyio
from anyio.lowlevel import checkpoint
from hypothesis import strategies as st

from kgas_async import ConcurrencyLimit, KGASTool, Outcome, Phase, Pipeline, tool

Level = tuple[str, ...]
RUN: Level = ("<run>",)
FIELDS = ("x", "y", "w")  # each item has them; `z` some
ASYNC_FLAVOURS = ("at once", "checkpoints", "sleeps", "isolated")
FLAVOURS = (*ASYNC_FLAVOURS, "thread", "inline")


class BrokenError(Exception):
    """What a phase of a random pipeline raises."""


@dataclass(frozen=True, repr=False)
class Step:
    """A phase as it is declared, and how its tool behaves.

    Attributes:
        binds: Sources by input.
        outcomes: The inputs that are lists of outcomes.
        offers: Inputs with a default, which take what has their name.
        late: It sleeps beyond its timeout at times.
        breaks: How each batch as a whole goes wrong.
    """

    name: str
    level: Level
    binds: Mapping[str, str]
    outcomes: frozenset[str] = frozenset()
    offers: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    expand: str | None = None
    collect: str | Literal[True] | None = None
    missing: Any = None
    live: bool = False
    when: str | None = None
    batch: int | None = None
    batch_wait: float | None = None
    breaks: str | None = None
    late: bool = False
    flavour: str = "at once"
    elements: str = "list"
    limit: Any = None

    @property
    def is_lazy(self) -> bool:
        return self.elements != "list"

    def __repr__(self) -> str:
        given = ((one.name, getattr(self, one.name), one.default) for one in fields(self))
        return f"Step({', '.join(f'{name}={value!r}' for name, value, default in given if value != default)})"


@dataclass(frozen=True)
class Declaration:
    """Steps, upstream first; ``places`` shuffles them; ``declared`` says whether ``item=`` is given."""

    steps: tuple[Step, ...]
    places: tuple[int, ...]
    declared: bool
    rarity: int

    def by_name(self) -> dict[str, Step]:
        return {step.name: step for step in self.steps}


# --- what a phase does


def plain(value: Any) -> Any:
    """Without what differs from run to run."""
    if isinstance(value, Outcome):
        return (value.status, plain(value.value))
    return [plain(one) for one in value] if isinstance(value, list) else value


def signed(name: str, inputs: Mapping[str, Any]) -> tuple[str, str]:
    """A call, as it is counted."""
    return name, repr(sorted((key, plain(value)) for key, value in inputs.items()))


def drawn(name: str, inputs: Mapping[str, Any]) -> int:
    return crc32(repr(signed(name, inputs)).encode())


def applied(step: Step, inputs: Mapping[str, Any], rarity: int) -> Any:
    """The result; of an expansion the elements, which may end by an error."""
    number = drawn(step.name, inputs)
    if step.expand is not None:
        found = elements_of(step, number, rarity)
        return found if step.is_lazy else list(found)
    if number % rarity == 0:
        raise BrokenError(step.name)
    return number % 1_000


def elements_of(step: Step, number: int, rarity: int) -> Iterator[int]:
    if number % rarity == 0:
        raise BrokenError(step.name)
    for index in range(number % 4):
        if index == 1 and number % rarity == 1:
            raise BrokenError(step.name)
        yield number % 97 + index


def is_late(step: Step, inputs: Mapping[str, Any], rarity: int) -> bool:
    return step.late and drawn(step.name, inputs) % rarity == 2


def is_wanted(step: Step, inputs: Mapping[str, Any]) -> bool:
    """What ``when`` says."""
    number = drawn(f"{step.name}?", inputs) % 5
    if number == 1 and step.when == "raises":
        raise BrokenError(step.name)
    return step.when is None or number != 0


# --- as a pipeline


@dataclass
class Log:
    """What tools were called with; batches that were too big."""

    calls: Counter[Any] = field(default_factory=Counter)
    too_big: list[str] = field(default_factory=list)


class Body:
    """What a step's tool runs."""

    def __init__(self, step: Step, rarity: int, log: Log) -> None:
        self.step, self.rarity, self.log = step, rarity, log

    def rows(self, given: Mapping[str, Any]) -> list[dict[str, Any]]:
        step = self.step
        inputs = {name: value for name, value in given.items() if value is not None}
        rows = [inputs]
        if step.batch is not None:
            rows = [dict(zip(inputs, row, strict=True)) for row in zip(*inputs.values(), strict=True)]
            if len(rows) > step.batch:
                self.log.too_big.append(step.name)
        for row in rows:
            self.log.calls[signed(step.name, row)] += 1
        return rows

    def result(self, rows: list[dict[str, Any]]) -> Any:
        step = self.step
        if step.batch is None:
            return self.made(rows[0])
        if step.breaks == "raises":
            raise BrokenError(step.name)
        results: list[Any] = []
        for row in rows:
            try:
                results.append(self.made(row))
            except BrokenError as error:
                results.append(error)
        return results[1:] if step.breaks == "one too few" else iter(results) if step.breaks == "no list" else results

    def made(self, row: dict[str, Any]) -> Any:
        result = applied(self.step, row, self.rarity)
        return later(result) if self.step.elements == "async generator" else result

    async def pause(self, row: dict[str, Any]) -> None:
        number = drawn("pause", row)
        if self.step.flavour == "sleeps":
            await anyio.sleep(number % 5 / 10)
        for _ in range(number % 3 if self.step.flavour == "checkpoints" else 0):
            await checkpoint()
        if is_late(self.step, row, self.rarity):
            await anyio.sleep(1_000)


async def later(elements: Iterator[int]) -> AsyncIterator[int]:
    for element in elements:
        await checkpoint()
        yield element


def tool_of(step: Step, rarity: int, log: Log, shared: ConcurrencyLimit) -> KGASTool:
    body = Body(step, rarity, log)

    async def on_loop(**given: Any) -> Any:
        if step.live:
            ((name, stream),) = given.items()
            given = {name: [one async for one in stream]}
        rows = body.rows(given)
        for row in rows:
            await body.pause(row)
        return body.result(rows)

    def at_once(**given: Any) -> Any:
        return body.result(body.rows(given))

    function: Any = on_loop if step.flavour in ASYNC_FLAVOURS else at_once
    kinds = {name: kind_of(step, name, source) for name, source in step.binds.items()}
    parameters = [Parameter(name, Parameter.KEYWORD_ONLY, annotation=kind) for name, kind in kinds.items()]
    parameters += [Parameter(name, Parameter.KEYWORD_ONLY, default=None) for name in step.offers]
    function.__signature__ = Signature(parameters)
    function.__annotations__ = kinds
    offload: Any = {"offload": "inline"} if step.flavour == "inline" else {}
    options: dict[str, Any] = {"isolated": True} if step.flavour == "isolated" else {}
    if step.late:
        options["timeout"] = 1.0
    if step.limit is not None:
        options |= (
            {"rate": 50} if step.limit == "rate" else {"concurrency": shared if step.limit == "s" else step.limit}
        )
    made: KGASTool = tool(function, name=step.name, **offload)
    return made.using(**options) if options else made


def kind_of(step: Step, name: str, source: str) -> Any:
    if step.live:
        return AsyncIterable[Outcome[Any]] if name in step.outcomes else AsyncIterable[Any]
    if name in step.outcomes:
        return list[Outcome[Any]]
    if source == "w" and step.level != RUN:  # some items' is no int
        return int if step.batch is None else list[int]
    return Any


def pipeline_of(declaration: Declaration, log: Log) -> Pipeline:
    phases: dict[int, Phase] = {}
    shared = ConcurrencyLimit(2)
    for place, step in zip(declaration.places, declaration.steps, strict=True):

        def when(_step: Step = step, **inputs: Any) -> bool:
            return is_wanted(_step, inputs)

        phases[place] = Phase(
            step.name,
            tool_of(step, declaration.rarity, log, shared),
            bind=step.binds,
            after=step.after,
            expand=step.expand,
            collect=step.collect,
            missing=step.missing,
            when=when if step.when is not None else None,
            batch=step.batch,
            batch_wait=step.batch_wait,
        )
    item = [*FIELDS, "z"] if declaration.declared else None
    return Pipeline("p", *(phases[place] for place in sorted(phases)), item=item)


# --- random ones


class Maker:
    """Makes one step after another of what there is."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.steps: list[Step] = []
        self.levels: dict[str, Level] = dict.fromkeys(FIELDS, ())  # of all that can be bound
        self.owners: dict[str, Step] = {}  # of elements

    def one_of(self, *values: Any) -> Any:
        return self.draw(st.sampled_from(values))

    def some(self, values: list[str], least: int, most: int) -> list[str]:
        if not values or not most:
            return []
        most = min(most, len(values))
        chosen = st.lists(st.sampled_from(values), min_size=min(least, most), max_size=most, unique=True)
        return self.draw(chosen)  # type: ignore[no-any-return]

    def rests_on(self, name: str) -> set[str]:
        """The expansions that must have ended with all their elements before this has."""
        steps = {step.name: step for step in self.steps}
        found: set[str] = set()
        own = steps[name].expand if name in steps else None
        queue = [self.owners[name].name if name in self.owners else name]
        if own is not None:
            found.add(own)  # it has ended when its elements have
            queue += [inner.name for inner in self.steps if own in inner.level]
        seen = set(queue)
        while queue:
            step = steps.get(queue.pop())
            if step is None:
                continue
            sources = [*step.binds.values(), *step.after, *step.offers]
            trees = [step.collect] if isinstance(step.collect, str) else []
            for source in sources:
                level = steps[source].level if source in steps else self.levels.get(source, ())
                common = sum(1 for one, other in zip(level, step.level, strict=False) if one == other)
                trees += level[common : common + 1]
                if source in step.after and steps[source].expand not in (None, *step.level):
                    trees.append(steps[source].expand)  # it has ended when its elements have
            sources += [self.owners[one].name for one in sources if one in self.owners]
            for tree in trees:
                found.add(str(tree))
                sources.append(self.owners[str(tree)].name)
                sources += [inner.name for inner in self.steps if tree in inner.level]
            queue += [one for one in sources if one not in seen]
            seen.update(sources)
        return found

    def may_come_after(self, source: str, level: Level) -> bool:
        """Whether what runs on that level can need this: what it rests on must not be open then."""
        at = next((step.level for step in self.steps if step.name == source), self.levels.get(source, ()))
        return at != RUN and not (set(level) - set(at)) & self.rests_on(source)

    def at(self, level: Level, *, above: bool = False) -> list[str]:
        names = [
            name
            for name, at in self.levels.items()
            if (at == level[: len(at)] and at != level if above else at == level)
        ]
        return names if level == RUN else [name for name in names if self.may_come_after(name, level)]

    def add(self) -> None:
        kinds = ["plain"] * 3 + ["expand"] * 2 + ["collect"] * 3 * bool(self.owners) + ["run"]
        kind = self.one_of(*kinds)
        name = f"p{len(self.steps)}"
        if kind == "run":
            step = self.run_level(name)
        else:
            step = self.collecting(name) if kind == "collect" else self.passing(name)
            is_expansion = kind == "expand" or (kind == "collect" and self.one_of(True, False, False, False))
            step = self.varied(step, expands=is_expansion and len(step.level) < 3)
        self.steps.append(step)
        if step.expand is not None:
            self.owners[step.expand] = step
            self.levels[step.expand] = (*step.level, step.expand)
        else:
            self.levels[name] = step.level

    def passing(self, name: str) -> Step:
        levels = sorted({level for level in self.levels.values() if level != RUN}, key=len, reverse=True)
        level = self.one_of(*levels)
        chosen = self.some(self.at(level), 1, 2) + self.some(self.at(level, above=True), 0, 1)
        return Step(name, level, named(chosen))

    def collecting(self, name: str) -> Step:
        element = self.one_of(*self.owners)
        outer = self.owners[element].level
        chosen = self.some(self.at((*outer, element)), 0, 2)
        chosen += self.some([*self.at(outer), *self.at(outer, above=True)], 0, 1)
        binds = named(chosen or [element])
        inner = [key for key, one in binds.items() if self.levels[one] == (*outer, element) and one != element]
        missing = self.one_of(None, "ignore", "skip")
        return Step(name, outer, binds, self.seen(inner), collect=element, missing=missing)

    def seen(self, inputs: list[str]) -> frozenset[str]:
        return frozenset(one for one in inputs if self.one_of(True, False, False))

    def varied(self, step: Step, *, expands: bool) -> Step:
        """With what any phase of an item may have."""
        others = [one.name for one in self.steps if self.may_come_after(one.name, step.level)]
        offers = [name for name in self.at(step.level) if name.startswith("p") and name not in step.binds.values()]
        batch = None if step.outcomes else self.one_of(None, None, None, 1, 2, 3)
        is_async = self.one_of(True, True, False)
        flavour = self.one_of(*(ASYNC_FLAVOURS if is_async else ("thread", "inline")))
        return Step(
            step.name,
            step.level,
            step.binds,
            step.outcomes,
            offers=tuple(self.some(["z", *([] if step.collect else offers)], 0, 1))
            if self.one_of(True, False, False)
            else (),
            after=tuple(self.some(others, 1, 2)) if self.one_of(True, False, False, False) else (),
            expand=f"e{len(self.steps)}" if expands else None,
            collect=step.collect,
            missing=step.missing,
            when=self.one_of(None, None, None, "some", "raises"),
            batch=batch,
            batch_wait=self.one_of(None, None, 0.0, 0.3) if batch else None,
            breaks=self.one_of(*[None] * 9, "raises", "one too few", "no list") if batch else None,
            late=is_async and batch is None and self.one_of(True, False, False),
            flavour=flavour,
            elements=self.one_of("list", "generator", *(["async generator"] if is_async else []))
            if expands
            else "list",
            limit=self.one_of(None, None, None, 1, 2, "s", "rate"),
        )

    def run_level(self, name: str) -> Step:
        items, once = self.at(()), self.at(RUN)
        when = self.one_of(None, None, None, "some", "raises")
        flavour = self.one_of(*FLAVOURS)
        kind = self.one_of("list", "list", "live", "order", *(["then"] if once else []))
        phases = [step.name for step in self.steps]
        if kind == "then":
            return Step(name, RUN, named(self.some(once, 1, 2)), when=when, flavour=flavour)
        per_item = [step.name for step in self.steps if step.level != RUN]
        if kind == "order" and phases:
            return Step(name, RUN, {}, after=tuple(self.some(phases, 1, 2)), collect=True, flavour=flavour)
        if kind == "live":
            binds = named(self.some(items, 1, 1))
            outcomes = self.seen([key for key, one in binds.items() if one.startswith("p")])
            after = tuple(self.some(per_item, 0, 1))
            return Step(
                name, RUN, binds, outcomes, after=after, collect=True, live=True, flavour=self.one_of(*ASYNC_FLAVOURS)
            )
        binds = named(self.some(items, 1, 2) + self.some(once, 0, 1))
        outcomes = self.seen([key for key, one in binds.items() if one.startswith("p") and not self.levels[one]])
        missing = self.one_of(None, None, "ignore", "skip")
        offers = tuple(self.some(["z"], 0, 1))
        after = tuple(self.some(phases, 0, 1))
        return Step(name, RUN, binds, outcomes, offers, after, None, True, missing, when=when, flavour=flavour)


def named(sources: list[str]) -> dict[str, str]:
    return {f"a{number}": source for number, source in enumerate(sources)}


@st.composite
def declarations(draw: Any, most: int = 9) -> Declaration:
    maker = Maker(draw)
    for _ in range(draw(st.integers(1, most))):
        maker.add()
    places = draw(st.permutations(range(len(maker.steps)))) if draw(st.booleans()) else range(len(maker.steps))
    return Declaration(
        tuple(maker.steps), tuple(places), draw(st.booleans()), draw(st.sampled_from([3, 5, 9, 30, 10**9]))
    )


@st.composite
def items(draw: Any, least: int = 0, most: int = 4) -> list[Any]:
    """Some lack `z`, of some `w` is no int, some are no mappings."""
    made: list[Any] = []
    for _ in range(draw(st.integers(least, most))):
        item = {
            "x": draw(st.integers(0, 60)),
            "y": draw(st.integers(0, 3)),
            "w": draw(st.sampled_from([1, 2, 3, "no"])),
        }
        if draw(st.booleans()):
            item["z"] = draw(st.integers(0, 9))
        made.append(item if draw(st.integers(0, 9)) else 7)
    return made
