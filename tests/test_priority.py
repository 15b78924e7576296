"""Who is next among those who wait: two kinds of lines against plain lists, and the bound on being passed over."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kgas_async import Priority
from kgas_async._keyed import NO_KEY, KeyedLine
from kgas_async._priority import AGEING, PriorityLine, check_priority


@dataclass(eq=False)
class Someone:
    """A waiter, as the lines see it."""

    priority: int = 3
    key: Any = NO_KEY


# --- what a priority is


@pytest.mark.parametrize("value", [-1, 10, 1000])
def test_a_priority_out_of_range_is_refused_by_value(value: int) -> None:
    with pytest.raises(ValueError, match=r"must be from 0 \(Priority.LOW\) to 9 \(Priority.CRITICAL\), not"):
        check_priority("Policy(priority)", value)


@pytest.mark.parametrize("value", [1.0, "HIGH", True, None])
def test_a_priority_that_is_no_whole_number_is_refused_by_type(value: Any) -> None:
    with pytest.raises(TypeError, match=r"Policy\(priority\) must be a Priority or a whole number"):
        check_priority("Policy(priority)", value)


def test_priorities_are_numbers_in_order() -> None:
    assert sorted([Priority.CRITICAL, Priority.LOW, 4, Priority.HIGH, Priority.NORMAL]) == [0, 3, 4, 6, 9]


# --- one line


def test_the_higher_goes_first_and_first_come_first_served_inside_one() -> None:
    line = PriorityLine()
    low, high, critical = ([Someone(p) for _ in range(3)] for p in (Priority.LOW, Priority.HIGH, Priority.CRITICAL))
    for three in zip(low, high, critical, strict=True):
        for one in three:
            line.push(one)
    assert [line.pop() for _ in range(10)] == [*critical, *high, *low, None]


def test_a_stream_of_critical_ones_lets_a_low_one_through_after_eight() -> None:
    line = PriorityLine()
    low = Someone(Priority.LOW)
    line.push(low)
    served = []
    for _ in range(20):
        line.push(Someone(Priority.CRITICAL))
        served.append(line.pop())
    assert served.index(low) == AGEING


@pytest.mark.parametrize("make", [PriorityLine, lambda: KeyedLine(1000)])
def test_who_waits_is_passed_over_by_a_bounded_number_whatever_comes(make: Any) -> None:
    # Ten priorities, all of them crowded all the time; the lowest line has ten in it.
    line = make()
    for priority in range(10):
        for _ in range(10):
            line.push(Someone(priority))
    since = dict.fromkeys(range(10), 0)
    longest = 0
    for grant in range(1, 3000):
        served = line.pop()
        longest = max(longest, grant - since[served.priority])
        since[served.priority] = grant
        line.push(Someone(served.priority))
    assert longest <= (AGEING + 1) * 9 + 1
    assert max(grant - at for at in since.values()) <= (AGEING + 1) * 9 + 1


# --- keys


def test_keys_take_turns_so_that_a_busy_one_does_not_starve_the_others() -> None:
    line = KeyedLine(1000)
    for _ in range(100):
        line.push(Someone(key="busy"))
    for key in ("a", "b"):
        line.push(Someone(key=key))
    assert Counter(line.pop().key for _ in range(4)) == {"busy": 2, "a": 1, "b": 1}


def test_a_busy_key_of_a_higher_priority_does_not_starve_the_others() -> None:
    line = KeyedLine(1000)
    line.push(Someone(Priority.LOW, "other"))
    served = []
    for _ in range(20):
        line.push(Someone(Priority.CRITICAL, "busy"))
        served.append(line.pop().key)
    assert served.index("other") == AGEING


def test_low_ones_of_a_key_that_is_always_full_are_not_starved_by_other_keys() -> None:
    # One token for the key: its LOW ones are only ever in question when it is free, and LOW ones of another key are
    # served all the time.
    line = KeyedLine(1)
    starved = Someone(Priority.LOW, "full")
    line.push(starved)
    served: list[Someone] = []
    for _ in range(300):
        line.push(Someone(Priority.CRITICAL, "full"))
        line.push(Someone(Priority.LOW, "other"))
        while (one := line.pop()) is not None:
            served.append(one)
        for key in ("full", "other"):
            if not line.has_room(key):
                line.give(key)
    assert starved in served[:100]


def test_nothing_is_kept_of_keys_that_hold_nothing_and_do_not_wait() -> None:
    line = KeyedLine(1)
    for number in range(10_000):
        waiter = Someone(key=number)
        line.push(waiter)
        line.remove(waiter)
        line.take(number)
        line.give(number)
    assert line.keys == 0
    assert len(line._oldest) < 100
    assert not line._turns


# --- both against plain lists


@dataclass
class Plain:
    """One line of the model: those of one key and one priority."""

    since: int
    waiters: list[Someone] = field(default_factory=list)


class Lines(RuleBasedStateMachine):
    """A keyed line against a model that looks through everything each time, and says what may be next."""

    PER_KEY = 2
    KEYS = st.sampled_from(["a", "b", "c", NO_KEY])
    PRIORITIES = st.sampled_from([0, 3, 9])

    def __init__(self) -> None:
        super().__init__()
        self.line: Any = KeyedLine(self.PER_KEY)
        self.lines: dict[tuple[Any, int], Plain] = {}
        self.turns: dict[int, list[Any]] = {0: [], 3: [], 9: []}  # keys with room, by priority
        self.used: Counter[Any] = Counter()
        self.grants = 0

    def has_room(self, key: Any) -> bool:
        return key is NO_KEY or self.used[key] < self.PER_KEY

    def settle(self, key: Any) -> None:
        """Put a key into the turns or take it out, as its room and its waiters say."""
        for priority, turns in self.turns.items():
            is_in = self.has_room(key) and (key, priority) in self.lines
            if is_in and key not in turns:
                turns.append(key)
            elif not is_in and key in turns:
                turns.remove(key)

    @rule(key=KEYS, priority=PRIORITIES)
    def push(self, key: Any, priority: int) -> None:
        waiter = Someone(priority, key)
        self.line.push(waiter)
        self.lines.setdefault((key, priority), Plain(self.grants)).waiters.append(waiter)
        self.settle(key)

    @rule()
    def pop(self) -> None:
        ready = [(key, priority) for priority, turns in self.turns.items() for key in turns]
        served = self.line.pop()
        if not ready:
            assert served is None
            return
        passed_over = min(self.lines[one].since for one in ready)
        highest = max(priority for _, priority in ready)
        if self.grants - passed_over >= AGEING * (len(self.lines) - 1):
            allowed = [one for one in ready if self.lines[one].since == passed_over]
        else:
            allowed = [(self.turns[highest][0], highest)]
        assert (served.key, served.priority) in allowed
        plain = self.lines[served.key, served.priority]
        assert served is plain.waiters.pop(0)
        self.grants += 1
        plain.since = self.grants
        self.turns[served.priority].remove(served.key)
        if plain.waiters:
            self.turns[served.priority].append(served.key)
        else:
            del self.lines[served.key, served.priority]
        if served.key is not NO_KEY:
            self.used[served.key] += 1
        self.settle(served.key)

    @precondition(lambda self: self.lines)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from(sorted(self.lines, key=str)))
        waiter = data.draw(st.sampled_from(self.lines[place].waiters))
        self.line.remove(waiter)
        self.line.remove(waiter)  # the second time it is not in it
        self.lines[place].waiters.remove(waiter)
        if not self.lines[place].waiters:
            del self.lines[place]
        self.settle(place[0])

    @rule(key=st.sampled_from(["a", "b", "c"]))
    def take(self, key: Any) -> None:
        assert self.line.has_room(key) == self.has_room(key)
        if self.has_room(key) and not any(of == key for of, _ in self.lines):
            self.line.take(key)
            self.used[key] += 1

    @precondition(lambda self: any(self.used.values()))
    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(key for key, used in self.used.items() if used)))
        self.line.give(key)
        self.used[key] -= 1
        self.settle(key)

    @invariant()
    def counts_agree(self) -> None:
        assert self.line.size == sum(len(plain.waiters) for plain in self.lines.values())
        in_use = {key for key, used in self.used.items() if used} | {key for key, _ in self.lines}
        assert self.line.keys == len(in_use)
        newcomer = Someone(3, "a")
        of_mine = {priority: plain.waiters for (key, priority), plain in self.lines.items() if key == "a"}
        assert self.line.crowd(newcomer) == sum(map(len, of_mine.values()))
        assert self.line.ahead_of(newcomer) == sum(len(ones) for priority, ones in of_mine.items() if priority >= 3)


class OneLine(RuleBasedStateMachine):
    """A line without keys is a keyed one with a single key that is never full, but for which goes first of equals."""

    def __init__(self) -> None:
        super().__init__()
        self.line = PriorityLine()
        self.lines: dict[int, Plain] = {}
        self.grants = 0

    @rule(priority=st.sampled_from([0, 2, 3, 9]))
    def push(self, priority: int) -> None:
        waiter = Someone(priority)
        self.line.push(waiter)
        self.lines.setdefault(priority, Plain(self.grants)).waiters.append(waiter)

    @rule()
    def pop(self) -> None:
        served = self.line.pop()
        if not self.lines:
            assert served is None
            return
        longest = min(plain.since for plain in self.lines.values())
        if self.grants - longest >= AGEING * (len(self.lines) - 1):
            allowed = [priority for priority, plain in self.lines.items() if plain.since == longest]
        else:
            allowed = [max(self.lines)]
        assert served.priority in allowed
        plain = self.lines[served.priority]
        assert served is plain.waiters.pop(0)
        self.grants += 1
        plain.since = self.grants
        if not plain.waiters:
            del self.lines[served.priority]

    @precondition(lambda self: self.lines)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        plain = self.lines[priority := data.draw(st.sampled_from(sorted(self.lines)))]
        waiter = data.draw(st.sampled_from(plain.waiters))
        self.line.remove(waiter)
        self.line.remove(waiter)
        plain.waiters.remove(waiter)
        if not plain.waiters:
            del self.lines[priority]

    @invariant()
    def counts_agree(self) -> None:
        size = sum(len(plain.waiters) for plain in self.lines.values())
        assert self.line.size == self.line.crowd(Someone()) == size
        above = sum(len(plain.waiters) for priority, plain in self.lines.items() if priority >= 3)
        assert self.line.ahead_of(Someone(3)) == above


TestKeyedLine = Lines.TestCase
TestPriorityLine = OneLine.TestCase
for _case in (TestKeyedLine, TestPriorityLine):
    _case.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
