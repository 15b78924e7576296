"""What came from what, as evidence tells it; `test_lineage_random` holds it against random pipelines."""

from __future__ import annotations

import contextlib
import io
import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import anyio
import pytest
from typer.testing import CliRunner

from kgas_async import (
    EvidenceError,
    JsonlSink,
    MemorySink,
    Phase,
    Pipeline,
    ServiceManager,
    current,
    tool,
)
from kgas_async._chain import GENESIS, Head, head_path
from kgas_async._cli import app
from kgas_async._lineage import Lineage, Traced, lineage
from kgas_async._reading import EvidenceFile
from kgas_async._segments import segments_of
from kgas_async.export.prov import prov_document
from kgas_async.export.trace import trace_events, write_trace

Records = list[dict[str, Any]]


@tool
async def load(name: str) -> str:
    return f"{name} {name}"


@tool
async def split(text: str) -> list[str]:
    return text.split()


@tool
async def inner(word: str) -> str:
    return word.upper()


@tool
async def shout(word: str) -> str:
    if word == "bad":
        raise ValueError("a bad word")
    return await current().execute(inner, word=word)


@tool
async def count(shouts: list[str]) -> int:
    return len(shouts)


@tool
async def total(counts: list[int]) -> int:
    return sum(counts)


words = Pipeline(
    "words",
    Phase("text", load),
    Phase("parts", split, expand="word"),
    Phase("shouts", shout),
    Phase("counts", count, collect="word"),
    Phase("total", total, collect=True),
    item=["name"],
    key="name",
)


async def recorded(pipeline: Pipeline, items: Iterable[Any], *also: Any, **options: Any) -> Records:
    sink = MemorySink()
    async with ServiceManager(evidence=[sink, *also], log=None) as manager:
        await manager.run(pipeline, items, **options)
    return sink.records


def named(*names: str) -> list[dict[str, str]]:
    return [{"name": name} for name in names]


def places(found: Lineage) -> list[tuple[str, str | None, str]]:
    return sorted(((call.phase, call.item, call.tool) for call in found.calls), key=str)


def one(found: Lineage, tool_name: str, item: str | None) -> Traced:
    (call,) = [call for call in found.calls if (call.tool, call.item) == (tool_name, item)]
    return call


async def test_upstream_of_an_output_are_the_calls_and_inputs_it_came_from() -> None:
    records = await recorded(words, named("a", "b"))
    found = lineage(records, phase="counts", item="a")
    assert places(found) == [
        ("counts", "a", "count"),
        ("parts", "a", "split"),
        ("shouts", "a/0", "inner"),
        ("shouts", "a/0", "shout"),
        ("shouts", "a/1", "inner"),
        ("shouts", "a/1", "shout"),
        ("text", "a", "load"),
    ]
    assert found.items == {"a": ["name"]}
    shouts = [one(found, "shout", key).call_id for key in ("a/0", "a/1")]
    assert [(source.input, source.call_id) for source in one(found, "count", "a").sources] == [
        ("shouts", shout_id) for shout_id in shouts
    ]
    assert one(found, "inner", "a/1").parent_id == shouts[1]


async def test_downstream_of_an_item_is_what_it_reached_and_nothing_of_others() -> None:
    records = await recorded(words, named("a", "bad"))
    found = lineage(records, item="a", direction="downstream")
    assert {item for _, item, _ in places(found)} == {"a", "a/0", "a/1", None}
    assert one(found, "total", None).status == "succeeded"
    lost = lineage(records, item="bad", direction="downstream")
    assert [call.status for call in lost.calls if call.tool == "shout"] == ["failed", "failed"]
    late = [(call.phase, call.status, call.sources) for call in lost.calls if call.phase in ("counts", "total")]
    assert late == [("counts", "skipped", ())], "it failed before"


async def test_a_run_level_output_came_from_the_items_that_it_took() -> None:
    records = await recorded(words, named("a", "bad", "c"))
    found = lineage(records, phase="total")
    assert found.items == {"a": ["name"], "c": ["name"]}
    assert {call.item for call in found.calls if call.phase == "counts"} == {"a", "c"}


async def test_an_element_is_told_from_an_item_whose_key_looks_like_one() -> None:
    records = await recorded(words, named("a", "a/0"))
    assert lineage(records, phase="shouts", item="a/0").items == {"a": ["name"]}
    assert lineage(records, phase="counts", item="a/0").items == {"a/0": ["name"]}


