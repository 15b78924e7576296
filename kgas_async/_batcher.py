"""`Batcher`: single calls from anywhere, coalesced into calls of a tool that takes lists.

A batch is a call of the manager's own, nested in none of those that it serves: it outlives each of them.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Generic, TypeVar

import anyio

from ._bound import Bound
from ._call import Call
from ._context import current_call, current_manager
from ._elements import as_list, element_signature
from ._errors import CallError, CallFailed, CallRejected, ServiceNotRunning, shown
from ._limits import check_count, check_seconds
from ._mailbox import Gate, Mailbox
from ._order import held_here, waits_in_vain
from ._policy_checks import services_of
from ._service import Service
from ._session import Session
from ._signature import Signature
from ._suggest import suggests
from ._tool import KGASTool, SupportsExecute, no_tool_error

__all__ = ["BatchedTool", "Batcher"]

R = TypeVar("R")


class BatchedTool(KGASTool, Generic[R]):
    """What a `Batcher` makes of its tool: takes one element, and gives its result. From `Batcher.tool`."""

    _names_inputs = False

    def __init__(self, batcher: Batcher[R], name: str, signature: Signature) -> None:
        self.batcher = batcher
        self.name = name
        self.description = batcher.batch_tool.description
        self.version = batcher.batch_tool.version
        self._signature_cache = signature

    async def execute_async(self, /, **inputs: Any) -> R:
        """Wait for a place in a batch and for its result.

        Args:
            inputs: Those of one element.

        Returns:
            The element's result.

        Raises:
            BaseException: The exception that the batch's tool gave for this element, or the error of the batch's call.

        Cancellation: Leaves the batch; where nobody waits for it any more, its call is cancelled.
        """
        call: Any = current_call.get()
        own = call if call is not None and call.bound.tool is self else None
        result: R = await self.batcher._ask(inputs, own)
        return result

    def _read_signature(self) -> Signature:  # anew, for a copy with another name
        signature = self.batcher.tool.signature
        return Signature(self.name, signature.types, signature.required, signature.returns)

    def _origin(self) -> object:
        return self.batcher

    def _made_with(self) -> dict[str, object]:
        return {"tool": self.batcher.batch_tool}


class Batcher(Service, Generic[R]):
    """Coalesces single calls into calls of a tool that takes lists: a service, whose ``tool`` takes one element.

    ``manager.execute(batcher.tool, text="a")``, ``batcher.tool.execute(text="a")`` in sync tools, a phase of a
    pipeline, or ``await batcher(text="a")`` where the element need not be a call of its own. Each input that the tool
    declares as a list is an input of one element. It returns a list of as many results; an exception among them fails
    its element alone, another number of results fails the whole batch, and so does whatever fails the batch's call.
    Policy (timeout, retries, limits) is the tool's and holds for a batch. A batch that nobody waits for any more is
    cancelled.

    Args:
        tool: Takes lists of one length, returns a list of that length.
        max_size: Elements in a batch, at the most.
        max_wait: Seconds after which a batch leaves though it is not full, counted from its first element.
        max_queue: Elements that wait; who brings more waits for room.
        in_flight: Batches at once; meanwhile elements gather for the next.
        inputs: Other inputs of the tool, the same for each batch.
        name: The name of ``tool``; that of the batch's tool with ``.one`` unless given.

    Attributes:
        tool: Takes one element and gives its result.
        batch_tool: The tool that takes lists.

    Raises:
        TypeError: The tool takes no list, or needs an input that is none and is not in ``inputs``.
    """

    @suggests
    def __init__(
        self,
        tool: SupportsExecute[..., Sequence[R | Exception]],
        *,
        max_size: int = 100,
        max_wait: float = 0.01,
        max_queue: int = 1000,
        in_flight: int = 4,
        inputs: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> None:
        if not isinstance(tool, KGASTool):
            raise no_tool_error("Batcher takes a tool", tool)
        self.batch_tool: KGASTool = tool
        self.max_size = check_count("max_size", max_size)
        self.max_wait = check_seconds("max_wait", max_wait)
        self.max_queue = check_count("max_queue", max_queue)
        self.in_flight = check_count("in_flight", in_flight)
        self.inputs = dict(inputs or {})
        self.name = f"Batcher({tool.name})"
        name = name or f"{tool.name}.one"
        self.tool: BatchedTool[R] = BatchedTool(self, name, element_signature(name, tool, self.inputs))
        self._gathering: _Gathering | None = None

    def __repr__(self) -> str:
        return f"<{self.name}>"

    @property
    def requires(self) -> tuple[Any, ...]:
        """The services of its tool."""
        return services_of(self.batch_tool)

    async def __call__(self, **inputs: Any) -> R:
        """The result of one element, without a call of its own.

        Raises:
            InvalidInputs: The element does not fit.
            CallError: Its batch failed. Where its own result is an exception, that.
            ServiceNotRunning, ManagerClosed: It was not admitted.

        Cancellation: Drops the element if its batch has not left yet, else its result.
        """
        self.ensure_running()
        session = self._here().session
        session.check_open(session.parent())
        result: R = await self._ask(self.tool.signature.validate(inputs), None)
        return result

    async def _ask(self, inputs: dict[str, Any], call: Call[Any] | None) -> Any:
        self.ensure_running()
        return await self._here().result_of(inputs, call)

    def _here(self) -> _Gathering:
        gathering = self._gathering
        assert gathering is not None
        if gathering.session.mailbox is not Mailbox.here():
            raise RuntimeError(
                f"{self.name} runs on another event loop than this one; give the tools of this loop's manager a "
                f"Batcher of their own"
            )
        return gathering

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Gathers and sends batches until it is left.

        Cancellation: As leaving it: what waits is refused, what runs is cancelled and waited for.
        """
        gathering = _Gathering(self, current_manager()._opened())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(gathering.send_batches)
            self._gathering = gathering
            try:
                yield
            finally:
                self._gathering = None
                tasks.cancel_scope.cancel()
                gathering.refuse_waiting()
                await gathering.end_batches()


