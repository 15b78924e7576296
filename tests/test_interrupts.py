"""Ctrl-C at random moments of a session full of mixed work leaves nothing behind, and the evidence whole."""

from __future__ import annotations

import json
import random
import time

import pytest

from .programs import LOOPS, Program


def interrupt(loop: str, rounds: int, seed: int) -> None:
    moments = random.Random(seed)
    begun = 0
    with Program(loop=loop, command=["-m", "tests.interrupted", loop, str(rounds)], patience_s=rounds * 5) as program:
        for number in range(rounds):
            program.until("ready")
            delay = moments.choice((0.0, moments.uniform(0, 0.02), moments.uniform(0, 0.2)))
            time.sleep(delay)
            program.kill()
            found = json.loads(program.line())
            assert found["wrong"] == [], f"round {number} of seed {seed}, after {delay} s"
            begun += found["begun"]
        assert program.code() == 0
    assert begun > rounds  # there was something to interrupt


@pytest.mark.parametrize("loop", LOOPS)
def test_a_ctrl_c_at_some_moment_leaves_nothing_behind(loop: str) -> None:
    interrupt(loop, 6, seed=7)


@pytest.mark.slow
@pytest.mark.parametrize("loop", LOOPS)
def test_150_ctrl_c_at_random_moments_leave_nothing_behind(loop: str) -> None:
    interrupt(loop, 150, seed=150)
