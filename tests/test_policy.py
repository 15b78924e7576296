"""`Policy`: frozen, checked where it is made, laid over others field by field."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kgas_async import (
    Cache,
    CircuitBreaker,
    ConcurrencyLimit,
    Phase,
    Pipeline,
    Policy,
    Priority,
    RateLimit,
    Retry,
    ServiceManager,
    ToolAdapter,
    current,
    tool,
)
from kgas_async._context import current_call
from kgas_async._policy import DEFAULTS, POLICY_FIELDS, UNSET

LIMIT, RATE = ConcurrencyLimit(2), RateLimit(5)


@tool
async def spare() -> None: ...


seconds = st.none() | st.floats(0, 1e6)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "timeout": seconds,
    "deadline": seconds,
    "grace": seconds,
    "retry": st.none() | st.integers(1, 9) | st.builds(Retry, st.integers(1, 9)),
    "breaker": st.none() | st.integers(1, 9),
    "fallback": st.none(),  # tools and other objects that are shared are equal to themselves alone
    "hedge_after": seconds,
    "cache": seconds,
    "concurrency": st.none() | st.integers(1, 9),
    "rate": st.none() | st.floats(0.001, 1e6),
    "priority": st.none() | st.integers(0, 9) | st.sampled_from(Priority),
    "isolated": st.booleans(),
}
fields = st.fixed_dictionaries({}, optional=FIELDS)
policies = fields.map(lambda given: Policy(**given))


def test_the_strategies_above_know_every_field() -> None:
    assert FIELDS.keys() == set(POLICY_FIELDS) == DEFAULTS.given.keys()


# --- what it refuses


@pytest.mark.parametrize("field", ["timeout", "deadline", "grace", "hedge_after", "cache"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1, -0.001, pytest.param(10**400, id="huge")])
def test_seconds_that_are_no_time_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^Policy\({field}\) must be (a finite number, not .*|at least 0, not )"):
        Policy(**{field: value})


@pytest.mark.parametrize("field", ["timeout", "deadline", "grace", "hedge_after", "cache", "rate"])
@pytest.mark.parametrize("value", ["5", True, [5], 5j, object])
def test_seconds_and_rates_of_another_type_are_refused(field: str, value: Any) -> None:
    with pytest.raises(TypeError, match=rf"^Policy\({field}\)"):
        Policy(**{field: value})


@pytest.mark.parametrize("value", [0, 0.0, -1, math.nan, math.inf, pytest.param(10**400, id="huge")])
def test_a_rate_that_lets_nothing_or_everything_through_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"^Policy\(rate\) must be (a finite number|above 0)"):
        Policy(rate=value)


@pytest.mark.parametrize("field", ["concurrency", "retry"])
@pytest.mark.parametrize(("value", "kind"), [(0, ValueError), (-1, ValueError), (True, TypeError)])
def test_counts_below_one_and_truth_values_are_refused(field: str, value: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=rf"^Policy\({field}\) must be (at least 1|a whole number)"):
        Policy(**{field: value})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"concurrency": 1.5}, r"Policy\(concurrency\) must be a whole number, not 1\.5"),
        ({"concurrency": "2"}, r"Policy\(concurrency\) must be a whole number, not '2'"),
        ({"concurrency": RATE}, r"Policy\(concurrency\) must be a whole number, not RateLimit"),
        (
            {"concurrency": [LIMIT, 3]},
            r"Policy\(concurrency\) as a list takes ConcurrencyLimit, AdaptiveLimit or MemoryLimit objects, not 3",
        ),
        ({"rate": [RATE, LIMIT]}, r"Policy\(rate\) as a list takes RateLimit objects, not ConcurrencyLimit\(2\)"),
        ({"rate": LIMIT}, r"Policy\(rate\) must be a number, not ConcurrencyLimit\(2\)"),
        ({"breaker": 0.5}, r"Policy\(breaker\) is a CircuitBreaker, a number of failures in a row, .* not 0\.5"),
        ({"breaker": False}, r"Policy\(breaker\) is a CircuitBreaker, .* not False"),
        ({"fallback": "spare"}, r"Policy\(fallback\) is a tool or a list of tools, not 'spare'"),
        ({"fallback": [spare, 1]}, r"Policy\(fallback\) is a tool or a list of tools, not 1"),
        ({"retry": 2.5}, r"Policy\(retry\) is a Retry, a number of attempts or None, not 2\.5"),
        ({"retry": ConnectionError}, r"Policy\(retry\) is a Retry, a number of attempts or None"),
        ({"priority": "HIGH"}, r"Policy\(priority\) must be a Priority or a whole number, not 'HIGH'"),
        ({"isolated": None}, r"Policy\(isolated\) must be True or False, not None"),
        ({"isolated": 1}, r"Policy\(isolated\) must be True or False, not 1"),
    ],
)
def test_values_of_another_type_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(TypeError, match=said):
        Policy(**given)


@pytest.mark.parametrize("value", [-1, 10])
def test_a_priority_out_of_range_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match=r"Policy\(priority\) must be from 0 .* to 9"):
        Policy(priority=value)


@pytest.mark.parametrize("given", [{"concurrency": [LIMIT, LIMIT]}, {"rate": [RATE, RATE]}])
def test_a_limit_given_twice_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="names a limit twice"):
        Policy(**given)


@pytest.mark.parametrize(
    ("field", "mend"),
    [
        ("timout", "; did you mean 'timeout'\\?$"),
        ("concurency", "; did you mean 'concurrency'\\?$"),
        ("zzz", "isolated$"),
    ],
)
def test_an_unknown_field_is_refused_with_the_nearest_one(field: str, mend: str) -> None:
    told = f"Policy has no field '{field}'; it has timeout, deadline, retry, .*{mend}"
    with pytest.raises(TypeError, match=told):
        Policy(**{field: 3})  # type: ignore[arg-type]
    with pytest.raises(AttributeError, match=told):
        getattr(Policy(), field)


def test_it_takes_fields_by_name_only() -> None:
    with pytest.raises(TypeError):
        Policy(5)  # type: ignore[call-arg]


# --- what it is


@pytest.mark.parametrize("field", [*POLICY_FIELDS, "other", "_given"])
def test_it_is_frozen(field: str) -> None:
    policy = Policy(timeout=3)
    with pytest.raises(AttributeError, match=r"frozen; lay another one over it: policy.overlaid"):
        setattr(policy, field, 5)
    policy.given["timeout"] = 5
    policy.given.clear()
    assert policy == Policy(timeout=3)


def test_only_fields_that_were_given_count_and_none_is_given() -> None:
    assert Policy().given == {}
    assert Policy(timeout=UNSET, retry=UNSET).given == {}
    assert Policy(timeout=None, concurrency=None).given == {"timeout": None, "concurrency": None}
    assert (Policy().timeout, Policy().isolated, Policy().concurrency) == (None, False, None)
    assert Policy(timeout=None) != Policy()


def test_zero_is_now_and_no_limit_is_none() -> None:
    assert (Policy(timeout=0).timeout, Policy(deadline=0).deadline, Policy(grace=0).grace) == (0, 0, 0)


def test_values_are_kept_in_one_shape() -> None:
    assert Policy(retry=3) == Policy(retry=Retry(3))
    assert Policy(concurrency=LIMIT) == Policy(concurrency=[LIMIT])
    assert Policy(rate=(RATE,)).rate == (RATE,)
    assert type(Policy(timeout=3).timeout) is float


@given(policies, policies)
def test_equal_policies_are_those_that_give_the_same(one: Policy, other: Policy) -> None:
    assert (one == other) == (one.given == other.given)
    assert one == Policy(**one.given)
    assert hash(one) == hash(Policy(**one.given))
    assert one != one.given


def test_what_it_shares_pickles_by_its_arguments() -> None:
    policy = Policy(breaker=CircuitBreaker(3), cache=Cache(60), fallback=[spare, spare.using(name="other", timeout=1)])
    again = pickle.loads(pickle.dumps(policy))
    assert repr(again) == repr(policy)
    assert [one.name for one in again.fallback] == ["spare", "other"]
    assert again.breaker is not policy.breaker
    assert policy.overlaid(Policy(timeout=1)).breaker is policy.breaker


@given(policies)
def test_it_survives_pickling_and_copying_and_prints_as_it_was_made(policy: Policy) -> None:
    for again in (pickle.loads(pickle.dumps(policy)), copy.copy(policy), copy.deepcopy(policy)):
        assert again == policy
        assert again.given == policy.given
    if policy.retry is None:  # which prints the classes that it is about
        assert eval(repr(policy)) == policy


def test_limits_survive_pickling_as_new_ones() -> None:
    again = pickle.loads(pickle.dumps(Policy(concurrency=LIMIT, rate=[RATE, RateLimit(100, per=60, burst=20)])))
    assert [limit.total for limit in again.concurrency] == [2]
    assert [repr(limit) for limit in again.rate] == [repr(RATE), "RateLimit(100, per=60, burst=20)"]
    assert again.concurrency[0] is not LIMIT


# --- laid over each other


@given(fields, fields)
def test_where_both_give_a_field_the_upper_ones_counts(lower: dict[str, Any], upper: dict[str, Any]) -> None:
    below, above = Policy(**lower), Policy(**upper)
    assert below.overlaid(above) == Policy(**{**lower, **upper})
    assert (below, above) == (Policy(**lower), Policy(**upper))


@given(policies, policies, policies)
def test_how_layers_are_grouped_does_not_matter(one: Policy, two: Policy, three: Policy) -> None:
    assert one.overlaid(two).overlaid(three) == one.overlaid(two.overlaid(three))
    assert one.overlaid(one) == one.overlaid(None) == one.overlaid(Policy()) == one
    assert DEFAULTS.overlaid(one).given.keys() == set(POLICY_FIELDS)


def test_what_is_no_policy_cannot_be_laid_over_one() -> None:
    with pytest.raises(TypeError, match=r"is a Policy\(...\), not \{'timeout': 1\}"):
        Policy().overlaid({"timeout": 1})  # type: ignore[arg-type]


@tool(policy=Policy(timeout=50, deadline=60, grace=70, retry=2))
async def looks(x: int = 0) -> dict[str, Any]:
    call: Any = current_call.get()
    return {name: getattr(call.bound.policy, name) for name in ("timeout", "deadline", "grace", "retry", "isolated")}


async def resolved(one: Any, phase: Policy | None) -> dict[str, Any]:
    pipeline = Pipeline("p", Phase("looked", one, policy=phase), item=["x"])
    async with ServiceManager(log=None) as manager:
        report = await manager.run(pipeline, [{"x": 1}], keep="all")
    (outcome,) = report.outcomes
    return dict(outcome.unwrap())


async def test_the_layers_are_defaults_then_tool_then_phase_then_using() -> None:
    own = {"timeout": 50, "deadline": 60, "grace": 70, "retry": Retry(2), "isolated": False}
    assert await resolved(looks, None) == own
    phase = Policy(timeout=5, deadline=None, isolated=True)
    assert await resolved(looks, phase) == {**own, "timeout": 5, "deadline": None, "isolated": True}
    used = looks.using(timeout=None, grace=7)
    assert await resolved(used, phase) == {**own, "timeout": None, "deadline": None, "grace": 7, "isolated": True}
    async with ServiceManager(log=None) as manager:
        assert await manager.execute(used) == {**own, "timeout": None, "grace": 7}
        assert await manager.execute(used.using(timeout=1, deadline=2)) == {
            **own,
            "timeout": 1,
            "deadline": 2,
            "grace": 7,
        }


# --- numbers and objects


async def peak_of(*tools: Any) -> int:
    """How many of these tools' calls run at once."""
    async with ServiceManager(log=None) as manager:
        calls = [manager.submit(one) for one in tools]
        await anyio.wait_all_tasks_blocked()
        running = sum(call.status == "running" for call in calls)
        await manager.cancel()
    return running


