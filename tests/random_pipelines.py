"""Declarations of pipelines, and what their phases do: pure functions of name and inputs, with failures.

`random_declarations` makes them, `plain_interpreter` says what is to come of them, `test_random_pipelines` runs them.
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

from kgas_async import ConcurrencyLimit, KGASTool, Outcome, Phase, Pipeline, Retry, current, tool
from kgas_async._context import current_call

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

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:  # else Hypothesis prints what is default too
        printer.text(repr(self))


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


class StumblingError(Exception):
    """What a tool raises that is to be tried again."""


@dataclass(frozen=True)
class Extra:
    """What a step's tool has besides, none of which changes what comes of it.

    Attributes:
        name: In its manager.
        limits: Tokens that it needs.
        nested: A tool that it calls first.
        stumbles: Attempts that fail before the one that does not.
        priority: Of its calls.
    """

    name: str = ""
    limits: tuple[ConcurrencyLimit, ...] = ()
    nested: KGASTool | None = None
    stumbles: int = 0
    priority: int | None = None

    def options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"name": self.name, "priority": self.priority}
        if self.limits:
            options["concurrency"] = list(self.limits)
        if self.stumbles:
            options["retry"] = Retry(self.stumbles + 1, on=StumblingError, wait=0.2)
        return options

    async def begin(self) -> None:
        self.stumble()
        if self.nested is not None:
            await current().execute(self.nested, x=1)

    def stumble(self) -> None:
        if current_call.get().attempt <= self.stumbles:
            raise StumblingError


NO_EXTRA = Extra()


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


async def later(elements: Iterator[Any]) -> AsyncIterator[Any]:
    for element in elements:
        await checkpoint()
        yield element
    await checkpoint()


def tool_of(step: Step, rarity: int, log: Log, shared: ConcurrencyLimit, extra: Extra = NO_EXTRA) -> KGASTool:
    body = Body(step, rarity, log)

    async def on_loop(**given: Any) -> Any:
        await extra.begin()
        if step.live:
            ((name, stream),) = given.items()
            given = {name: [one async for one in stream]}
        rows = body.rows(given)
        for row in rows:
            await body.pause(row)
        return body.result(rows)

    def at_once(**given: Any) -> Any:
        extra.stumble()
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
    if extra is not NO_EXTRA:
        options |= extra.options()
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


def pipeline_of(declaration: Declaration, log: Log, extras: Mapping[str, Extra] = {}) -> Pipeline:
    phases: dict[int, Phase] = {}
    shared = ConcurrencyLimit(2)
    for place, step in zip(declaration.places, declaration.steps, strict=True):

        def when(_step: Step = step, **inputs: Any) -> bool:
            return is_wanted(_step, inputs)

        phases[place] = Phase(
            step.name,
            tool_of(step, declaration.rarity, log, shared, extras.get(step.name, NO_EXTRA)),
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
