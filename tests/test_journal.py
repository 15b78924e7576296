"""A second run takes what the first one has finished from the journal: each kind of phase, on each event loop."""

from __future__ import annotations

import time
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from pydantic import BaseModel

from kgas_async import (
    CallFailed,
    Journal,
    JournalError,
    KGASTool,
    MemorySink,
    Outcome,
    Phase,
    Pipeline,
    PipelineError,
    Policy,
    RunReport,
    ServiceManager,
    ToolAdapter,
    _journal_writer,
    current,
    tool,
)
from kgas_async._journal_file import JournalFile
from kgas_async._journal_inspect import prune
from kgas_async._journal_writer import JournalWriter

ran: Counter[Any] = Counter()
broken: set[Any] = set()


@pytest.fixture(autouse=True)
def _nothing_ran() -> Iterator[None]:
    ran.clear()
    broken.clear()
    yield
    ran.clear()
    broken.clear()


def note(name: str, value: Any) -> None:
    ran[name, value] += 1
    if (name, value) in broken:
        raise ValueError(f"{name} of {value} is broken")


class Word(BaseModel):
    text: str
    size: int


@dataclass
class Pair:
    left: Word
    right: tuple[int, ...]


@tool
async def word(text: str) -> Word:
    note("word", text)
    return Word(text=text, size=len(text))


@tool
def pair(word: Word) -> Pair:
    note("pair", word.text)
    return Pair(word, tuple(range(word.size)))


@tool
async def sizes(pairs: list[Pair]) -> list[tuple[str, int]]:
    note("sizes", len(pairs))
    return [(one.left.text, len(one.right)) for one in pairs]


LINEAR = Pipeline(
    "linear", Phase("word", word), Phase("pair", pair), Phase("sizes", sizes, bind={"pairs": "pair"}, collect=True),
    item=["text"], key="text",
)  # fmt: skip
TEXTS = ["a", "bb", "ccc"]


def items(*texts: str) -> list[dict[str, str]]:
    return [{"text": text} for text in texts or TEXTS]


async def run(pipeline: Pipeline, path: Any, source: Any = None, **options: Any) -> RunReport:
    async with ServiceManager(log=None) as manager:
        return await manager.run(
            pipeline, items() if source is None else source, journal=path, keep="all", **options
        )  # fmt: skip


def seen(report: RunReport) -> Any:
    """What a user sees of a run: keys, statuses, values."""
    return [(one.key, one.status, one.value) for one in report.outcomes], report.results


async def resumed(pipeline: Pipeline, path: Path, source: Any = None, **options: Any) -> RunReport:
    """Run it twice on one journal, and once without: they say the same, and the second runs nothing."""
    first = await run(pipeline, path, source, **options)
    ran.clear()
    second = await run(pipeline, path, source, **options)
    assert not ran
    without = await run(pipeline, None, source, **options)
    assert seen(first) == seen(second)
    assert [row[1:] for row in seen(second)[0]] == [row[1:] for row in seen(without)[0]]
    assert second.results == without.results
    ran.clear()
    return second


async def test_linear_phases_and_a_collect_per_run(tmp_path: Path) -> None:
    report = await resumed(LINEAR, tmp_path / "run.db")
    assert report.reused == report.succeeded == 3
    assert "(3 from the journal)" in str(report)
    assert report.results == {"sizes": [("a", 1), ("bb", 2), ("ccc", 3)]}
    assert report.outcomes[2].value == Pair(Word(text="ccc", size=3), (0, 1, 2))
    assert [one.status for one in report.outcomes[0].phases.values()] == ["reused", "reused"]


async def test_statistics_and_evidence_say_what_was_reused(tmp_path: Path) -> None:
    await run(LINEAR, tmp_path / "run.db")
    sink = MemorySink()
    async with ServiceManager(log=None, evidence=sink) as manager:
        await manager.run(LINEAR, items(), journal=tmp_path / "run.db")
        statistics = manager.statistics().tools
    assert [statistics[name].reused for name in ("word", "pair", "sizes")] == [3, 3, 1]
    assert sum(one.succeeded for one in statistics.values()) == 0
    ends = [record for record in sink.records if record["event"] == "call.reused"]
    assert [record["phase"] for record in ends if record.get("item") == "a"] == ["word", "pair"]
    assert len(ends) == 7