class _Element:
    """One element, from when it is in the queue."""

    __slots__ = ("batch", "call", "caller", "done", "error", "inputs", "since", "value")

    def __init__(self, inputs: dict[str, Any], call: Call[Any] | None, caller: Call[Any] | None, done: Gate) -> None:
        self.inputs = inputs
        self.call = call  # that is this element
        self.caller = caller  # that waits for it
        self.done = done
        self.since = anyio.current_time()
        self.batch: Call[Any] | None = None
        self.value: Any = None
        self.error: BaseException | None = None


class _Gathering:
    """A batcher in motion: what waits, and what is under way. All on one event loop."""

    def __init__(self, batcher: Batcher[Any], session: Session) -> None:
        self.session = session
        self._batcher = batcher
        self._names = list(batcher.tool.signature.types)
        self._bound = _checked(session.bind(batcher.batch_tool), self._names[0])
        self._room = anyio.Semaphore(batcher.max_queue, fast_acquire=True)
        self._queue: OrderedDict[_Element, None] = OrderedDict()
        self._batches: dict[Call[Any], int] = {}  # under way, and how many wait for each
        self._news = anyio.Event()
        self._is_over = False

    async def result_of(self, inputs: dict[str, Any], call: Call[Any] | None) -> Any:
        """Put an element into the queue and wait for its result."""
        self._refuse_own_chain(call)
        await self._room.acquire()
        if self._is_over:
            self._room.release()  # the next one in the line is to be told as well
            raise self._stopped()
        element = _Element(inputs, call, self.session.parent(), self.session.mailbox.gate())
        self._queue[element] = None
        if len(self._queue) in (1, self._batcher.max_size):
            self._news.set()
        try:
            await element.done.wait()
        except BaseException:
            self._forget(element)
            raise
        if element.error is not None:
            raise element.error
        return element.value

    def _forget(self, element: _Element) -> None:
        """Nobody waits for it any more."""
        if element in self._queue:
            del self._queue[element]
            self._room.release()
        elif element.batch in self._batches:
            self._batches[element.batch] -= 1
            if not self._batches[element.batch]:
                element.batch.cancel("nobody waits for it any more")

    def _refuse_own_chain(self, call: Call[Any] | None) -> None:
        caller = self.session.parent()
        here = held_here()
        for limit in self._bound.limits:
            if not (limit.is_reentrant or limit.is_keyed) and waits_in_vain(caller, limit, limit, here):
                raise CallRejected(
                    f"a batch of tool {self._bound.name!r} wants a token of {limit!r}, all of which code that waits "
                    f"for the batch has entered by 'async with': they would wait for each other; leave the block out, "
                    f"or use two limits",
                    call_id="" if call is None else call.id,
                )
        while caller is not None:
            for limit in self._bound.limits:
                if limit in caller.holds:
                    raise CallRejected(
                        f"a batch of tool {self._bound.name!r} wants a token of {limit!r}, which tool "
                        f"{caller.tool_name!r} holds while it waits for the batch: they would wait for each other; "
                        f"give the two tools limits of their own",
                        call_id="" if call is None else call.id,  # that is refused, and not what it wanted
                    )
            caller = caller.parent

    async def send_batches(self) -> None:
        """Send a batch whenever one is due."""
        batcher, queue = self._batcher, self._queue
        while True:
            seconds: float | None = None
            if queue and self.session.closing_at < math.inf:
                self._refuse([element for element in queue if element.caller is None])
            if queue and len(self._batches) < batcher.in_flight:
                seconds = next(iter(queue)).since + batcher.max_wait - anyio.current_time()
                if seconds <= 0 or len(queue) >= batcher.max_size:
                    self._send()
                    continue
            self._news = anyio.Event()
            with anyio.move_on_after(seconds):
                await self._news.wait()

    def _send(self) -> None:
        count = min(len(self._queue), self._batcher.max_size)
        elements = [self._queue.popitem(last=False)[0] for _ in range(count)]
        inputs = {name: [element.inputs[name] for element in elements] for name in self._names}
        # Not `admit`: a manager that drains lets calls in flight end, and those wait for this one.
        batch = self.session.new_call(self._bound, {**self._batcher.inputs, **inputs})
        batch.batch_size = count
        batch.on_end = partial(self._ended, elements)
        self._batches[batch] = count
        for element in elements:
            element.batch = batch
            self._room.release()
            if element.call is not None:
                element.call.batch_id = batch.id
        self.session.start_call(batch)

    def _ended(self, elements: list[_Element], batch: Call[Any]) -> None:
        del self._batches[batch]
        results: Any = None
        error = None if batch.ok else batch.to_outcome().error
        if batch.ok:
            try:  # a fallback's, or one that was kept, nobody has looked at yet
                results = as_list(batch.value, len(elements), batch.tool_name, self._bound.function)
            except (TypeError, ValueError) as misshapen:
                error = _failed(misshapen, batch)
        if error is None:
            for element, result in zip(elements, results, strict=True):
                if isinstance(result, BaseException):
                    element.error = result if isinstance(result, Exception) else _failed(result, batch)
                else:
                    element.value = result
        else:
            for element in elements:
                element.error = _copied(error)
        for element in elements:
            element.done.set()
        self._news.set()

    def refuse_waiting(self) -> None:
        """Fail what has not left: nothing will be sent any more."""
        self._is_over = True
        self._refuse(list(self._queue))

    def _refuse(self, elements: list[_Element]) -> None:
        for element in elements:
            del self._queue[element]
            self._room.release()
            element.error = self._stopped()
            element.done.set()

    def _stopped(self) -> ServiceNotRunning:
        name = self._batcher.name
        return ServiceNotRunning(f"service {name!r} was stopped before this element was sent", service=name)

    async def end_batches(self) -> None:
        """Cancel what is under way, and wait for its end."""
        batches = list(self._batches)
        for batch in batches:
            batch.cancel("its batcher was stopped")
        for batch in batches:
            with anyio.CancelScope(shield=True, deadline=batch.grace_deadline() + 1):
                await batch.wait()


