"""`load_pipeline`: what the tables of a file make, profiles, settings, variables; and that it runs."""

from __future__ import annotations

import inspect
import json
import tomllib
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from jsonschema import Draft7Validator

from kgas_async import (
    AdaptiveLimit,
    CallTimeout,
    CircuitBreaker,
    ConcurrencyLimit,
    LoadError,
    MemoryLimit,
    Phase,
    Pipeline,
    Policy,
    Priority,
    RateLimit,
    Retry,
    RetryBudget,
    ServiceManager,
    ToolAdapter,
    exponential,
    linear,
    load_pipeline,
)  # fmt: skip
from kgas_async import _toml_tables as tables
from kgas_async._adapter import _OPTIONS
from kgas_async._pipeline_file import built
from kgas_async._toml_checked import schema
from tests import toml_pieces as pieces

from .test_toml_mistakes import CASES, HEAD, P

ROOT = Path(__file__).parent.parent


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mine.toml"


def written(file: Path, text: str) -> Path:
    text = dedent(text).replace("P:", f"{P}:")
    file.write_text(text if "[pipeline]" in text else HEAD + text)
    return file


def policy_of(file: Path, text: str, **given: Any) -> Any:
    """The policy of the first phase."""
    return load_pipeline(written(file, text), **given).phases[0].policy


# --- tables


async def test_a_file_is_a_pipeline_with_all_that_it_needs(file: Path) -> None:
    text = """
        [pipeline]
        name = "sums"
        source = "P:numbers"
        with = { upto = 4 }
        item = ["x"]
        key = "P:name_of"

        [services.store]
        use = "P:Store"
        path = "a.db"
        size = "3"

        [[phase]]
        name = "added"
        tool = "P:Add"
        with = { store = "$store", amount = 10 }

        [[phase]]
        name = "odd"
        tool = "P:double"
        when = "P:is_odd"
        journal = false

        [[phase]]
        name = "sum"
        tool = "P:total"
        bind = { xs = "added" }
        after = "added"
        collect = true
        missing = "ignore"
        """
    pipeline = load_pipeline(written(file, text))
    assert isinstance(pipeline, Pipeline)
    (store,) = pipeline.services
    assert (store.path, store.size) == (Path("a.db"), 3)  # as the constructor wants them
    assert pipeline.source is not None
    async with ServiceManager() as manager:
        report = await manager.run(pipeline, pipeline.source(), keep="all")
    report.raise_for_failures()
    assert report.results["sum"] == 10 + 11 + 12 + 13
    assert [outcome.key for outcome in report.outcomes] == ["item 0", "item 1", "item 2", "item 3"]
    assert store.log == ["started", "stopped"]
    assert list(pipeline.source(2)) == [{"x": 0}, {"x": 1}]  # --input counts before the file
    assert not pipeline.phases[1].is_journaled


async def test_a_batch_and_an_expansion_run(file: Path) -> None:
    text = """
        [[phase]]
        name = "parts"
        tool = "P:upto"
        expand = "part"

        [[phase]]
        name = "less"
        tool = "P:negated"
        bind = { ys = "part" }
        batch = 2
        batch_wait = 0.5

        [[phase]]
        name = "sum"
        tool = "P:total"
        bind = { xs = "less" }
        collect = "part"
        """
    pipeline = load_pipeline(written(file, text))
    async with ServiceManager() as manager:
        report = await manager.run(pipeline, [{"x": 4}], keep="all")
    (outcome,) = report.outcomes
    assert outcome.phases["sum"].value == -6
    assert outcome.phases["twice"].value == 8


