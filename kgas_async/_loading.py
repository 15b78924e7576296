"""Finding what a ``module:attribute`` names, and how what a file has would be named so."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import sys
import sysconfig
from pathlib import Path
from traceback import walk_tb
from typing import Any

from ._errors import LoadError
from ._suggest import nearest

__all__ = ["NoModule", "folder_of", "give_of", "load"]

PIPELINES_TOLD = 5


class NoModule(LoadError):
    """There is no module of the name, neither in the working directory nor among what is installed."""


def folder_of(module: str, file: str) -> Path | None:
    """The folder of a file, or the nearest one above it, in which a module lies that was not found."""
    parts = module.split(".")
    for folder in Path(file).absolute().parents:
        place = folder.joinpath(*parts)
        if folder == Path.cwd():  # it was looked in
            continue
        if place.with_suffix(".py").is_file() or (place / "__init__.py").is_file():
            return folder
    return None


def _nearest_module(missing: str) -> str:
    """A module beside it, of nearly that name."""
    package, _, _ = missing.rpartition(".")
    paths = sys.modules[package].__path__ if package else [str(Path.cwd())]
    return nearest(missing, [f"{package}.{one.name}".lstrip(".") for one in pkgutil.iter_modules(paths)])


def give_of(file: str) -> str:
    """How to name what a Python file has: ``"give the pipeline in it as words:pipeline"``. Nothing of it is run."""
    path = Path(file).resolve()
    here = Path.cwd()
    is_below = path.is_relative_to(here)
    module = ".".join((path.relative_to(here) if is_below else Path(path.name)).with_suffix("").parts)
    names = _assigned_pipelines(path)
    given = " or ".join(f"{module}:{name}" for name in names[:PIPELINES_TOLD] or ["pipeline"])
    where = "" if is_below else f", in the folder {path.parent}"
    return f"give the pipeline in it{'' if names else ' by its name,'} as {given}{where}"


def _assigned_pipelines(path: Path) -> list[str]:
    try:
        body = ast.parse(path.read_bytes()).body
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    found = []
    for one in body:
        targets = one.targets if isinstance(one, ast.Assign) else [one.target] if isinstance(one, ast.AnnAssign) else []
        made = one.value.func if targets and isinstance(one.value, ast.Call) else None  # type: ignore[attr-defined]
        if getattr(made, "attr", getattr(made, "id", "")) == "Pipeline":
            found += [target.id for target in targets if isinstance(target, ast.Name)]
    return found


def _place_in_user_code(error: BaseException) -> str:
    """``" (at mine.py:3)"``: the innermost line that belongs to nobody's package; nothing where it says so itself."""
    if isinstance(error, SyntaxError):
        return ""
    paths = sysconfig.get_paths()
    others = [str(Path(__file__).parent), *(paths[name] for name in ("stdlib", "purelib", "platlib"))]
    place = ""
    for frame, line in walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if not file.startswith("<") and not any(Path(file).is_relative_to(one) for one in others):
            path = Path(file)
            here = Path.cwd()
            place = f" (at {path.relative_to(here) if path.is_relative_to(here) else path}:{line})"
    return place


def load(name: str) -> Any:
    """Import the module and get the attribute; the working directory is looked in first.

    Raises:
        LoadError: With what was not found, and the nearest name that there is.
    """
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise LoadError(f"{name!r} is not of the form module:attribute, as in 'examples.knowledge_graph:pipeline'")
    is_file = module_name.endswith(".py") and Path(module_name).is_file()
    if is_file or "/" in module_name or module_name.startswith("."):
        dotted = module_name.removeprefix("./").removesuffix(".py").strip("/.").replace("/", ".")
        raise LoadError(f"{module_name!r} is a path; give the module's name, without ./ and .py: {dotted}:{attribute}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise NoModule(
                f"there is no module {module_name!r} in {here} or among what is installed{_nearest_module(error.name)}"
            ) from None
        raise LoadError(f"module {module_name!r} needs {error.name or error}, which is not installed") from error
    except (Exception, SystemExit) as error:  # a script without a main guard exits when it is imported
        raise LoadError(
            f"module {module_name!r} cannot be imported: {type(error).__name__}: {error}{_place_in_user_code(error)}"
        ) from error
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise LoadError(
                f"module {module_name!r} has no {attribute!r}{nearest(part, [n for n in dir(found) if n[0] != '_'])}"
            ) from None
    return found
