"""Whether services are well: their checks, asked now and then or by somebody, and what is known of each.

Checks run in tasks of the session, sync ones in reserved threads; each has its time limit, and one at a time is under
way for a service.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

import anyio

from ._cancellation import exit_in, hook_failure
from ._context import current_call, current_work, running_manager
from ._errors import ServiceError, shown, text_of
from ._hosted import Hosted, Life, Register
from ._limits import check_seconds
from ._records import error_fields
from ._reserved import Reserved
from ._service import Service
from ._threads import Work
from ._tracing import secrets_aside

__all__ = ["Health", "HealthReport", "ServiceHealth", "check_of", "check_options"]

Status = Literal["healthy", "ill", "waiting", "starting", "stopping", "restarting", "stopped", "failed", "crashed"]


@dataclass(frozen=True, slots=True)
class ServiceHealth:
    """What is known of one service.

    Attributes:
        name: Its name.
        status: ``healthy``: it runs, and its latest check has passed (if it has one); ``ill``: it runs, and the check
            has failed. Else it does not run: ``waiting`` for those that it requires, ``starting``, ``stopping``,
            ``restarting`` (by its `RestartPolicy`, or with one that it requires), ``failed`` (to start), ``crashed``
            (for good).
        checked_at: When the latest check ended (UTC); None: there was none in its present life.
        error: What the check raised, or what it crashed by.
        restarts: How often it was started again.
    """

    name: str
    status: Status
    checked_at: datetime | None
    error: BaseException | None
    restarts: int


@dataclass(frozen=True, slots=True)
class HealthReport:
    """The services of a manager at one moment, in the order of their starts.

    Attributes:
        services: One entry each.
    """

    services: tuple[ServiceHealth, ...]

    @property
    def ok(self) -> bool:
        """Whether all are healthy."""
        return all(one.status == "healthy" for one in self.services)

    def __getitem__(self, name: str) -> ServiceHealth:
        """The service of that name, the first of several."""
        for one in self.services:
            if one.name == name:
                return one
        raise KeyError(f"no service is named {name!r}; there are {', '.join(one.name for one in self.services)}")

    def __str__(self) -> str:
        lines = []
        for one in self.services:
            error = "" if one.error is None else f": {type(one.error).__name__}: {text_of(one.error)}"
            again = f" ({one.restarts} restarts)" if one.restarts else ""
            lines.append(f"{one.name}: {one.status}{again}{error}")
        return "\n".join(lines)


class Ward(Protocol):
    """What health needs of the session."""

    manager: Any
    log: Any
    reserved: Reserved

    def spawn(self, function: Any, *args: Any) -> None: ...
    def crash(self, error: BaseException) -> None: ...


class Checkup:
    """What is known of one service's present life."""

    def __init__(self) -> None:
        self.at: datetime | None = None
        self.error: BaseException | None = None
        self.failures = 0  # in a row
        self.hung: Work | None = None  # a check's thread that nobody waits for any more
        self.timer: anyio.CancelScope | None = None
        self.scope: anyio.CancelScope | None = None  # of the check under way
        self.over: anyio.Event | None = None


