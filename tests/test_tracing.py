"""What is on record of values: nothing, digests, or what was asked for; and nothing of what is redacted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kgas_async import KGASTool, MemorySink, Phase, Pipeline, ServiceManager, ToolAdapter, tool, verify_evidence
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
