"""What is on record of values: nothing, digests, or what was asked for; and nothing of what is redacted."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from pydantic import SecretStr

from kgas_async import (
    CallFailed,
    KGASTool,
    MemorySink,
    PerformanceMonitor,
    Phase,
    Pipeline,
    Pool,
    RestartPolicy,
    Service,
    ServiceManager,
    ToolAdapter,
    current,
    tool,
    verify_evidence,
)
from kgas_async._digest import digest

from .test_evidence import ends, named, only
from .test_sinks import read

SECRET = "hunter2!"


@tool
async def login(user: str, password: str, tries: int = 1) -> dict[str, Any]:
    if user == "bad":
        raise ValueError(f"{password} is not the password of {user}")
    return {"user": user}


@tool
def append(items: list[int]) -> list[int]:
    items.append(1)
    return items


async def records_of(*calls: tuple[Any, dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
    sink = MemorySink()
    async with ServiceManager(evidence=sink, log=None, **options) as manager:
        for what, inputs in calls:
            await manager.outcome(what, **inputs)
    return sink.records


async def test_nothing_of_values_is_on_record_unless_asked_for() -> None:
    records = await records_of((login, {"user": "ann", "password": SECRET}))
    assert SECRET not in str(records)
    assert "ann" not in str(records)
    assert not {"inputs", "output", "inputs_sha256", "output_sha256"} & set(only(ends(records)))


async def test_lineage_puts_the_digests_of_what_was_given_and_returned_on_record() -> None:
    sink = MemorySink()
    async with ServiceManager(evidence=sink, log=None, lineage=True) as manager:
        assert await manager.execute(append, items=["0"]) == [0, 1]
    record = only(ends(sink.records))
    assert record["inputs_sha256"] == digest({"items": [0]})  # coerced, and before the tool changed it
    assert record["output_sha256"] == digest([0, 1])
    assert not {"inputs", "output"} & set(record)


async def test_calls_that_give_no_value_have_the_digest_of_their_inputs_alone() -> None:
    record = only(ends(await records_of((login, {"user": "bad", "password": "x"}), lineage=True)))
    assert record["inputs_sha256"] == digest({"user": "bad", "password": "x"})
    assert "output_sha256" not in record
    record = only(ends(await records_of((login, {"user": 5, "password": None}), lineage=True)))
    assert record["error"]["type"] == "InvalidInputs"
    assert "inputs_sha256" not in record


async def test_what_has_no_digest_has_none_on_record() -> None:
    @tool
    async def give(x: Any) -> Any:
        return x

    record = only(ends(await records_of((give, {"x": object()}), lineage=True)))
    assert record["status"] == "succeeded"
    assert not {"inputs_sha256", "output_sha256"} & set(record)


async def test_values_are_on_record_as_text_if_asked_for() -> None:
    record = only(ends(await records_of((login, {"user": "ann", "password": SECRET}), record_values=True)))
    assert record["inputs"]["user"] == "ann"
    assert record["output"] == "{'user': 'ann'}"
    record = only(ends(await records_of((append, {"items": list(range(9000))}), record_values=True)))
    assert len(record["inputs"]["items"]) == 2000
    assert record["inputs"]["items"].endswith("...")


async def test_a_redacted_input_is_in_no_digest_no_value_and_no_message() -> None:
    good, other, bad = (
        {"user": "ann", "password": SECRET},
        {"user": "ann", "password": "something else"},
        {"user": "bad", "password": SECRET},
    )
    retried = login.using(retry=2)
    records = await records_of(
        (login, good), (login, other), (retried, bad), lineage=True, record_values=True, redact=["password"]
    )
    first, second, third = ends(records)
    assert first["inputs_sha256"] == second["inputs_sha256"] != third["inputs_sha256"]
    assert first["inputs"]["password"] == "[redacted]"
    assert third["error"]["message"] == "[redacted] is not the password of bad"
    assert SECRET not in str(records)
    assert named(records, "call.retried")


async def test_redaction_holds_in_files_and_pipelines_and_for_tools_with_checks_of_their_own(
    tmp_path: Path,
) -> None:
    class Own(KGASTool):
        async def validate_inputs(self, **inputs: Any) -> dict[str, Any]:
            return {**inputs, "more": "x"}

        async def execute_async(self, *, token: str, more: str = "") -> str:
            raise LookupError(token)

    file = tmp_path / "run.jsonl"
    pipeline = Pipeline("p", Phase("own", Own()), item=["token"], key=lambda item: "k")
    async with ServiceManager(evidence=file, log=None, redact={"token"}, lineage=True, record_values=True) as manager:
        await manager.run(pipeline, [{"token": SECRET}])
    assert SECRET not in file.read_text()
    record = only(ends(read(file)))
    assert record["inputs"] == {"token": "[redacted]", "more": "x"}
    assert verify_evidence(file).ok


@pytest.mark.parametrize(
    "given",
    [
        SECRET,  # it is across the place where long messages end
        SECRET * 1000,
        "hunter\n'2\"!",
        {"inner": [SECRET + "a", SECRET + "b"]},
        (SECRET.encode(), 12345678),
        SecretStr(SECRET),
        Path("/") / SECRET,
    ],
)
@pytest.mark.parametrize("kind", [LookupError, KeyError])
async def test_a_redacted_input_of_any_kind_is_in_no_message(given: Any, kind: type[LookupError]) -> None:
    @tool
    async def fail(password: Any) -> None:
        shown = password.get_secret_value() if isinstance(password, SecretStr) else password
        raise kind("x" * 1990 + shown) if shown == SECRET else kind(shown)

    (record,) = ends(await records_of((fail, {"password": given}), redact=["password"]))
    message = record["error"]["message"]
    assert "[reda" in message
    assert not [part for part in ("hunter", "12345678", "2!") if part in message], message[-100:]


async def test_a_redacted_input_is_in_no_message_of_the_calls_around_its_call_or_in_it() -> None:
    @tool
    async def inner(header: str) -> None:
        raise ValueError(f"bad {header}")

    @tool
    async def outer(password: str, how: str) -> None:
        if how == "in":
            await current().execute(inner, header=f"Basic {password}")
        raise ValueError(f"{password} is wrong")

    @tool
    async def around(how: str) -> None:
        manager = current()
        try:
            await manager.execute(outer, password=SECRET, how=how)
        except CallFailed as error:
            if how == "wrapped":
                raise RuntimeError(f"it failed: {error}") from error
            if how == "new":
                raise RuntimeError(f"it failed: {error}") from None
            raise

    for how in ("", "in", "wrapped", "new"):
        records = await records_of((around, {"how": how}), redact=["password"])
        failed = [record for record in ends(records) if record["status"] == "failed"]
        assert len(failed) == (3 if how == "in" else 2)
        assert all("[redacted]" in record["error"]["message"] for record in failed)
        assert SECRET not in str(records)


async def test_a_redacted_input_is_in_no_message_of_a_batch_and_of_its_items() -> None:
    @tool
    async def send(token: list[str]) -> list[str]:
        raise ValueError(f"none of {token} is known")

    sink = MemorySink()
    pipeline = Pipeline("p", Phase("send", send, batch=3), item=["token"], key=lambda item: item["token"][-1])
    async with ServiceManager(evidence=sink, log=None, redact=["token"]) as manager:
        await manager.run(pipeline, [{"token": f"{SECRET}{number}"} for number in range(3)])
    failed = [record for record in ends(sink.records) if record["status"] == "failed"]
    assert len(failed) == 4
    assert not [record for record in sink.records if "hunter" in str(record)]


async def test_a_redacted_input_is_in_no_message_about_another_item_of_its_batch() -> None:
    @tool
    async def send(token: list[str]) -> list[Any]:
        return [ValueError(f"{one} is as bad as {token}") for one in token]

    sink = MemorySink()
    pipeline = Pipeline("p", Phase("send", send, batch=3), item=["token"], key=lambda item: item["token"][-1])
    async with ServiceManager(evidence=sink, log=None, redact=["token"]) as manager:
        await manager.run(pipeline, [{"token": f"{number}{SECRET}{number}"} for number in range(3)])
    failed = [record for record in ends(sink.records) if record["status"] == "failed"]
    assert len(failed) == 3
    assert not [record for record in sink.records if "hunter" in str(record)]


@tool
def parts(token: str) -> Iterator[str]:
    yield "a"
    raise ValueError(f"no more for {token}")


@tool
async def keep(part: str, token: str) -> str:
    return part


def refuse(given: Any) -> Any:
    raise ValueError(f"not {given}")


def when(token: str) -> bool:
    raise ValueError(f"not {token}")


@pytest.mark.parametrize(
    "pipeline",
    [
        Pipeline("key", Phase("keep", keep), item=["token", "part"], key=refuse),
        Pipeline("when", Phase("keep", keep, when=when), item=["token", "part"], key="part"),
        Pipeline("elements", Phase("p", parts, expand="part"), Phase("k", keep), item=["token", "whole"], key="whole"),
        Pipeline(
            "below", Phase("p", parts, expand="part"), Phase("k", keep, when=when),
            item=["token", "whole"], key="whole",
        ),
    ],
    ids=lambda pipeline: pipeline.name,
)  # fmt: skip
async def test_a_redacted_field_is_in_no_message_of_an_item_that_fails_outside_of_calls(pipeline: Pipeline) -> None:
    sink = MemorySink()
    async with ServiceManager(evidence=sink, log=None, redact=["token"]) as manager:
        await manager.run(pipeline, [{"token": SECRET, "part": "b", "whole": "c"}])
    assert named(sink.records, "item.failed")
    assert not [record for record in sink.records if "hunter" in str(record)]


@dataclasses.dataclass
class Login:
    secret: str

    @property
    def broken(self) -> str:
        raise ValueError(f"not {self.secret}")


@tool
async def use(token: Any) -> Any:
    return token


@tool
async def halves(token: str) -> list[str]:
    return [token, token]


@pytest.mark.parametrize(
    ("phases", "item"),
    [
        ([Phase("use", use, bind={"token": "login"}, when=when)], {"login": SECRET}),
        ([Phase("use", use, bind={"token": "login.key"}, when=when)], {"login": {"key": SECRET}}),
        ([Phase("use", use, bind={"token": "login.broken"})], {"login": Login(SECRET)}),
        ([Phase("use", use, when=when)], {"token": {SECRET: 7}}),
        (
            [
                Phase("halves", halves, expand="half"),
                Phase("use", use, bind={"token": "half"}),
                Phase("all", use, bind={"token": "use"}, collect="half", when=when),
            ],
            {"token": SECRET},
        ),
    ],
    ids=["renamed", "inside", "unreadable", "mapping", "collected"],
)
async def test_a_redacted_input_is_in_no_message_of_an_item_however_it_is_bound(
    phases: list[Phase], item: dict[str, Any]
) -> None:
    sink = MemorySink()
    async with ServiceManager(evidence=sink, log=None, redact=["token"]) as manager:
        await manager.run(Pipeline("p", *phases, item=list(item), key=lambda _: "k"), [item])
    assert named(sink.records, "item.failed")
    assert not [record for record in sink.records if "hunter" in str(record)]


async def test_a_redacted_input_is_in_no_message_of_the_items_of_a_run_in_its_call() -> None:
    inside = Pipeline("inside", Phase("use", use, when=when), item=["token"], key=lambda _: "k")

    @tool
    async def outer(password: str) -> int:
        return (await current().run(inside, [{"token": f"Basic {password}"}])).failed

    records = await records_of((outer, {"password": SECRET}), redact=["password"])
    assert named(records, "item.failed")
    assert not [record for record in records if "hunter" in str(record)]


class Store(Service):
    restart = RestartPolicy(restarts=1, wait=0.001)

    def __init__(self, password: str) -> None:
        self._password = password
        self.asked = ""
        self.news = anyio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self.news = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._serve)
            yield
            tasks.cancel_scope.cancel()

    async def _serve(self) -> None:
        await self.news.wait()
        raise ConnectionError(f"{self.asked} is no way to ask, nor is {self._password}")

    async def health(self) -> None:
        if self.asked:
            raise ConnectionError(f"{self.asked} makes ill, and so does {self._password}")


@pytest.mark.parametrize("restarts", [True, False])
async def test_a_redacted_input_is_in_no_message_of_a_service(restarts: bool) -> None:
    store = Store("swordfish")
    if not restarts:
        store.restart = None  # type: ignore[assignment]

    class Ask(KGASTool):
        def __init__(self, store: Store) -> None:
            self.store = store

        async def execute_async(self, *, token: str) -> None:
            self.store.asked = token
            await current().health()
            self.store.news.set()
            await anyio.sleep_forever()

    sink = MemorySink()
    redact = ["token", "password"]
    async with ServiceManager(store, evidence=sink, log=None, redact=redact, on_crash="continue") as manager:
        await manager.outcome(Ask(store), token=SECRET)
    events = {record["event"] for record in sink.records if "service" in record}
    assert {"service.crashed", "service.health"} <= events
    assert ("service.restarting" in events) is restarts
    assert only(ends(sink.records))["status"] == "failed"
    assert not [record for record in sink.records if "hunter" in str(record) or "swordfish" in str(record)]


async def test_a_redacted_input_is_in_no_message_of_a_pool() -> None:
    asked = [""]

    async def connect(password: str) -> str:
        raise ConnectionError(f"{asked[0]} may not connect with {password}")

    pool = Pool(functools.partial(connect, password="swordfish"), 1, name="connections")

    class Ask(KGASTool):
        def __init__(self, pool: Any) -> None:
            self.pool = pool

        async def execute_async(self, *, token: str) -> None:
            asked[0] = token
            async with self.pool.acquire():
                pass

    sink = MemorySink()
    async with ServiceManager(pool, evidence=sink, log=None, redact=["token", "password"]) as manager:
        await manager.outcome(Ask(pool), token=SECRET)
    assert named(sink.records, "pool.failed")
    assert not [record for record in sink.records if "hunter" in str(record) or "swordfish" in str(record)]


async def test_a_redacted_input_is_in_no_event_inside_of_its_call() -> None:
    monitor = PerformanceMonitor()

    @tool
    async def guarded(password: str) -> None:
        with monitor.track("block"):
            raise ValueError(f"{password} is wrong")

    records = await records_of((guarded, {"password": SECRET}), redact=["password"], monitor=monitor)
    assert named(records, "block.failed")
    assert SECRET not in str(records)


async def test_of_an_invalid_redacted_input_only_its_name_is_on_record() -> None:
    @tool
    async def store(password: dict[str, int], other: dict[str, int]) -> None: ...

    records = await records_of((store, {"password": {SECRET: "x"}, "other": {"key": "x"}}), redact=["password"])
    (record,) = ends(records)
    assert [one["field"] for one in record["error"]["errors"]] == ["password", "other.key"]


async def test_what_has_more_values_than_can_be_looked_for_leaves_nothing_of_a_message() -> None:
    @tool
    async def store(password: list[int]) -> None:
        raise ValueError(f"{password[-1]} is too much")

    records = await records_of((store, {"password": list(range(10_000, 30_000))}), redact=["password"])
    assert only(ends(records))["error"]["message"] == "[redacted]"


async def test_short_values_are_not_taken_out_of_messages() -> None:
    records = await records_of((login, {"user": "bad", "password": "is"}), redact=["password"])
    assert only(ends(records))["error"]["message"] == "is is not the password of bad"


@pytest.mark.parametrize("wrong", ["password", [1], None, 5])
def test_names_to_redact_are_a_list(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"redact= is a list of names of inputs, such as \['password'\]"):
        ServiceManager(redact=wrong)


@pytest.mark.parametrize("name", ["lineage", "record_values"])
def test_what_is_recorded_is_a_flag(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name}= is True or False, not 'yes'"):
        ServiceManager(**{name: "yes"})  # type: ignore[arg-type]


def by_name(x: int) -> int:
    return x + 1


async def test_a_process_gets_plain_inputs() -> None:
    remote = ToolAdapter(by_name, offload="process")
    record = only(ends(await records_of((remote, {"x": 1}), lineage=True)))
    assert record["status"] == "succeeded"
    assert record["output_sha256"] == digest(2)
    assert json.dumps(record)
