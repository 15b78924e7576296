"""Provenance as the W3C's PROV-JSON, read back by the `prov` package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pytest
from prov import model
from prov.model import ProvDocument
from typer.testing import CliRunner

from kgas_async import EvidenceError, JsonlSink, MemorySink, Outcome, Phase, Pipeline, ServiceManager, current, tool
from kgas_async._cli import app
from kgas_async._lineage import lineage
from kgas_async._reading import EPOCH, Begins
from kgas_async.export.prov import prov_document
from kgas_async.export.trace import trace_events

from .test_lineage import load, named, recorded, words


def read_back(document: dict[str, Any]) -> ProvDocument:
    return ProvDocument.deserialize(content=json.dumps(document), format="json")


def related(document: ProvDocument, kind: Any, first: str, second: str) -> set[tuple[str, str]]:
    """Pairs of names of one kind of relation."""
    found = set()
    for relation in document.get_records(kind):
        ends = {str(name): str(value) for name, value in relation.formal_attributes if value is not None}
        found.add((ends[f"prov:{first}"], ends[f"prov:{second}"]))
    return found


def derived_from(document: ProvDocument, entity: str) -> set[str]:
    pairs = related(document, model.ProvDerivation, "generatedEntity", "usedEntity")
    found: set[str] = set()
    waiting = [entity]
    while waiting:
        one = waiting.pop()
        new = {used for made, used in pairs if made == one} - found
        found |= new
        waiting += new
    return found


async def test_a_result_is_derived_from_what_lineage_says() -> None:
    records = await recorded(words, named("a", "bad", "c"))
    document = read_back(prov_document(records))
    found = lineage(records, phase="total")
    (total,) = [call.call_id for call in found.calls if call.phase == "total"]
    wanted = {f"kgas:result-{call.call_id}" for call in found.calls if call.tool != "inner"} - {f"kgas:result-{total}"}
    assert derived_from(document, f"kgas:result-{total}") == wanted | {"kgas:item-a", "kgas:item-c"}


async def test_each_call_is_an_activity_of_its_tool_with_its_time() -> None:
    records = await recorded(words, named("a"))
    document = read_back(prov_document(records))
    ends = {record["call_id"]: record for record in records if "wait_us" in record}
    begins, began = Begins(), {}
    for record in records:
        if record["event"] == "call.started":
            begins.announced(record)
        elif "wait_us" in record:
            began[record["call_id"]] = begins.of(record)
    activities = {str(one.identifier): one for one in document.get_records(model.ProvActivity)}
    assert activities.keys() == {f"kgas:call-{one}" for one in ends} | {f"kgas:run-{records[1]['run_id']}"}
    for call_id in ends:
        one = activities[f"kgas:call-{call_id}"]
        assert round((one.get_startTime() - EPOCH).total_seconds() * 1e6) == began[call_id]
    agents = {str(one.identifier) for one in document.get_records(model.ProvAgent)}
    assert agents == {f"kgas:tool-{end['tool']}-{end['version']}" for end in ends.values()}
    associated = related(document, model.ProvAssociation, "activity", "agent")
    assert {activity for activity, _ in associated} == {f"kgas:call-{one}" for one in ends}


async def test_digests_are_taken_over_and_values_are_not() -> None:
    records = [
        {**record, "inputs_sha256": "11", "output_sha256": "22", "inputs": "secret", "output": "secret"}
        if "wait_us" in record
        else record
        for record in await recorded(words, named("a"))
    ]
    document = prov_document(records)
    ends = [record["call_id"] for record in records if "wait_us" in record]
    for call_id in ends:
        assert document["activity"][f"kgas:call-{call_id}"]["kgas:inputs_sha256"] == "11"
        assert document["entity"][f"kgas:result-{call_id}"]["kgas:output_sha256"] == "22"
    assert {(call.inputs_sha256, call.output_sha256) for call in lineage(records, item="a").calls} == {("11", "22")}
    events = list(trace_events(records))
    assert "secret" not in json.dumps([document, events])
    assert {event["args"]["output_sha256"] for event in events if event.get("cat") == "call"} == {"22"}


async def test_a_nested_call_was_started_by_the_one_around_it() -> None:
    records = await recorded(words, named("a"))
    document = read_back(prov_document(records))
    starts = related(document, model.ProvStart, "activity", "starter")
    for end in (record for record in records if record.get("tool") == "inner"):
        assert (f"kgas:call-{end['call_id']}", f"kgas:call-{end['parent_id']}") in starts


async def test_a_batch_has_no_result_and_its_parts_have() -> None:
    @tool
    async def up(name: list[str]) -> list[str]:
        return [one.upper() for one in name]

    records = await recorded(Pipeline("p", Phase("up", up, batch=2), item=["name"], key="name"), named("a", "b"))
    document = read_back(prov_document(records))
    (batch,) = [record["call_id"] for record in records if "batch_size" in record]
    parts = {record["call_id"] for record in records if "batch_id" in record}
    results = {str(one.identifier) for one in document.get_records(model.ProvEntity)} - {"kgas:item-a", "kgas:item-b"}
    assert results == {f"kgas:result-{one}" for one in parts}
    informed = related(document, model.ProvCommunication, "informed", "informant")
    assert informed == {(f"kgas:call-{one}", f"kgas:call-{batch}") for one in parts}


async def test_who_sees_outcomes_was_informed_by_the_calls_that_failed() -> None:
    @tool
    async def picky(name: str) -> str:
        if name == "bad":
            raise ValueError(name)
        return name

    @tool
    async def audit(found: list[Outcome[str]]) -> int:
        return len(found)

    pipeline = Pipeline(
        "p", Phase("picky", picky), Phase("audit", audit, collect=True, bind={"found": "picky"}), item=["name"]
    )
    records = await recorded(pipeline, named("a", "bad"))
    document = read_back(prov_document(records))
    ids = {(record["tool"], record["status"]): record["call_id"] for record in records if "wait_us" in record}
    informed = related(document, model.ProvCommunication, "informed", "informant")
    assert informed == {(f"kgas:call-{ids['audit', 'succeeded']}", f"kgas:call-{ids['picky', 'failed']}")}


async def test_names_with_any_character_survive() -> None:
    keys = ["a b", "ä/ö", "x:y", "100%", '"quoted"', "(1)", "日本", "a\nb"]
    document = read_back(prov_document(await recorded(words, named(*keys))))
    items = {str(value) for one in document.get_records(model.ProvEntity) for value in one.get_attribute("kgas:item")}
    assert items >= set(keys)
    assert read_back(json.loads(document.serialize(format="json"))) == document
    assert document.get_provn()


async def test_a_run_in_a_call_was_started_by_it() -> None:
    @tool
    async def outer(name: str) -> int:
        return (await current().run(Pipeline("in", Phase("text", load)), named(name))).total

    records = await recorded(Pipeline("out", Phase("made", outer), item=["name"]), named("a"))
    runs = [record["run_id"] for record in records if record["event"] == "run.started"]
    document = read_back(prov_document(records, run_id=runs[1]))
    (made,) = [record["call_id"] for record in records if record.get("tool") == "outer"]
    starts = related(document, model.ProvStart, "activity", "starter")
    assert (f"kgas:run-{runs[1]}", f"kgas:call-{made}") in starts
    assert len(list(document.get_records(model.ProvActivity))) == 2


async def test_tools_are_told_apart_whatever_their_names_and_versions() -> None:
    async def plain(name: str) -> str:
        return name

    pipeline = Pipeline(
        "p",
        Phase("one", tool(name="load-2", version="1")(plain)),
        Phase("two", tool(name="load", version="2-1")(plain)),
        item=["name"],
    )
    document = read_back(prov_document(await recorded(pipeline, named("a"))))
    labels = {str(label) for one in document.get_records(model.ProvAgent) for label in one.get_attribute("prov:label")}
    assert labels == {"load-2 1", "load 2-1"}
    assert len(list(document.get_records(model.ProvAgent))) == 2


async def test_of_several_runs_it_is_the_latest_that_no_call_has_started() -> None:
    @tool
    async def outer(name: str) -> int:
        return (await current().run(Pipeline("in", Phase("text", load)), named(name))).total

    records = await recorded(Pipeline("out", Phase("made", outer), item=["name"], key="name"), named("a"))
    (made,) = [one for one in prov_document(records)["activity"].values() if "kgas:pipeline" in one]
    assert made["kgas:pipeline"] == "out"
    assert lineage(records, item="a").pipeline == "out"


async def test_calls_outside_of_runs_have_no_provenance() -> None:
    sink = MemorySink()
    async with ServiceManager(evidence=sink, log=None) as manager:
        await manager.execute(load, name="a")
    with pytest.raises(EvidenceError, match="no run on record"):
        prov_document(sink.records)


# --- the command


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "run.jsonl"
    anyio.run(recorded, words, named("a", "b"), JsonlSink(path))
    return path


def export(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["evidence", "export", *map(str, arguments)])


def test_the_command_writes_either_format(log: Path, tmp_path: Path) -> None:
    printed = export(log, "--format", "prov")
    assert printed.exit_code == 0
    assert len(list(read_back(json.loads(printed.stdout)).get_records(model.ProvActivity))) == 16
    file = tmp_path / "trace.json"
    written = export(log, "--format", "trace", "-o", file)
    assert (written.exit_code, written.stderr) == (0, f"written: {file}\n")
    assert json.loads(file.read_text())["traceEvents"]


@pytest.mark.parametrize("kind", ["prov", "trace"])
def test_a_file_that_exists_is_written_over_by_force_alone(log: Path, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text("not for you\n")
    refused = export(log, "--format", kind, "-o", file)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr == f"error: {file} exists; --force writes over it, or give another name\n"
    assert file.read_text() == "not for you\n"
    assert export(log, "--format", kind, "-o", file, "--force").exit_code == 0
    assert json.loads(file.read_text())
    assert export(log, "--format", kind, "-o", "/dev/null").exit_code == 0


@pytest.mark.parametrize("kind", ["prov", "trace"])
def test_2_and_nothing_written_where_the_run_is_not_known(log: Path, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "before.json"
    file.write_text("as it was")
    result = export(log, "--format", kind, "-o", file, "--run", "x", "--force")
    assert result.exit_code == 2
    assert "no run 'x' is on record" in result.stderr
    assert file.read_text() == "as it was"


def test_2_with_the_reason(log: Path, tmp_path: Path) -> None:
    for arguments, said in (
        ([log, "--format", "pro"], "--format 'pro' is not known; use one of prov, trace; did you mean 'prov'?"),
        ([tmp_path / "none.jsonl", "--format", "trace"], "No such file"),
        ([log, "--format", "trace", "-o", tmp_path / "no" / "file"], "cannot be written: No such file"),
        ([log, "--format", "trace", "-o", log], "is the evidence itself"),
    ):
        result = export(*arguments)
        assert result.exit_code == 2, result.output
        assert said in result.stderr
        assert result.stdout == ""


@pytest.mark.parametrize("kind", ["prov", "trace"])
def test_no_file_of_the_evidence_is_written_over(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "run.jsonl"
    anyio.run(recorded, words, named("a", "b"), JsonlSink(path, max_bytes=2000))
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    assert len(before) > 4
    for file in before:
        result = export(path, "--format", kind, "-o", file)
        assert result.exit_code == 2, file
        assert "is the evidence itself" in result.stderr
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
