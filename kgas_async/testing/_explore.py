"""Runs one async test under many seeds on each backend, in virtual time, and says which of them failed.

A seed decides the order in which tasks that are ready at the same time run. It knows nothing of what the test does;
threads come in when they come in, whatever the seed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import partial, wraps
from typing import Any, ParamSpec, TypeAlias, overload

import anyio

from kgas_async.testing._suspended import suspended_at
from kgas_async.testing._virtual import virtual_backend

__all__ = ["explore"]

P = ParamSpec("P")
_Test: TypeAlias = Callable[[], Awaitable[object]]


@overload
def explore(
    test: _Test,
    /,
    *,
    seeds: int | Iterable[int] = 10,
    backends: str | Iterable[str] = ("asyncio", "trio"),
    timeout_s: float = 3600.0,
) -> None: ...


@overload
def explore(
    *,
    seeds: int | Iterable[int] = 10,
    backends: str | Iterable[str] = ("asyncio", "trio"),
    timeout_s: float = 3600.0,
) -> Callable[[Callable[P, Awaitable[object]]], Callable[P, None]]: ...


def explore(
    test: _Test | None = None,
    /,
    *,
    seeds: int | Iterable[int] = 10,
    backends: str | Iterable[str] = ("asyncio", "trio"),
    timeout_s: float = 3600.0,
) -> Callable[[Callable[P, Awaitable[object]]], Callable[P, None]] | None:
    """Run an async test under many seeds on each backend, in virtual time; the first failure ends it.

    In a sync test, or as a decorator that makes a sync test of an async one (with the parentheses: a bare
    ``@explore`` would run the function while the module is being imported)::

        def test_transfer() -> None:
            explore(transfer, seeds=30)

        @explore(seeds=30)
        async def test_transfer() -> None: ...

    A failure carries a note with the backend and the seed, and the call that replays it:
    ``explore(transfer, seeds=[17], backends=['trio'])``. pytest fixtures that a decorated test takes are made once, for
    all of its runs.

    Args:
        test: An async function without arguments, run in an event loop of its own each time.
        seeds: How many, from 0 on; or which.
        backends: ``"asyncio"``, ``"trio"`` or both.
        timeout_s: What each run may take, in virtual seconds. A deadlock gets there in no time; it is reported with the
            place where each task waits.

    Returns:
        None, or the decorator if ``test`` is not given.

    Raises:
        TimeoutError: A run did not end, with where its tasks waited.
        ValueError: No seeds, or no virtual time on one of the backends.
        BaseException: What the test raised, with the note.
    """
    plan = _plan(seeds, backends, timeout_s)
    if test is not None:
        plan(test, _name_of(test))
        return None

    def decorate(function: Callable[P, Awaitable[object]]) -> Callable[P, None]:
        @wraps(function)
        def explored(*args: P.args, **kwargs: P.kwargs) -> None:
            plan(partial(function, *args, **kwargs), _name_of(function))

        return explored

    return decorate


def _plan(seeds: int | Iterable[int], backends: str | Iterable[str], timeout_s: float) -> Callable[[_Test, str], None]:
    chosen = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    names = [backends] if isinstance(backends, str) else list(backends)
    if not chosen or not names:
        raise ValueError("explore() needs at least one seed and one backend, or it tests nothing")

    def run_all(test: _Test, name: str) -> None:
        for backend in names:
            for seed in chosen:
                _run_one(test, name, backend, seed, timeout_s)

    return run_all


def _name_of(test: Callable[..., object]) -> str:
    return getattr(test, "__name__", "test")


def _run_one(test: _Test, name: str, backend: str, seed: int, timeout_s: float) -> None:
    library, options = virtual_backend(backend, seed)
    try:
        anyio.run(_bounded, test, timeout_s, options.get("clock"), backend=library, backend_options=options)
    except BaseException as error:
        error.add_note(
            f"explore: backend {backend!r}, seed {seed};"
            f" replay with explore({name}, seeds=[{seed}], backends=[{backend!r}])"
        )
        raise


async def _bounded(test: _Test, timeout_s: float, clock: Any) -> None:
    clock = clock or asyncio.get_running_loop()  # a virtual loop is its own clock
    end = anyio.current_time() + timeout_s
    waiting: list[str] = []

    def note_waiting(jump_to: float) -> None:
        if jump_to >= end and not waiting:  # before the tasks are cancelled, while they still are where they were
            waiting.extend(_tasks())

    clock.on_jump = note_waiting
    with anyio.CancelScope(deadline=end) as scope:
        await test()
    if scope.cancelled_caught:
        raise TimeoutError("\n  ".join([f"not ended after {timeout_s:g} virtual seconds; its tasks waited:", *waiting]))


def _tasks() -> list[str]:
    # trio's own tasks have names in angle brackets.
    tasks = [task for task in anyio.get_running_tasks() if not (task.name or "").startswith("<")]
    return [f"{task.name or task.id}: {suspended_at(task.coro)}" for task in tasks]
