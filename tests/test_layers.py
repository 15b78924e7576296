"""The shape of the package: imports point down, third parties have one door each, files and functions stay readable.

Nothing is imported here; the sources are read.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "kgas_async"

# Lowest first. A module may import what stands below it, and its own layer without going round in a circle.
# A sub-package is named once, for all its modules. "__init__" is the public front: above all that it re-exports, below
# the command line and the public namespaces, which it must not import (`import kgas_async` stays light).
LAYERS: list[tuple[str, str]] = [
    ("L0", "_errors _cancellation _mailbox _waiting _threads _bare _system _context _suggest _wire _guard _disk"),
    (
        "L1",
        "_matching _priority _keyed _clearing _order _admission _limits _rate_line _rate _adaptive _memory_limit "
        "_window _budget _breaker_core _breaker _cache _digest _restart _pool_core _resilience _policy _records "
        "_chain _mistaken _segments _verify _jsonl _tracing _evidence _evidence_sinks _metrics _loading _reading "
        "_toml_lines _toml_words _toml_mistakes _toml_top _toml_text _toml_values _toml_table "
        "_toml_tables _toml_checked",
    ),
    (
        "L2",
        "_tool _signature _schema _offload _travel _worker _guarding _process _processes _elements _service "
        "_outcome _fit _policy_checks _fingerprint _journal _journal_codec _journal_loss _journal_file _journal_writer "
        "_journal_inspect",
    ),
    (
        "L3",
        "_drive _events _host _left _reserved _bound _call _tokens _feedback _breaker_guard _in_process _in_thread "
        "_attempt _hedge _served _cleanup _alternatives _reuse _path _flat _legacy _elsewhere _adapter _function_tool "
        "_advice _figures _ledger _picture _board_run _board _board_file "
        "_derivation _lineage _monitor _watchdog _phase _plan _planner _resolve _pipeline "
        "_report _every _convert _toml_arguments _toml_named _toml_objects _toml_build _pipeline_file "
        "_plan_view _plan_graph _plan_drawing",
    ),
    (
        "L4",
        "_misuse _run _walk _run_level _live _batch _inputs _item_outcome _crew _on_error _employer _expand _frame "
        "_source _stream _tally _staff _in_line _run_journal _journaled _journaled_items _journaled_level",
    ),
    (
        "L5",
        "_manager _single _options _book _many _together _lifetime _running _recording _bindings _session _standing "
        "_map _hosting _hosted _supervision _health _pool _pool_motion _blocking _blocking_calls _signals _door "
        "_batcher",
    ),
    ("front", "__init__ _public"),
    (
        "L6",
        "_leaving _entry _cli_text _cli_picture _cli_view _cli_results _cli_running _cli_run _cli_status _cli_tools "
        "_cli_show _cli_check _cli_report _cli_export _cli_lineage _cli_evidence _cli_journal _cli __main__ "
        "services export engines testing",
    ),
]
LAYER_OF = {name: layer for layer, (_, names) in enumerate(LAYERS) for name in names.split()}


class Door(NamedTuple):
    """Who may import some top-level modules: regular expressions over module names without the package's."""

    modules: str
    owners: str
    why: str


DOORS = [
    Door("asyncio trio uvloop", r"_mailbox|(testing|services)(\..*)?", "all else is written for both event loops"),
    Door("structlog", r"_evidence(_.*)?", "logging leaves by the evidence"),
    Door("psutil", r"_system", "the machine is asked in one place"),
    Door("ddsketch", r"_metrics", "percentiles are made in one place"),
    Door("sqlite3", r"_journal(_.*)?|services(\..*)?", "the journal's file, and the SQLite service"),
    Door("queue _thread concurrent", r"_threads", "threads are made, fed and counted in one place"),
    Door("multiprocessing subprocess", r"_process|_guarding", "processes are started and killed in one place"),
    Door("typer rich click", r"_cli(_.*)?", "the extra `cli` is not always installed"),
    Door("opentelemetry", r"export\.(otel|_otel_context)", "the extra `otel` is not always installed"),
    Door("jinja2 markupsafe", r"export\.report", "the extra `report` is not always installed"),
    Door(
        "mcp mcp_types uvicorn hypercorn starlette sse_starlette jsonschema referencing",
        r"export\.(mcp|_mcp_.*)",
        "the extra `mcp` is not always installed",
    ),
]
# From `threading` anyone may have what starts and blocks nothing.
THREADING_FOR_ALL = {"Lock", "RLock", "local", "get_ident"}

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50
# "kgas_async/_x.py" or "kgas_async/_x.py::Class.function": why it is better long than cut in two.
REASONS: dict[str, str] = {
    "kgas_async/_cli_run.py::_run": "the parameters of a command are its options, its docstring is its help",
}


class Import(NamedTuple):
    line: int
    target: str  # absolute: "anyio.lowlevel", "kgas_async._errors"
    name: str | None  # what is taken from it, in `from target import name`


