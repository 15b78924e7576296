"""The text of a TOML pipeline: read, a profile and ``--set`` laid over it, variables put in; where each value is from.

Knows TOML and the words at the top of the file; what stands in the tables, `_toml_tables` knows.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, Final, NamedTuple

from ._errors import LoadError
from ._suggest import nearest
from ._toml_lines import KeyPath, lines_of
from ._toml_mistakes import Mistakes
from ._toml_top import LIMIT_KINDS, check_laid_over, check_profiles, check_top
from ._toml_words import Place, Places, Reference, Unset, Variable, as_toml, dotted, mend_of_syntax

__all__ = ["Document", "read"]

DEEPEST: Final = 64  # tables and lists in each other
_VARIABLE = re.compile(r"\$?\$\{([^}]*)(\})?")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TOO_LONG = re.compile(r"\b\d[\d_]{4300,}")  # for Python's int
_TOO_LONG_SAID: Final = "holds a number of thousands of digits, more than can be read; write a smaller one, or a text"
_REFERENCE = re.compile(r"\$[A-Za-z_][A-Za-z0-9_-]*")


class Document(NamedTuple):
    """The tables of a file as they count, with where each value is from.

    Attributes:
        values: With variables put in; references and what came from variables are strings of types of their own.
        places: Where each value is from.
        profile: Its name, if one was chosen.
        mistakes: What is wrong with it so far; the values are without that.
        others: The file under each of the profiles that were not chosen, with what is not known left open.
    """

    values: dict[str, Any]
    places: Places
    profile: str | None
    mistakes: Mistakes
    others: tuple[Document, ...] = ()


def read(path: str, profile: str | None = None, settings: Sequence[str] = ()) -> Document:
    """Read a pipeline's file.

    Args:
        path: Of the file.
        profile: Which of its profiles is laid over it.
        settings: ``phase.embed.policy.timeout=60``, laid over both.

    Raises:
        LoadError: It cannot be read, is no TOML, or of another version; what else is wrong, the document has.
    """
    text = _text_of(path)
    raw = _parsed(path, text)
    mistakes = Mistakes()
    places = Places(path, lines_of(text), raw)
    check_top(raw, places, mistakes)
    profiles = check_profiles(raw.pop("profile", {}), raw, places, mistakes)
    if profile is not None and profile not in profiles:
        known = f"there are {', '.join(profiles)}" if profiles else "there is none: add [profile.NAME.phase...]"
        mistakes.tell(
            LoadError(f"{path}: --profile {profile!r} is no profile of this file; {known}{nearest(profile, profiles)}")
        )
        profile = None
    others = []
    for name in profiles:
        if name != profile:
            over = _Overlay(deepcopy(raw), places.copied(), profiles, Mistakes(mistakes))
            over.lay_profile(name)
            put = _Variables(over.places, over.mistakes, is_strict=False).put(over.values)
            others.append(Document(put, over.places, name, over.mistakes))
    chosen = _Overlay(raw, places, profiles, mistakes)
    if profile is not None:
        chosen.lay_profile(profile)
    for setting in settings:
        with mistakes.telling():
            chosen.lay_setting(setting)
    return Document(_Variables(places, mistakes).put(raw), places, profile, mistakes, tuple(others))


def _text_of(path: str) -> str:
    file = Path(path)
    try:
        return file.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except FileNotFoundError:
        beside = [str(one) for one in file.parent.glob("*.toml")] if file.parent.is_dir() else []
        raise LoadError(f"there is no file {path!r} in {Path.cwd()}{nearest(path, beside)}") from None
    except UnicodeDecodeError as error:
        line = file.read_bytes()[: error.start].count(b"\n") + 1
        raise LoadError(f"{path}:{line}: is not UTF-8, which TOML is; save the file as UTF-8") from None
    except (OSError, ValueError) as error:  # a ValueError is of a path that no file can have
        why = error.strerror if isinstance(error, OSError) else error
        raise LoadError(f"{path!r} cannot be read: {why or error}") from None


def _parsed(path: str, text: str) -> dict[str, Any]:
    try:
        found = tomllib.loads(text)
        _check_depth(found)
        return found
    except tomllib.TOMLDecodeError as error:
        raise LoadError(f"{path}:{mend_of_syntax(str(error), text)}") from None
    except RecursionError:
        raise LoadError(f"{path}: its values are nested too deeply") from None
    except ValueError:  # it tells of no place; the digits are more than Python reads
        digits = _TOO_LONG.search(text)
        line = f":{text.count(chr(10), 0, digits.start()) + 1}" if digits is not None else ""
        raise LoadError(f"{path}{line}: {_TOO_LONG_SAID}") from None


def _check_depth(found: Any) -> None:
    """Dotted keys nest without recursion in the parser; what comes after it recurses."""
    tables, depth = [found], 0
    while tables:
        depth += 1
        if depth > DEEPEST:
            raise RecursionError
        parts = [one.values() if isinstance(one, dict) else one for one in tables]
        tables = [one for part in parts for one in part if isinstance(one, (dict, list))]


class _Overlay:
    """Lays profiles and settings over the tables of a file, in place."""

    def __init__(self, values: dict[str, Any], places: Places, profiles: Mapping[str, Any], mistakes: Mistakes) -> None:
        self.values = values
        self.places = places
        self.mistakes = mistakes
        self._profiles = profiles

    def lay_profile(self, name: str) -> None:
        at: KeyPath = ("profile", name)
        where = {
            path[2:]: Place(f"{self.places.file}:{line}", dotted(path))
            for path, line in self.places.lines.items()
            if path[:2] == at
        }
        self._lay(self._profiles[name], where)

    def lay_setting(self, setting: str) -> None:
        key, equals, text = setting.partition("=")
        said = f"--set {setting}"
        if not equals:
            raise LoadError(f"{said}: is KEY=VALUE, as in --set phase.embed.policy.timeout=60")
        try:
            over = tomllib.loads(f"{key.strip()} = 0") if "\n" not in key else {}
        except tomllib.TOMLDecodeError:
            over = {}
        path = _only_path(over)
        if len(path) > DEEPEST:
            raise LoadError(f"--set {setting[:60]}...: its key is nested too deeply, in over {DEEPEST} parts")
        if not path:
            raise LoadError(f"{said}: {key!r} is no key; it is dotted, as in --set phase.embed.policy.timeout=60")
        try:
            value = tomllib.loads(f"value = {text}") if "\n" not in text else {"value": text}
        except tomllib.TOMLDecodeError:
            value = {"value": text}  # a bare string
        except ValueError:
            raise LoadError(f"--set {key}: {_TOO_LONG_SAID}") from None
        nested: dict[str, Any] = {path[-1]: value["value"]}
        for part in reversed(path[:-1]):
            nested = {part: nested}
        if path[0] == "profile":
            raise LoadError(f"{said}: a profile is chosen by --profile NAME; --set changes what then counts")
        check_laid_over(nested, (), self.values, Places("--set", {}, self.values, said), self.mistakes)
        place = Place("--set", dotted(path))
        self._lay(nested, {path[:length]: place for length in range(1, len(path) + 1)})

    def _lay(self, over: Mapping[str, Any], where: Mapping[KeyPath, Place]) -> None:
        indexes = {phase["name"]: index for index, phase in enumerate(self.values["phase"])}
        moved = {
            ("phase", indexes.get(path[1], -1), *path[2:]) if len(path) > 1 and path[0] == "phase" else path: place
            for path, place in where.items()
        }
        for key, tables in over.items():
            if key == "pipeline":
                self._lay_table(self.values["pipeline"], tables, ("pipeline",), moved)
                continue
            for name, table in tables.items():
                base_key: str | int = indexes[name] if key == "phase" else name
                self._lay_table(self.values[key][base_key], table, (key, base_key), moved)

    def _lay_table(
        self, base: dict[str, Any], over: Mapping[str, Any], at: KeyPath, where: Mapping[KeyPath, Place]
    ) -> None:  # fmt: skip
        if base.get("use", over.get("use")) != over.get("use", base.get("use")):
            base.clear()  # another class does not get the arguments of the former one
        if at[0] == "limits" and any(kind in over and kind not in base for kind in LIMIT_KINDS):
            base.clear()  # nor a limit of another kind
        for key in ("tool", "source"):
            if base.get(key, over.get(key)) != over.get(key, base.get(key)):
                base.pop("with", None)
                base.pop("adapter", None)
        self._merge(base, over, at, where)

    def _merge(
        self, base: dict[str, Any], over: Mapping[str, Any], at: KeyPath, where: Mapping[KeyPath, Place]
    ) -> None:  # fmt: skip
        """Table by table, key by key; anything else replaces what was there."""
        for key, value in over.items():
            path = (*at, key)
            if isinstance(value, dict) and isinstance(base.get(key), dict):
                self._merge(base[key], value, path, where)
                continue
            base[key] = deepcopy(value)
            self.places.forget(path)
            self.places.laid_over.update({one: place for one, place in where.items() if one[: len(path)] == path})


def _only_path(nested: Mapping[str, Any]) -> tuple[str, ...]:
    path: list[str] = []
    found: Any = nested
    while isinstance(found, dict) and len(found) == 1:
        path.append(next(iter(found)))
        found = found[path[-1]]
    return tuple(path)


class _Variables:
    """Puts environment variables into strings, and marks references."""

    def __init__(self, places: Places, mistakes: Mistakes, *, is_strict: bool = True) -> None:
        self._places = places
        self._mistakes = mistakes
        self._is_strict = is_strict

    def put(self, value: Any, at: KeyPath = ()) -> Any:
        if isinstance(value, dict):
            return {key: self.put(one, (*at, key)) for key, one in value.items()}
        if isinstance(value, list):
            return [self.put(one, (*at, index)) for index, one in enumerate(value)]
        if not isinstance(value, str) or "$" not in value:
            return value
        if _REFERENCE.fullmatch(value):
            return Reference(value)
        if value.startswith("$$") and _REFERENCE.fullmatch("$" + value.lstrip("$")):
            return value[1:]
        if "${" not in value:
            return value
        origins: list[str] = []
        try:
            text = _VARIABLE.sub(lambda match: self._one(match, value, at, origins), value)
        except KeyError:
            return Unset(value)
        except LoadError as error:
            self._mistakes.tell(error)
            return Unset(value)
        if origins:
            self._places.variables[at] = (text, " and ".join(dict.fromkeys(origins)))
        return Variable(text) if value != text else text

    def _one(self, match: re.Match[str], value: str, at: KeyPath, origins: list[str]) -> str:
        if match[0].startswith("$$"):
            return match[0][1:]
        name, has_default, default = match[1].partition(":-")
        if match[2] is None:
            raise self._places.error(
                at, f"the ${{ in {as_toml(value)} is not closed by }}; for the signs themselves write $${{"
            )
        if not _NAME.fullmatch(name):
            raise self._places.error(
                at, f"{match[0]} names no variable: it is ${{NAME}}, or ${{NAME:-what is taken where it is not set}}"
            )
        if "${" in default:
            raise self._places.error(
                at, f"{match[0]}}} has a variable in its default, which is taken as it stands; write a plain text there"
            )
        found = os.environ.get(name)
        if has_default and not found:
            origins.append(f"the default of ${{{name}}}")
            return default
        if found is None:
            if not self._is_strict:
                raise KeyError(name)
            close = nearest(name, os.environ)
            raise self._places.error(
                at, f"the environment variable {name} is not set{close}; set it, or give a default: ${{{name}:-...}}"
            )
        origins.append(f"${{{name}}}")
        return found
