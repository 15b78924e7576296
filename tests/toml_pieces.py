"""What the TOML files of the tests name: `tests.toml_pieces:double` and the others."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self, TypedDict

from pydantic import BaseModel

from kgas_async import KGASTool, Policy, Service, ToolAdapter, tool

__all__ = ["Add", "Item", "Store", "double", "numbers", "total"]

NUMBER = 5


class Item(TypedDict):
    x: int
    host: str


class NetworkDown(OSError):
    pass


def numbers(upto: int = 3, start: int = 0) -> Iterator[dict[str, int]]:
    for x in range(start, int(upto)):
        yield {"x": x}


def name_of(item: dict[str, Any]) -> str:
    return f"item {item['x']}"


def is_odd(x: int) -> bool:
    return bool(x % 2)


def cost_of(inputs: dict[str, Any]) -> float:
    return float(inputs["x"])


def wait_of(attempt: int) -> float:
    return 0.001 * attempt


def delay_of(error: BaseException) -> float | None:
    return getattr(error, "delay", None)


def plain(x: int) -> int:
    return x


@tool(policy=Policy(timeout=5.0))
async def double(x: int) -> int:
    return 2 * x


@tool(name="double")
async def other_double(x: int) -> int:
    return x + x


@tool
async def halve(x: int) -> float:
    return x / 2


@tool
async def upto(x: int) -> list[int]:
    return list(range(x))


@tool
async def total(xs: list[int]) -> int:
    return sum(xs)


@tool
async def negated(ys: list[int]) -> list[int]:
    return [-y for y in ys]


class Store(Service):
    """A service with arguments."""

    def __init__(self, path: Path, size: int = 1, other: Any = None, names: list[str] | None = None) -> None:
        self.path = path
        self.size = size
        self.other = other
        self.names = names
        self.log: list[str] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self.log.append("started")
        yield
        self.log.append("stopped")


class User(Service):
    """A service that says of which class the other is."""

    def __init__(self, store: Store) -> None:
        self.store = store

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        yield


class Refusing(Service):
    def __init__(self) -> None:
        raise PermissionError("not for you")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        yield


class Plain:
    """No service by inheritance, but an async context manager."""

    entered = 0

    async def __aenter__(self) -> Self:
        self.entered += 1
        return self

    async def __aexit__(self, *error: object) -> None:
        return None


class Add(KGASTool):
    """A tool with arguments."""

    def __init__(self, store: Any, amount: int = 1, source: Any = None) -> None:
        self.store = store
        self.amount = amount
        self.source = source

    async def execute_async(self, *, x: int) -> int:
        if isinstance(self.store, Service):
            self.store.ensure_running()
        return x + self.amount


class Codec:
    name = "mine"

    def encode(self, value: Any) -> bytes:
        return repr(value).encode()

    def decode(self, data: bytes) -> Any:
        return data


codec = Codec()


class LegacyCounter:
    def __init__(self, step: int = 1) -> None:
        self.step = step

    def execute(self, x: int) -> int:
        return x + self.step

    def named(self, **inputs: Any) -> dict[str, Any]:
        return {"x": inputs["x"], "step": self.step}


class Request(BaseModel):
    x: int


def asked(request: Request) -> int:
    return request.x * 10


def any_of(**inputs: int) -> int:
    return sum(inputs.values())


def step_of(found: dict[str, Any]) -> Any:
    return found["step"]


def refused(found: int) -> str | None:
    return "too much" if found > 50 else None


legacy = LegacyCounter()


store = Store(Path("here.db"))
counter = ToolAdapter(LegacyCounter(), name="counter")
