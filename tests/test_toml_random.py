"""TOML files with random mistakes: a pipeline, or a `LoadError` that names the file; and the lines of all keys."""

from __future__ import annotations

import random
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kgas_async import LoadError, load_pipeline
from kgas_async._toml_lines import lines_of

from .test_cli_check import FILE
from .test_toml import PROFILES
from .test_toml_mistakes import HEAD, P

FILES = [FILE, (HEAD + PROFILES).replace("P:", f"{P}:")]
VALUES = [
    "3", "-1", "0", "1.5", "true", '""', '"x"', '"$store"', '"${HOME}"', '"${KGAS_NOT_SET}"', "[]", "[1]", '["a"]',
    "{}", "{ a = 1 }", '{ "$load" = "math:pi" }', "nan", "inf", "1979-05-27", '"""a\nb"""', "[[1], [2]]",
    "[{ a = 1 }]", '"none"', '"a:b"', '"math:pi"', f'"{P}:double"', '"a\\u0000b"', "{ a.b.c = 1 }", '"é:ü"',
]  # fmt: skip
KEYS = [
    "x", "policy", "with", "bind", "name", "after", "collect", "batch", "policy.retry", "policy.breaker.on", "journal",
    "policy.fallback", "policy.cache", "item", "key", "use", '"a b"', "policy.retry.wait", "policy.priority",
    "policy.concurrency", "version", "source", "when", "expand",
]  # fmt: skip
TABLES = [
    "[limits.q]", "[[phase]]", "[pipeline]", "[services]", "[profile.a.phase]", "[profile.a]", "phase = 3",
    "profile = 3", "limits = 3", "[profile.a.services.store]", "[[limits]]", "[services.a.b]",
    "[profile.x.pipeline]\nwith = 3",
    "[profile.x.phase.added]\nwith = 4", "services.x = 3", "[[services.x]]",
]  # fmt: skip


def spoilt(text: str, draw: random.Random) -> str:
    lines = text.split("\n")
    place = draw.randrange(len(lines))
    key, equals, value = lines[place].partition("=")
    match draw.randrange(7):
        case 0:
            del lines[place]
        case 1 if lines[place]:
            at = draw.randrange(len(lines[place]))
            lines[place] = (
                lines[place][:at] + draw.choice("\"'[]{}=.,$#\\ ax1\0") + lines[place][at + draw.randrange(2) :]
            )
        case 2 | 3 if equals:
            lines[place] = f"{key}= {draw.choice(VALUES)}"
        case 4 if equals:
            lines[place] = f"{draw.choice(KEYS)} ={value}"
        case 5:
            lines.insert(place, draw.choice(TABLES))
        case _:
            other = draw.randrange(len(lines))
            lines[place], lines[other] = lines[other], lines[place]
    return "\n".join(lines)


def paths(value: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if at:
        yield at
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from paths(part, (*at, key))


@pytest.mark.parametrize("seed", range(4))
def test_random_mistakes(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KGAS_NOT_SET", raising=False)
    draw = random.Random(seed)
    file = tmp_path / "mine.toml"
    for _ in range(60):
        text = draw.choice(FILES)
        for _ in range(draw.choice([1, 1, 1, 2, 3])):
            text = spoilt(text, draw)
        file.write_text(text)
        try:
            raw = tomllib.loads(text)
        except tomllib.TOMLDecodeError:
            pass
        else:
            assert set(paths(raw)) <= lines_of(text).keys(), text
        try:
            load_pipeline(file)
        except LoadError as error:
            assert str(error).startswith(str(file)), text  # noqa: PT017