class Health:
    """Looks after the services of a register."""

    def __init__(self, session: Ward, register: Register) -> None:
        self._session = session
        self._register = register
        self._checkups: dict[Hosted, Checkup] = {}

    def watch(self, hosted: Hosted, life: Life) -> None:
        """A life has begun: check it every now and then, if it wants that."""
        checkup = self._checkups[hosted] = Checkup()
        if check_of(hosted.service) is not None and hosted.service.health_every is not None:
            self._session.spawn(self._every, hosted, life, checkup)

    async def leave(self, hosted: Hosted) -> None:
        """The life is about to end: no check may use it any more."""
        checkup = self._cancel(hosted)
        if checkup is not None and checkup.over is not None:
            await checkup.over.wait()

    def forget(self, hosted: Hosted) -> None:
        """The life has ended."""
        self._cancel(hosted)
        self._checkups.pop(hosted, None)

    def _cancel(self, hosted: Hosted) -> Checkup | None:
        checkup = self._checkups.get(hosted)
        if checkup is not None:
            for scope in (checkup.timer, checkup.scope):
                if scope is not None:
                    scope.cancel()
        return checkup

    async def report(self) -> HealthReport:
        """Ask all that run, at once, and say what is known then.

        Cancellation: Stops waiting; the checks go on for as long as they may.
        """
        asked: list[anyio.Event] = []
        timeout = 0.0
        for hosted in self._register.all:
            if hosted.is_running and check_of(hosted.service) is not None:
                asked.append(anyio.Event())
                timeout = max(timeout, hosted.service.health_timeout)
                self._session.spawn(self._asked, hosted, hosted.life, asked[-1])
        with anyio.move_on_after(timeout + 1):  # a check may shield itself, and a session end before its task begins
            for answered in asked:
                await answered.wait()
        return HealthReport(tuple(self._known(hosted) for hosted in self._register.all))

    def _known(self, hosted: Hosted) -> ServiceHealth:
        checkup = self._checkups.get(hosted) or Checkup()
        status: Any = hosted.state
        error = hosted.error
        if hosted.is_running:
            error = checkup.error
            status = "healthy" if error is None else "ill"
        return ServiceHealth(hosted.name, status, checkup.at, error, max(0, hosted.attempt - 1))

    # --- one check

    async def _every(self, hosted: Hosted, life: Life, checkup: Checkup) -> None:
        with anyio.CancelScope() as checkup.timer:
            while not (life.end.is_set() or life.ended.is_set()):
                await anyio.sleep(hosted.service.health_every)
                await self._check(hosted, life, checkup)

    async def _asked(self, hosted: Hosted, life: Life, answered: anyio.Event) -> None:
        running_manager.set(self._session.manager)
        current_call.set(None)  # who asks may be a call; the check is no part of it
        current_work.set(None)
        try:
            checkup = self._checkups.get(hosted)
            if checkup is not None and hosted.life is life:
                await self._check(hosted, life, checkup)
        finally:
            answered.set()

    async def _check(self, hosted: Hosted, life: Life, checkup: Checkup) -> None:
        if checkup.over is not None:
            await checkup.over.wait()
            return
        over = checkup.over = anyio.Event()
        timeout = hosted.service.health_timeout
        error: BaseException | None = None
        scope = checkup.scope = anyio.CancelScope(deadline=anyio.current_time() + timeout)
        try:
            with scope:
                try:
                    await self._ask(hosted, checkup)
                except Exception as raised:  # noqa: BLE001  (whatever it raises says that it is ill)
                    error = raised
        except BaseException as raised:
            if (leaving := exit_in(raised)) is not None:
                self._session.crash(leaving)
                return
            # Itself cancelled, as whoever awaits a task that was; or what the scope has left of a group.
            error = hook_failure(raised, "its health check")
            if error is None:
                raise
        finally:
            checkup.scope = checkup.over = None
            over.set()
        if life.end.is_set() or life.ended.is_set():
            return
        if scope.cancelled_caught and error is None:
            error = TimeoutError(f"its health check did not end within {timeout:g} s")
        self._note(hosted, life, checkup, error)

    async def _ask(self, hosted: Hosted, checkup: Checkup) -> None:
        check = check_of(hosted.service)
        assert check is not None
        if inspect.iscoroutinefunction(check):
            await check()
            return
        if checkup.hung is not None and not checkup.hung.ended_ns:
            raise TimeoutError("its health check before this one has not ended yet, in its thread")

        def left(work: Work) -> None:
            checkup.hung = work

        answer = await self._session.reserved.run(check, hosted.name, on_left=left)
        if inspect.isawaitable(answer):
            await answer

    def _note(self, hosted: Hosted, life: Life, checkup: Checkup, error: BaseException | None) -> None:
        was_ill = checkup.error is not None
        checkup.at = datetime.now(UTC)
        checkup.error = error
        checkup.failures = 0 if error is None else checkup.failures + 1
        if was_ill is (error is None) and self._session.log is not None:
            secrets = secrets_aside(self._session, error, hosted.service)
            fields = {} if error is None else {"error": error_fields(error, secrets)}
            status = "healthy" if error is None else "ill"
            self._session.log.emit("service.health", service=hosted.name, status=status, **fields)
        policy = hosted.restarts.policy
        if error is not None and policy is not None and policy.ill_after == checkup.failures:
            in_a_row = (
                "its health check failed" if checkup.failures == 1 else f"{checkup.failures} health checks failed"
            )
            life.ill = ServiceError(f"service {hosted.name!r} is ill, {in_a_row}: {shown(error)}", service=hosted.name)
            life.ill.__cause__ = error
            life.end.set()


def check_of(service: object) -> Callable[[], Any] | None:
    """The health check of a service, if it has one."""
    if isinstance(service, Service) and type(service).health is not Service.health:
        return service.health
    return None


def check_options(service: Service) -> None:
    """
    Raises:
        TypeError, ValueError: What it says of its health makes no sense.
    """
    name = type(service).__name__
    if service.health_every is not None:
        check_seconds(f"{name}.health_every", service.health_every, zero=False)
    check_seconds(f"{name}.health_timeout", service.health_timeout, zero=False)