def test_limits_of_each_kind_are_shared_by_who_refers_to_them(file: Path) -> None:
    text = """
        policy = { concurrency = ["$gpu", "$ram"], rate = ["$second", "$minute"], breaker = "$server" }
        [[phase]]
        name = "b"
        tool = "P:halve"
        policy = { concurrency = "$found", rate = "$second", breaker = "$few", retry.budget = "$retries" }
        [limits]
        gpu = { concurrency = 2, key = "x", per_key = 1, max_queue = 9 }
        ram = { memory = "4 GiB" }
        found = { adaptive = { min = 1, max = 64, on = ["ConnectionError", "P:NetworkDown"] } }
        second = { rate = 5 }
        minute = { rate = 100, per = 60, burst = 20, cost = "P:cost_of" }
        server = { breaker = { failures = 0.5, window = 60, on = "CallTimeout" } }
        few = { breaker = 3 }
        retries = { budget = { ratio = 0.1 } }
        """
    made = built(str(written(file, text)))
    first, second = (phase.policy for phase in made.pipeline.phases)
    assert first is not None
    assert second is not None
    limits = made.limits
    assert first.concurrency == (limits["gpu"], limits["ram"])
    assert first.rate == (limits["second"], limits["minute"])
    assert second.rate == (limits["second"],)
    assert second.concurrency == (limits["found"],)
    assert first.breaker is limits["server"]
    assert second.retry.budget is limits["retries"]
    kinds = [ConcurrencyLimit, MemoryLimit, AdaptiveLimit, RateLimit, RateLimit, CircuitBreaker, CircuitBreaker]
    assert [type(limit) for limit in limits.values()] == [*kinds, RetryBudget]
    assert repr(limits["ram"]) == f"MemoryLimit({4 << 30})"
    assert limits["minute"].cost is pieces.cost_of
    assert repr(limits["few"]) == "CircuitBreaker(3, recovery=30.0, probes=1)"


