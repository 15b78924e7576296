"""What a session knows of each of its services: the lives that it has led, and whether it runs now."""

from __future__ import annotations

from typing import Any, Literal

import anyio

from ._restart import Restarts
from ._service import restart_policy, service_name

__all__ = ["Hosted", "Life", "Register"]

State = Literal["waiting", "starting", "running", "stopping", "restarting", "stopped", "failed", "crashed"]


class Life:
    """One time that a service runs, from its entering to its leaving.

    Attributes:
        scope: Around all of it. A shield, since the session's cancellation must not tear a service from under the
            calls that it still serves: it is told to end when they have ended, and has its time limit then.
        end: It is told to end.
        ended: It has ended.
        has_begun: It came as far as running.
        ill: Why it was told to end, where that was its health.
    """

    def __init__(self) -> None:
        self.scope = anyio.CancelScope(shield=True)
        self.end = anyio.Event()
        self.ended = anyio.Event()
        self.has_begun = False
        self.ill: BaseException | None = None

    def stop(self, grace: float) -> None:
        """Tell it to end: it has the grace for it, then it is cancelled; a start is cancelled at once."""
        self.scope.deadline = min(self.scope.deadline, anyio.current_time() + grace)
        self.end.set()
        if not self.has_begun:
            self.scope.cancel()


class Hosted:
    """One service of a session.

    Attributes:
        life: The present life, or the last one.
        attempt: How many lives there were.
        settled: It runs for the first time, or never will.
        ending: It is to end for good.
        ended: It has ended for good.
        has_run: It ran once.
        error: What it ended by, or its latest life did.
    """

    def __init__(self, service: Any) -> None:
        self.service = service
        self.name = service_name(service)
        self.state: State = "waiting"
        self.restarts = Restarts(restart_policy(service))
        self.life: Life | None = None
        self.attempt = 0
        self.settled = anyio.Event()
        self.ending = anyio.Event()
        self.ended = anyio.Event()
        self.has_run = False
        self.error: BaseException | None = None
        self.paused_by = ""  # why it was stopped, where that is to be started again
        self.delay: float | None = None  # seconds before its restart, if there is to be one

    @property
    def is_running(self) -> bool:
        """Whether it can be used now."""
        return self.state == "running"

    @property
    def serves(self) -> bool:
        """Whether it is there for further calls; one that is about to be stopped is there for those in flight."""
        return self.state == "running" and not self.paused_by

    @property
    def requires(self) -> tuple[Any, ...]:
        """The services that it requires."""
        return tuple(getattr(self.service, "requires", ()))


class Register:
    """The services of a session in the order of their starts, required ones first; and word of what becomes of them."""

    def __init__(self) -> None:
        self.all: list[Hosted] = []
        self._news = anyio.Event()

    def find(self, service: object) -> Hosted | None:
        """By identity."""
        return next((hosted for hosted in self.all if hosted.service is service), None)

    def required_by(self, hosted: Hosted) -> list[Hosted]:
        """Those that it requires itself, as far as they are here."""
        return [found for service in hosted.requires if (found := self.find(service)) is not None]

    def all_required_by(self, hosted: Hosted) -> list[Hosted]:
        """Those that it requires, directly or not."""
        found = [hosted]
        for one in found:
            found += [needed for needed in self.required_by(one) if needed not in found]
        return found[1:]

    def users_of(self, hosted: Hosted) -> list[Hosted]:
        """Those that require it, directly or not, in the order of their starts."""
        found = [hosted]
        for one in self.all:
            if one is not hosted and any(needed in found for needed in self.required_by(one)):
                found.append(one)
        return found[1:]

    def tell(self) -> None:
        """Wake those who wait for news."""
        news, self._news = self._news, anyio.Event()
        news.set()

    async def news(self) -> None:
        """Wait until something became of one of them."""
        await self._news.wait()