def _checked(bound: Bound, listed: str) -> Bound:
    """The tool as it is bound, with a look at what it returns, so that it is the batch's call that fails."""
    function, name = bound.function, bound.name
    checked = copy.copy(bound)
    if bound.execution.kind == "async":

        async def run(**inputs: Any) -> list[Any]:
            return as_list(await function(**inputs), len(inputs[listed]), name, function)

        checked.function, checked.is_coroutine_function = run, True
    else:

        def run_sync(**inputs: Any) -> list[Any]:
            return as_list(function(**inputs), len(inputs[listed]), name, function)

        checked.function = run_sync
    checked.template = None
    return checked


def _failed(result: BaseException, batch: Call[Any]) -> CallFailed:
    """The error of an element whose result must not be raised as it is: an exit, say."""
    error = CallFailed(f"the result is {shown(result)}", tool=batch.tool_name, call_id=batch.id, attempts=batch.attempt)
    error.__cause__ = result
    return error


def _copied(error: BaseException | None) -> BaseException:
    """The error of a batch for one of those who wait for it: each adds notes and a traceback of its own."""
    if error is None:
        return CallError("the batch did not succeed")
    copied = copy.copy(error)
    copied.__cause__ = error.__cause__
    if hasattr(error, "__notes__"):
        copied.__notes__ = list(error.__notes__)
    return copied