async def test_of_items_with_one_key_each_goes_its_own_way() -> None:
    records = await recorded(words, named("a", "a"), in_flight=1)
    found = lineage(records, phase="total")
    texts = [call.call_id for call in found.calls if call.phase == "text"]
    parts = [call.sources for call in found.calls if call.phase == "parts"]
    assert [source.call_id for (source,) in parts] == texts
    assert len(set(texts)) == 2


async def test_a_batch_is_named_by_what_it_ran_with_what_is_nested_in_it() -> None:
    @tool
    async def all_at_once(name: list[str]) -> list[str]:
        return [await current().execute(inner, word=one) for one in name]

    records = await recorded(
        Pipeline("batched", Phase("up", all_at_once, batch=2), item=["name"], key="name"), named("a", "b", "c")
    )
    found = lineage(records, phase="up", item="a")
    own = one(found, "all_at_once", "a")
    batch = one(found, "all_at_once", None)
    assert own.batch_id == batch.call_id
    assert [call.parent_id for call in found.calls if call.tool == "inner"] == [batch.call_id] * 2


async def test_a_value_used_again_names_the_call_that_it_is_of() -> None:
    cached = load.using(cache=60)

    @tool
    async def twice(name: str) -> list[str]:
        async with current().map(cached, [name, name], arg="name") as outcomes:
            return [outcome.value async for outcome in outcomes]

    records = await recorded(Pipeline("cached", Phase("texts", twice), item=["name"], key="name"), named("a"))
    found = lineage(records, item="a")
    first, second = [call for call in found.calls if call.tool == "load"]
    assert {first.status, second.status} == {"succeeded", "reused"}
    assert {first.parent_id, second.parent_id} == {one(found, "twice", "a").call_id}


async def test_a_value_that_a_nested_call_used_again_comes_with_the_call_of_another_item_or_run_that_it_is_of() -> None:
    @tool
    async def slow(word: str) -> str:
        await anyio.wait_all_tasks_blocked()
        return await current().execute(inner, word=word)

    once = slow.using(cache=60)

    @tool
    async def outer(name: str) -> str:
        return await current().execute(once, word="same")

    pipeline = Pipeline("cached", Phase("made", outer), item=["name"], key="name")
    sink = MemorySink()
    async with ServiceManager(evidence=sink, log=None) as manager, anyio.create_task_group() as tasks:
        tasks.start_soon(manager.run, pipeline, named("a", "b"))
        tasks.start_soon(manager.run, pipeline, named("a"))
    ends = {record["call_id"]: record for record in sink.records if "wait_us" in record}
    reused = [end for end in ends.values() if "reused_from" in end]
    assert len(reused) == 2
    for end in reused:
        found = lineage(sink.records, item=end["item"], run_id=end["run_id"])
        ids = {call.call_id for call in found.calls}
        assert end["reused_from"] in ids
        (inside,) = [call for call in found.calls if call.tool == "inner"]
        assert inside.parent_id == end["reused_from"]
        assert len(ids) == 4


async def test_a_run_in_a_call_is_named_and_has_a_lineage_of_its_own() -> None:
    @tool
    async def outer(name: str) -> int:
        report = await current().run(words, named(name, name + "x"))
        return report.results["total"]  # type: ignore[no-any-return]

    records = await recorded(Pipeline("outer", Phase("made", outer), item=["name"], key="name"), named("a", "b"))
    runs = [record["run_id"] for record in records if record["event"] == "run.started"]
    assert len(runs) == 3
    found = [lineage(records, run_id=runs[0], item=key).runs for key in ("a", "b")]
    assert sorted(found) == sorted([[runs[1]], [runs[2]]])
    (inside,) = found[0]
    assert lineage(records, run_id=inside, phase="total").items == {"a": ["name"], "ax": ["name"]}


async def test_nothing_is_written_per_call_for_it() -> None:
    async def written(items: int) -> int:
        records = await recorded(words, named(*(f"{number:04}" for number in range(items))))
        return sum(len(json.dumps(record)) for record in records if record["event"] != "run.started")

    few, many = await written(10), await written(40)
    assert many < 4.2 * few


async def test_a_run_that_was_killed_says_what_was_open() -> None:
    records = await recorded(words, named("a"))
    cut = [record for record in records if record.get("tool") != "count" and record["event"].startswith("call.")]
    (end,) = [record for record in records if record.get("tool") == "count"]
    opened = {name: value for name, value in end.items() if name != "status"} | {"event": "call.started"}
    found = lineage([*records[:2], *cut, opened], item="a", phase="counts")
    assert one(found, "count", "a").status == "open"
    assert len(found.calls) == 7


