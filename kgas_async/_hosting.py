"""Services of a session: each in a task of its own, started as ``requires`` allow, stopped one by one in reverse."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from time import perf_counter_ns
from typing import Any

import anyio

from ._call import Call
from ._errors import ManagerClosed, ServiceCrashed, ServiceError, ServiceNotRunning, ServiceStartFailed, shown
from ._health import Health, HealthReport, check_options
from ._hosted import Hosted, Register
from ._pipeline import Pipeline
from ._restart import RestartPolicy
from ._service import Service, required_of, service_name
from ._supervision import DependencyFailed, Landlord, Supervision
from ._tokens import DeadlinePassed
from ._tool import KGASTool

__all__ = ["Hosting", "in_order", "lifetime_check"]


class Hosting:
    """The services that a session holds, in the order of their starts."""

    def __init__(self, session: Any) -> None:
        self._session: Landlord = session
        self._register = Register()
        self._health = Health(session, self._register)
        self._supervision = Supervision(session, self._register, self._health)
        self._is_stopping = False

    def names(self) -> list[str]:
        """The services that run, in the order of their starts."""
        return [hosted.name for hosted in self._register.all if hosted.is_running]

    async def health(self) -> HealthReport:
        """Ask those that run, and say what is known of each."""
        return await self._health.report()

    def check_running(self, services: Iterable[Any], tool: str) -> None:
        """Refuse a call that no service will serve; one whose service is started again waits for it later on.

        Raises:
            ServiceNotRunning: One of them does not run in this session.
            ServiceCrashed: One of them has crashed, and is not started again.
        """
        for service in services:
            hosted = self._register.find(service)
            if hosted is not None and (hosted.is_running or (hosted.has_run and not hosted.ended.is_set())):
                continue
            name = service_name(service)
            if hosted is not None and hosted.error is not None:
                raise _gone(hosted, tool)
            raise ServiceNotRunning(
                f"tool {tool!r} uses service {name!r}, which this manager does not run; give it to "
                f"ServiceManager(...), or start it: await manager.start(service)",
                service=name,
            )

    async def until_served(self, call: Call[Any]) -> Exception | None:
        """Wait until the services that a call uses run; the error if they will not, or not before its deadline.

        Cancellation: Stops waiting.
        """
        down = self._down_for(call)
        if down is None:
            return None
        why = down.error
        began = perf_counter_ns()
        call.status = "waiting"
        call.waits()
        deadline = math.inf if call.deadline_at is None else call.deadline_at
        try:
            with anyio.CancelScope(deadline=deadline):
                while down is not None and not down.ended.is_set():
                    why = down.error or why
                    await self._register.news()
                    down = self._down_for(call)
                return None if down is None else _gone(down, call.tool_name)
        finally:
            call.wait_service_ns += perf_counter_ns() - began
        return DeadlinePassed(why)

    def _down_for(self, call: Call[Any]) -> Hosted | None:
        for service in call.bound.requires:
            hosted = self._register.find(service)
            if hosted is not None and not hosted.serves:
                return hosted
        return None

    async def start_all(self, services: Sequence[Any]) -> None:
        """Start services and what they require, concurrently where they do not require each other.

        Raises:
            ServiceStartFailed: One did not start; those started here were stopped again, in reverse.
            ServiceError: They require each other in a circle.
            ManagerClosed: The session's services are being stopped.
        """
        order = in_order(services)
        for service in order:
            await self._until_settled_elsewhere(service)
        if self._is_stopping:
            raise ManagerClosed("the manager is closing; it starts no services any more")
        hosts = [Hosted(service) for service in order if self._register.find(service) is None]
        if not hosts:
            return
        self._register.all.extend(hosts)
        try:
            for hosted in hosts:
                self._session.spawn(self._supervision.host, hosted)
            # Until the first that fails: the others may take long, or never start.
            while not all(h.is_running for h in hosts) and not any(h.ended.is_set() for h in hosts):
                await self._register.news()
        except BaseException:
            await self._stop(hosts)
            raise
        if any(hosted.ended.is_set() for hosted in hosts):
            await self._stop(hosts)
            raise _start_failed(hosts)

    async def _until_settled_elsewhere(self, service: Any) -> None:
        """Where somebody else is starting the service: wait until it runs, or until it is ours to start."""
        while (hosted := self._register.find(service)) is not None and not hosted.is_running:
            if hosted.ended.is_set() and hosted.has_run:
                self._register.all.remove(hosted)  # it crashed for good; asked for again, it begins anew
            elif hosted.ended.is_set() and hosted.error is not None:
                raise _start_failed([hosted])
            else:
                await self._register.news()

    async def stop_all(self) -> None:
        """Stop what runs, one by one, in reverse; one that fails does not keep the others from being stopped."""
        self._is_stopping = True
        await self._stop(self._register.all)

    async def _stop(self, hosts: Sequence[Hosted]) -> None:
        for hosted in reversed(list(hosts)):
            hosted.ending.set()
            self._register.tell()
            await self._supervision.stop(hosted)
            with anyio.CancelScope(deadline=anyio.current_time() + 2 * self._session.grace + 1, shield=True):
                await hosted.ended.wait()
            if hosted in self._register.all:
                self._register.all.remove(hosted)
                self._register.tell()


def _gone(hosted: Hosted, tool: str) -> ServiceCrashed:
    crashed = ServiceCrashed(
        f"service {hosted.name!r}, which tool {tool!r} uses, has crashed: {shown(hosted.error)}; 'await "
        f"manager.start(service)' starts it anew",
        service=hosted.name,
    )
    crashed.__cause__ = hosted.error
    return crashed


def _start_failed(hosts: Sequence[Hosted]) -> ServiceStartFailed:
    """The one error of services that did not start: the first reason, and who waited for whom."""
    failed = [one for one in hosts if one.error is not None and not isinstance(one.error, DependencyFailed)]
    failed = failed or [one for one in hosts if one.error is not None]  # what they waited for was started elsewhere
    if not failed:
        name = next(one.name for one in hosts if not one.is_running)
        return ServiceStartFailed(f"service {name!r} did not start: the manager stopped it", service=name)
    first, *others = failed
    text = f"service {first.name!r} did not start: {shown(first.error)}"
    lost = {id(one.service): one.name for one in failed}
    for one in hosts:  # required ones come first
        needed = [lost[id(other)] for other in getattr(one.service, "requires", ()) if id(other) in lost]
        if needed and one not in failed:
            lost[id(one.service)] = one.name
            text += f"; {one.name} waited for {'it' if needed == [first.name] else ' and '.join(needed)}"
    text += "".join(f"; service {one.name!r} did not start either: {shown(one.error)}" for one in others)
    error = ServiceStartFailed(text, service=first.name)
    error.__cause__ = first.error
    return error


def in_order(services: Sequence[Any]) -> list[Any]:
    """The services and what they require, each once, required ones first.

    Raises:
        ServiceError: A circle.
    """
    order: list[Any] = []
    path: list[Any] = []

    def visit(service: Any) -> None:
        if any(service is one for one in order):
            return
        if any(service is one for one in path):
            names = " -> ".join(service_name(one) for one in [*path, service])
            raise ServiceError(f"services require each other in a circle: {names}", service=service_name(service))
        lifetime_check(service)
        path.append(service)
        for required in required_of(service):
            visit(required)
        path.pop()
        order.append(service)

    for service in services:
        visit(service)
    return order


def lifetime_check(service: Any) -> None:
    """
    Raises:
        TypeError: It is no service.
    """
    if isinstance(service, type):
        raise TypeError(f"{service!r} is no service but a class: pass an object of it, {service.__name__}(...)")
    if isinstance(service, KGASTool):
        raise TypeError(f"{service!r} is a tool, no service; tools go to manager.execute(tool, ...)")
    if isinstance(service, Pipeline):
        raise TypeError(f"{service.name!r} is a pipeline, no service; pipelines go to manager.run(pipeline, items)")
    if not isinstance(service, Service) and not (hasattr(service, "__aenter__") and hasattr(service, "__aexit__")):
        raise TypeError(f"{service!r} is no service: it is neither a Service nor an async context manager")
    if isinstance(service, Service):
        if service.restart is not None and not isinstance(service.restart, RestartPolicy):
            raise TypeError(f"{type(service).__name__}.restart is a RestartPolicy or None, not {service.restart!r}")
        check_options(service)
