"""`Service`: something with a lifetime that tools use, such as a database or a connection pool.

What a service is; starting and stopping them is the manager's (`_hosting`).
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Self

from ._errors import ServiceNotRunning, shown
from ._restart import RestartPolicy

__all__ = ["Service", "may_restart", "required_of", "restart_policy", "service_name"]


class Service:
    """Subclass it, write ``running``, and give it to a `ServiceManager` or to the tools that use it.

    Constructed without I/O, re-enterable, usable by its own methods only while running (`ensure_running` in them
    says so). ``requires`` names the services to start before; unless given, those among the attributes.

    Attributes:
        restart: What the manager does when it crashes; None: see ``ServiceManager(on_crash=)``.
        health_every: Seconds between two health checks; None: only when somebody asks (``manager.health()``).
        health_timeout: Seconds that a health check has.
    """

    restart: RestartPolicy | None = None
    health_every: float | None = None
    health_timeout: float = 5.0

    _is_running: bool = False
    _held_by: object = None  # the manager that starts or runs it
    _constructed: tuple[tuple[Any, ...], dict[str, Any]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = cls.__dict__.get("running")
        if inspect.isasyncgenfunction(own) or inspect.iscoroutinefunction(own):
            raise TypeError(f"{cls.__name__}.running lacks its decorator: write '@asynccontextmanager' above it")

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        if cls.running is Service.running:
            raise TypeError(
                f"{cls.__name__} has no running(); write '@asynccontextmanager', then 'async def running(self):' that "
                f"starts, yields and stops"
            )
        if (args or kwargs) and cls.__init__ is object.__init__ and cls.__new__ is Service.__new__:
            raise TypeError(f"{cls.__name__}() takes no arguments")  # as Python says it where there is no __new__
        self = super().__new__(cls)
        # A service that is not started pickles by its constructor's arguments; a frozen dataclass too.
        self.__dict__["_constructed"] = (args, kwargs)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        args, kwargs = self._constructed
        return (_rebuilt, (type(self), args, kwargs))

    @property
    def requires(self) -> tuple[Any, ...]:
        """The services that must run before this one: those among its attributes."""
        return tuple(value for value in vars(self).values() if isinstance(value, Service))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The lifetime: start before the ``yield``, stop after it.

        May hold a task group. An exception while running is a crash. Runs in a task of its own, so that scopes are
        left where they were entered.

        Cancellation: A start may be cancelled at any wait. So may a stop that takes longer than the manager's grace.
        """
        yield

    async def health(self) -> None:
        """Raise when ill. Asked only while it runs; a plain ``def`` is called in a thread reserved for such.

        Cancellation: Comes when its time (``health_timeout``) is up, which counts as ill, and when the service stops.
        """

    def _note(self, **known: object) -> None:
        for name, value in known.items():  # past a __setattr__: it may be a frozen dataclass
            self.__dict__[f"_{name}"] = value

    def ensure_running(self) -> None:
        """To be called by the service's own methods.

        Raises:
            ServiceNotRunning: No manager runs this service now.
        """
        if not self._is_running:
            mend = "give it to ServiceManager(...), or start it: await manager.start(service)"
            if self._held_by is not None:
                mend = "its manager is about to start it, to start it again, or to stop it"
            raise ServiceNotRunning(
                f"service {service_name(self)!r} is not running; {mend}", service=service_name(self)
            )


def _rebuilt(cls: type[Service], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Service:
    return cls(*args, **kwargs)


def service_name(service: object) -> str:
    """The name of a service in messages and evidence: its ``name``, else its class's."""
    name = getattr(service, "name", None)
    return name if isinstance(name, str) and name else type(service).__name__


def required_of(thing: Any) -> tuple[Any, ...]:
    """The services that a service or a tool requires.

    Raises:
        TypeError: It says so in another way than by a tuple of them.
    """
    requires = getattr(thing, "requires", ())
    if isinstance(requires, (str, bytes)) or not isinstance(requires, Iterable):
        raise TypeError(
            f"requires of {service_name(thing)} names the services themselves, as a tuple such as (graph,), not "
            f"{shown(requires)}"
        )
    return tuple(requires)


def restart_policy(service: object) -> RestartPolicy | None:
    """The restart policy of a service; a plain context manager has none, since few can be entered twice."""
    return service.restart if isinstance(service, Service) else None


def may_restart(services: Iterable[Any]) -> bool:
    """Whether one of them, or of those that they require, has a restart policy."""
    seen: set[int] = set()
    waiting = list(services)
    while waiting:
        service = waiting.pop()
        if id(service) not in seen:
            if restart_policy(service) is not None:
                return True
            seen.add(id(service))
            waiting.extend(required_of(service))
    return False


def lifetime(service: object) -> AbstractAsyncContextManager[Any]:
    """The context manager that is a service's lifetime; any plain async context manager is one."""
    if isinstance(service, Service):
        running: object = service.running()
        if not isinstance(running, AbstractAsyncContextManager):
            raise TypeError(
                f"{type(service).__name__}.running() gives {running!r}, no async context manager: write "
                f"'@asynccontextmanager' above 'async def running(self):'"
            )
        return running
    if isinstance(service, AbstractAsyncContextManager):  # by its methods, not by inheritance
        return service
    raise TypeError(f"{service!r} is no service: it is neither a Service nor an async context manager")