@tool
async def forever() -> None:
    await anyio.sleep_forever()


async def other_forever() -> None:
    await anyio.sleep_forever()


async def test_a_number_is_per_name_and_manager_and_an_object_is_shared() -> None:
    limit = ConcurrencyLimit(1)
    other = tool(other_forever)
    assert await peak_of(forever.using(concurrency=1), forever.using(concurrency=1)) == 1
    assert await peak_of(forever.using(concurrency=1), other.using(concurrency=1)) == 2
    assert await peak_of(forever.using(concurrency=1), forever.using(concurrency=1, name="b")) == 2
    assert await peak_of(forever.using(concurrency=limit), other.using(concurrency=[limit])) == 1
    assert await peak_of(forever.using(concurrency=limit), forever.using(concurrency=limit, name="b")) == 1


async def test_a_number_in_another_manager_counts_anew_and_an_object_does_not() -> None:
    limit = ConcurrencyLimit(1)

    async def running_in_two(**policy: Any) -> list[str]:
        async with ServiceManager(log=None) as one, ServiceManager(log=None) as two:
            calls = [one.submit(forever.using(**policy)), two.submit(forever.using(**policy))]
            await anyio.wait_all_tasks_blocked()
            statuses = sorted(call.status for call in calls)
            await one.cancel()
            await two.cancel()
        return statuses

    assert await running_in_two(concurrency=1) == ["running", "running"]
    assert await running_in_two(concurrency=limit) == ["running", "waiting"]


async def test_a_rate_as_a_number_is_shared_by_the_uses_of_a_name_and_as_an_object_by_all() -> None:
    rate = RateLimit(0.001)
    other = tool(other_forever)
    assert await peak_of(forever.using(rate=0.001), forever.using(rate=0.001)) == 1
    assert await peak_of(forever.using(rate=0.001), other.using(rate=0.001)) == 2
    assert await peak_of(forever.using(rate=rate), other.using(rate=[rate])) == 1


async def test_none_takes_a_limit_away() -> None:
    bounded = tool(policy=Policy(concurrency=1, rate=0.001))(other_forever)
    assert await peak_of(bounded, bounded) == 1
    unbounded = bounded.using(concurrency=None, rate=None)
    assert await peak_of(unbounded, unbounded) == 2


async def test_a_policy_on_the_instance_counts_as_the_tools() -> None:
    @tool
    async def asks() -> float | None:
        call: Any = current_call.get()
        assert call.manager is current()
        timeout: float | None = call.bound.timeout
        return timeout

    asks.policy = Policy(timeout=9)
    async with ServiceManager(log=None) as manager:
        assert await manager.execute(asks) == 9
        assert await manager.execute(ToolAdapter(asks, name="around", policy=Policy(timeout=8))) == 8
