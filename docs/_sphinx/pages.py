"""What a site can do and plain Markdown cannot: links from code to the reference, figures in the page's colours, folds.

And it says which names in signatures need not lead anywhere, for nothing outside of the site is asked while it is
built.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import logging
import pkgutil
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

import kgas_async

OUTSIDE = {"anyio", "asyncio", "trio", "pydantic", "structlog", "mcp", "opentelemetry", "starlette", "SpanContext"}
SHORT = 4  # lines of imports that are not folded
EXPORT = ("lineage", "mcp", "otel", "prometheus", "prov", "trace")
MODULES = {"testing": "kgas_async.testing", **{name: f"kgas_async.export.{name}" for name in EXPORT}}


def public_target(target: str) -> str | None:
    """The public name that is meant: ``@tool``, ``exponential(...)``, ``kgas_async._call.Call``, ``prov.prov``."""
    target = target.removeprefix("@").partition("(")[0]
    parts = target.split(".")
    if parts[0] == "kgas_async" and len(parts) > 2 and parts[1].startswith("_"):
        parts = parts[2:]
    if parts[0] in kgas_async.__all__:
        return ".".join(["kgas_async", *parts])
    if parts[0] in MODULES and len(parts) > 1:
        return ".".join([MODULES[parts[0]], *parts[1:]])
    for module in MODULES.values():
        if parts[0] in importlib.import_module(module).__all__:
            return ".".join([module, *parts])
    return None


def needs_no_target(target: str, kind: str) -> bool:
    """Python's own names, those of other packages, type variables, and types of ours that are no public name."""
    first, _, rest = target.partition(".")
    if first == "kgas_async":
        return rest.startswith(("_", "testing._", "export._")) and kind in ("class", "obj")
    if hasattr(builtins, first) or first in OUTSIDE or re.fullmatch(r"(typing\.)?~?[PRT]", target):
        return True
    if not rest or first not in sys.stdlib_module_names:
        return False
    try:
        pkgutil.resolve_name(target)
    except (ImportError, AttributeError, ValueError):
        return False
    return True


def missing_reference(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Node) -> nodes.Node | None:
    if node.get("refdomain") != "py":
        return None
    target, kind = node["reftarget"], node["reftype"]
    meant = public_target(target)
    if meant and meant in env.domains.python_domain.objects:
        entry = env.domains.python_domain.objects[meant]
        return env.domains.python_domain.resolve_xref(
            env, node["refdoc"], app.builder, entry.objtype if entry.objtype == "exc" else "obj", meant, node, content
        )
    return content if needs_no_target(target, kind) else None


def link_code(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Inline code that names something public becomes a link to it: `Policy`, `manager.execute`, `@tool`."""
    if docname.startswith("api/"):
        return
    objects = app.env.domains.python_domain.objects
    for code in list(doctree.findall(nodes.literal)):
        if isinstance(code.parent, (nodes.reference, nodes.title)) or "xref" in code["classes"]:
            continue
        target = public_target(code.astext()) if is_a_name(code) else named_in(code.astext())
        entry = objects.get(target) if target else None
        if entry is not None and target is not None:
            link = make_refnode(app.builder, docname, entry.docname, entry.node_id, [], target)
            link["classes"].append("to-reference")
            code.replace_self(link)
            link += code


def draw_figures(app: Sphinx, doctree: nodes.document) -> None:
    """Figures become part of the page, so that they have its colours, dark or light."""
    for image in list(doctree.findall(nodes.image)):
        if image["uri"].endswith(".svg"):
            _, path = app.env.relfn2path(image["uri"], app.env.docname)
            app.env.note_dependency(path)
            drawn = Path(path).read_text(encoding="utf-8")
            image.replace_self(nodes.raw("", f'<figure class="drawn">{drawn}</figure>', format="html"))


def fold_imports(app: Sphinx, doctree: nodes.document) -> None:
    """A block of nothing but imports, as pages whose code is one program begin with, is folded."""
    for block in list(doctree.findall(nodes.literal_block)):
        if block.get("language") == "python" and block.astext().count("\n") >= SHORT and only_imports(block.astext()):
            opening = '<details class="imports"><summary>imports</summary>'
            closing = nodes.raw("", "</details>", format="html")
            block.replace_self([nodes.raw("", opening, format="html"), block, closing])


def only_imports(code: str) -> bool:
    return all(isinstance(statement, (ast.Import, ast.ImportFrom)) for statement in ast.parse(code).body)


def is_a_name(code: nodes.literal) -> bool:
    """Whether it stands in the first column of a table of names, as those of `reference.md` are."""
    cell = code.parent.parent
    if not isinstance(cell, nodes.entry) or cell.parent.index(cell) != 0:
        return False
    group = cell.parent.parent.parent
    head = group.next_node(nodes.thead)
    return head is not None and head.astext().strip() == "name"


def named_in(text: str) -> str | None:
    """The public name that a piece of code is, or calls; words that are as well names of inputs are none."""
    head, called, _ = text.partition("(")
    if text.startswith("manager."):
        head = f"ServiceManager.{head.removeprefix('manager.')}"
    if not re.fullmatch(r"@?[A-Za-z_]\w*(\.\w+)*", head):
        return None
    is_telling = head[0].isupper() or head[0] == "@" or called or head.startswith("kgas_async.")
    return public_target(head.removeprefix("kgas_async.")) if is_telling else None


def setup(app: Sphinx) -> dict[str, Any]:
    # A pattern of a toctree may match nothing, for a page in no toctree is a warning by itself. (This warning has no
    # type, so `suppress_warnings` cannot name it.)
    logger = logging.getLogger("sphinx.sphinx.directives.other")
    logger.addFilter(lambda record: getattr(record, "subtype", "") != "empty_glob")
    app.connect("doctree-read", draw_figures)
    app.connect("doctree-read", fold_imports)
    app.connect("doctree-resolved", link_code)
    app.connect("missing-reference", missing_reference)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
