"""A run as a page: evidence as one HTML file that needs no network, no JavaScript, and nothing of this package.

Needs the extra ``report``. `report_figures` gives what the page shows as data.
"""

from __future__ import annotations

import functools
import os
from importlib.resources import files

from kgas_async._reading import Evidence
from kgas_async._suggest import extra_hint

from ._report_figures import Figures
from ._report_gathering import report_figures
from ._report_view import view
from ._report_words import counted, lasting

try:
    from jinja2 import DictLoader, Environment, StrictUndefined, Template
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(f"a report needs {missing.name}; {extra_hint('report')}", name=missing.name) from missing

__all__ = ["Figures", "render_report", "report_figures", "write_report"]


def write_report(evidence: Evidence, out: str | os.PathLike[str], *, run_id: str | None = None) -> Figures:
    """Write the report of a session, or of one run, as one HTML file.

    It is written beside ``out`` first and then put in its place, so that there is a whole report or none.

    Args:
        evidence: A path of JSON lines, or records such as those of a `MemorySink`.
        out: The file; what is there is replaced.
        run_id: Only this run; unless given, the latest session with all its runs.

    Returns:
        The figures that are in it.

    Raises:
        EvidenceError: The evidence cannot be read, is none, or has no such run.
        OSError: The file cannot be written.

    Complexity:
        Two passes over the records, in memory that does not grow with them.
    """
    figures = report_figures(evidence, run_id=run_id)
    page = render_report(figures)
    path = os.fspath(out)
    part = f"{path}.part"
    try:
        with open(part, "w", encoding="utf-8") as file:  # noqa: PTH123  (whatever kind of path it is)
            file.write(page)
        os.replace(part, path)  # noqa: PTH105
    except BaseException:
        if os.path.exists(part):  # noqa: PTH110
            os.unlink(part)  # noqa: PTH108
        raise
    return figures


def render_report(figures: Figures) -> str:
    """The page of a report's figures."""
    return _template().render(view(figures))


@functools.cache
def _template() -> Template:
    folder = files("kgas_async.export").joinpath("templates")
    sources = {name: folder.joinpath(name).read_text(encoding="utf-8") for name in ("report.html", "report.css")}
    # All that is in a record may be anybody's text.
    environment = Environment(
        loader=DictLoader(sources), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(time=lasting, count=_count, counted=counted, share=_share)
    return environment.get_template("report.html")


def _count(number: float) -> str:
    return f"{number:,}"


def _share(share: float) -> str:
    if 0 < share < 0.01:
        return "<1%"
    return f"{share:.0%}" if share < 0.99 or share == 1 else f"{100 * share:.2f}".rstrip("0").rstrip(".") + "%"
