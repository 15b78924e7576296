"""The tables of a TOML pipeline and their keys: what may stand where. The editors' JSON schema is made of the same.

Knows the format; what the values name is looked up by `_toml_build`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, TypeAlias

from pydantic import ConfigDict, Field, model_validator

from ._suggest import nearest
from ._toml_table import (
    AMOUNT,
    COUNT_FIELD,
    ERRORS,
    FLAG_FIELD,
    KEY,
    NOT_GIVEN,
    SECONDS,
    TARGET_FIELD,
    TEXT_FIELD,
    Table,
    at_key,
)  # fmt: skip
from ._toml_top import LIMIT_KINDS, VERSION
from ._toml_values import (
    COUNT,
    FLAG,
    NONE,
    NUMBER,
    REFERENCE,
    TARGET,
    TEXT,
    TableOr,
    Value,
    count,
    either,
    fields_or_target,
    flag,
    is_flag,
    is_number,
    is_text,
    name_or_names,
    number,
    one_of,
    or_none,
    references,
    several,
    size,
    target,
    targets,
    wrong,
)  # fmt: skip
from ._toml_words import Reference

__all__ = [
    "AdapterTable", "AdaptiveTable", "BreakerTable", "BudgetTable", "CacheTable", "FileTables", "LimitTable",
    "PhaseTable", "PipelineTable", "PolicyTable", "RetryTable", "Table", "WaitTable",
]  # fmt: skip

PRIORITIES: Final = ("low", "normal", "high", "critical")


_SIZE: Final = Value(size, {"anyOf": [COUNT, TEXT]})


def _words(*words: str) -> Value:
    return Value(one_of(*words), {"enum": [*words]})


def _budget_or(value: Any) -> Reference:
    if not isinstance(value, Reference):
        raise wrong('a table, or "$name" of a budget in [limits]', value)
    return value


class PipelineTable(Table):
    """What runs over what: `[pipeline]`."""

    what = "pipeline"
    hint = "; a source's arguments stand in with = { ... }"
    name: TEXT_FIELD = Field(description='the pipeline\'s name, as in name = "papers"')
    source: TARGET_FIELD = Field(None, description="The function that gives the items: module:function.")
    with_: dict[str, Any] = Field({}, alias="with", description="The source's arguments.")
    item: Annotated[Any, Value(fields_or_target, {"anyOf": [several(TEXT)["anyOf"][1], TARGET]})] = Field(
        None, description="The item's fields: a list of names, or module:Class."
    )
    key: KEY = Field(None, description="What names an item: a field, or module:function.")


class ServiceTable(Table):
    """What tools use while a session lasts: `[services.NAME]`; all keys but `use` are its arguments."""

    model_config = ConfigDict(extra="allow")
    what = "service"
    use: TARGET_FIELD = Field(description='which class it is, as in use = "module:Class"')


class AdaptiveTable(Table):
    """An `AdaptiveLimit`."""

    what = "adaptive limit"
    min: COUNT_FIELD = Field(description="the fewest calls at once, as in min = 1")
    max: COUNT_FIELD = Field(description="the most calls at once, as in max = 64")
    initial: COUNT_FIELD = Field(None, description="What it begins with.")
    on: ERRORS = Field(None, description="Errors by which the server says that it is overloaded.")


class BreakerTable(Table):
    """A `CircuitBreaker`."""

    what = "breaker"
    failures: AMOUNT = Field(None, description="How many failures open it, or which share of the results.")
    recovery: SECONDS = Field(None, description="Seconds until it is tried again.")
    probes: COUNT_FIELD = Field(None, description="How many calls are let through then.")
    window: SECONDS = Field(None, description="Only results of the last so many seconds count.")
    calls: COUNT_FIELD = Field(None, description="Only the last so many results count.")
    least: COUNT_FIELD = Field(None, description="How many results a share needs.")
    slow: SECONDS = Field(None, description="A call that ran longer counts as a failure.")
    on: ERRORS = Field(None, description="Which errors are failures.")
    name: TEXT_FIELD = Field(None, description="What evidence calls it.")


class BudgetTable(Table):
    """A `RetryBudget`."""

    what = "budget"
    ratio: AMOUNT = Field(None, description="Retries per call, from 0 to 1.")
    min_per_s: AMOUNT = Field(None, description="Retries per second that there are in any case.")
    window: SECONDS = Field(None, description="Seconds over which they are counted.")


def _whole_or_share(value: Any) -> Any:
    return number("a number of failures, or a share of the results")(value)


_BREAKER: TypeAlias = Annotated[Any, TableOr(BreakerTable, _whole_or_share, NUMBER)]


class LimitTable(Table):
    """What policies share: `[limits.NAME]`; one of rate, concurrency, adaptive, memory, breaker and budget."""

    what = "limit"
    rate: AMOUNT = Field(None, description="Starts per `per` seconds: a RateLimit.")
    per: SECONDS = Field(None, description="Seconds that `rate` is for; 1 unless given.")
    burst: AMOUNT = Field(None, description="Starts at once after a pause.")
    cost: TARGET_FIELD = Field(None, description="A function of the inputs that gives a call's tokens.")
    key: KEY = Field(None, description="What is counted apart: an input, or module:function.")
    concurrency: COUNT_FIELD = Field(None, description="Calls at once: a ConcurrencyLimit.")
    per_key: COUNT_FIELD = Field(None, description="Calls at once of each key.")
    max_queue: COUNT_FIELD = Field(None, description="How many calls may wait.")
    adaptive: AdaptiveTable = Field(NOT_GIVEN, description="Calls at once, found out: an AdaptiveLimit.")
    memory: Annotated[Any, _SIZE] = Field(
        None, description='Bytes, or "4 GiB", above which no call begins: a MemoryLimit.'
    )
    breaker: _BREAKER = Field(None, description="Failures that open it, or a table: a CircuitBreaker.")
    budget: BudgetTable = Field(NOT_GIVEN, description="How many retries there may be: a RetryBudget.")

    @model_validator(mode="after")
    def _check_one_kind(self) -> LimitTable:
        kinds = [kind for kind in LIMIT_KINDS if kind in self.model_fields_set]
        if len(kinds) != 1:
            known = ", ".join(LIMIT_KINDS)
            if not kinds:
                raise ValueError(f"says not what it limits; give one of {known}, as in rate = 50")
            raise at_key(
                kinds[1], f"is one limit too many beside {kinds[0]}; each has a table of its own: [limits.NAME]"
            )
        for key in self.given():
            if key != kinds[0] and key not in LIMIT_KINDS[kinds[0]]:
                of = [kind for kind, keys in LIMIT_KINDS.items() if key in keys]
                raise at_key(key, f"belongs to {' or '.join(of)}, not to {kinds[0]}; remove it")
        return self


class WaitTable(Table):
    """Waits that grow: `exponential` or `linear`."""

    what = "wait"
    kind: Annotated[Any, _words("exponential", "linear")] = Field("exponential", description="How they grow.")
    first: SECONDS = Field(None, description="Seconds before the first retry.")
    factor: AMOUNT = Field(None, description="exponential: by what each next one is longer.")
    step: SECONDS = Field(None, description="linear: seconds by which each next one is longer.")
    cap: SECONDS = Field(None, description="The longest one.")
    jitter: AMOUNT = Field(None, description="The share of each that is drawn at random.")

    @model_validator(mode="after")
    def _check_kind(self) -> WaitTable:
        other = "step" if self.kind == "exponential" else "factor"
        if other in self.model_fields_set:
            kind = "linear" if other == "step" else "exponential"
            raise at_key(other, f'belongs to kind = "{kind}"')
        return self


class RetryTable(Table):
    """A `Retry`."""

    what = "retry"
    attempts: COUNT_FIELD = Field(None, description="At the most, the first included.")
    on: ERRORS = Field(None, description='Errors that are tried again: "ConnectionError", "module:Class", or a list.')
    wait: Annotated[Any, TableOr(WaitTable, either(target, number(), is_text), {"anyOf": [NUMBER, TARGET]})] = Field(
        None, description="Seconds between attempts, a table, or module:function of the attempt's number."
    )
    after: TARGET_FIELD = Field(None, description="A function that takes the delay from the error.")
    while_running: FLAG_FIELD = Field(None, description="Also while an abandoned attempt still runs.")
    budget: Annotated[Any, TableOr(BudgetTable, _budget_or, REFERENCE)] = Field(
        None, description='How many retries there may be: "$name", or a table.'
    )


class CacheTable(Table):
    """A `Cache` in memory."""

    what = "cache"
    ttl: Annotated[Any, or_none(number(), NUMBER)] = Field(
        description='for how many seconds, as in ttl = 60, or "none": for good'
    )
    max_entries: COUNT_FIELD = Field(None, description="How many results are kept.")
    key: TARGET_FIELD = Field(None, description="A function of the inputs.")


def _breaker(value: Any) -> Any:
    if isinstance(value, Reference):
        return value
    if is_flag(value):
        return flag(value) or _refuse_false()
    return count(value) if is_number(value) else references("a number of failures, true, a table")(value)[0]


def _refuse_false() -> bool:
    raise ValueError('is a number of failures, true, a table or "$name"; "none" is no breaker')


def _priority(value: Any) -> Any:
    return one_of(*PRIORITIES)(value) if is_text(value) and value in PRIORITIES else _priority_count(value)


def _priority_count(value: Any) -> int:
    if not is_number(value):
        known = nearest(value, PRIORITIES)
        raise wrong(f"one of {', '.join(PRIORITIES)}, or a whole number from 0 to 9", value, known)
    return count(value)


_NUMBER_OR_NONE: TypeAlias = Annotated[Any, or_none(number(), NUMBER)]
_NONE: Final = {"const": NONE}


class PolicyTable(Table):
    """How a phase's calls are bounded and repeated, laid over the tool's own policy; `"none"` is none."""

    what = "policy"
    elsewhere: ClassVar[Mapping[str, str]] = {name: f"retry.{name}" for name in RetryTable.model_fields}
    timeout: _NUMBER_OR_NONE = Field(None, description="Seconds per attempt.")
    deadline: _NUMBER_OR_NONE = Field(None, description="Seconds for a whole call.")
    retry: Annotated[Any, TableOr(RetryTable, lambda v: None if v == NONE else count(v), {"anyOf": [COUNT, _NONE]})] = (
        Field(None, description="A number of attempts, or a table.")
    )
    breaker: Annotated[
        Any,
        TableOr(BreakerTable, lambda v: None if v == NONE else _breaker(v), {"anyOf": [COUNT, FLAG, REFERENCE, _NONE]}),
    ] = Field(None, description='Failures in a row, true, "$name" or a table.')
    concurrency: Annotated[
        Any, or_none(either(count, references("a whole number"), is_number), {"anyOf": [COUNT, several(REFERENCE)]})
    ] = Field(None, description='Calls at once: a number, "$name" or a list of those.')
    rate: Annotated[
        Any,
        or_none(
            either(number("a number"), references("a number of starts per second"), is_number),
            {"anyOf": [NUMBER, several(REFERENCE)]},
        ),
    ] = Field(None, description='Starts per second: a number, "$name" or a list of those.')
    priority: Annotated[Any, or_none(_priority, {"anyOf": [COUNT, {"enum": list(PRIORITIES)}]})] = Field(
        None, description="Whose turn it is: low, normal, high, critical, or 0 to 9."
    )
    fallback: Annotated[Any, or_none(targets, several(TARGET))] = Field(
        None, description="Tools that are called when the last attempt has failed."
    )
    hedge_after: _NUMBER_OR_NONE = Field(None, description="Seconds until a second attempt is started.")
    cache: Annotated[
        Any, TableOr(CacheTable, lambda v: None if v == NONE else number()(v), {"anyOf": [NUMBER, _NONE]})
    ] = Field(None, description="Seconds for which results are used again, or a table.")
    grace: _NUMBER_OR_NONE = Field(None, description="Seconds that a cancelled call has to end.")
    isolated: FLAG_FIELD = Field(None, description="A task of its own for each call.")


def _collect(value: Any) -> Any:
    if is_flag(value):
        if not flag(value):
            raise ValueError("is the name of an expansion, or true for once per run, not false; leave it out")
        return True
    if not is_text(value) or not value:
        raise wrong("the name of an expansion, or true for once per run", value)
    return str(value)


def _journal(value: Any) -> Any:
    if is_flag(value):
        return flag(value)
    if value in ("json", "pickle"):
        return str(value)
    if is_text(value) and ":" in value:
        return target(value)
    raise wrong('true, false, "json", "pickle" or "module:codec"', value, nearest(value, ("json", "pickle")))


class AdapterTable(Table):
    """How a `ToolAdapter` calls what is no tool: a function, an object, or a class of which it makes objects."""

    what = "adapter"
    hint = "; a class's arguments stand in with = { ... }"
    elsewhere: ClassVar[Mapping[str, str]] = {name: f"policy.{name}" for name in PolicyTable.model_fields}
    method: TEXT_FIELD = Field(None, description="Which method is called; execute unless given.")
    params: Annotated[Any, Value(name_or_names, several(TEXT))] = Field(
        None, description="The names of the inputs, of what takes **kwargs."
    )
    inputs: TARGET_FIELD = Field(None, description="A pydantic model: the method gets one object of it.")
    returns: TARGET_FIELD = Field(None, description="A function of the result that gives the value.")
    error_when: TARGET_FIELD = Field(None, description="A function of the result that gives an error, or none.")
    offload: Annotated[Any, _words("thread", "process", "inline")] = Field(None, description="Where it runs.")
    on_cancel: Annotated[Any, _words("wait", "abandon", "kill")] = Field(
        None,
        description="What becomes of a cancelled call: wait or abandon in threads, kill or wait in processes.",
    )
    max_memory: Annotated[Any, _SIZE] = Field(None, description='Of a call in a process: bytes, or "4 GiB".')
    instances: Annotated[Any, _words("shared", "serial", "per_thread", "dedicated")] = Field(
        None, description="How many objects there are, and who calls them."
    )
    name: TEXT_FIELD = Field(None, description="The tool's name; that of the function or class unless given.")
    version: TEXT_FIELD = Field(None, description="The tool's version.")
    description: TEXT_FIELD = Field(None, description="What it does.")
    idempotent: FLAG_FIELD = Field(None, description="Whether two calls do no more than one.")
    backend: Annotated[Any, _words("asyncio", "trio")] = Field(None, description="Where it runs if it is called alone.")


class PhaseTable(Table):
    """One step: `[[phase]]`."""

    what = "phase"
    elsewhere: ClassVar[Mapping[str, str]] = {name: f"adapter.{name}" for name in AdapterTable.model_fields} | {
        name: f"policy.{name}" for name in PolicyTable.model_fields
    }
    name: TEXT_FIELD = Field(description="its name; other phases bind its result by it")
    tool: TARGET_FIELD = Field(description='what runs, as in tool = "module:attribute"')
    with_: dict[str, Any] = Field({}, alias="with", description="The arguments of what is a class.")
    adapter: AdapterTable = Field(NOT_GIVEN, description="How what is no tool is called: a ToolAdapter's options.")
    bind: dict[str, TEXT_FIELD] = Field({}, description="Inputs whose source has another name.")
    after: Annotated[Any, Value(name_or_names, several(TEXT))] = Field(
        None, description="Phases that must have ended before."
    )
    expand: TEXT_FIELD = Field(None, description="The name of one element of the result.")
    collect: Annotated[Any, Value(_collect, {"anyOf": [TEXT, {"const": True}]})] = Field(
        None, description="An expansion's name: once per parent; true: once per run."
    )
    missing: Annotated[Any, _words("skip", "ignore")] = Field(
        None, description="What a collect does about failed inputs."
    )
    when: TARGET_FIELD = Field(None, description="A function of the inputs: whether it runs.")
    batch: COUNT_FIELD = Field(None, description="Items in one call.")
    batch_wait: SECONDS = Field(None, description="Seconds that a batch waits for more.")
    journal: Annotated[Any, Value(_journal, {"anyOf": [FLAG, {"enum": ["json", "pickle"]}, TARGET]})] = Field(
        None, description="How its values are kept in a journal; false: not."
    )
    policy: PolicyTable = Field(NOT_GIVEN, description="Laid over the tool's own policy.")


class FileTables(Table):
    """A pipeline in a file, for `kgas-async run`."""

    what = "pipeline's file"
    version: Annotated[Any, Value(count, {"const": VERSION})] = Field(VERSION, description=f"Of the format: {VERSION}.")
    pipeline: PipelineTable = Field(description="what runs over what")
    services: dict[str, ServiceTable] = Field({}, description="What tools use while a session lasts.")
    limits: dict[str, LimitTable] = Field({}, description="What policies share.")
    phase: list[PhaseTable] = Field(description="the steps")
