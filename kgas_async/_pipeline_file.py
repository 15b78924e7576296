"""`load_pipeline`: the pipeline of a TOML file. What it declares is built below; here is the door."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ._pipeline import Pipeline
from ._suggest import suggests

if TYPE_CHECKING:
    from ._toml_build import Built

__all__ = ["built", "load_pipeline"]


@suggests
def load_pipeline(
    path: str | os.PathLike[str], *, profile: str | None = None, settings: Iterable[str] = ()
) -> Pipeline:
    """The pipeline that a TOML file declares, ready to be run: ``manager.run(load_pipeline("papers.toml"), items)``.

    Modules are imported as by ``kgas-async run``: the working directory is looked in first. Services are made, not
    started: the pipeline brings them along. Call it from sync code, as it reads files and imports modules.

    Args:
        path: Of the file.
        profile: The name of one of its profiles, laid over it.
        settings: Further values, laid over both: ``["phase.embed.policy.timeout=60"]``.

    Raises:
        LoadError: Whatever is wrong, each mistake on a line, with the file, its line, the key and the mend.
    """
    return built(os.fspath(path), profile, settings).pipeline


def built(path: str, profile: str | None = None, settings: Iterable[str] = ()) -> Built:
    """The same, with the names that services and limits have in the file."""
    # Here, since making the tables' models takes 30 ms, which nobody else should wait for.
    from ._toml_build import build  # noqa: PLC0415
    from ._toml_text import read  # noqa: PLC0415

    if isinstance(settings, str):
        settings = [settings]
    return build(read(path, profile, tuple(settings)))