def test_each_field_of_a_policy(file: Path) -> None:
    text = """
        [phase.policy]
        timeout = 3
        deadline = 60.5
        concurrency = 4
        rate = 2.5
        priority = "high"
        fallback = ["P:halve"]
        cache = { ttl = 60, max_entries = 5 }
        grace = 1
        isolated = true
        breaker = true
        [phase.policy.retry]
        attempts = 4
        on = ["ConnectionError", "CallTimeout", "P:NetworkDown"]
        wait = { first = 0.5, cap = 5 }
        after = "P:delay_of"
        while_running = true
        """
    policy = policy_of(file, text)
    assert policy.retry == Retry(
        4, (ConnectionError, CallTimeout, pieces.NetworkDown), exponential(0.5, cap=5), after=pieces.delay_of,
        while_running=True,
    )  # fmt: skip
    assert policy.cache.ttl == 60.0
    given = {name: value for name, value in policy.given.items() if name not in ("retry", "cache")}
    assert given == {
        "timeout": 3.0, "deadline": 60.5, "concurrency": 4, "rate": 2.5, "priority": Priority.HIGH,
        "fallback": (pieces.halve,), "grace": 1.0, "isolated": True, "breaker": 5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("wait", "meant"),
    [
        ("2", 2.0),
        ('{ kind = "linear", first = 1, step = 2 }', linear(1, 2)),
        ("{ factor = 3, jitter = 0 }", exponential(factor=3, jitter=0)),
        ('"P:wait_of"', pieces.wait_of),
    ],
)
def test_waits(file: Path, wait: str, meant: object) -> None:
    assert policy_of(file, f"policy.retry.wait = {wait}\n").retry.wait == meant


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        ('tool = "P:plain"', 4),
        ('tool = "P:plain"\nadapter = { returns = "P:is_odd", name = "odd", version = "2", idempotent = true }', False),
        ('tool = "P:any_of"\nadapter.params = "x"', 4),
        ('tool = "P:asked"\nadapter = { inputs = "P:Request", offload = "inline", error_when = "P:refused" }', 40),
        ('tool = "P:legacy"\nadapter = {}', 5),
        ('tool = "P:LegacyCounter"\nadapter.instances = "per_thread"\nadapter.on_cancel = "abandon"', 5),
        ('tool = "P:LegacyCounter"\nwith.step = 3\nadapter = { name = "three" }', 7),
        ('tool = "P:LegacyCounter"\nwith.step = "${KGAS_STEP}"\nadapter = { method = "named", params = ["x"] }',
         {"x": 4, "step": 6}),
        ('tool = "P:legacy.named"\nadapter = { params = ["x"], returns = "P:step_of" }', 1),
        ('tool = "P:double"\nadapter = { name = "twofold", returns = "P:is_odd" }', False),
        ('tool = "kgas_async:ToolAdapter"\nwith.factory = { "$load" = "P:LegacyCounter" }', 5),
    ],
)  # fmt: skip
async def test_what_is_no_tool_is_wrapped_in_the_file(
    file: Path, keys: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KGAS_STEP", "6")
    pipeline = load_pipeline(written(file, f'[[phase]]\nname = "mine"\nbind.x = "x"\n{keys}\n'))
    async with ServiceManager() as manager:
        report = await manager.run(pipeline, [{"x": 4}], keep="all")
    assert report.outcomes[0].phases["mine"].value == value


async def test_errors_that_a_wrapped_function_returns_are_errors(file: Path) -> None:
    text = """
        policy.fallback = "P:plain"
        [[phase]]
        name = "asked"
        tool = "P:asked"
        adapter = { inputs = "P:Request", error_when = "P:refused" }
        """
    async with ServiceManager() as manager:
        report = await manager.run(load_pipeline(written(file, text)), [{"x": 4}, {"x": 6}], keep="all")
    assert [outcome.ok for outcome in report.outcomes] == [True, False]
    assert "too much" in str(report.outcomes[1].error)


async def test_a_function_may_run_in_processes_and_be_used_twice(file: Path) -> None:
    text = """
        [[phase]]
        name = "one"
        tool = "P:plain"
        adapter.offload = "process"
        [[phase]]
        name = "two"
        tool = "P:plain"
        bind.x = "one"
        [[phase]]
        name = "three"
        tool = "P:LegacyCounter"
        with.step = 3
        bind.x = "two"
        adapter = { offload = "process", max_memory = "1 GiB" }
        [profile.small.phase.three]
        tool = "P:plain"
        """
    pipeline = load_pipeline(written(file, text))
    tools = [phase.tool for phase in pipeline.phases[1:]]
    assert [isinstance(tool, ToolAdapter) and tool.offload for tool in tools] == ["process", "thread", "process"]
    assert isinstance(tools[2], ToolAdapter)
    assert tools[2].max_memory == 1 << 30
    async with ServiceManager(processes=1) as manager:
        report = await manager.run(pipeline, [{"x": 4}], keep="all")
    assert report.outcomes[0].phases["three"].value == 7
    three = load_pipeline(file, profile="small").phases[3].tool
    assert isinstance(three, ToolAdapter)
    assert three.offload == "thread"  # the options were for another one


def test_a_source_without_a_signature_may_have_arguments(file: Path) -> None:
    pipeline = load_pipeline(written(file, ""), settings=["pipeline.source=builtins:dict", "pipeline.with.x=3"])
    assert pipeline.source is not None
    assert pipeline.source() == {"x": 3}


def test_codecs_and_keys_are_named(file: Path) -> None:
    text = """
        journal = "P:codec"
        policy.rate = "$hosts"
        [limits.hosts]
        rate = 5
        key = "P:name_of"
        """
    made = built(str(written(file, text)))
    assert made.pipeline.phases[0].codec is pieces.codec
    assert made.limits["hosts"].key is pieces.name_of
    assert load_pipeline(written(file, 'journal = "pickle"\n')).phases[0].codec is not None


def test_none_is_given_over_what_the_tool_has(file: Path) -> None:
    names = ["timeout", "deadline", "retry", "breaker", "concurrency", "rate", "priority", "fallback", "cache"]
    policy = policy_of(file, "".join(f'policy.{name} = "none"\n' for name in names))
    assert policy.given == dict.fromkeys(names)


async def test_a_service_that_no_tool_requires_is_brought_along_too(file: Path) -> None:
    text = """
        [services.plain]
        use = "P:Plain"
        [services.store]
        use = "P:Store"
        path = "x"
        [[phase]]
        name = "b"
        tool = "P:Add"
        with = { store = "$plain" }
        """
    pipeline = load_pipeline(written(file, text))
    plain, store = pipeline.services
    async with ServiceManager() as manager:
        (await manager.run(pipeline, [{"x": 1}])).raise_for_failures()
        assert (plain.entered, store.log) == (1, ["started"])


def test_services_refer_to_others_and_to_limits_in_any_order(file: Path) -> None:
    text = """
        [services.a]
        use = "P:Store"
        path = "a"
        other = { deep = ["$b", "$calls", "$$b", "$$$b", "$5"] }
        [services.b]
        use = "P:Store"
        path = "b"
        other = { "$load" = "P:double" }
        [limits.calls]
        rate = 5
        """
    made = built(str(written(file, text)))
    assert list(made.services) == ["b", "a"] or list(made.services) == ["a", "b"]
    assert made.services["a"].other == {"deep": [made.services["b"], made.limits["calls"], "$b", "$$b", "$5"]}
    assert made.services["b"].other is pieces.double


# --- variables


def test_variables_are_put_in_with_defaults(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KGAS_SECONDS", "2.5")
    monkeypatch.setenv("KGAS_EMPTY", "")
    monkeypatch.delenv("KGAS_NOT_SET", raising=False)
    monkeypatch.setenv("KGAS_DOLLAR", "$store")
    text = """
        policy.timeout = "${KGAS_SECONDS}"
        policy.isolated = "${KGAS_NOT_SET:-true}"
        policy.concurrency = "${KGAS_EMPTY:-4}"
        [services.store]
        use = "${KGAS_NOT_SET:-P:Store}"
        path = "${KGAS_NOT_SET:-/tmp}/${KGAS_SECONDS}"
        size = "${KGAS_NOT_SET:-7}"
        names = ["$${KGAS_SECONDS}", "${KGAS_EMPTY}", "${KGAS_DOLLAR}"]
        """
    pipeline = load_pipeline(written(file, text))
    assert pipeline.phases[0].policy is not None
    assert pipeline.phases[0].policy.given == {"timeout": 2.5, "isolated": True, "concurrency": 4}
    (store,) = pipeline.services
    assert (store.path, store.size) == (Path("/tmp/2.5"), 7)
    assert store.names == ["${KGAS_SECONDS}", "", "$store"]


# --- profiles and settings

PROFILES = """
policy.timeout = 5
policy.retry = { attempts = 3, wait = 1 }
[services.store]
use = "P:Store"
path = "a"
size = 2
[limits.calls]
rate = 5
[profile.fast.phase.twice.policy]
timeout = 1
retry.attempts = 9
[profile.fast.limits.calls]
rate = 50
[profile.test]
services.store = { use = "P:Plain" }
phase.twice = { tool = "P:halve" }
pipeline.name = "tested"
[profile.unset.services.store]
path = "${KGAS_NOT_SET}"
[profile.unset.phase.twice.policy]
timeout = "${KGAS_NOT_SET}"
"""


def test_a_profile_is_laid_over_the_file_key_by_key(file: Path) -> None:
    plain = policy_of(file, PROFILES)
    fast = policy_of(file, PROFILES, profile="fast")
    assert (plain.timeout, plain.retry) == (5.0, Retry(3, wait=1))
    assert (fast.timeout, fast.retry) == (1.0, Retry(9, wait=1))
    assert built(str(file), "fast").limits["calls"].rate == 50.0


def test_another_class_does_not_get_the_arguments_of_the_former(file: Path) -> None:
    pipeline = load_pipeline(written(file, PROFILES), profile="test")
    assert isinstance(pipeline.services[0], pieces.Plain)
    assert (pipeline.name, pipeline.phases[0].tool) == ("tested", pieces.halve)


@pytest.mark.parametrize("how", ["profile", "setting"])
def test_a_limit_of_another_kind_does_not_get_the_keys_of_the_former(file: Path, how: str) -> None:
    text = "[limits.calls]\nrate = 5\nburst = 9\n[profile.few.limits.calls]\nconcurrency = 3\n"
    name, settings = ("few", []) if how == "profile" else (None, ["limits.calls.concurrency=3"])
    made = built(str(written(file, text)), name, settings)
    assert repr(made.limits["calls"]) == "ConcurrencyLimit(3)"


def test_variables_of_other_profiles_need_not_be_set(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KGAS_NOT_SET", raising=False)
    load_pipeline(written(file, PROFILES))
    with pytest.raises(LoadError, match=r"mine.toml:\d+: profile.unset.*KGAS_NOT_SET is not set"):
        load_pipeline(file, profile="unset")
    load_pipeline(file, profile="unset", settings=["services.store.path=x", "phase.twice.policy.timeout=1"])


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("phase.twice.policy.timeout=60", 60.0),
        ("phase.twice.policy.timeout = 0.5", 0.5),
        ('phase.twice.policy."timeout"="none"', None),
        ("phase.twice.policy.timeout=none", None),
    ],
)
def test_settings_are_laid_over_both(file: Path, setting: str, value: object) -> None:
    assert policy_of(file, PROFILES, profile="fast", settings=[setting]).timeout == value


def test_settings_are_values_of_toml_or_bare_texts(file: Path) -> None:
    settings = [
        "services.store.path=b.db", "services.store.size=${KGAS_NOT_SET:-8}", 'services.store.names=["x", "y"]',
        "phase.twice.policy.rate=$calls", "phase.twice.policy.retry={ attempts = 2 }", "limits.calls.burst=3",
    ]  # fmt: skip
    made = built(str(written(file, PROFILES)), None, settings)
    store = made.services["store"]
    assert (store.path, store.size, store.names) == (Path("b.db"), 8, ["x", "y"])
    policy = made.pipeline.phases[0].policy
    assert policy is not None
    assert policy.rate == (made.limits["calls"],)
    assert policy.retry == Retry(2, wait=1)
    assert repr(made.limits["calls"]) == "RateLimit(5, per=1, burst=3)"


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("phase.twice.policy.timeout", "--set phase.twice.policy.timeout: is KEY=VALUE, as in --set phase.embed"),
        ("=3", "--set =3: '' is no key; it is dotted, as in --set phase.embed"),
        ("a b=3", "--set a b=3: 'a b' is no key"),
        ("phase.twise.policy.timeout=3", "there is no phase 'twise' in the file; there are twice; did you mean"),
        ("phases.twice.policy.timeout=3", "phases.twice.policy.timeout=3: is not laid over a file"),
        ("phase.twice.policy.timout=3", "--set phase.twice.policy.timout: is no key of a policy"),
        ("phase.twice.policy.timeout=soon", 'policy.timeout: is a number of seconds, such as 30, not "soon"'),
        ("phase.twice.policy.rate=$call", "--set phase.twice.policy.rate: there is no service or limit 'call'"),
        ("phase.twice.name=b", "the name stays: remove it here"),
        ("phase=3", "--set phase=3: is a table"),
        ("profile.fast.limits.calls.rate=3", "a profile is chosen by --profile NAME"),
        ("services.store.pth=3", "--set services.store.pth: is no argument of tests.toml_pieces:Store"),
        ("services.store.path=${KGAS_NOT_SET}", "--set services.store.path: the environment variable"),
        ("pipeline.with.upto=x", "--set pipeline.with.upto: tests.toml_pieces:numbers: Input should be"),
    ],
)  # fmt: skip
def test_settings_that_are_wrong_are_told(file: Path, setting: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KGAS_NOT_SET", raising=False)
    with pytest.raises(LoadError) as caught:
        load_pipeline(written(file, PROFILES), settings=[setting])
    assert said in str(caught.value)


def test_a_misspelt_profile_is_told_with_the_nearest(file: Path) -> None:
    with pytest.raises(
        LoadError, match=r"'fsat' is no profile of this file; there are fast, test, unset; did you mean"
    ):
        load_pipeline(written(file, PROFILES), profile="fsat")
    with pytest.raises(LoadError, match=r"'fast' is no profile of this file; there is none: add \[profile.NAME"):
        load_pipeline(written(file, ""), profile="fast")


# --- files


def test_a_file_that_is_not_there_is_told_with_the_nearest(file: Path) -> None:
    written(file, "")
    with pytest.raises(LoadError, match=r"there is no file '.*mien.toml' in .*; did you mean '.*mine.toml'"):
        load_pipeline(file.with_name("mien.toml"))
    with pytest.raises(LoadError, match="cannot be read: Is a directory"):
        load_pipeline(file.parent)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", r"mine\.toml: has no \[pipeline\]; begin with"),
        (b'[pipeline]\nname = "p"\n', r"mine\.toml: has no phases; add \[\[phase\]\]"),
        (b'[pipeline]\nname = "\xff"\n', r"mine\.toml:2: is not UTF-8"),
    ],
)
def test_a_file_that_is_no_pipeline(file: Path, content: bytes, said: str) -> None:
    file.write_bytes(content)
    with pytest.raises(LoadError, match=said):
        load_pipeline(file)


