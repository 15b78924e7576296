"""The store in memory by a model in virtual time; keys; what a cache refuses."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kgas_async import Cache, CacheStore, MemoryStore
from kgas_async._cache import KeyFailed, MemoryCore

MISSING: Any = object()


class Model(RuleBasedStateMachine):
    """Beside a list of all entries, youngest last."""

    @initialize(most=st.integers(1, 4))
    def make(self, most: int) -> None:
        self.core = MemoryCore(most)
        self.most = most
        self.now = 0.0
        self.number = 0
        self.entries: list[tuple[str, float, int]] = []  # key, end, value; last asked for last

    @rule(seconds=st.sampled_from([0.0, 1.0, 4.0, 5.0, 11.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(key=st.sampled_from("abcdef"), ttl=st.sampled_from([None, 1.0, 5.0, 10.0]))
    def keep(self, key: str, ttl: float | None) -> None:
        self.number += 1
        self.core.set(key, self.number, ttl, self.now)
        end = float("inf") if ttl is None else self.now + ttl
        self.entries = [one for one in self.entries if one[0] != key]
        self.entries.append((key, end, self.number))
        del self.entries[: -self.most]

    @rule(key=st.sampled_from("abcdef"))
    def ask(self, key: str) -> None:
        found = next((one for one in self.entries if one[0] == key), None)
        if found is not None:
            self.entries.remove(found)
            if found[1] <= self.now:
                found = None
            else:
                self.entries.append(found)
        assert self.core.get(key, MISSING, self.now) == (MISSING if found is None else found[2])

    @invariant()
    def bounded(self) -> None:
        if hasattr(self, "core"):
            assert len(self.core) == len(self.entries) <= self.most


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_keys_tell_tools_versions_and_inputs_apart() -> None:
    cache = Cache(1)
    keys = [
        cache.key_of(tool, version, inputs)
        for tool in ("a", "a1")
        for version in ("0", "10", "0a")
        for inputs in ({}, {"x": 1}, {"x": "1"}, {"y": 1})
    ]
    assert len(set(keys)) == len(keys)
    assert cache.key_of("a", "0", {"x": 1, "y": 2}) == Cache(5).key_of("a", "0", {"y": 2, "x": 1})


def test_a_key_function_says_what_matters() -> None:
    cache = Cache(1, key=lambda inputs: (inputs["user"].lower(), inputs["page"]))
    assert cache.key_of("a", "0", {"user": "Ann", "page": 1, "client": object()}) == cache.key_of(
        "a", "0", {"user": "ann", "page": 1, "client": object()}
    )


def test_inputs_of_which_no_key_can_be_made_are_told_with_the_mend() -> None:
    with pytest.raises(KeyFailed, match=r"a object has no digest; give Cache\(ttl, key=...\)"):
        Cache(1).key_of("a", "0", {"x": object()})
    with pytest.raises(KeyFailed, match=r"key function gives.*give plain values"):
        Cache(1, key=lambda inputs: object()).key_of("a", "0", {})
    with pytest.raises(KeyFailed, match="KeyError: 'y'"):
        Cache(1, key=lambda inputs: inputs["y"]).key_of("a", "0", {"x": 1})


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Cache(-1), ValueError, "at least 0"),
        (lambda: Cache("1"), TypeError, "must be a number"),  # type: ignore[arg-type]
        (lambda: Cache(1, store={}), TypeError, "async def get"),  # type: ignore[arg-type]
        (lambda: Cache(1, store=MemoryStore), TypeError, "async def get"),  # type: ignore[arg-type]
        (lambda: Cache(1, key="x"), TypeError, "function of the inputs"),  # type: ignore[arg-type]
        (lambda: Cache(1, keys=str), TypeError, "did you mean 'key'"),  # type: ignore[call-arg]
        (lambda: MemoryStore(0), ValueError, "at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_mend(make: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make()


def test_they_print_and_pickle_by_their_arguments() -> None:
    cache = Cache(60, store=MemoryStore(5))
    assert repr(cache) == "Cache(60.0, store=MemoryStore(5))"
    assert repr(pickle.loads(pickle.dumps(cache))) == repr(cache)
    assert isinstance(cache.store, CacheStore)


async def test_the_store_as_users_see_it() -> None:
    store = MemoryStore(2)
    await store.set("a", 1, None)
    await store.set("b", None, 60.0)
    assert await store.get("a", MISSING) == 1
    assert await store.get("b", MISSING) is None
    assert await store.get("c", MISSING) is MISSING
    await store.set("c", 3, 60.0)
    assert await store.get("a", MISSING) is MISSING  # the one not asked for longest
    assert len(store) == 2
    store.clear()
    assert len(store) == 0