async def test_only_what_is_new_or_failed_runs(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    broken.add(("pair", "bb"))
    first = await run(LINEAR, path)
    assert (first.succeeded, first.failed) == (2, 1)
    assert first.results == {"sizes": [("a", 1), ("ccc", 3)]}
    broken.clear()
    ran.clear()
    report = await run(LINEAR, path, items("a", "bb", "ccc", "dddd"))
    assert report.ok
    assert ran == {("pair", "bb"): 1, ("word", "dddd"): 1, ("pair", "dddd"): 1, ("sizes", 4): 1}
    assert report.results == {"sizes": [("a", 1), ("bb", 2), ("ccc", 3), ("dddd", 4)]}


async def test_retry_failed_runs_only_what_failed(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    broken.add(("pair", "bb"))
    await run(LINEAR, path)
    broken.clear()
    ran.clear()
    report = await run(LINEAR, path, items("new", "a", "bb"), retry="failed")
    assert [one.status for one in report.outcomes] == ["skipped", "succeeded", "succeeded"]
    assert "is new, and retry='failed'" in str(report.outcomes[0].error)
    assert ran == {("pair", "bb"): 1, ("sizes", 2): 1}


async def test_retry_none_keeps_the_recorded_failure(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    broken.add(("pair", "bb"))
    first = await run(LINEAR, path)
    broken.clear()
    ran.clear()
    report = await run(LINEAR, path, items("a", "bb", "ccc"), retry="none")
    assert not ran  # the collect too had these inputs
    assert seen(report) == seen(first)
    kept = report.outcomes[1]
    assert isinstance(kept.error, CallFailed)
    assert (str(kept.error), kept.failed_phase) == (str(first.outcomes[1].error), "pair")


@tool
async def all_of(values: list[Any]) -> list[Any]:
    note("all_of", len(values))
    return values


@tool
async def statuses(ends: list[Outcome[Any]]) -> list[tuple[str, str, Any, str]]:
    note("statuses", len(ends))
    return [(one.key, one.status, one.value, str(one.error)) for one in ends]


def collecting(missing: Any = "ignore") -> Pipeline:
    """Two branches, each collected on its own and as outcomes."""
    return Pipeline(
        "collecting",
        Phase("left", left),
        Phase("right", right),
        Phase("after_left", right.using(name="after_left"), bind={"text": "left"}),
        *(Phase(f"all_{name}", all_of.using(name=f"all_{name}"), bind={"values": name}, collect=True, missing=missing)
          for name in ("left", "right", "after_left")),
        *(Phase(f"how_{name}", statuses.using(name=f"how_{name}"), bind={"ends": name}, collect=True)
          for name in ("left", "right")),
        item=["text"],
        key="text",
    )  # fmt: skip


@pytest.mark.parametrize("missing", ["ignore", "skip"])
async def test_what_kept_items_have_on_record_is_collected_as_before(tmp_path: Path, missing: Any) -> None:
    path = tmp_path / "run.db"
    broken.add(("right", "bb"))
    first = await run(collecting(missing), path)
    assert first.results["all_left"] == ["a-left", "bb-left", "ccc-left"]
    assert first.missing == {"all_right": 1}
    broken.clear()
    ran.clear()
    second = await run(collecting(missing), path, retry="none")
    assert not ran
    assert (seen(second), second.missing, second.errors.keys()) == (seen(first), first.missing, first.errors.keys())
    assert second.outcomes[1].failed_phase == "right"
    assert {name: one.status for name, one in second.outcomes[1].phases.items()} == {
        "left": "reused", "right": "failed", "after_left": "reused",
    }  # fmt: skip
    assert await run(collecting(missing), path)  # it has not become a success, nor been forgotten
    assert ran["right", "bb"] == 1


@tool
async def summed(vectors: list[tuple[int, ...]]) -> int:
    note("summed", len(vectors))
    return sum(map(sum, vectors))


async def test_what_kept_elements_have_on_record_is_collected_as_before(tmp_path: Path) -> None:
    pipeline = Pipeline(
        "kept elements",
        Phase("letters", letters, expand="letter"),
        Phase("left", left),
        Phase("doubled", doubled),
        Phase("vectors", embedded, bind={"texts": "letter"}, batch=2),
        Phase("told", told, bind={"parts": "doubled"}, collect="letter"),
        Phase("whole", summed, bind={"vectors": "vectors"}, collect="letter"),
        Phase("lefts", all_of.using(name="lefts"), bind={"values": "left"}, collect=True),
        Phase("all_told", all_of.using(name="all_told"), bind={"values": "told"}, collect=True),
        Phase("wholes", all_of.using(name="wholes"), bind={"values": "whole"}, collect=True),
        item=["text"],
        key="text",
    )
    path = tmp_path / "run.db"
    broken.add(("embedded", "e"))
    first = await run(pipeline, path, items("abc", "de", "fg"))
    assert [one.status for one in first.outcomes] == ["succeeded", "failed", "succeeded"]
    broken.clear()
    ran.clear()
    second = await run(pipeline, path, items("abc", "de", "fg"), retry="none")
    assert not ran
    assert (seen(second), second.missing) == (seen(first), first.missing)
    assert second.missing == {"wholes": 1}


async def test_of_kept_items_a_phase_left_out_runs_where_something_takes_it(tmp_path: Path) -> None:
    pipeline = Pipeline(
        "left out",
        Phase("left", left, journal=False),
        Phase("alone", left.using(name="alone"), journal=False),
        Phase("after_left", right.using(name="after_left"), bind={"text": "left"}),
        Phase("right", right),
        Phase("lefts", all_of, bind={"values": "after_left"}, collect=True),
        item=["text"],
        key="text",
    )
    broken.add(("right", "bb"))
    first = await run(pipeline, tmp_path / "run.db")
    ran.clear()
    second = await run(pipeline, tmp_path / "run.db", retry="none")
    assert (seen(second), second.missing) == (seen(first), {})
    assert ran == {("left", "a"): 2, ("left", "bb"): 1, ("left", "ccc"): 2, ("all_of", 3): 1}  # "alone" too, but of bb
    assert "phase 'alone' has nothing on record" in str(second.outcomes[1].phases["alone"].error)


async def test_a_kept_failure_of_a_phase_that_is_gone_stays_one(tmp_path: Path) -> None:
    broken.add(("right", "bb"))
    await run(collecting(), tmp_path / "run.db")
    ran.clear()
    shorter = Pipeline(
        "collecting", Phase("left", left), Phase("all_left", all_of, bind={"values": "left"}, collect=True),
        item=["text"], key="text",
    )  # fmt: skip
    report = await run(shorter, tmp_path / "run.db", retry="none")
    assert [one.status for one in report.outcomes] == ["succeeded", "failed", "succeeded"]
    assert (report.results, report.missing) == ({"all_left": ["a-left", "ccc-left"]}, {"all_left": 1})


@pytest.mark.parametrize("retry", ["failed", "none"])
async def test_retry_without_a_journal_is_misuse(retry: Any) -> None:
    async with ServiceManager(log=None) as manager:
        with pytest.raises(ValueError, match="needs a journal="):
            await manager.run(LINEAR, items(), retry=retry)
        with pytest.raises(ValueError, match="is not known; use 'all', 'failed' or 'none'"):
            await manager.run(LINEAR, items(), journal="x", retry="some")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="the path of a file or a Journal"):
            await manager.run(LINEAR, items(), journal=3)  # type: ignore[arg-type]


async def test_other_inputs_or_another_version_run_again(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    plain = Pipeline("p", Phase("word", word), item=["name", "text"], key="name")
    await run(plain, path, [{"name": "x", "text": "a"}, {"name": "y", "text": "b"}])
    ran.clear()
    report = await run(plain, path, [{"name": "x", "text": "a"}, {"name": "y", "text": "other"}])
    assert report.ok
    assert ran == {("word", "other"): 1}

    newer = Pipeline("p", Phase("word", ToolAdapter(word, version="2", name="word")), item=["name", "text"], key="name")
    ran.clear()
    await run(newer, path, [{"name": "x", "text": "a"}])
    assert ran == {("word", "a"): 1}
    ran.clear()
    await run(newer, path, [{"name": "x", "text": "a"}])
    assert not ran


# --- branches, expansions, batches, collects


@tool
def left(text: str) -> str:
    note("left", text)
    return text + "-left"


@tool
async def right(text: str) -> str:
    note("right", text)
    return text + "-right"


@tool
async def joined(left: str, right: str) -> str:
    note("joined", left)
    return f"{left} {right}"


@tool
async def afterwards() -> str:
    note("afterwards", None)
    return "done"


BRANCHES = Pipeline(
    "branches",
    Phase("left", left),
    Phase("right", right, when=lambda text: text != "bb"),
    Phase("joined", joined),
    Phase("afterwards", afterwards, after="left"),
    item=["text"],
    key="text",
)


async def test_branches_with_when(tmp_path: Path) -> None:
    report = await resumed(BRANCHES, tmp_path / "run.db")
    assert report.outcomes[0].value == {"joined": "a-left a-right", "afterwards": "done"}
    assert report.outcomes[1].phases["right"].status == "skipped"


async def test_what_only_comes_after_runs_where_that_ran(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    await run(BRANCHES, path, items("a"))
    ran.clear()
    other = Pipeline("branches", *(Phase("left", ToolAdapter(left, version="1", name="left")), *BRANCHES.phases[1:]),
                     item=["text"], key="text")  # fmt: skip
    await run(other, path, items("a"))
    assert ran == {("left", "a"): 1, ("afterwards", None): 1}


@tool
def letters(text: str) -> Iterator[str]:
    note("letters", text)
    for letter in text:
        note("letter", (text, letter))
        yield letter


@tool
async def doubled(letter: str) -> tuple[str, str]:
    note("doubled", letter)
    return (letter, letter)


@tool
async def whole(parts: list[tuple[str, str]]) -> str:
    note("whole", len(parts))
    return "".join(one for part in parts for one in part)


@tool
async def count_all(wholes: list[str]) -> int:
    note("count_all", len(wholes))
    return sum(map(len, wholes))


EXPANDED = Pipeline(
    "expanded",
    Phase("letters", letters, expand="letter"),
    Phase("doubled", doubled),
    Phase("whole", whole, bind={"parts": "doubled"}, collect="letter"),
    Phase("all", count_all, bind={"wholes": "whole"}, collect=True),
    item=["text"],
    key="text",
)


async def test_expansions_and_collects_per_parent(tmp_path: Path) -> None:
    report = await resumed(EXPANDED, tmp_path / "run.db", items("abc", "de", ""))
    assert [one.value for one in report.outcomes] == ["aabbcc", "ddee", ""]
    assert report.results == {"all": 10}
    assert [one.key for one in report.outcomes[0].phases["doubled"]] == ["abc/0", "abc/1", "abc/2"]


async def test_an_expansion_that_broke_off_keeps_what_its_elements_gave(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    broken.add(("letter", ("abc", "c")))
    report = await run(EXPANDED, path, items("abc"))
    assert report.failed == 1
    broken.clear()
    ran.clear()
    report = await run(EXPANDED, path, items("abc"))
    assert report.ok
    assert ran["letters", "abc"] == 1
    assert (ran["doubled", "a"], ran["doubled", "b"], ran["doubled", "c"]) == (0, 0, 1)


class Unsized:
    """As a data set that is streamed: it has a length only to say that nobody knows it."""

    def __iter__(self) -> Iterator[str]:
        return iter("ab")

    def __len__(self) -> int:
        raise TypeError("a stream has no length")


@tool
async def streamed(text: str) -> Any:
    note("streamed", text)
    return Unsized()


async def test_elements_that_will_not_say_how_many_they_are(tmp_path: Path) -> None:
    pipeline = Pipeline("p", Phase("streamed", streamed, expand="letter"), Phase("doubled", doubled), key="text")
    report = await resumed(pipeline, tmp_path / "run.db", items("x", "y"))
    assert [one.value for one in report.outcomes] == [[("a", "a"), ("b", "b")]] * 2


@tool
async def words_of(text: str) -> AsyncIterator[str]:
    async def words() -> AsyncIterator[str]:
        note("words_of", text)
        for one in text.split():
            yield one

    return words()


@tool
def letters_of(word: str) -> list[str]:
    note("letters_of", word)
    return list(word)


NESTED = Pipeline(
    "nested",
    Phase("words", words_of, expand="word"),
    Phase("letters", letters_of, expand="letter"),
    Phase("doubled", doubled),
    Phase("per_word", whole, bind={"parts": "doubled"}, collect="letter"),
    item=["text"],
    key="text",
)


async def test_nested_expansions(tmp_path: Path) -> None:
    report = await resumed(NESTED, tmp_path / "run.db", items("ab c", "d ef"))
    assert [one.value for one in report.outcomes] == [["aabb", "cc"], ["dd", "eeff"]]


async def test_the_elements_are_the_value_where_nothing_takes_them(tmp_path: Path) -> None:
    bare = Pipeline("bare", Phase("letters", letters, expand="letter"), item=["text"], key="text")
    report = await resumed(bare, tmp_path / "run.db", items("ab", ""))
    assert [one.value for one in report.outcomes] == [["a", "b"], []]


@tool
async def embedded(texts: list[str]) -> list[tuple[int, ...] | Exception]:
    note("batch", len(texts))
    for text in texts:
        ran["embedded", text] += 1
    return [ValueError("no") if ("embedded", text) in broken else tuple(map(ord, text)) for text in texts]


BATCHED = Pipeline(
    "batched", Phase("vectors", embedded, bind={"texts": "text"}, batch=2), item=["text"], key="text"
)  # fmt: skip


async def test_batches(tmp_path: Path) -> None:
    report = await resumed(BATCHED, tmp_path / "run.db", items("a", "b", "cd"))
    assert [one.value for one in report.outcomes] == [(97,), (98,), (99, 100)]
    assert report.outcomes[0].phases["vectors"].status == "reused"


async def test_only_the_failed_of_a_batch_go_again(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    broken.add(("embedded", "b"))
    await run(BATCHED, path, items("a", "b", "cd"))
    broken.clear()
    ran.clear()
    report = await run(BATCHED, path, items("a", "b", "cd"))
    assert report.ok
    assert ran == {("batch", 1): 1, ("embedded", "b"): 1}


@tool
def pieces(texts: list[str]) -> list[list[str]]:
    note("pieces", len(texts))
    return [list(text) for text in texts]


async def test_a_batch_that_expands_and_one_of_elements(tmp_path: Path) -> None:
    pipeline = Pipeline(
        "batched expansion",
        Phase("pieces", pieces, bind={"texts": "text"}, batch=2, expand="piece"),
        Phase("vectors", embedded, bind={"texts": "piece"}, batch=3),
        item=["text"],
        key="text",
    )
    report = await resumed(pipeline, tmp_path / "run.db", items("ab", "c", "def"))
    assert [one.value for one in report.outcomes] == [[(97,), (98,)], [(99,)], [(100,), (101,), (102,)]]


@tool
async def told(parts: list[Outcome[tuple[str, str]]]) -> str:
    note("told", len(parts))
    return " ".join(one.value[0] if one.value else one.status for one in parts)


async def test_a_collect_of_outcomes(tmp_path: Path) -> None:
    pipeline = Pipeline(
        "told",
        Phase("letters", letters, expand="letter"),
        Phase("doubled", doubled),
        Phase("told", told, bind={"parts": "doubled"}, collect="letter"),
        item=["text"],
        key="text",
    )
    broken.add(("doubled", "b"))
    path = tmp_path / "run.db"
    first = await run(pipeline, path, items("abc"))
    assert first.outcomes[0].value == "a failed c"
    ran.clear()
    second = await run(pipeline, path, items("abc"))
    assert seen(first) == seen(second)
    assert ran == {("doubled", "b"): 1}


@tool
async def live_count(pairs: AsyncIterable[Pair]) -> int:
    note("live", None)
    return len([one async for one in pairs])


async def test_a_live_reader_runs_each_time(tmp_path: Path) -> None:
    pipeline = Pipeline("live", *LINEAR.phases[:2], Phase("live", live_count, bind={"pairs": "pair"}, collect=True),
                        item=["text"], key="text")  # fmt: skip
    for _ in range(2):
        ran.clear()
        report = await run(pipeline, tmp_path / "run.db")
        assert report.results == {"live": 3}
    assert ran == {("live", None): 1}


async def test_a_phase_left_out_runs_each_time(tmp_path: Path) -> None:
    pipeline = Pipeline("partly", Phase("word", word, journal=False), Phase("pair", pair), item=["text"], key="text")
    for _ in range(2):
        ran.clear()
        assert (await run(pipeline, tmp_path / "run.db")).ok
    assert ran == {("word", text): 1 for text in TEXTS}


async def test_streams_resume_too(tmp_path: Path) -> None:
    for turn in range(2):
        ran.clear()
        async with (
            ServiceManager(log=None) as manager,
            manager.stream(LINEAR, items(), journal=tmp_path / "run.db") as outcomes,
        ):
            assert [one.key async for one in outcomes] == TEXTS
        assert bool(ran) == (turn == 0)


async def test_a_stream_that_is_left_early_keeps_what_was_finished(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    async with ServiceManager(log=None) as manager:
        async with manager.stream(LINEAR, items(), journal=path, in_flight=1) as outcomes:
            async for outcome in outcomes:
                assert outcome.ok
                break
        ran.clear()
        report = await manager.run(LINEAR, items(), journal=path)
    assert report.ok
    assert ran["word", "a"] == ran["pair", "a"] == 0


# --- keys


async def test_without_a_key_items_go_by_their_digest(tmp_path: Path) -> None:
    pipeline = Pipeline("digests", Phase("word", word), item=["text"])
    path = tmp_path / "run.db"
    report = await run(pipeline, path, items("a", "bb", "a"))
    keys = [one.key for one in report.outcomes]
    assert keys[2] == f"{keys[0]}#1"
    ran.clear()
    report = await run(pipeline, path, items("new", "bb", "a", "a"))  # in another order, with others
    assert ran == {("word", "new"): 1}
    assert [one.key for one in report.outcomes[1:]] == [keys[1], keys[0], keys[2]]


async def test_an_item_without_a_digest_ends_the_run(tmp_path: Path) -> None:
    pipeline = Pipeline("digests", Phase("word", word), item=["text", "handle"])
    with pytest.raises(JournalError, match=r"item 0 has no digest.*key="):
        await run(pipeline, tmp_path / "run.db", [{"text": "a", "handle": object()}])
    assert not ran


@pytest.mark.parametrize("in_flight", [1, 10])
async def test_a_key_that_repeats_is_an_error_over_the_whole_run(tmp_path: Path, in_flight: int) -> None:
    report = await run(LINEAR, tmp_path / "run.db", items("a", "bb", "a"), in_flight=in_flight)
    assert [one.status for one in report.outcomes] == ["succeeded", "succeeded", "failed"]
    assert isinstance(report.outcomes[2].error, PipelineError)
    assert "keys must differ" in str(report.outcomes[2].error)
    report = await run(LINEAR, tmp_path / "run.db", items("a", "bb"))
    assert report.reused == 2


async def test_a_key_that_repeats_again_is_of_this_run_and_not_in_flight(tmp_path: Path) -> None:
    ended = anyio.Semaphore(1)

    async def one_after_another() -> AsyncIterator[dict[str, str]]:
        for item in items("a", "a", "a"):
            await ended.acquire()
            yield item

    errors = []
    async with (
        ServiceManager(log=None) as manager,
        manager.stream(LINEAR, one_after_another(), journal=tmp_path / "run.db") as outcomes,
    ):
        async for outcome in outcomes:
            errors.append(str(outcome.error))
            ended.release()
    assert [error.partition("has the key 'a' ")[2].partition(";")[0] for error in errors] == [
        "", "of another item of this run", "of another item of this run",
    ]  # fmt: skip


# --- what cannot be kept


@tool
async def made_object(text: str) -> Any:
    return object() if text != "list" else [1]


@tool
async def made_tuple(text: str) -> Any:
    return (1, 2)


@tool
def made_generator(text: str) -> Any:
    return (one for one in text)


@pytest.mark.parametrize("bad", [made_object, made_tuple, made_generator])
async def test_what_cannot_be_kept_is_an_error_at_the_first_item(tmp_path: Path, bad: Any) -> None:
    pipeline = Pipeline("bad", Phase("made", bad), item=["text"], key="text")
    with pytest.raises(
        JournalError, match=rf"phase 'made', tool '{bad.name}'.*Phase\(\.\.\., journal=False\)"
    ) as caught:
        await run(pipeline, tmp_path / "run.db")
    assert caught.value.path == str(tmp_path / "run.db")
    assert caught.value.report.succeeded == 0


@tool
async def takes_object(made: Any) -> int:
    note("takes_object", None)
    return 1


async def test_inputs_without_a_digest_are_an_error_with_the_mend(tmp_path: Path) -> None:
    pipeline = Pipeline("bad", Phase("made", made_object, journal=False), Phase("taken", takes_object), item=["text"])
    with pytest.raises(JournalError, match=r"phase 'taken', tool 'takes_object': by its input 'made'.*journal=False"):
        await run(pipeline, tmp_path / "run.db")
    assert not ran


@dataclass
class Unfinished:
    text: str
    size: int = field(init=False)


async def test_an_input_that_cannot_be_read_is_an_error_with_the_mend(tmp_path: Path) -> None:
    pipeline = Pipeline("bad", Phase("taken", takes_object, bind={"made": "text"}), item=["text"], key=lambda item: "a")
    with pytest.raises(JournalError, match=r"phase 'taken', tool 'takes_object': by its input 'made'.*'size'"):
        await run(pipeline, tmp_path / "run.db", [{"text": Unfinished("a")}])
    assert (await run(pipeline, tmp_path / "run.db", [{"text": 10**5000}])).succeeded == 1


class Unknown:
    pass


@tool
async def made_unknown(text: str) -> Unknown:
    return Unknown()


async def test_an_annotation_without_json_is_refused_before_anything_runs(tmp_path: Path) -> None:
    pipeline = Pipeline("bad", Phase("made", made_unknown), item=["text"])
    with pytest.raises(TypeError, match="phase 'made', tool 'made_unknown': its result cannot be kept"):
        await run(pipeline, tmp_path / "run.db")
    assert not (tmp_path / "run.db").exists()


@tool
async def strange(text: str) -> Any:
    note("strange", text)
    return {"nan": float("nan"), "text": "caf\udce9", "big": 1 << 80, "none": None, "list": [1, 2.5, True]}


async def test_numbers_and_texts_that_json_hardly_knows_come_back(tmp_path: Path) -> None:
    pipeline = Pipeline("strange", Phase("strange", strange), item=["text"])
    first = await run(pipeline, tmp_path / "run.db", items("a"))
    ran.clear()
    second = await run(pipeline, tmp_path / "run.db", items("a"))
    assert not ran
    assert repr(first.outcomes[0].value) == repr(second.outcomes[0].value)


@tool
async def moment(text: str) -> datetime:
    note("moment", text)
    return datetime(2024, 1, 1, tzinfo=UTC)


@tool
async def ratio(text: str) -> float:
    note("ratio", text)
    return 1


@tool
def taken(moment: datetime, ratio: Any) -> str:
    note("taken", None)
    return f"{moment.isoformat()} {ratio!r}"


@tool
def moments(text: str) -> Iterator[datetime]:
    for hour in range(len(text)):
        yield datetime(2024, 1, 1, hour, tzinfo=UTC)


@tool
def hour(moment: datetime) -> int:
    note("hour", moment.hour)
    return moment.hour


async def test_what_comes_back_equal_but_not_the_same_is_handed_on_as_it_comes_back(tmp_path: Path) -> None:
    pipeline = Pipeline(
        "moments", Phase("moment", moment), Phase("ratio", ratio), Phase("taken", taken), item=["text"], key="text"
    )
    first = await run(pipeline, tmp_path / "run.db", items("a"))
    ran.clear()
    second = await run(pipeline, tmp_path / "run.db", items("a"))
    assert not ran  # its inputs have another class of time zone, and 1.0 for 1, in both runs
    assert [one.value for one in first.outcomes] == [one.value for one in second.outcomes]
    expanded = Pipeline("hours", Phase("moments", moments, expand="moment"), Phase("hour", hour), item=["text"])
    for _ in range(2):
        ran.clear()
        await run(expanded, tmp_path / "hours.db", items("abc"))
    assert not ran


class Handle:
    """Known to nobody but pickle."""

    def __init__(self, text: str) -> None:
        self.text = text


@tool
async def handle(text: str) -> Any:
    note("handle", text)
    return Handle(text)


async def test_pickle_only_where_it_is_asked_for(tmp_path: Path) -> None:
    pickled = Pipeline("handles", Phase("handle", handle, journal="pickle"), item=["text"])
    for _ in range(2):
        ran.clear()
        report = await run(pickled, tmp_path / "run.db", items("a"))
        assert report.outcomes[0].value.text == "a"
    assert not ran
    plain = Pipeline("handles", Phase("handle", handle), item=["text"])
    with pytest.raises(JournalError, match="cannot be kept as json"):
        await run(plain, tmp_path / "run.db", items("a"))  # what was pickled is not read
    for _ in range(2):
        ran.clear()
        await run(plain, Journal(tmp_path / "other.db", codec="pickle"), items("a"))
    assert not ran


class Reversed:
    name = "reversed"

    def encode(self, value: Any, /) -> bytes:
        return str(value)[::-1].encode()

    def decode(self, data: bytes, /) -> Any:
        return data.decode()[::-1]


async def test_a_codec_of_ones_own(tmp_path: Path) -> None:
    pipeline = Pipeline("own", Phase("left", left, journal=Reversed()), item=["text"])
    await resumed(pipeline, tmp_path / "run.db")
    numbers = Pipeline(
        "own", Phase("vectors", embedded, batch=1, bind={"texts": "text"}, journal=Reversed()), item=["text"]
    )
    with pytest.raises(JournalError, match="does not come back from reversed as it was"):
        await run(numbers, tmp_path / "run.db")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"codec": "yaml"}, "is not known; use 'json', 'pickle'"),
        ({"codec": Reversed}, "encode"),
        ({"durable": 1}, "durable"),
        ({"on_change": "ask"}, "use 'reuse', 'run' or 'refuse'"),
        ({"durabel": True}, "did you mean|durable"),
    ],
)
def test_a_journal_checks_its_arguments(given: dict[str, Any], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        Journal("run.db", **given)
    with pytest.raises(TypeError, match="the path of a file"):
        Journal("")
    with pytest.raises(ValueError, match="phase 'word': journal='yaml' is not known"):
        Phase("word", word, journal="yaml")  # type: ignore[arg-type]


# --- changed functions


def versioned(body: str) -> Any:
    scope: dict[str, Any] = {"note": note}
    exec(f"async def counted(text: str) -> int:\n    note('counted', text)\n    return {body}", scope)
    return tool(scope["counted"])


def counting(body: str) -> Pipeline:
    return Pipeline("changing", Phase("counted", versioned(body)), item=["text"], key="text")


@pytest.mark.parametrize("on_change", ["reuse", "run", "refuse"])
async def test_a_changed_function_is_noticed_and_said(tmp_path: Path, on_change: Any) -> None:
    path = tmp_path / "run.db"
    await run(counting("len(text)"), path)
    await run(counting("len(text)"), Journal(path, on_change="refuse"))
    ran.clear()
    sink = MemorySink()
    journal = Journal(path, on_change=on_change)
    async with ServiceManager(log=None, evidence=sink) as manager:
        if on_change == "refuse":
            with pytest.raises(JournalError, match="phase 'counted', tool 'counted': its function has changed"):
                await manager.run(counting("len(text) + 1"), items(), journal=journal)
            return
        report = await manager.run(counting("len(text) + 1"), items(), journal=journal, keep="all")
    assert [one.value for one in report.outcomes] == ([1, 2, 3] if on_change == "reuse" else [2, 3, 4])
    assert bool(ran) == (on_change == "run")
    (said,) = [record for record in sink.records if record["event"] == "journal.code_changed"]
    assert (said["phase"], said["tool"], said["reused"]) == ("counted", "counted", on_change == "reuse")
    assert said["changed"] == "code"


class Times(KGASTool):
    def __init__(self, times: int) -> None:
        self.times = times

    async def execute_async(self, *, text: str) -> str:
        note("times", text)
        return text * self.times


@pytest.mark.parametrize("on_change", ["reuse", "run", "refuse"])
async def test_a_tool_that_is_made_with_other_arguments_is_noticed_and_said(tmp_path: Path, on_change: Any) -> None:
    def pipeline(times: int) -> Pipeline:
        return Pipeline("made", Phase("times", Times(times)), item=["text"], key="text")

    path = tmp_path / "run.db"
    await run(pipeline(1), path)
    await run(pipeline(1), Journal(path, on_change="refuse"))
    ran.clear()
    sink = MemorySink()
    journal = Journal(path, on_change=on_change)
    async with ServiceManager(log=None, evidence=sink) as manager:
        if on_change == "refuse":
            with pytest.raises(JournalError, match="tool 'Times': the arguments that it is made with have changed"):
                await manager.run(pipeline(2), items(), journal=journal)
            return
        report = await manager.run(pipeline(2), items(), journal=journal, keep="all")
    assert [one.value for one in report.outcomes] == [text * (1 if on_change == "reuse" else 2) for text in TEXTS]
    (said,) = [record for record in sink.records if record["event"] == "journal.code_changed"]
    assert (said["phase"], said["changed"], said["reused"]) == ("times", "arguments", on_change == "reuse")


async def test_old_values_are_refused_as_long_as_they_are_there(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    changed = counting("len(text) + 1")
    await run(counting("len(text)"), path)
    await run(changed, path)  # it uses the old ones
    with pytest.raises(JournalError, match=r"on_change='run'\), to run it again"):
        await run(changed, Journal(path, on_change="refuse"))
    await run(changed, Journal(path, on_change="run"))
    ran.clear()
    await run(changed, Journal(path, on_change="refuse"))
    assert not ran
    prune(str(path), phase="counted")
    await run(counting("len(text)"), Journal(path, on_change="refuse"))
    assert ran


# --- values of caches, limits, refusals


async def test_two_runs_at_once_on_one_journal_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    async with ServiceManager(log=None) as manager:
        async with manager.stream(LINEAR, items(), journal=path) as outcomes:
            with pytest.raises(JournalError, match="another run, or another program, has it open"):
                await manager.run(LINEAR, items(), journal=path)
            assert [one.ok async for one in outcomes] == [True] * 3
        assert (await manager.run(LINEAR, items(), journal=path)).reused == 3


async def test_another_pipelines_journal_is_refused(tmp_path: Path) -> None:
    await run(LINEAR, tmp_path / "run.db")
    before = (tmp_path / "run.db").read_bytes()
    with pytest.raises(JournalError, match="is of pipeline 'linear', not of 'batched'"):
        await run(BATCHED, tmp_path / "run.db")
    assert (tmp_path / "run.db").read_bytes() == before


async def test_on_error_raise_keeps_what_was_finished(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    broken.add(("pair", "ccc"))
    with pytest.raises(CallFailed):
        await run(LINEAR, path, in_flight=1, on_error="raise")
    broken.clear()
    ran.clear()
    await run(LINEAR, path)
    assert ran == {("pair", "ccc"): 1, ("sizes", 3): 1}


@tool
async def ends_late(x: int) -> int:
    if x > 20:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.05 * (x - 20))  # one is committed while the next one ends
    if x == 20:
        raise ValueError(x)
    return x


async def test_what_ends_after_the_error_of_a_run_has_the_outcome_that_it_came_to(tmp_path: Path) -> None:
    pipeline = Pipeline("late", Phase("ends", ends_late), item=["x"], key="x")
    with pytest.raises(PipelineError, match="1 of 21 items have failed") as caught:
        await run(pipeline, tmp_path / "run.db", [{"x": x} for x in range(24)], on_error=0.0)
    report = caught.value.report
    assert report is not None
    assert (report.total, report.succeeded, report.failed, report.cancelled) == (24, 20, 1, 3)


async def test_a_retried_phase_is_recorded_once_it_succeeds(tmp_path: Path) -> None:
    flaky = ToolAdapter(pair, name="pair", policy=Policy(timeout=5.0))
    pipeline = Pipeline("linear", Phase("word", word), Phase("pair", flaky), item=["text"], key="text")
    await resumed(pipeline, tmp_path / "run.db")


async def test_many_items_through_a_small_window(tmp_path: Path) -> None:
    pipeline = Pipeline("many", Phase("left", left), Phase("right", right), item=["text"], key="text")
    many = items(*(f"t{n}" for n in range(500)))
    await resumed(pipeline, tmp_path / "run.db", many, in_flight=3)


@pytest.mark.parametrize("in_flight", [1, 2])
async def test_a_source_that_waits_for_outcomes_is_served(tmp_path: Path, in_flight: int) -> None:
    for _ in range(2):
        done = anyio.Event()

        async def source() -> AsyncIterator[dict[str, str]]:
            nonlocal done
            for text in TEXTS:
                yield {"text": text}
                await done.wait()
                done = anyio.Event()

        async with (
            ServiceManager(log=None) as manager,
            manager.stream(LINEAR, source(), journal=tmp_path / "run.db", in_flight=in_flight) as outcomes,
        ):
            keys = []
            async for one in outcomes:
                keys.append(one.key)
                done.set()
        assert keys == TEXTS


async def test_what_is_not_written_yet_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_journal_writer, "HIGH_WATER", 40)
    most = 0
    commit, put = JournalFile.commit, JournalWriter.put

    def slowly(self: JournalFile) -> None:
        time.sleep(0.005)
        commit(self)

    def counted(self: JournalWriter, row: Any) -> None:
        nonlocal most
        put(self, row)
        most = max(most, len(self._queue))

    monkeypatch.setattr(JournalFile, "commit", slowly)
    monkeypatch.setattr(JournalWriter, "put", counted)
    report = await run(EXPANDED, tmp_path / "run.db", items("a" * 2000, "b" * 10), in_flight=4)
    assert [len(one.value) for one in report.outcomes] == [4000, 20]
    assert 40 < most < 80
    ran.clear()
    assert (await run(EXPANDED, tmp_path / "run.db", items("a" * 2000, "b" * 10))).reused == 2
    assert not ran


@pytest.mark.unwatched  # what watches keeps each call
async def test_memory_does_not_grow_with_the_items(tmp_path: Path) -> None:
    pipeline = Pipeline("many", Phase("left", left), item=["text"])
    peaks = []
    async with ServiceManager(log=None) as manager:
        for count in (200, 2000):
            tracemalloc.start()
            path = tmp_path / f"{count}.db"
            report = await manager.run(pipeline, ({"text": f"{n}"} for n in range(count)), journal=path, in_flight=10)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            ran.clear()
            assert report.succeeded == count
    assert peaks[1] < 3 * peaks[0]


async def test_items_that_only_run_level_phases_take(tmp_path: Path) -> None:
    @tool
    async def longest(texts: list[str]) -> int:
        note("longest", len(texts))
        return max(map(len, texts))

    pipeline = Pipeline("fields", Phase("longest", longest, bind={"texts": "text"}, collect=True), item=["text"])
    report = await resumed(pipeline, tmp_path / "run.db")
    assert report.results == {"longest": 3}
    ran.clear()
    assert (await run(pipeline, tmp_path / "run.db", items("aaaa"))).results == {"longest": 4}
    assert ran == {("longest", 1): 1}
    left_early = tmp_path / "other.db"
    async with ServiceManager(log=None) as manager, manager.stream(pipeline, items(), journal=left_early) as outcomes:
        await anext(aiter(outcomes))


async def test_a_manager_that_blocks_has_journals_too(tmp_path: Path) -> None:
    def block() -> list[int]:
        with ServiceManager(log=None).blocking() as manager:
            reports = [manager.run(LINEAR, items(), journal=tmp_path / "run.db") for _ in range(2)]
            with manager.stream(LINEAR, items(), journal=tmp_path / "run.db") as outcomes:
                assert [one.key for one in outcomes] == TEXTS
        return [report.reused for report in reports]

    assert await anyio.to_thread.run_sync(block) == [0, 3]


async def test_a_run_inside_a_tool_has_its_own_journal(tmp_path: Path) -> None:
    @tool
    async def nested(text: str) -> int:
        report = await current().run(LINEAR, items(text, text + "x"), journal=tmp_path / f"{text}.db")
        return int(report.reused)

    outer = Pipeline("outer", Phase("nested", nested, journal=False), item=["text"])
    for wanted in (0, 2):
        report = await run(outer, tmp_path / "outer.db")
        assert [one.value for one in report.outcomes] == [wanted] * 3