@cache
def sources() -> Mapping[str, Path]:
    """The modules by name relative to the package: "_errors", "testing.sweep", "testing", "__init__"."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return found


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(sources()[module].read_text(encoding="utf-8"))


def imports(module: str) -> Iterator[Import]:
    """Every import, also in functions, under TYPE_CHECKING, and by `import_module` of a literal."""
    here = [PACKAGE, *module.split(".")]
    package = here if sources()[module].name == "__init__.py" and module != "__init__" else here[:-1]
    for node in ast.walk(tree(module)):
        match node:
            case ast.Import():
                for alias in node.names:
                    yield Import(node.lineno, alias.name, None)
            case ast.ImportFrom(level=0):
                for alias in node.names:
                    yield Import(node.lineno, node.module or "", alias.name)
            case ast.ImportFrom():
                base = package[: len(package) - node.level + 1]
                target = ".".join([*base, node.module] if node.module else base)
                for alias in node.names:
                    yield Import(node.lineno, target, alias.name)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(target)), *_],
            ):
                yield Import(node.lineno, f"{PACKAGE}{target}" if target.startswith(".") else target, None)


def internal(found: Import) -> str | None:
    """The module of ours that an import reaches, or None if it is somebody else's."""
    if found.target.split(".")[0] != PACKAGE:
        return None
    reached = found.target.removeprefix(PACKAGE).removeprefix(".")
    deeper = f"{reached}.{found.name}".removeprefix(".")
    if found.name is not None and deeper in sources():
        return deeper
    return reached or "__init__"


def layer(module: str) -> int | None:
    return LAYER_OF.get(module.partition(".")[0])


def where(module: str, line: int) -> str:
    return f"{sources()[module].relative_to(ROOT)}:{line}"


def functions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{prefix}{child.name}", child
            yield from functions(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.ClassDef):
            yield from functions(child, f"{prefix}{child.name}.")
        else:
            yield from functions(child, prefix)


def test_every_module_has_a_layer() -> None:
    missing = sorted({module.split(".")[0] for module in sources()} - LAYER_OF.keys())
    assert not missing, f"{', '.join(missing)}: say which layer by adding the name to LAYERS in tests/test_layers.py"


def test_imports_point_down() -> None:
    wrong = []
    for module in sources():
        for found in imports(module):
            reached = internal(found)
            if reached is None or (own := layer(module)) is None or (other := layer(reached)) is None:
                continue  # not ours, or without a layer, which a test of its own tells
            if other > own:
                names = LAYERS[own][0], LAYERS[other][0]
                wrong.append(f"{where(module, found.line)}: {module} ({names[0]}) imports {reached} ({names[1]})")
    assert not wrong, "imports that point up:\n" + "\n".join(wrong)


def test_imports_inside_a_layer_make_no_circle() -> None:
    graph = {module: {reached for found in imports(module) if (reached := internal(found))} for module in sources()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these import each other: {' <- '.join(error.args[1])}", pytrace=False)


def test_internal_imports_name_modules_that_exist() -> None:
    wrong = []
    for module in sources():
        for found in imports(module):
            reached = internal(found)
            if reached is not None and reached not in sources():
                wrong.append(f"{where(module, found.line)}: {module} imports {PACKAGE}.{reached}, which is no file")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.modules.replace(" ", "-"))
def test_third_parties_enter_by_one_door(door: Door) -> None:
    guarded = set(door.modules.split())
    wrong = [
        f"{where(module, found.line)}: imports {found.target}; only {door.owners} may: {door.why}"
        for module in sources()
        if not re.fullmatch(door.owners, module)
        for found in imports(module)
        if found.target.split(".")[0] in guarded
    ]
    assert not wrong, "\n".join(wrong)


def test_threads_are_started_in_one_place() -> None:
    wrong = []
    for module in sources().keys() - {"_threads"}:
        taken = [(found.line, found.name) for found in imports(module) if found.target == "threading" and found.name]
        taken += [
            (node.lineno, node.attr)
            for node in ast.walk(tree(module))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "threading"
        ]
        wrong += [f"{where(module, line)}: threading.{name}" for line, name in taken if name not in THREADING_FOR_ALL]
    assert not wrong, "outside _threads only the plain locks of threading are used:\n" + "\n".join(sorted(wrong))


def test_files_and_functions_are_short_or_have_a_reason() -> None:
    long = {}
    for module, path in sources().items():
        name = str(path.relative_to(ROOT))
        lines = path.read_text(encoding="utf-8").count("\n")
        if lines > MAX_FILE_LINES:
            long[name] = f"{lines} lines, more than {MAX_FILE_LINES}"
        for function, node in functions(tree(module)):
            size = (node.end_lineno or node.lineno) - node.lineno
            if size > MAX_FUNCTION_LINES:
                long[f"{name}::{function}"] = f"{size} lines, more than {MAX_FUNCTION_LINES}"
    unexplained = [f"{name}: {size}" for name, size in long.items() if not REASONS.get(name, "").strip()]
    assert not unexplained, "cut them, or say in REASONS why not, in tests/test_layers.py:\n" + "\n".join(unexplained)
    assert not REASONS.keys() - long.keys(), f"no longer long: {sorted(REASONS.keys() - long.keys())}"
