"""Services of a session: each in a task of its own, started as ``requires`` allow, stopped one by one in reverse."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import anyio

from ._context import current_call, current_work, running_manager
from ._errors import ManagerClosed, ServiceCrashed, ServiceError, ServiceNotRunning, ServiceStartFailed, shown, text_of
from ._pipeline import Pipeline
from ._service import Service, lifetime, service_name
from ._tool import KGASTool

__all__ = ["Hosting"]


class Landlord(Protocol):
    """What hosting needs of the session."""

    manager: Any
    grace: float
    log: Any

    def spawn(self, function: Any, *args: Any) -> None: ...
    def crash(self, error: BaseException) -> None: ...


class _Hosted:
    """One service in its task."""

    def __init__(self, service: Any) -> None:
        self.service = service
        self.name = service_name(service)
        self.settled = anyio.Event()  # started or failed to
        self.stop = anyio.Event()
        self.ended = anyio.Event()
        self.stop_scope = anyio.CancelScope(shield=True)
        self.is_running = False
        self.error: BaseException | None = None


class Hosting:
    """The services that a session holds, in the order of their starts."""

    def __init__(self, session: Landlord) -> None:
        self._session = session
        self._hosted: list[_Hosted] = []
        self._news = anyio.Event()
        self._is_stopping = False

    def find(self, service: object) -> _Hosted | None:
        """The host of a service, by identity."""
        return next((hosted for hosted in self._hosted if hosted.service is service), None)

    def names(self) -> list[str]:
        """The services that run, in the order of their starts."""
        return [hosted.name for hosted in self._hosted if hosted.is_running]

    def check_running(self, services: Iterable[Any], tool: str) -> None:
        """
        Raises:
            ServiceNotRunning: One of them does not run in this session.
            ServiceCrashed: One of them has crashed.
        """
        for service in services:
            hosted = self.find(service)
            if hosted is not None and hosted.is_running:
                continue
            name = service_name(service)
            if hosted is not None and hosted.error is not None:
                raise ServiceCrashed(f"service {name!r}, which tool {tool!r} uses, has crashed", service=name)
            raise ServiceNotRunning(
                f"tool {tool!r} uses service {name!r}, which this manager does not run; give it to "
                f"ServiceManager(...), or start it: await manager.start(service)",
                service=name,
            )

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
        hosts = [_Hosted(service) for service in order if self.find(service) is None]
        if not hosts:
            return
        self._hosted.extend(hosts)
        try:
            for hosted in hosts:
                self._session.spawn(self._host, hosted)
            # Until the first that fails: the others may take long, or never start.
            while not all(hosted.settled.is_set() for hosted in hosts) and not any(h.ended.is_set() for h in hosts):
                await self._news.wait()
        except BaseException:
            await self._stop(hosts)
            raise
        if not all(hosted.is_running for hosted in hosts):
            await self._stop(hosts)
            raise _start_failed(hosts)

    async def _until_settled_elsewhere(self, service: Any) -> None:
        """Where somebody else is starting the service: wait until it runs, or until it is ours to start."""
        while (hosted := self.find(service)) is not None and not hosted.is_running:
            if hosted.ended.is_set() and hosted.error is not None:
                raise _start_failed([hosted])
            await self._news.wait()

    def _tell(self) -> None:
        """Wake those who wait for a service to start, to end, or to be gone."""
        news, self._news = self._news, anyio.Event()
        news.set()

    async def _host(self, hosted: _Hosted) -> None:
        """The life of one service, all of it in this task, where its scopes are entered and left."""
        running_manager.set(self._session.manager)
        # Whoever has it started may be a call: what the service does is no part of that call.
        current_call.set(None)
        current_work.set(None)
        began = False
        try:
            # Cancellation of the session must not tear a service from under the calls that it still serves: it is
            # told to stop when they have ended, and the scope gets its time limit then.
            with hosted.stop_scope:
                await self._wait_for_required(hosted)
                self._take(hosted)
                self._say("service.starting", hosted)
                async with lifetime(hosted.service):
                    began = True
                    self._mark(hosted, running=True)
                    self._say("service.started", hosted)
                    hosted.settled.set()
                    self._tell()
                    await hosted.stop.wait()
                    self._mark(hosted, running=False)
            if hosted.stop_scope.cancelled_caught and began:
                hosted.error = ServiceError(f"service {hosted.name!r} did not stop in time", service=hosted.name)
        except Exception as error:  # noqa: BLE001  (whatever a service raises is its failure)
            hosted.error = _singled(error)
        except (KeyboardInterrupt, SystemExit) as error:  # on the loop's own thread: meant for the whole session
            hosted.error = error
            self._session.crash(error)
        finally:
            self._mark(hosted, running=False)
            if getattr(hosted.service, "_held_by", None) is self:
                hosted.service._held_by = None
            self._ended(hosted, began=began)

    def _take(self, hosted: _Hosted) -> None:
        service = hosted.service
        if isinstance(service, Service):
            if service._held_by is not None:
                raise RuntimeError(
                    "another open manager runs it; give a service to one manager at a time, or use that manager"
                )
            service._held_by = self

    def _mark(self, hosted: _Hosted, *, running: bool) -> None:
        hosted.is_running = running
        if isinstance(hosted.service, Service) and hosted.service._held_by is self:
            hosted.service._is_running = running

    def _ended(self, hosted: _Hosted, *, began: bool) -> None:
        if hosted.error is None and not hosted.stop.is_set() and began:
            hosted.error = ServiceError(f"service {hosted.name!r} ended by itself", service=hosted.name)
        if hosted.error is None:
            self._say("service.stopped", hosted)
        else:
            event = "service.crashed" if began and not hosted.stop.is_set() else "service.failed"
            self._say(event, hosted, error={"type": type(hosted.error).__name__, "message": text_of(hosted.error)})
            if event == "service.crashed":
                crashed = ServiceCrashed(f"service {hosted.name!r} crashed: {shown(hosted.error)}", service=hosted.name)
                crashed.__cause__ = hosted.error
                self._session.crash(crashed)
        hosted.settled.set()
        hosted.ended.set()
        self._tell()

    async def _wait_for_required(self, hosted: _Hosted) -> None:
        for required in getattr(hosted.service, "requires", ()):
            other = self.find(required)
            if other is None:
                continue
            await other.settled.wait()
            if not other.is_running:
                raise _DependencyFailed(f"waited for service {other.name!r}, which did not start")

    async def stop_all(self) -> None:
        """Stop what runs, one by one, in reverse; one that fails does not keep the others from being stopped."""
        self._is_stopping = True
        await self._stop(self._hosted)

    async def _stop(self, hosts: Sequence[_Hosted]) -> None:
        for hosted in reversed(list(hosts)):
            if not hosted.ended.is_set():
                # Its own clean-up and ours have the grace, then it is cancelled, for as long again.
                hosted.stop_scope.deadline = anyio.current_time() + self._session.grace
                hosted.stop.set()
                if not hosted.settled.is_set():
                    hosted.stop_scope.cancel()
                with anyio.CancelScope(deadline=anyio.current_time() + 2 * self._session.grace + 1, shield=True):
                    await hosted.ended.wait()
            if hosted in self._hosted:
                self._hosted.remove(hosted)
                self._tell()

    def _say(self, event: str, hosted: _Hosted, **fields: Any) -> None:
        if self._session.log is not None:
            self._session.log.emit(event, service=hosted.name, **fields)


class _DependencyFailed(ServiceError):
    """A required service did not start."""


def _start_failed(hosts: Sequence[_Hosted]) -> ServiceStartFailed:
    """The one error of services that did not start: the first reason, and who waited for whom."""
    failed = [one for one in hosts if one.error is not None and not isinstance(one.error, _DependencyFailed)]
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


def _singled(error: Exception) -> Exception:
    """What a task group of the service has wrapped, where it is one error."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
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
        for required in getattr(service, "requires", ()):
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