async def test_of_several_runs_it_is_the_latest_unless_told(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    for names in ("ab", "cd"):
        await recorded(words, named(*names), JsonlSink(path))
    first = next(record["run_id"] for record in EvidenceFile(path) if record["event"] == "run.started")
    assert lineage(path, item="c").items == {"c": ["name"]}
    assert lineage(path, item="a", run_id=first).items == {"a": ["name"]}
    with pytest.raises(EvidenceError, match=r"no call on record of item 'a'.*2 runs on record"):
        lineage(path, item="a")


async def test_segments_of_a_log_are_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    records = await recorded(words, named("a", "b"), JsonlSink(path, max_bytes=2000))
    assert len(list(segments_of(path))) > 1
    assert [record["seq"] for record in EvidenceFile(path)] == [record["seq"] for record in records]
    assert lineage(path, phase="total") == lineage(records, phase="total")


async def test_a_resumed_run_tells_the_same_of_what_its_journal_had(tmp_path: Path) -> None:
    journal = tmp_path / "run.db"
    first = await recorded(words, named("a", "b"), journal=journal)
    second = await recorded(words, named("a", "b", "c"), journal=journal)
    for phase, item in (("counts", "a"), ("shouts", "b/1")):
        before, after = lineage(first, phase=phase, item=item), lineage(second, phase=phase, item=item)
        own = [call for call in places(before) if call[2] != "inner"]  # what is not run again, nests nothing
        assert places(after) == own
        assert {call.status for call in after.calls} == {"reused"}
        assert after.items == before.items
    assert lineage(second, phase="total").items == {key: ["name"] for key in "abc"}


async def test_digests_are_told_where_they_are_on_record() -> None:
    sink = MemorySink()
    async with ServiceManager(evidence=sink, log=None, lineage=True) as manager:
        await manager.run(words, named("a"))
    digests = {record["call_id"]: record["output_sha256"] for record in sink.records if "wait_us" in record}
    found = lineage(sink.records, phase="counts", item="a")
    assert {call.call_id: call.output_sha256 for call in found.calls}.items() <= digests.items()
    assert all(call.inputs_sha256 for call in found.calls)


async def test_torn_lines_are_left_out_and_counted(tmp_path: Path) -> None:
    records = [json.dumps(record) + "\n" for record in await recorded(words, named("a"))]
    evidence = EvidenceFile(tmp_path / "run.jsonl")
    evidence.path.write_text("".join([*records, '{"event":"call.succ\n', "7\n"]))
    found = lineage(evidence, item="a", phase="counts")
    assert len(found.calls) == 7
    assert found.lacks == [
        "2 lines of run.jsonl could not be read; a crash may have torn one",
        "run.jsonl.head is missing, so that records may be missing at the end",
    ]


# --- evidence of which a part is missing: what is made of the rest must not pass for the whole


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    path = tmp_path / "run.jsonl"
    anyio.run(recorded, words, named("a", "b"), JsonlSink(path, max_bytes=2000))
    found = list(segments_of(path))
    assert len(found) > 3
    assert lineage(path, phase="total").lacks == []
    return found


@pytest.mark.parametrize("missing", [1, 2, -1])
@pytest.mark.parametrize("with_heads", [True, False])
def test_a_missing_segment_is_an_error_everywhere(parts: list[Path], missing: int, with_heads: bool) -> None:
    path, gone = parts[0], parts[missing]
    for file in (gone, head_path(gone)) if with_heads else (gone,):
        file.unlink()
    written = path.with_name("out")
    wanted = rf"is not whole: .*{gone.name}, which is missing"
    for way in (
        lambda: lineage(path, phase="total"),
        lambda: prov_document(path),
        lambda: list(trace_events(path)),
    ):
        with pytest.raises(EvidenceError, match=wanted):
            way()
    for arguments in (
        ["lineage", str(path), "--phase", "total"],
        ["export", str(path), "--format", "prov", "-o", str(written)],
        ["export", str(path), "--format", "trace", "-o", str(written)],
    ):
        result = CliRunner().invoke(app, ["evidence", *arguments])
        assert (result.exit_code, result.stdout, written.exists()) == (2, "", False)
        assert "is not whole" in result.stderr


def test_segments_lost_together_with_what_told_of_them_are_missed_all_the_same(parts: list[Path]) -> None:
    for file in (parts[1], head_path(parts[1]), head_path(parts[0])):
        file.unlink()
    with pytest.raises(EvidenceError, match=r"run.jsonl.2 is missing, though there is run.jsonl.3"):
        lineage(parts[0], phase="total")


def test_one_segment_does_not_pass_for_the_log(parts: list[Path]) -> None:
    with pytest.raises(
        EvidenceError, match=r"run.jsonl.2' is one segment of a log, and no more; give that, '.*run.jsonl'"
    ):
        lineage(parts[1], phase="total")


def test_a_copy_beside_a_log_is_not_read_as_a_part_of_it(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    anyio.run(recorded, words, named("a"), JsonlSink(path))
    before = lineage(path, phase="total")
    (tmp_path / "run.jsonl.2").write_bytes(path.read_bytes())
    (tmp_path / "run.jsonl.20261129").write_bytes(path.read_bytes())
    assert lineage(path, phase="total") == before
    assert len(prov_document(path)["activity"]) == 9


@pytest.mark.parametrize("how", ["no head", "no end", "open"])
def test_what_may_miss_its_end_is_said_in_all_that_is_made_of_it(tmp_path: Path, how: str) -> None:
    path = tmp_path / "run.jsonl"
    anyio.run(recorded, words, named("a"), JsonlSink(path))
    head = head_path(path)
    lines = path.read_bytes().splitlines(keepends=True)
    if how == "no end":
        path.write_bytes(b"".join(lines[:-1]))
        said = "1 record of run.jsonl are missing, as its head says"
    elif how == "open":
        head.write_bytes(Head("open", 1, GENESIS, 0, 0, GENESIS).line())
        said = "a session still writes to it, or was killed: records may be missing at the end"
    else:
        head.unlink()
        said = "run.jsonl.head is missing, so that records may be missing at the end"
    assert lineage(path, phase="total").lacks == [said]
    (run,) = [one for one in prov_document(path)["activity"].values() if "kgas:pipeline" in one]
    assert run["kgas:lacks"] == [said]
    written = io.StringIO()
    write_trace(path, written)
    assert json.loads(written.getvalue())["otherData"] == {"lacks": said}
    for arguments in (["lineage", str(path), "--phase", "total"], ["export", str(path), "--format", "trace"]):
        result = CliRunner().invoke(app, ["evidence", *arguments])
        assert result.exit_code == 0
        assert f"warning: {path}: {said}" in result.stderr
        assert said in result.stdout


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"item": "aa"}, "no call on record of item 'aa'"),
        ({"item": "names"}, "did you mean 'name'"),
        ({"phase": "coumts"}, "no phase 'coumts'; it has text, parts, shouts, counts, total; did you mean 'counts'"),
        ({"phase": "total", "item": "name"}, "runs once per run, so it has no item 'name'; leave the item out"),
        ({"item": "name", "run_id": "x"}, "no run 'x' is on record; there are "),
    ],
)
async def test_what_is_not_on_record_is_said_with_what_is_near(asked: dict[str, str], said: str) -> None:
    records = await recorded(words, named("name"))
    with pytest.raises(EvidenceError, match=said):
        lineage(records, **asked)  # type: ignore[arg-type]


