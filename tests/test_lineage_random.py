"""What lineage says of random pipelines is what their values themselves tell: each carries all that it came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import anyio
import pytest
from hypothesis import given

from kgas_async import MemorySink, Outcome, ServiceManager
from kgas_async._context import current_call
from kgas_async._lineage import Lineage, lineage
from kgas_async._reading import ENDS
from kgas_async.testing import virtual_backend

from . import random_pipelines
from .random_declarations import declarations, items
from .random_pipelines import Declaration, Log, Step, pipeline_of
from .test_random_pipelines import BACKENDS, EXAMPLES, HOW, How, hows, in_flight_of, settings, source_of

Made = tuple[str, int]  # the call that made it, and of a batch which of its results it is


class Told(int):
    """A number that knows what it came from: calls, and fields of items."""

    calls: frozenset[Made]
    fields: frozenset[tuple[str, str]]


def told(value: Any, calls: Iterable[Made] = (), fields: Iterable[tuple[str, str]] = ()) -> Any:
    if type(value) is not int:
        return value
    number = Told(value)
    number.calls, number.fields = frozenset(calls), frozenset(fields)
    return number


def within(value: Any) -> Iterator[Told]:
    if isinstance(value, Outcome):
        value = value.value
    if isinstance(value, Told):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from within(one)


class Values:
    """Has the tools of random pipelines give numbers that know what they came from."""

    def __init__(self) -> None:
        self.of: dict[Made, tuple[frozenset[Made], frozenset[tuple[str, str]]]] = {}
        self.rows: Counter[str] = Counter()
        self.empty: set[Made] = set()  # the list of their elements tells nothing, where one takes it
        self._applied = random_pipelines.applied

    def applied(self, step: Step, inputs: Mapping[str, Any], rarity: int) -> Any:
        call = current_call.get()
        assert call is not None
        made = (call.id, self.rows[call.id])
        self.rows[call.id] += 1
        sources = [one for value in inputs.values() for one in within(value)]
        calls = frozenset().union({made}, *(one.calls for one in sources))
        fields = frozenset[tuple[str, str]]().union(*(one.fields for one in sources))
        result = self._applied(step, inputs, rarity)
        self.of[made] = calls, fields
        if isinstance(result, int):
            return told(result, calls, fields)
        self.empty.add(made)
        elements = self._elements(result, made, calls, fields)
        return list(elements) if isinstance(result, list) else elements

    def _elements(self, result: Any, made: Made, calls: Any, fields: Any) -> Iterator[Any]:
        for one in result:
            self.empty.discard(made)
            yield told(one, calls, fields)


def known_items(found: list[Any]) -> list[Any]:
    # Not `w`, which is checked to be an int, and given to the tool as a plain one.
    return [
        {name: value if name == "w" else told(value, (), {(str(index), name)}) for name, value in item.items()}
        if isinstance(item, dict) else item
        for index, item in enumerate(found)
    ]  # fmt: skip


def records_of(backend: str, declaration: Declaration, found: list[Any], how: How) -> list[dict[str, Any]]:
    sink = MemorySink()

    async def main() -> None:
        async with ServiceManager(evidence=sink, log=None, threads=2) as manager:
            await manager.run(
                pipeline_of(declaration, Log()), source_of(found, how), in_flight=in_flight_of(declaration, how)
            )

    library, options = virtual_backend(backend, how.seed)
    anyio.run(main, backend=library, backend_options=options)
    return sink.records


def ids(found: Lineage) -> set[str]:
    batches = {call.batch_id for call in found.calls}
    return {call.call_id for call in found.calls if call.call_id not in batches}


def sees_outcomes(declaration: Declaration) -> bool:
    return any(step.outcomes for step in declaration.steps)


def check_upstream(values: Values, records: list[dict[str, Any]], exact: bool) -> dict[str, set[str]]:
    ends = [record for record in records if record["event"] in ENDS]
    batches = {record["batch_id"] for record in ends if "batch_id" in record}
    on_record = {record["item"].partition("/")[0] for record in records if "item" in record}
    rows: Counter[str] = Counter()
    call_of: dict[Made, str] = {}
    for end in ends:
        made = end.get("batch_id", end["call_id"])
        call_of[made, rows[made]] = end["call_id"]
        rows[made] += "batch_id" in end
    made_by = {call_id: made for made, call_id in call_of.items() if call_id not in batches}
    upstream: dict[str, set[str]] = {}
    for end in ends:
        call_id = end["call_id"]
        if call_id in batches or (end.get("item") is None and "batch_size" in end):
            continue
        found = lineage(records, item=end.get("item"), phase=end["phase"])
        upstream[call_id] = ids(found)
        if end["status"] != "succeeded":
            continue
        calls, came = values.of[made_by[call_id]]
        wanted = {call_of[one] for one in calls}
        taken = {(key, name) for key, names in found.items.items() for name in names if name != "w"}
        mute = {call_of[one] for one in values.empty if one in call_of} & ids(found)
        wanted.update(*(upstream[one] for one in mute))
        assert wanted == ids(found) if exact else wanted <= ids(found), end
        if mute:
            continue
        fields = {one for one in came if one[0] in on_record}  # an item that no phase of its own has taken is not
        sure = {one for one in taken if one[1] != "z"}  # nor does it say whether an item has its optional field
        assert sure <= fields <= taken if exact else fields <= taken, end
    return upstream


@settings(HOW, max_examples=EXAMPLES // 3)
@given(declaration=declarations(), found=items(), how=hows())
def test_lineage_is_what_the_values_came_from(declaration: Declaration, found: list[Any], how: How) -> None:
    for backend in BACKENDS:
        values = Values()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(random_pipelines, "applied", values.applied)
            records = records_of(backend, declaration, known_items(found), how)
        upstream = check_upstream(values, records, not sees_outcomes(declaration))
        for end in [record for record in records if record.get("call_id") in upstream and record["event"] in ENDS]:
            reached = ids(lineage(records, item=end.get("item"), phase=end["phase"], direction="downstream"))
            assert reached == {other for other, came in upstream.items() if end["call_id"] in came}, end