def test_numbers_too_large_to_be_read_are_mistakes_too(file: Path) -> None:
    digits = "1" * 5000
    with pytest.raises(LoadError, match=r"mine\.toml:\d+: holds a number of thousands of digits"):
        load_pipeline(written(file, f"policy.concurrency = {digits}\n"))
    with pytest.raises(LoadError, match=r"--set phase\.twice\.batch: holds a number of thousands of digits"):
        load_pipeline(written(file, ""), settings=[f"phase.twice.batch={digits}"])
    with pytest.raises(LoadError, match=r"limits\.much\.memory: is a number of bytes that there can be"):
        load_pipeline(written(file, f'[limits.much]\nmemory = "{"9" * 400} GiB"\n'))


def test_files_of_other_editors_are_read(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf" + HEAD.replace("\n", "\r\n").encode())
    assert load_pipeline(str(file)).name == "p"


def test_several_mistakes_are_told_at_once(file: Path) -> None:
    with pytest.raises(LoadError) as caught:
        load_pipeline(written(file, "batch = 1.5\npolicy.timeout = true\n"))
    assert [line.split(": ")[1] for line in str(caught.value).splitlines()] == [
        "phase.twice.batch",
        "phase.twice.policy.timeout",
    ]


# --- the format and the code

PAIRS: list[tuple[type[tables.Table], Any, set[str]]] = [
    (tables.PhaseTable, Phase, {"with", "adapter"}),
    (tables.PolicyTable, Policy, set()),
    (tables.RetryTable, Retry, set()),
    (tables.BreakerTable, CircuitBreaker, set()),
    (tables.BudgetTable, RetryBudget, set()),
    (tables.AdaptiveTable, AdaptiveLimit, set()),
    (tables.PipelineTable, Pipeline, {"with"}),
]


@pytest.mark.parametrize(("table", "made", "more"), PAIRS, ids=lambda one: getattr(one, "__name__", None))
def test_a_table_has_the_arguments_of_what_it_makes(table: type[tables.Table], made: Any, more: set[str]) -> None:
    keys = {field.alias or name for name, field in table.model_fields.items()}
    known = set(inspect.signature(made.__init__).parameters) - {"self", "phases", "services"}
    assert keys == known | more


def test_an_adapter_has_the_options_of_its_class() -> None:
    assert set(tables.AdapterTable.model_fields) == set(_OPTIONS) - {"factory", "policy"}


@pytest.mark.parametrize(
    ("kind", "made", "called"),
    [
        ("rate", RateLimit, {"rate"}),
        ("concurrency", ConcurrencyLimit, {"total"}),
        ("memory", MemoryLimit, {"max_bytes"}),
    ],
)
def test_a_limit_has_the_arguments_of_its_class(kind: str, made: Any, called: set[str]) -> None:
    known = set(inspect.signature(made.__init__).parameters) - {"self", *called}
    assert set(tables.LIMIT_KINDS[kind]) == known


# --- the schema


def test_the_schema_of_the_docs_is_that_of_the_code() -> None:
    """`kgas-async check --schema > docs/pipeline.schema.json` writes it anew."""
    kept = (ROOT / "docs" / "pipeline.schema.json").read_text(encoding="utf-8")
    assert json.loads(kept) == schema()


def test_the_schema_takes_what_the_code_takes(file: Path) -> None:
    Draft7Validator.check_schema(schema())
    check = Draft7Validator(schema())
    check.validate(tomllib.loads((ROOT / "examples" / "knowledge_graph.toml").read_text(encoding="utf-8")))
    check.validate(tomllib.loads(written(file, PROFILES).read_text()))


@pytest.mark.parametrize("name", [
    "misspelt_table", "other_version", "misspelt_key_of_pipeline", "sources_in_a_list", "misspelt_key_of_limit",
    "limit_of_two_kinds", "limit_of_nothing", "rate_as_text", "phase_without_tool", "misspelt_key_of_phase",
    "misspelt_policy", "timeout_as_text", "misspelt_retry", "misspelt_key_in_a_table", "misspelt_priority",
    "misspelt_policy_of_a_profile", "misspelt_journal",
])  # fmt: skip
def test_an_editor_marks_keys_and_kinds_that_the_code_refuses(name: str, file: Path) -> None:
    (mistake,) = [one.values[0] for one in CASES if one.id == name]
    raw = tomllib.loads(written(file, mistake.text).read_text())
    assert list(Draft7Validator(schema()).iter_errors(raw))