async def test_evidence_without_a_plan_or_a_run_is_refused_with_words() -> None:
    records = await recorded(words, named("a"))
    old = [{name: value for name, value in record.items() if name != "plan"} for record in records]
    with pytest.raises(EvidenceError, match="without its plan"):
        lineage(old, item="a")
    with pytest.raises(EvidenceError, match="no run on record"):
        lineage(records[:1], item="a")


def test_misuse_is_told() -> None:
    with pytest.raises(ValueError, match="say whose lineage"):
        lineage([])
    with pytest.raises(ValueError, match="'upstream' or 'downstream'"):
        lineage([], item="a", direction="up")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a path or records"):
        lineage(7, item="a")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        ('{"event":"x","schema":99}\n', "line 1: evidence of schema 99"),
        ("", "no run on record"),
    ],
)
def test_files_that_are_no_evidence_are_refused_with_words(tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "run.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(EvidenceError, match=said):
        lineage(path, item="a")


def read_in_all_ways(path: Path) -> int:
    """How many of the ways gave something; no other error came out of the others than ours."""
    read = 0
    ways: list[Callable[[], object]] = [
        lambda: lineage(path, phase="total"),
        lambda: lineage(path, item="a", direction="downstream"),
        lambda: prov_document(path),
        lambda: list(trace_events(path)),
    ]
    for way in ways:
        try:
            way()
        except EvidenceError:
            continue
        read += 1
    return read


@pytest.mark.parametrize("seed", range(4))
def test_damaged_evidence_is_read_as_far_as_it_goes_or_refused_with_words(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "run.jsonl"
    anyio.run(recorded, words, named("a", "bad"), JsonlSink(path))
    whole = path.read_bytes()
    drawn = random.Random(seed)
    read = 0
    for _ in range(60):
        damaged = bytearray(whole)
        at = drawn.randrange(len(damaged))
        match drawn.randrange(4):
            case 0:
                damaged[at] ^= 1 << drawn.randrange(8)
            case 1:
                del damaged[at:]
            case 2:
                lines = damaged.splitlines(keepends=True)
                lines.insert(drawn.randrange(len(lines)), lines.pop(drawn.randrange(len(lines))))
                damaged = bytearray(b"".join(lines))
            case 3:  # a field less, or of another kind
                lines = damaged.splitlines(keepends=True)
                number = drawn.randrange(len(lines))
                record = json.loads(lines[number])
                record[drawn.choice(list(record))] = drawn.choice([None, 7, "x", [], {}, -1])
                lines[number] = json.dumps(record).encode() + b"\n"
                damaged = bytearray(b"".join(lines))
        path.write_bytes(damaged)
        read += read_in_all_ways(path)
    assert read > 60


@pytest.mark.parametrize("name", ["phase", "level", "inputs", "needs", "expand", "tool"])
async def test_a_plan_that_was_damaged_is_refused_with_words(name: str) -> None:
    records = await recorded(words, named("a"))
    for value in (None, 7, "x", ["y"], [{}], [{"input": "x", "result": "y"}]):
        damaged = json.loads(json.dumps(records))
        damaged[1]["plan"][2][name] = value
        if name == "tool":  # it is the calls' that counts
            assert lineage(damaged, phase="total").calls
            continue
        with contextlib.suppress(EvidenceError):
            lineage(damaged, phase="total")
            prov_document(damaged)
    del damaged[1]["plan"][2][name]
    if name != "expand":
        with pytest.raises(EvidenceError, match="the plan of the run cannot be read"):
            lineage(damaged, phase="total")


# --- the command


@pytest.fixture
def log(tmp_path: Path) -> str:
    path = tmp_path / "run.jsonl"
    anyio.run(recorded, words, named("a", "b"), JsonlSink(path))
    return str(path)


def command(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["evidence", "lineage", *arguments])


def test_the_command_shows_where_an_output_came_from(log: str) -> None:
    result = command(log, "--phase", "counts", "--item", "a")
    assert result.exit_code == 0
    assert "words: counts of a came from" in result.stdout
    assert "item a: name" in result.stdout
    rows = [line for line in result.stdout.splitlines() if "succeeded" in line]
    assert len(rows) == 7
    assert sum("nested in" in row for row in rows) == 2


def test_the_command_shows_what_an_item_reached_as_json(log: str) -> None:
    result = command(log, "--item", "a", "--downstream", "--json")
    found = json.loads(result.stdout)
    assert (found["pipeline"], found["direction"], found["items"]) == ("words", "downstream", {"a": ["name"]})
    assert {"total"} < {call["phase"] for call in found["calls"]}
    assert all("call_id" in call and None not in call.values() for call in found["calls"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--item", "zz"], "no call on record of item 'zz'"),
        ([], "say whose lineage: --item KEY, --phase NAME or both"),
        (["--phase", "nope"], "no phase 'nope'"),
    ],
)
def test_2_where_it_is_not_known_with_the_reason(log: str, arguments: list[str], said: str) -> None:
    result = command(log, *arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stdout == ""


def test_markup_in_names_is_shown_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    anyio.run(recorded, words, named("[red]a[/b]"), JsonlSink(path))
    result = command(str(path), "--item", "[red]a[/b]")
    assert result.exit_code == 0
    assert "[red]a[/b]" in result.stdout


@pytest.mark.parametrize("path", ["", "a\0b", "/"])
def test_what_can_be_no_file_is_refused_with_words(path: str) -> None:
    with pytest.raises(EvidenceError, match="cannot be read from"):
        lineage(path, item="a")
