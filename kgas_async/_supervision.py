"""The life of one service after the other in a task of its own: started, watched, started again, stopped.

What a crash does: the calls that used the service fail, those that require it are stopped, and it is started again as
its policy says; or the crash escalates.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Literal, Protocol

import anyio

from ._call import Call
from ._cancellation import exit_in
from ._context import current_call, current_work, running_manager
from ._errors import ServiceCrashed, ServiceError, shown, text_of
from ._health import Health
from ._hosted import Hosted, Life, Register
from ._mailbox import is_self_inflicted
from ._records import error_fields
from ._served import interrupt
from ._service import Service, lifetime
from ._tracing import secrets_aside, without

__all__ = ["DependencyFailed", "Landlord", "Supervision"]


Over = Callable[[], Awaitable[object]]


class Landlord(Protocol):
    """What services need of their session."""

    manager: Any
    grace: float
    log: Any
    mailbox: Any
    on_crash: Literal["raise", "continue"]
    random: Callable[[], float]
    calls_open: dict[int, Call[Any]]
    services_down: bool

    def spawn(self, function: Any, *args: Any) -> None: ...
    def crash(self, error: BaseException) -> None: ...


class DependencyFailed(ServiceError):
    """A required service did not start, or is gone."""


class Supervision:
    """Hosts the services of a register.

    Args:
        session: Whose services they are.
        register: The services.
        health: Who looks after them while they run.
    """

    def __init__(self, session: Landlord, register: Register, health: Health) -> None:
        self._session = session
        self._register = register
        self._health = health

    async def host(self, hosted: Hosted) -> None:
        """All the lives of a service, in this task, where its scopes are entered and left."""
        running_manager.set(self._session.manager)
        # Whoever has it started may be a call: what the service does is no part of that call.
        current_call.set(None)
        current_work.set(None)
        try:
            if self._take(hosted):
                while await self._live_once(hosted):
                    pass
        finally:
            self._mark(hosted, "stopped" if hosted.error is None else "crashed" if hosted.has_run else "failed")
            if getattr(hosted.service, "_held_by", None) is self:
                hosted.service._note(held_by=None)
            hosted.settled.set()
            hosted.ended.set()
            self._register.tell()

    def _take(self, hosted: Hosted) -> bool:
        service = hosted.service
        if isinstance(service, Service):
            if service._held_by is not None:
                hosted.error = RuntimeError(
                    "another open manager runs it; give a service to one manager at a time, or use that manager"
                )
                self._say("service.failed", hosted, hosted.error)
                return False
            service._note(held_by=self)
        return True

    def _mark(self, hosted: Hosted, state: Any) -> None:
        hosted.state = state
        if isinstance(hosted.service, Service) and hosted.service._held_by is self:
            hosted.service._note(is_running=hosted.is_running)
        self._session.services_down = any(one.has_run and not one.serves for one in self._register.all)

    # --- a life

    async def _live_once(self, hosted: Hosted) -> bool:
        """Run it once, when all that it requires runs. Whether it is to be run again."""
        if not await self._required_run(hosted):
            return False
        life = hosted.life = Life()
        hosted.attempt += 1
        self._mark(hosted, "starting")
        try:
            error = await self._live(hosted, life)
        except BaseException as raised:
            if (exit_ := exit_in(raised)) is None:
                raise
            hosted.error = exit_  # on the loop's own thread: meant for the whole session
            self._say("service.crashed" if life.has_begun else "service.failed", hosted, exit_)
            self._session.crash(exit_)
            return False
        finally:
            self._mark(hosted, "stopping")
            life.ended.set()
            self._register.tell()
        if life.end.is_set():
            return await self._ended_as_told(hosted, life, error)
        if error is None:
            error = ServiceError(f"service {hosted.name!r} ended by itself", service=hosted.name)
        if life.has_begun:
            self._say("service.crashed", hosted, error)
            if self._goes_with_others(hosted, error):
                return True
        else:
            self._say("service.failed", hosted, error)
        return await self._fallen(hosted, error)

    async def _live(self, hosted: Hosted, life: Life) -> BaseException | None:
        """From entering to leaving; the error that it ended by."""
        failed: BaseException | None = None
        try:
            with life.scope:
                try:
                    await self._enter(hosted, life)
                except anyio.get_cancelled_exc_class():
                    if not is_self_inflicted(owned=True):  # under the shield: the session may be cancelled
                        raise
                    failed = ServiceError(f"service {hosted.name!r} cancelled its own task", service=hosted.name)
        except Exception as error:  # noqa: BLE001  (whatever a service raises is its failure)
            failed = _singled(error)
        finally:
            self._health.forget(hosted)
        if life.scope.cancelled_caught and life.has_begun:
            failed = ServiceError(f"service {hosted.name!r} did not stop in time", service=hosted.name)
        return failed

    async def _enter(self, hosted: Hosted, life: Life) -> None:
        """Its lifetime, entered and left."""
        self._say("service.starting", hosted)
        async with lifetime(hosted.service):
            life.has_begun = hosted.has_run = True
            hosted.error, hosted.paused_by = None, ""
            self._mark(hosted, "running")
            self._say("service.started", hosted)
            hosted.settled.set()
            self._register.tell()
            self._health.watch(hosted, life)
            await life.end.wait()
            self._mark(hosted, "stopping")
            if life.ill is not None:
                self._say("service.crashed", hosted, life.ill)
                await self._bring_down(hosted, life.ill)
                life.stop(self._session.grace)
            await self._health.leave(hosted)

    async def _required_run(self, hosted: Hosted) -> bool:
        """Wait until all that it requires runs. False if it is to end, or one of them never will."""
        while not hosted.ending.is_set():
            lost = next((one for one in self._register.required_by(hosted) if one.ended.is_set()), None)
            if lost is not None:
                what = "has crashed" if lost.has_run else "did not start"
                hosted.error = DependencyFailed(f"waited for service {lost.name!r}, which {what}", service=hosted.name)
                self._say("service.failed", hosted, hosted.error)
                return False
            # All, since those in between may not have been stopped yet, and are about to be.
            if all(one.is_running for one in self._register.all_required_by(hosted)):
                return True
            await self._register.news()
        return False

    async def _ended_as_told(self, hosted: Hosted, life: Life, error: BaseException | None) -> bool:
        if error is not None:  # ended all the same, and what comes next does not depend on it
            self._say("service.failed", hosted, error)
            hosted.error = hosted.error or error
        elif life.ill is None:
            self._say("service.stopped", hosted, reason=hosted.paused_by or None)
        if hosted.ending.is_set():
            return False
        if life.ill is not None:
            return await self._wait_for_restart(hosted)
        hosted.error = None
        self._mark(hosted, "restarting")
        return True

    # --- a crash

    def _goes_with_others(self, hosted: Hosted, error: BaseException) -> bool:
        """Whether its crash is part of that of one that it requires, which is down: it is started again after it."""
        down = [one for one in self._register.required_by(hosted) if not one.is_running]
        if hosted.ending.is_set() or not down or not all(_takes_users_along(one) or one.paused_by for one in down):
            return False
        hosted.paused_by = f"service {down[0].name!r} crashed"
        self._mark(hosted, "restarting")
        self._interrupt(hosted, [], f"service {hosted.name!r} crashed", error)
        return True

    async def _fallen(self, hosted: Hosted, error: BaseException) -> bool:
        """It has ended on its own. Whether it is to be started again; if so, after its delay."""
        await self._bring_down(hosted, error)
        return await self._wait_for_restart(hosted)

    async def _bring_down(self, hosted: Hosted, error: BaseException) -> None:
        """Decide what becomes of it; fail the calls that used it, and stop those that require it."""
        hosted.error = error
        hosted.delay = None
        if hosted.ending.is_set():
            return
        try:
            hosted.delay = hosted.restarts.decide(anyio.current_time(), self._session.random)
        except Exception as broken:  # noqa: BLE001  (a user's function in the policy)
            error.add_note(f"it is not started again, since its RestartPolicy failed: {shown(broken)}")
        if hosted.delay is not None:
            self._say(
                "service.restarting",
                hosted,
                attempt=hosted.attempt + 1,
                delay_us=int(hosted.delay * 1e6),
                reason=f"{type(error).__name__}: {text_of(error)}",
            )
            self._mark(hosted, "restarting")
        stops_users = hosted.delay is None or _takes_users_along(hosted)
        users = self._register.users_of(hosted) if stops_users else []
        for user in users:  # they serve no new calls from now on
            user.paused_by = f"service {hosted.name!r} crashed"
        self._mark(hosted, hosted.state)
        text = f"service {hosted.name!r} {'crashed' if hosted.has_run else 'did not start'}: {shown(error)}"
        over = self._interrupt(hosted, users, text, error)
        if hosted.delay is None:
            self._give_up(hosted, text, error)
        if users:
            await self._until_over(over)
            for user in reversed(users):
                await self.stop(user, user.paused_by)

    async def _wait_for_restart(self, hosted: Hosted) -> bool:
        if hosted.delay is None:
            return False
        self._mark(hosted, "restarting")
        with anyio.move_on_after(hosted.delay):
            await hosted.ending.wait()
        return not hosted.ending.is_set()

    def _give_up(self, hosted: Hosted, text: str, error: BaseException) -> None:
        used_up = hosted.restarts.used_up()
        if used_up:
            self._say("service.failed", hosted, reason=used_up)
            text += f"; {used_up}"
        if hosted.has_run and self._session.on_crash == "raise":  # else whoever has it started is told
            self._session.crash(_crashed(hosted, text, error))

    def _interrupt(self, hosted: Hosted, users: Sequence[Hosted], text: str, cause: BaseException) -> list[Over]:
        """Have the calls that use one of these fail, and those that have not begun wait; how to wait for the former."""
        interrupted = []
        for call in list(self._session.calls_open.values()):
            of = [one for one in (hosted, *users) if any(one.service is used for used in call.bound.requires)]
            if of:
                with_it = "" if of[0] is hosted else f"; service {of[0].name!r}, which requires it, goes down with it"
                over = interrupt(call, _crashed(hosted, text + with_it, cause))
                if over is not None:
                    interrupted.append(over)
        return interrupted

    async def _until_over(self, interrupted: Iterable[Over]) -> None:
        """Wait until the interrupted attempts have ended; at most as long as they may take."""
        with anyio.move_on_after(self._session.grace):
            for over in interrupted:
                await over()

    async def stop(self, hosted: Hosted, reason: str = "") -> None:
        """Have its present life end, and wait for that: its grace, and as long again for what the end cancels."""
        life = hosted.life
        if life is None or life.ended.is_set():
            return
        hosted.paused_by = reason
        life.stop(self._session.grace)
        with anyio.CancelScope(deadline=anyio.current_time() + 2 * self._session.grace + 1, shield=True):
            await life.ended.wait()

    def _say(self, event: str, hosted: Hosted, error: BaseException | None = None, **fields: Any) -> None:
        if self._session.log is not None:
            secrets = secrets_aside(self._session, error, hosted.service)
            if error is not None:
                fields["error"] = error_fields(error, secrets)
            if secrets and fields.get("reason"):
                fields["reason"] = without(fields["reason"], secrets)
            fields.setdefault("attempt", hosted.attempt)
            self._session.log.emit(event, service=hosted.name, **fields)


def _takes_users_along(hosted: Hosted) -> bool:
    policy = hosted.restarts.policy
    return policy is not None and policy.strategy == "rest_for_one"


def _crashed(hosted: Hosted, text: str, cause: BaseException) -> ServiceCrashed:
    crashed = ServiceCrashed(text, service=hosted.name)
    crashed.__cause__ = cause
    return crashed


def _singled(error: Exception) -> Exception:
    """What a task group of the service has wrapped, where it is one error."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
