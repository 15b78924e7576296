"""The outline of a TOML pipeline: which tables it has, what is laid over what. Wrong parts are told and taken out.

So the rest can be checked all the same. What stands in the tables, `_toml_tables` knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ._suggest import nearest
from ._toml_lines import KeyPath
from ._toml_mistakes import Mistakes
from ._toml_words import Places, Unset, as_toml, dotted

__all__ = ["LIMIT_KINDS", "VERSION", "check_laid_over", "check_profiles", "check_top"]

VERSION: Final = 1  # of the format
TOP: Final = ("version", "pipeline", "services", "limits", "phase", "profile")
LAID_OVER: Final = ("pipeline", "services", "limits", "phase")
LIMIT_KINDS: Final = {
    "rate": ("per", "burst", "cost", "key"), "concurrency": ("key", "per_key", "max_queue"), "adaptive": (),
    "memory": (), "breaker": (), "budget": (),
}  # fmt: skip


def check_top(raw: dict[str, Any], places: Places, mistakes: Mistakes) -> None:
    """Which tables there are.

    Raises:
        LoadError: The version alone: by another one the rest may be right.
    """
    version = raw.get("version", VERSION)
    if isinstance(version, bool) or not isinstance(version, int):
        raise places.error(("version",), f"is the number of the format, {VERSION}, not {as_toml(version)}")
    if version != VERSION:
        raise places.error(
            ("version",), f"this is format {version}, and this kgas-async reads format {VERSION}: "
            f"{'upgrade kgas-async' if version > VERSION else 'write the file anew'}, or write version = {VERSION}"
        )  # fmt: skip
    others = {key: raw.pop(key) for key in list(raw) if key not in TOP}
    for key, value in others.items():
        said = f"is no key of a pipeline's file, which has {', '.join(TOP)}{nearest(key, TOP)}"
        mistakes.tell(places.error((key,), said))
        mistakes.elsewhere.update(value if isinstance(value, dict) else ())
    _check_pipeline(raw, places, mistakes, any("'pipeline'" in nearest(key, TOP) for key in others))
    for key in ("services", "limits"):
        tables = raw.get(key, {})
        if not isinstance(tables, dict):
            mistakes.tell(places.error((key,), f"is a table: write [{key}.NAME], not {as_toml(tables)}"))
            raw[key] = {}
            continue
        for name, table in list(tables.items()):
            if not isinstance(table, dict):
                said = f"is a table: write [{key}.{name or 'NAME'}], not {as_toml(table)}"
                mistakes.tell(places.error((key, name), said))
                mistakes.elsewhere.add(name)
                del tables[name]
    _check_phases(raw, places, mistakes, any("'phase'" in nearest(key, TOP) for key in others))


def _check_pipeline(raw: dict[str, Any], places: Places, mistakes: Mistakes, is_misspelt: bool) -> None:
    found = raw.get("pipeline")
    if isinstance(found, dict):
        return
    if isinstance(found, list):
        said = "a file is one pipeline: write [pipeline], with single brackets, once"
        mistakes.tell(places.error(("pipeline",), said))
    elif "pipeline" in raw:
        mistakes.tell(places.error(("pipeline",), f"is a table: write [pipeline], not {as_toml(found)}"))
    elif not is_misspelt:
        mistakes.tell(places.error((), 'has no [pipeline]; begin with [pipeline] and name = "..."'))
    raw["pipeline"] = {"name": Unset()}


def _check_phases(raw: dict[str, Any], places: Places, mistakes: Mistakes, is_misspelt: bool) -> None:
    phases = raw.get("phase")
    if not isinstance(phases, list) or not phases or not all(isinstance(phase, dict) for phase in phases):
        if phases or isinstance(phases, dict):
            said = "phases are a list of tables: write [[phase]], with double brackets, for each"
            mistakes.tell(places.error(("phase",), said))
        elif not is_misspelt:
            said = 'has no phases; add [[phase]] with name = "..." and tool = "module:attribute"'
            mistakes.tell(places.error((), said))
        raw["phase"] = []
        return
    first: dict[str, int] = {}
    for index, phase in enumerate(phases):
        name = phase.get("name")
        if not isinstance(name, str) or not name.isidentifier():
            said = f"is an identifier, since inputs are bound by it, not {as_toml(name)}" if "name" in phase else (
                'is missing: each [[phase]] has a name = "..."'
            )  # fmt: skip
        elif name in first:
            other = places.line(("phase", first[name]))
            said = f"{name!r} is the name of the phase of line {other} too; rename one"
        else:
            first[name] = index
            continue
        mistakes.tell(places.error(("phase", index, "name"), said))
        phase["name"] = Unset()


def check_profiles(profiles: Any, raw: Mapping[str, Any], places: Places, mistakes: Mistakes) -> dict[str, Any]:
    """What may be laid over the file, by name."""
    if not isinstance(profiles, dict):
        mistakes.tell(places.error(("profile",), "is a table of profiles: write [profile.NAME.phase.PHASE.policy]"))
        return {}
    for name, profile in profiles.items():
        at: KeyPath = ("profile", name)
        if isinstance(profile, dict):
            check_laid_over(profile, at, raw, places, mistakes)
        else:
            mistakes.tell(places.error(at, "is a profile, a table: write [profile.NAME.phase.PHASE.policy]"))
            profiles[name] = {}
    return profiles


def check_laid_over(
    over: dict[str, Any], at: KeyPath, raw: Mapping[str, Any], places: Places, mistakes: Mistakes
) -> None:
    """What is laid over a file names what there is."""
    for key, tables in list(over.items()):
        if key not in LAID_OVER:
            said = f"is not laid over a file; {', '.join(LAID_OVER)} are{nearest(key, LAID_OVER)}"
        elif not isinstance(tables, dict):
            shape = f"{key}.NAME" if key != "pipeline" else key
            said = f"is a table: [{dotted((*at, shape))}]"
        else:
            if key != "pipeline":
                _check_names(key, tables, at, raw.get(key, {}), places, mistakes)
            continue
        mistakes.tell(places.error((*at, key), said))
        del over[key]


def _check_names(key: str, tables: dict[str, Any], at: KeyPath, given: Any, places: Places, mistakes: Mistakes) -> None:
    one = key.removesuffix("s")
    names = [phase["name"] for phase in given] if isinstance(given, list) else list(given)
    # A phase without a name that can be used may be the one that is meant.
    are_known = all(names) and (bool(names) or not isinstance(given, list))
    for name, table in list(tables.items()):
        path = (*at, key, name)
        if name not in names:
            if are_known and name not in mistakes.elsewhere:
                there = f"; there are {', '.join(names)}" if names else ""
                said = f"there is no {one} {name!r} in the file{there}{nearest(name, names)}"
                mistakes.tell(places.error(path, said))
            del tables[name]
        elif not isinstance(table, dict):
            mistakes.tell(places.error(path, f"is a table of keys of this {one}"))
            del tables[name]
        elif key == "phase" and table.pop("name", None) is not None:
            mistakes.tell(places.error((*path, "name"), "the name stays: remove it here"))
